// exp, sigmoid and tanh to about one unit in the last place, for scalars and vectors of float and double.
//
// V is float, double, or a GCC/Clang vector of them. All follow from one range reduction,
//     exp(y) = 2^n exp(r),  n = round(y / ln 2),  |r| <= ln 2 / 2,
// with expm1(r) by its Taylor series, so that expm1, and with it tanh, keeps its relative precision near zero.
#pragma once

#include <cstdint>

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
  static constexpr float round_shift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  static constexpr int mantissa_bits = 23, exponent_bias = 127, degree = 7;
};
template <>
struct ExpConstants<double> {
  static constexpr double lowest = -708.0, highest = 709.0;
  static constexpr double ln2_high = 6.93147180369123816490e-01, ln2_low = 1.90821492927058770002e-10;
  static constexpr double round_shift = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr int mantissa_bits = 52, exponent_bias = 1023, degree = 13;
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

template <class V>
RECURVE_INLINE ExpParts<V> exp_parts(V y) {
  using T = typename Real<V>::Scalar;
  using Bits = typename Real<V>::Bits;
  using C = ExpConstants<T>;
  // Comparisons written so that NaN passes through.
  y = y < C::lowest ? V{} + C::lowest : y;
  y = y > C::highest ? V{} + C::highest : y;
  const V shifted = y * static_cast<T>(1.44269504088896340736) + C::round_shift;
  const V n = shifted - C::round_shift;
  const V r = (y - n * C::ln2_high) - n * C::ln2_low;
  const V one = V{} + static_cast<T>(1);
  const V series = expm1_over_r<C::degree - 1>(r, one * inverse_factorial<T>(C::degree));
  const Bits exponent = __builtin_bit_cast(Bits, shifted) - __builtin_bit_cast(Bits, one * C::round_shift);
  const Bits scale = (exponent + C::exponent_bias) << C::mantissa_bits;
  return {__builtin_bit_cast(V, scale), series * r};
}

template <class V>
RECURVE_INLINE V sigmoid(V x) {
  using T = typename Real<V>::Scalar;
  const ExpParts<V> e = exp_parts(-x);
  return static_cast<T>(1) / ((e.scale + static_cast<T>(1)) + e.scale * e.fraction);
}

template <class V>
RECURVE_INLINE V tanh(V x) {
  using T = typename Real<V>::Scalar;
  const V magnitude = x < static_cast<T>(0) ? -x : x;
  const ExpParts<V> e = exp_parts(magnitude * static_cast<T>(-2));
  const V expm1 = e.scale * e.fraction + (e.scale - static_cast<T>(1));
  const V t = -expm1 / (expm1 + static_cast<T>(2));
  return x < static_cast<T>(0) ? -t : t;
}

}  // namespace recurve
