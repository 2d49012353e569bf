// The convolution block: schema, CPU implementation over the kernels, and autograd.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "convolution.h"
#include "parallel.h"

namespace recurve {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

template <class T>
const T* data(const Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr<T>() : nullptr;
}

template <class T>
T* writable(const Tensor& tensor) {
  return tensor.defined() ? tensor.mutable_data_ptr<T>() : nullptr;
}

template <bool WINOGRAD>
ConvKept run_forward(const ConvInputs& in, bool keep) {
  const ConvShape& s = in.shape;
  TORCH_CHECK(!WINOGRAD || s.winograd_serves(),
              "conv_block_winograd serves kernels of 3 x 3 with stride 1 and dilation 1, pooled by 1, 2 or 4 rows, got "
              "kernel ",
              s.kernel[0], " x ", s.kernel[1], ", stride ", s.stride[0], ", ", s.stride[1], ", dilation ",
              s.dilation[0], ", ", s.dilation[1], ", pool_size ", s.window[0], ", ", s.window[1]);
  const ConvKept kept = empty_kept(in, keep);
  AT_DISPATCH_FLOATING_TYPES(in.x.scalar_type(), "recurve", [&] {
    kernels<scalar_t>().conv_forward({s, data<scalar_t>(in.x), data<scalar_t>(in.weight), data<scalar_t>(in.bias),
                                      kept.y.mutable_data_ptr<scalar_t>(), writable<uint8_t>(kept.places), WINOGRAD},
                                     torch_parallel());
  });
  return kept;
}

template <bool WINOGRAD>
ConvGradients run_backward(const ConvInputs& in, const Tensor& dy, const Tensor& y, const Tensor& places, bool need_x,
                           bool need_weight) {
  const ConvShape& s = in.shape;
  const ConvGradients d = empty_gradients(in, need_x, need_weight);
  AT_DISPATCH_FLOATING_TYPES(in.x.scalar_type(), "recurve", [&] {
    kernels<scalar_t>().conv_backward(
        {s, data<scalar_t>(in.x), data<scalar_t>(in.weight), data<scalar_t>(in.bias), data<scalar_t>(y),
         data<uint8_t>(places), data<scalar_t>(dy), writable<scalar_t>(d.x), writable<scalar_t>(d.weight),
         writable<scalar_t>(d.bias), WINOGRAD},
        torch_parallel());
  });
  return d;
}

// The op of that name, looked up once for each type and algorithm.
template <class Function, bool WINOGRAD = false>
auto& op(const char* name) {
  static auto handle = c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Function>();
  return handle;
}

template <bool WINOGRAD>
struct ConvFunction : torch::autograd::Function<ConvFunction<WINOGRAD>> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                        const ConvOptions& o) {
    at::AutoDispatchBelowADInplaceOrView below;
    auto [y, places] =
        op<decltype(conv_block_forward<run_forward<WINOGRAD>>), WINOGRAD>(
            WINOGRAD ? "recurve::conv_block_winograd_forward" : "recurve::conv_block_forward")
            .call(x, weight, bias, o.stride, o.padding, o.dilation, o.groups, o.activation, o.pool, o.window);
    // Without an activation y may change later, as after torch's own convolution.
    const bool needs_y = o.activation != "none" || (o.pool == "max" && places.numel() == 0);
    ctx->save_for_backward({x, weight, bias.value_or(Tensor()), needs_y ? y : Tensor(), places});
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
      return op<decltype(conv_block_backward<run_backward<WINOGRAD>>), WINOGRAD>(
                 WINOGRAD ? "recurve::conv_block_winograd_backward" : "recurve::conv_block_backward")
          .call(d[0], s[0], s[1], s[2].defined() ? OptionalTensor(s[2]) : std::nullopt, s[3].defined() ? s[3] : d[0],
                s[4], numbers("stride"), numbers("padding"), numbers("dilation"), ctx->saved_data["groups"].toInt(),
                ctx->saved_data["activation"].toStringRef(), ctx->saved_data["pool"].toStringRef(), numbers("window"),
                need_x, need_weight);
    };
    ConvBackwardResult r;
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

template <bool WINOGRAD>
Tensor conv_block_autograd(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, IntArrayRef stride,
                           IntArrayRef padding, IntArrayRef dilation, int64_t groups, c10::string_view activation,
                           c10::string_view pool, IntArrayRef window) {
  const bool differentiable =
      at::GradMode::is_enabled() &&
      (x.requires_grad() || weight.requires_grad() || (bias.has_value() && bias->defined() && bias->requires_grad()));
  if (differentiable)
    return ConvFunction<WINOGRAD>::apply(x, weight, bias,
                                         ConvOptions{stride, padding, dilation, groups, activation, pool, window});
  at::AutoDispatchBelowADInplaceOrView below;
  return op<decltype(conv_block<run_forward<WINOGRAD>>), WINOGRAD>(WINOGRAD ? "recurve::conv_block_winograd"
                                                                            : "recurve::conv_block")
      .call(x, weight, bias, stride, padding, dilation, groups, activation, pool, window);
}

}  // namespace

#define RECURVE_CALL "Tensor x, Tensor weight, Tensor? bias"
#define RECURVE_OPTIONS \
  "int[2] stride, int[2] padding, int[2] dilation, int groups, str activation, str pool, int[2] pool_size"
#define RECURVE_BACK \
  "Tensor dy, " RECURVE_CALL ", Tensor y, Tensor places, " RECURVE_OPTIONS ", bool need_x, bool need_weight"

TORCH_LIBRARY_FRAGMENT(recurve, m) {
  m.def("conv_block(" RECURVE_CALL ", " RECURVE_OPTIONS ") -> Tensor");
  m.def("conv_block_forward(" RECURVE_CALL ", " RECURVE_OPTIONS ") -> (Tensor, Tensor)");
  m.def("conv_block_winograd(" RECURVE_CALL ", " RECURVE_OPTIONS ") -> Tensor");
  m.def("conv_block_winograd_forward(" RECURVE_CALL ", " RECURVE_OPTIONS ") -> (Tensor, Tensor)");
  m.def("conv_block_backward(" RECURVE_BACK ") -> (Tensor, Tensor, Tensor)");
  m.def("conv_block_winograd_backward(" RECURVE_BACK ") -> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(recurve, CPU, m) {
  m.impl("conv_block", conv_block<run_forward<false>>);
  m.impl("conv_block_forward", conv_block_forward<run_forward<false>>);
  m.impl("conv_block_winograd", conv_block<run_forward<true>>);
  m.impl("conv_block_winograd_forward", conv_block_forward<run_forward<true>>);
  m.impl("conv_block_backward", conv_block_backward<run_backward<false>>);
  m.impl("conv_block_winograd_backward", conv_block_backward<run_backward<true>>);
}

TORCH_LIBRARY_IMPL(recurve, Autograd, m) {
  m.impl("conv_block", conv_block_autograd<false>);
  m.impl("conv_block_winograd", conv_block_autograd<true>);
}

}  // namespace recurve
