// exp, sigmoid and tanh to about one unit in the last place, for scalars and vectors of float and double.
//
// V is float, double, or a GCC/Clang vector of them. All follow from one range reduction,
//     exp(y) = 2^n exp(r),  n = round(y / ln 2),  |r| <= ln 2 / 2,
// with expm1(r) by its Taylor series, so that expm1, and with it tanh, keeps its relative precision near zero.
#pragma once

#include <cstdint>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "macros.h"

namespace recurve {

template <class V>
struct Real;  // Scalar: the element type; Bits: integers of the same shape

template <>
struct Real<float> {
  using Scalar = float;
  using Bits = int32_t;
};
template <>
struct Real<double> {
  using Scalar = double;
  using Bits = int64_t;
};

template <class T>
struct ExpConstants;

template <>
struct ExpConstants<float> {
  static constexpr float lowest = -87.0f, highest = 88.0f;
  static constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
  static constexpr float round_shift = 12582912.0f + 127;  // 1.5 * 2^23 + the bias of an exponent
  static constexpr int mantissa_bits = 23, degree = 7;
};
template <>
struct ExpConstants<double> {
  static constexpr double lowest = -708.0, highest = 709.0;
  static constexpr double ln2_high = 6.93147180369123816490e-01, ln2_low = 1.90821492927058770002e-10;
  static constexpr double round_shift = 6755399441055744.0 + 1023;  // 1.5 * 2^52 + the bias of an exponent
  static constexpr int mantissa_bits = 52, degree = 13;
};

template <class T>
constexpr T inverse_factorial(int n) {
  double product = 1;
  for (int i = 2; i <= n; ++i) product *= i;
  return static_cast<T>(1 / product);
}

// expm1(r) / r by Horner's rule, from the coefficient of the given degree down.
template <int degree, class V>
RECURVE_INLINE V expm1_over_r(V r, V sum) {
  using T = typename Real<V>::Scalar;
  if constexpr (degree == 0) {
    return sum;
  } else {
    return expm1_over_r<degree - 1>(r, sum * r + inverse_factorial<T>(degree));
  }
}

template <class V>
struct ExpParts {
  V scale, fraction;  // exp(y) = scale + scale * fraction
};

// The larger or smaller of a bound and y; of not-a-number, y. One instruction, which compilers miss for vectors.
template <class V>
RECURVE_INLINE V at_least(typename Real<V>::Scalar bound, V y) {
#if defined(__AVX512F__)
  if constexpr (sizeof(V) == 64 && sizeof(bound) == 4)
    return (V)_mm512_maskz_max_ps(0xffff, _mm512_set1_ps(bound), (__m512)y);
#elif defined(__AVX2__)
  if constexpr (sizeof(V) == 32 && sizeof(bound) == 4) return (V)_mm256_max_ps(_mm256_set1_ps(bound), (__m256)y);
#endif
  return y < bound ? V{} + bound : y;
}
template <class V>
RECURVE_INLINE V at_most(typename Real<V>::Scalar bound, V y) {
#if defined(__AVX512F__)
  if constexpr (sizeof(V) == 64 && sizeof(bound) == 4)
    return (V)_mm512_maskz_min_ps(0xffff, _mm512_set1_ps(bound), (__m512)y);
#elif defined(__AVX2__)
  if constexpr (sizeof(V) == 32 && sizeof(bound) == 4) return (V)_mm256_min_ps(_mm256_set1_ps(bound), (__m256)y);
#endif
  return y > bound ? V{} + bound : y;
}

// For y within [lowest, highest]. Adding round_shift rounds to an integer and leaves it, biased, in the last bits of
// the sum: shifted to their place they are the exponent of 2^n.
template <class V>
RECURVE_INLINE ExpParts<V> exp_parts(V y) {
  using T = typename Real<V>::Scalar;
  using Bits = typename Real<V>::Bits;
  using C = ExpConstants<T>;
  const V shifted = y * static_cast<T>(1.44269504088896340736) + C::round_shift;
  const V n = shifted - C::round_shift;
  const V r = (y - n * C::ln2_high) - n * C::ln2_low;
  const V series = expm1_over_r<C::degree - 1>(r, V{} + inverse_factorial<T>(C::degree));
  const Bits scale = __builtin_bit_cast(Bits, shifted) << C::mantissa_bits;
  return {__builtin_bit_cast(V, scale), series * r};
}

#if defined(__CUDA_ARCH__)
// On a GPU, exp and the reciprocal of float are instructions, right to about two units in the last place.
__device__ __forceinline__ float reciprocal_of_one_plus_exp(float x) {
  float e, r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(x * 1.44269504088896340736f));
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(e + 1.0f));
  return r;
}
#endif

template <class V>
RECURVE_INLINE V sigmoid(V x) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(V) == 4) return reciprocal_of_one_plus_exp(-x);
#endif
  using T = typename Real<V>::Scalar;
  using C = ExpConstants<T>;
  const ExpParts<V> e = exp_parts(at_least(C::lowest, at_most(C::highest, -x)));
  return static_cast<T>(1) / ((e.scale + static_cast<T>(1)) + e.scale * e.fraction);
}

template <class V>
RECURVE_INLINE V tanh(V x) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(V) == 4) {  // near zero, where 1 - 2 / (1 + exp(2 x)) cancels, by its Taylor series
    const float square = x * x;
    const float series =
        x + x * square * (square * (square * (square * (62.0f / 2835) - 17.0f / 315) + 2.0f / 15) - 1.0f / 3);
    return square < 0.0625f ? series : 1.0f - 2.0f * reciprocal_of_one_plus_exp(x + x);
  }
#endif
  using T = typename Real<V>::Scalar;
  using Bits = typename Real<V>::Bits;
  const Bits signs = __builtin_bit_cast(Bits, -V{}), bits = __builtin_bit_cast(Bits, x);
  const V negative = __builtin_bit_cast(V, bits | signs);
  const ExpParts<V> e = exp_parts(at_least(ExpConstants<T>::lowest, negative + negative));
  const V expm1 = e.scale * e.fraction + (e.scale - static_cast<T>(1));
  const Bits magnitude = __builtin_bit_cast(Bits, expm1 / (expm1 + static_cast<T>(2))) & ~signs;
  return __builtin_bit_cast(V, magnitude | (bits & signs));
}

}  // namespace recurve
