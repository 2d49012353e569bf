// The convolution block: schema, CPU implementation over the kernels, and autograd.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "parallel.h"

namespace recurve {
namespace {

using at::IntArrayRef;
using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// What a call asks for besides its tensors.
struct Options {
  IntArrayRef stride, padding, dilation;
  int64_t groups;
  c10::string_view activation, pool;
  IntArrayRef window;
};

template <size_t N>
int code_of(c10::string_view name, const char* const (&names)[N], const char* what) {
  std::string allowed;
  for (size_t i = 0; i < N; ++i) {
    if (name == names[i]) return static_cast<int>(i);
    allowed += (i ? ", " : "") + std::string(names[i]);
  }
  TORCH_CHECK_VALUE(false, what, " '", name, "' is unknown; allowed: ", allowed);
}

// The tensors of a call, contiguous, the weights with a leading ensemble axis.
struct Inputs {
  Tensor x, weight, bias;
  ConvShape shape;
  bool ensemble;

  Inputs(const Tensor& x_, const Tensor& weight_, const OptionalTensor& bias_, const Options& o) {
    ensemble = weight_.dim() == 5;
    TORCH_CHECK(weight_.dim() == 4 || ensemble, "conv_block: weight must be (O, C / groups, kH, kW), with a leading E ",
                "or not, got ", weight_.sizes());
    shape.shared = x_.dim() == 4;
    TORCH_CHECK(shape.shared || (x_.dim() == 5 && ensemble), "conv_block: x must be (B, C, H, W), or (E, B, C, H, W) ",
                "beside weights with a leading E, got ", x_.sizes());
    TORCH_CHECK(x_.scalar_type() == weight_.scalar_type(), "Input type (", x_.scalar_type(), ") and weight type (",
                weight_.scalar_type(), ") should be the same");
    x = x_.contiguous();
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
      TORCH_CHECK(shape.stride[axis] == 1, "conv_block: the fused kernel serves stride 1 only, got ",
                  shape.stride[axis], "; recurve.ops.conv_block runs other strides natively");
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
};

template <class T>
const T* data(const Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr<T>() : nullptr;
}

template <class T>
T* writable(const Tensor& tensor) {
  return tensor.defined() ? tensor.mutable_data_ptr<T>() : nullptr;
}

// y, and which pixel of each pooling window was the largest if the shape keeps that and `keep` says so, else empty.
std::tuple<Tensor, Tensor> forward_cpu(const Inputs& in, bool keep) {
  const ConvShape& s = in.shape;
  const Tensor y = at::empty({s.models, s.batch, s.outputs, s.pooled(0), s.pooled(1)}, in.x.options());
  keep = keep && s.keeps_places();
  const Tensor places = keep ? at::empty(y.sizes(), y.options().dtype(at::kByte)) : Tensor();
  AT_DISPATCH_FLOATING_TYPES(in.x.scalar_type(), "recurve", [&] {
    kernels<scalar_t>().conv_forward({s, data<scalar_t>(in.x), data<scalar_t>(in.weight), data<scalar_t>(in.bias),
                                      y.mutable_data_ptr<scalar_t>(), writable<uint8_t>(places)},
                                     torch_parallel());
  });
  return {in.ensemble ? y : y.squeeze(0), keep ? places : at::empty({0}, y.options().dtype(at::kByte))};
}

Tensor conv_block_cpu(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, IntArrayRef stride,
                      IntArrayRef padding, IntArrayRef dilation, int64_t groups, c10::string_view activation,
                      c10::string_view pool, IntArrayRef window) {
  const Inputs in(x, weight, bias, {stride, padding, dilation, groups, activation, pool, window});
  return std::get<0>(forward_cpu(in, false));
}

std::tuple<Tensor, Tensor> conv_block_forward_cpu(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                                                  IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation,
                                                  int64_t groups, c10::string_view activation, c10::string_view pool,
                                                  IntArrayRef window) {
  const Inputs in(x, weight, bias, {stride, padding, dilation, groups, activation, pool, window});
  return forward_cpu(in, true);
}

using BackwardResult = std::tuple<Tensor, Tensor, Tensor>;

BackwardResult conv_block_backward_cpu(const Tensor& dy, const Tensor& x, const Tensor& weight,
                                       const OptionalTensor& bias, const Tensor& y, const Tensor& places,
                                       IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, int64_t groups,
                                       c10::string_view activation, c10::string_view pool, IntArrayRef window,
                                       bool need_x, bool need_weight) {
  const Inputs in(x, weight, bias, {stride, padding, dilation, groups, activation, pool, window});
  const ConvShape& s = in.shape;
  TORCH_CHECK(!s.keeps_places() || places.numel() == y.numel(), "conv_block_backward: places must be as ",
              "conv_block_forward returned them, got ", places.sizes());
  const auto like = in.x.options();
  const Tensor dx = need_x ? at::empty({s.models, s.batch, s.channels, s.height, s.width}, like) : Tensor();
  const Tensor dweight = need_weight ? at::empty(in.weight.sizes(), like) : Tensor();
  const Tensor dbias = in.bias.defined() ? at::empty({s.models, s.outputs}, like) : Tensor();
  const Tensor dy_ = dy.contiguous(), y_ = y.contiguous(), places_ = places.contiguous();
  AT_DISPATCH_FLOATING_TYPES(in.x.scalar_type(), "recurve", [&] {
    kernels<scalar_t>().conv_backward({s, data<scalar_t>(in.x), data<scalar_t>(in.weight), data<scalar_t>(in.bias),
                                       data<scalar_t>(y_), data<uint8_t>(places_), data<scalar_t>(dy_),
                                       writable<scalar_t>(dx), writable<scalar_t>(dweight), writable<scalar_t>(dbias)},
                                      torch_parallel());
  });
  // A gradient in the shape of its input: summed over the models that shared it, without an axis that it lacked.
  auto shaped = [&](const Tensor& gradient, const OptionalTensor& input) {
    if (!gradient.defined()) return at::empty({0}, like);
    return gradient.dim() == input->dim() ? gradient : gradient.size(0) == 1 ? gradient.squeeze(0) : gradient.sum(0);
  };
  return {shaped(dx, x), shaped(dweight, weight), shaped(dbias, bias)};
}

template <class Function>
auto& op(const char* name) {
  static auto handle = c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Function>();
  return handle;
}

struct ConvFunction : torch::autograd::Function<ConvFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                        const Options& o) {
    at::AutoDispatchBelowADInplaceOrView below;
    auto [y, places] =
        op<decltype(conv_block_forward_cpu)>("recurve::conv_block_forward")
            .call(x, weight, bias, o.stride, o.padding, o.dilation, o.groups, o.activation, o.pool, o.window);
    ctx->save_for_backward({x, weight, bias.value_or(Tensor()), y, places});
    ctx->saved_data["stride"] = o.stride;
    ctx->saved_data["padding"] = o.padding;
    ctx->saved_data["dilation"] = o.dilation;
    ctx->saved_data["groups"] = o.groups;
    ctx->saved_data["activation"] = std::string(o.activation);
    ctx->saved_data["pool"] = std::string(o.pool);
    ctx->saved_data["window"] = o.window;
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list d) {
    const variable_list s = ctx->get_saved_variables();
    auto numbers = [&](const char* name) { return ctx->saved_data[name].toIntVector(); };
    const bool need_x = ctx->needs_input_grad(0), need_weight = ctx->needs_input_grad(1);
    auto run = [&] {
      return op<decltype(conv_block_backward_cpu)>("recurve::conv_block_backward")
          .call(d[0], s[0], s[1], s[2].defined() ? OptionalTensor(s[2]) : std::nullopt, s[3], s[4], numbers("stride"),
                numbers("padding"), numbers("dilation"), ctx->saved_data["groups"].toInt(),
                ctx->saved_data["activation"].toStringRef(), ctx->saved_data["pool"].toStringRef(), numbers("window"),
                need_x, need_weight);
    };
    BackwardResult r;
    if (at::GradMode::is_enabled()) {
      r = run();  // a gradient of this gradient may be asked for
    } else {
      at::AutoDispatchBelowADInplaceOrView below;
      r = run();
    }
    return {need_x ? std::get<0>(r) : Tensor(), need_weight ? std::get<1>(r) : Tensor(),
            s[2].defined() ? std::get<2>(r) : Tensor(), Tensor()};
  }
};

Tensor conv_block_autograd(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, IntArrayRef stride,
                           IntArrayRef padding, IntArrayRef dilation, int64_t groups, c10::string_view activation,
                           c10::string_view pool, IntArrayRef window) {
  const bool differentiable =
      at::GradMode::is_enabled() &&
      (x.requires_grad() || weight.requires_grad() || (bias.has_value() && bias->defined() && bias->requires_grad()));
  if (differentiable)
    return ConvFunction::apply(x, weight, bias, Options{stride, padding, dilation, groups, activation, pool, window});
  at::AutoDispatchBelowADInplaceOrView below;
  return op<decltype(conv_block_cpu)>("recurve::conv_block")
      .call(x, weight, bias, stride, padding, dilation, groups, activation, pool, window);
}

}  // namespace

#define RECURVE_CALL "Tensor x, Tensor weight, Tensor? bias"
#define RECURVE_OPTIONS \
  "int[2] stride, int[2] padding, int[2] dilation, int groups, str activation, str pool, int[2] pool_size"

TORCH_LIBRARY_FRAGMENT(recurve, m) {
  m.def("conv_block(" RECURVE_CALL ", " RECURVE_OPTIONS ") -> Tensor");
  m.def("conv_block_forward(" RECURVE_CALL ", " RECURVE_OPTIONS ") -> (Tensor, Tensor)");
  m.def("conv_block_backward(Tensor dy, " RECURVE_CALL ", Tensor y, Tensor places, " RECURVE_OPTIONS
        ", bool need_x, bool need_weight) -> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(recurve, CPU, m) {
  m.impl("conv_block", conv_block_cpu);
  m.impl("conv_block_forward", conv_block_forward_cpu);
  m.impl("conv_block_backward", conv_block_backward_cpu);
}

TORCH_LIBRARY_IMPL(recurve, Autograd, m) { m.impl("conv_block", conv_block_autograd); }

}  // namespace recurve
