// What the convolution block is on any device: its tensors, checked, and its results, in the caller's shapes.
#pragma once

#include <ATen/ATen.h>

#include <string>

#include "../core/convolution.h"

namespace recurve {

using at::IntArrayRef;
using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr auto channels_last = at::MemoryFormat::ChannelsLast;

// What a call asks for besides its tensors.
struct ConvOptions {
  IntArrayRef stride, padding, dilation;
  int64_t groups;
  c10::string_view activation, pool;
  IntArrayRef window;
};

template <size_t N>
inline int code_of(c10::string_view name, const char* const (&names)[N], const char* what) {
  std::string allowed;
  for (size_t i = 0; i < N; ++i) {
    if (name == names[i]) return static_cast<int>(i);
    allowed += (i ? ", " : "") + std::string(names[i]);
  }
  TORCH_CHECK_VALUE(false, what, " '", name, "' is unknown; allowed: ", allowed);
  return -1;
}

// The tensors of a call, contiguous, the weights with a leading ensemble axis. On the CPU, images of one model may keep
// their channels last.
struct ConvInputs {
  Tensor x, weight, bias;
  ConvShape shape;
  bool ensemble;

  ConvInputs(const Tensor& x_, const Tensor& weight_, const OptionalTensor& bias_, const ConvOptions& o) {
    ensemble = weight_.dim() == 5;
    TORCH_CHECK(weight_.dim() == 4 || ensemble, "conv_block: weight must be (O, C / groups, kH, kW), with a leading E ",
                "or not, got ", weight_.sizes());
    shape.shared = x_.dim() == 4;
    TORCH_CHECK(shape.shared || (x_.dim() == 5 && ensemble), "conv_block: x must be (B, C, H, W), or (E, B, C, H, W) ",
                "beside weights with a leading E, got ", x_.sizes());
    TORCH_CHECK(x_.scalar_type() == weight_.scalar_type(), "Input type (", x_.scalar_type(), ") and weight type (",
                weight_.scalar_type(), ") should be the same");
    shape.channels_last = x_.is_cpu() && !ensemble && !x_.is_contiguous() && x_.is_contiguous(channels_last);
    x = laid_out(x_);
    weight = (ensemble ? weight_ : weight_.unsqueeze(0)).contiguous();
    shape.models = weight.size(0);
    if (!shape.shared)
      TORCH_CHECK(x.size(0) == shape.models, "conv_block: x has ", x.size(0), " models, the weight has ", shape.models);
    shape.batch = x.size(-4), shape.channels = x.size(-3), shape.height = x.size(-2), shape.width = x.size(-1);
    shape.outputs = weight.size(1);
    shape.groups = o.groups;
    TORCH_CHECK(o.groups > 0 && shape.outputs % o.groups == 0 && weight.size(2) * o.groups == shape.channels,
                "Given groups=", o.groups, ", weight of size ", weight_.sizes(), ", expected input to have ",
                weight.size(2) * o.groups, " channels, but got ", shape.channels, " channels instead");
    if (bias_.has_value() && bias_->defined()) {
      const bool leads = bias_->dim() == 2;
      TORCH_CHECK(bias_->size(-1) == shape.outputs &&
                      (bias_->dim() == 1 || (leads && ensemble && bias_->size(0) == shape.models)),
                  "conv_block: bias must be (", shape.outputs, ",), with a leading E or not, got ", bias_->sizes());
      TORCH_CHECK(bias_->scalar_type() == x.scalar_type(), "conv_block: bias is ", bias_->scalar_type(), ", x is ",
                  x.scalar_type(), "; convert one of them");
      bias = (leads ? *bias_ : bias_->unsqueeze(0).expand({shape.models, shape.outputs})).contiguous();
    }
    shape.activation = static_cast<Activation>(code_of(o.activation, activation_names, "activation"));
    shape.pool = static_cast<Pool>(code_of(o.pool, pool_names, "pool"));
    for (int axis = 0; axis < 2; ++axis) {
      shape.kernel[axis] = weight.size(3 + axis);
      shape.stride[axis] = o.stride[axis];
      shape.padding[axis] = o.padding[axis];
      shape.dilation[axis] = o.dilation[axis];
      shape.window[axis] = shape.pool == Pool::none ? 1 : o.window[axis];
    }
    for (int axis = 0; axis < 2; ++axis) {
      TORCH_CHECK(shape.stride[axis] > 0, "non-positive stride is not supported");
      TORCH_CHECK(shape.padding[axis] >= 0, "negative padding is not supported");
      TORCH_CHECK(shape.dilation[axis] > 0, "dilation should be greater than zero");
      TORCH_CHECK(shape.window[axis] > 0, "pool_size should be greater than zero");
      TORCH_CHECK(shape.kernel[axis] > 0, "kernel size should be greater than zero");
      const int64_t extent = shape.dilation[axis] * (shape.kernel[axis] - 1) + 1;
      const int64_t size = axis == 0 ? shape.height : shape.width;
      TORCH_CHECK(size + 2 * shape.padding[axis] >= extent, "Calculated padded input size per channel: (",
                  shape.height + 2 * o.padding[0], " x ", shape.width + 2 * o.padding[1], "). Kernel size: (",
                  weight.size(3), " x ", weight.size(4), "). Kernel size can't be greater than actual input size");
      TORCH_CHECK(shape.pooled(axis) > 0, "conv_block: pooling windows of ", shape.window[0], " x ", shape.window[1],
                  " are larger than the convolution's ", shape.convolved(0), " x ", shape.convolved(1));
    }
  }

  // Images as the kernels of this call read them.
  Tensor laid_out(const Tensor& images) const {
    if (!shape.channels_last || images.dim() < 4) return images.contiguous();
    return (images.dim() == 5 ? images.squeeze(0) : images).contiguous(channels_last);
  }

  // Room for images of all models, (E, B, channels, height, width).
  Tensor room(int64_t channels, int64_t height, int64_t width, at::ScalarType type) const {
    const auto options = x.options().dtype(type);
    if (!shape.channels_last) return at::empty({shape.models, shape.batch, channels, height, width}, options);
    return at::empty({shape.batch, channels, height, width}, options, channels_last).unsqueeze(0);
  }
};

struct ConvKept {
  Tensor y;       // (E, B, O, pooled H, pooled W)
  Tensor places;  // which pixel of each pooling window was the largest, like y, if the shape keeps that and asked for
};

struct ConvGradients {
  Tensor x, weight, bias;  // with a leading E; undefined where there is none to be
};

// Room for what the forward pass leaves, on the device of the inputs.
inline ConvKept empty_kept(const ConvInputs& in, bool keep) {
  const ConvShape& s = in.shape;
  auto room = [&](at::ScalarType type) { return in.room(s.outputs, s.pooled(0), s.pooled(1), type); };
  return {room(in.x.scalar_type()), keep && s.keeps_places() ? room(at::kByte) : Tensor()};
}

// Room for the gradients that are asked for, on the device of the inputs.
inline ConvGradients empty_gradients(const ConvInputs& in, bool need_x, bool need_weight) {
  const ConvShape& s = in.shape;
  const auto like = in.x.options();
  ConvGradients d;
  if (need_x) d.x = in.room(s.channels, s.height, s.width, in.x.scalar_type());
  if (need_weight) d.weight = at::empty(in.weight.sizes(), like);
  if (in.bias.defined()) d.bias = at::empty({s.models, s.outputs}, like);
  return d;
}

using ConvForwardRun = ConvKept (*)(const ConvInputs&, bool keep);
using ConvBackwardRun = ConvGradients (*)(const ConvInputs&, const Tensor& dy, const Tensor& y, const Tensor& places,
                                          bool need_x, bool need_weight);
using ConvForwardResult = std::tuple<Tensor, Tensor>;
using ConvBackwardResult = std::tuple<Tensor, Tensor, Tensor>;

// The op conv_block of a device.
template <ConvForwardRun RUN>
Tensor conv_block(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, IntArrayRef stride,
                  IntArrayRef padding, IntArrayRef dilation, int64_t groups, c10::string_view activation,
                  c10::string_view pool, IntArrayRef window) {
  const ConvInputs in(x, weight, bias, {stride, padding, dilation, groups, activation, pool, window});
  const Tensor y = RUN(in, false).y;
  return in.ensemble ? y : y.squeeze(0);
}

// The op conv_block_forward of a device: y as conv_block, and the places with a leading E, empty where there are none.
template <ConvForwardRun RUN>
ConvForwardResult conv_block_forward(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                                     IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, int64_t groups,
                                     c10::string_view activation, c10::string_view pool, IntArrayRef window) {
  const ConvInputs in(x, weight, bias, {stride, padding, dilation, groups, activation, pool, window});
  const ConvKept out = RUN(in, true);
  return {in.ensemble ? out.y : out.y.squeeze(0),
          out.places.defined() ? out.places : at::empty({0}, x.options().dtype(at::kByte))};
}

// The op conv_block_backward of a device. Where the activation is none and places tell the rest, any y will do.
template <ConvBackwardRun RUN>
ConvBackwardResult conv_block_backward(const Tensor& dy, const Tensor& x, const Tensor& weight,
                                       const OptionalTensor& bias, const Tensor& y, const Tensor& places,
                                       IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, int64_t groups,
                                       c10::string_view activation, c10::string_view pool, IntArrayRef window,
                                       bool need_x, bool need_weight) {
  const ConvInputs in(x, weight, bias, {stride, padding, dilation, groups, activation, pool, window});
  TORCH_CHECK(!in.shape.keeps_places() || places.numel() == y.numel(), "conv_block_backward: places must be as ",
              "conv_block_forward returned them, got ", places.sizes());
  const Tensor own_dy = in.laid_out(dy), own_y = y.is_same(dy) ? own_dy : in.laid_out(y);
  const ConvGradients d = RUN(in, own_dy, own_y, in.laid_out(places), need_x, need_weight);
  // A gradient in the shape of its input: summed over the models that shared it, without an axis that it lacked.
  auto shaped = [&](const Tensor& gradient, const OptionalTensor& input) {
    if (!gradient.defined()) return at::empty({0}, x.options());
    return gradient.dim() == input->dim() ? gradient : gradient.size(0) == 1 ? gradient.squeeze(0) : gradient.sum(0);
  };
  return {shaped(d.x, x), shaped(d.weight, weight), shaped(d.bias, bias)};
}

}  // namespace recurve
