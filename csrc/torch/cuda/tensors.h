// From tensors to what the CUDA kernels take: element types, pointers, the current stream.
#pragma once

#include <ATen/ATen.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "../../cuda/kernels.h"

namespace recurve {

inline at::ScalarType accumulated(at::ScalarType type) { return type == at::kDouble ? at::kDouble : at::kFloat; }

// Calls f with a null pointer of the kernels' element type.
template <class F>
void for_type(at::ScalarType type, const F& f) {
  switch (type) {
    case at::kFloat:
      return f(static_cast<float*>(nullptr));
    case at::kDouble:
      return f(static_cast<double*>(nullptr));
    case at::kBFloat16:
      return f(static_cast<cuda::BFloat16*>(nullptr));
    case at::kHalf:
      return f(static_cast<cuda::Half*>(nullptr));
    default:
      TORCH_CHECK(false, "no CUDA kernel for ", type, "; allowed: float32, float64, bfloat16, float16");
  }
}

template <class T>
T* pointer(const at::Tensor& t) {
  return t.defined() && t.numel() > 0 ? static_cast<T*>(t.mutable_data_ptr()) : nullptr;
}
template <class T>
const T* constant(const at::Tensor& t) {
  return t.defined() && t.numel() > 0 ? static_cast<const T*>(t.const_data_ptr()) : nullptr;
}

}  // namespace recurve
