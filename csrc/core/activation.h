// Activation functions and their derivatives.
#pragma once

#include "math.h"

namespace recurve {

enum class Activation : int { none = 0, relu, leaky_relu, silu, tanh, sigmoid };

constexpr const char* activation_names[] = {"none", "relu", "leaky_relu", "silu", "tanh", "sigmoid"};
constexpr double leaky_relu_slope = 0.01;  // torch's default

// Whether the derivative can be told from the value alone.
constexpr bool slope_follows_from_value(Activation activation) { return activation != Activation::silu; }

// The sigmoid, exactly zero where its exponential would overflow, so that an infinite input times it is not a number.
template <class V>
RECURVE_INLINE V silu_gate(V pre) {
  return pre < -ExpConstants<typename Real<V>::Scalar>::highest ? V{} : sigmoid(pre);
}

template <class V>
RECURVE_INLINE V activate(V pre, Activation activation) {
  using T = typename Real<V>::Scalar;
  switch (activation) {
    case Activation::relu:
      return pre < static_cast<T>(0) ? V{} : pre;
    case Activation::leaky_relu:
      return pre < static_cast<T>(0) ? pre * static_cast<T>(leaky_relu_slope) : pre;
    case Activation::silu:
      return pre * silu_gate(pre);
    case Activation::tanh:
      return tanh(pre);
    case Activation::sigmoid:
      return sigmoid(pre);
    default:
      return pre;
  }
}

// The derivative at `pre`, given also its value there. Where the slope follows from the value, a caller without `pre`
// may give the value twice.
template <class V>
RECURVE_INLINE V activation_slope(V pre, V value, Activation activation) {
  using T = typename Real<V>::Scalar;
  const T one = 1;
  switch (activation) {
    case Activation::relu:
      return pre <= static_cast<T>(0) ? V{} : V{} + one;
    case Activation::leaky_relu:
      return pre > static_cast<T>(0) ? V{} + one : V{} + static_cast<T>(leaky_relu_slope);
    case Activation::silu: {
      const V s = silu_gate(pre);
      return s * (one + pre * (one - s));
    }
    case Activation::tanh:
      return one - value * value;
    case Activation::sigmoid:
      return value * (one - value);
    default:
      return V{} + one;
  }
}

}  // namespace recurve
