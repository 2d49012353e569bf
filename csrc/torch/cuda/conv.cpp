// The convolution block on CUDA.
#include <ATen/Context.h>
#include <torch/library.h>

#include "../convolution.h"
#include "tensors.h"

namespace recurve {
namespace {

void check_conv_device(const ConvInputs& in) {
  for (const Tensor& t : {in.weight, in.bias})
    TORCH_CHECK(!t.defined() || t.device() == in.x.device(), "conv_block: x is on ", in.x.device(),
                ", weight or bias on ", t.device());
  TORCH_CHECK(in.shape.channels > 0, "conv_block: x must have at least one channel, got ", in.x.sizes());
}

template <class T>
cuda::Math conv_math() {
  return cuda::math_of<T>(at::globalContext().allowTF32CuDNN(at::Float32Op::CONV));
}

ConvKept run_conv_forward(const ConvInputs& in, bool keep) {
  check_conv_device(in);
  const c10::cuda::CUDAGuard guard(in.x.device());
  const ConvShape& s = in.shape;
  const ConvKept kept = empty_kept(in, keep);
  for_type(in.x.scalar_type(), [&]<class T>(T*) {
    C10_CUDA_CHECK(cuda::conv_forward<T>({s, constant<T>(in.x), constant<T>(in.weight), constant<T>(in.bias),
                                          pointer<T>(kept.y), pointer<uint8_t>(kept.places)},
                                         conv_math<T>(), c10::cuda::getCurrentCUDAStream().stream()));
  });
  return kept;
}

ConvGradients run_conv_backward(const ConvInputs& in, const Tensor& dy, const Tensor& y, const Tensor& places,
                                bool need_x, bool need_weight) {
  check_conv_device(in);
  const c10::cuda::CUDAGuard guard(in.x.device());
  const ConvShape& s = in.shape;
  const auto like = in.x.options();
  const ConvGradients d = empty_gradients(in, need_x, need_weight);
  for_type(in.x.scalar_type(), [&]<class T>(T*) {
    using A = cuda::Accumulate<T>;
    const cuda::Math math = conv_math<T>();
    const cuda::ConvScratch sizes = cuda::conv_scratch<T>(s, math);
    const Tensor pixels = at::empty({sizes.pixels}, like);
    const Tensor sums = at::empty({sizes.sums}, like.dtype(accumulated(in.x.scalar_type())));
    C10_CUDA_CHECK(cuda::conv_backward<T>(
        {s, constant<T>(in.x), constant<T>(in.weight), constant<T>(in.bias), constant<T>(y), constant<uint8_t>(places),
         constant<T>(dy), pointer<T>(d.x), pointer<T>(d.weight), pointer<T>(d.bias)},
        math, pointer<T>(pixels), pointer<A>(sums), c10::cuda::getCurrentCUDAStream().stream()));
  });
  return d;
}

}  // namespace

TORCH_LIBRARY_IMPL(recurve, CUDA, m) {
  m.impl("conv_block", conv_block<run_conv_forward>);
  m.impl("conv_block_forward", conv_block_forward<run_conv_forward>);
  m.impl("conv_block_backward", conv_block_backward<run_conv_backward>);
}

}  // namespace recurve
