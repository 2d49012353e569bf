// The element types of the CUDA kernels: float, double, and two of 16 bits that are read and written as float.
#pragma once

#include <cstdint>

#include "../core/macros.h"

namespace recurve::cuda {

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

template <class T>
struct Arithmetic {
  using Type = T;
};
template <>
struct Arithmetic<BFloat16> {
  using Type = float;
};
template <>
struct Arithmetic<Half> {
  using Type = float;
};

// What sums over T are kept in.
template <class T>
using Accumulate = typename Arithmetic<T>::Type;

RECURVE_INLINE float widen(float value) { return value; }
RECURVE_INLINE double widen(double value) { return value; }
RECURVE_INLINE float widen(BFloat16 value) {
  return __builtin_bit_cast(float, static_cast<uint32_t>(value.bits) << 16);
}
RECURVE_INLINE float widen(Half value) {
#if defined(__CUDA_ARCH__)
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
  return wide;
#elif defined(__CUDACC__)
  return 0;  // the host side of nvcc calls no kernel
#else
  return static_cast<float>(__builtin_bit_cast(_Float16, value.bits));
#endif
}

// The nearest T, ties to even.
template <class T>
RECURVE_INLINE T narrow(Accumulate<T> value) {
  if constexpr (sizeof(T) == sizeof(value)) {
    return value;
  } else {
    T result;
#if defined(__CUDA_ARCH__)
    if constexpr (__is_same(T, BFloat16))
      asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
    else
      asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
#elif defined(__CUDACC__)
    result.bits = 0;
#else
    if constexpr (__is_same(T, BFloat16)) {
      const uint32_t bits = __builtin_bit_cast(uint32_t, value);
      result.bits = static_cast<uint16_t>(value != value ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    } else {
      result.bits = __builtin_bit_cast(uint16_t, static_cast<_Float16>(value));
    }
#endif
    return result;
  }
}

}  // namespace recurve::cuda
