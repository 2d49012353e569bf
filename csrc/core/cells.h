// The equations of the recurrent cells, forward and backward, for one unit (or one vector of units).
//
// "pre" is a gate before its activation. Backward functions take the gradient of the new state and return the
// gradients of the pre-activations and of the old state along the path that does not pass the weights.
#pragma once

#include "math.h"

namespace recurve {

// The sigmoid's derivative, given its value.
template <class V>
RECURVE_INLINE V sigmoid_slope(V value) {
  using T = typename Real<V>::Scalar;
  return value * (static_cast<T>(1) - value);
}

// LSTM (Gers et al. 2000): c = f c' + i g, h = o tanh(c).
template <class V>
struct LstmGates {
  V i, f, g, o;
};

template <class V>
RECURVE_INLINE LstmGates<V> lstm_activate(const LstmGates<V>& pre) {
  return {sigmoid(pre.i), sigmoid(pre.f), tanh(pre.g), sigmoid(pre.o)};
}

template <class V>
RECURVE_INLINE V lstm_cell_state(const LstmGates<V>& gates, V c_before) {
  return gates.f * c_before + gates.i * gates.g;
}

template <class V>
RECURVE_INLINE V lstm_hidden_state(const LstmGates<V>& gates, V c) {
  return gates.o * tanh(c);
}

// `dc` comes in as the gradient from later steps and goes out as all of it; times f it is that of the step before.
template <class V>
RECURVE_INLINE LstmGates<V> lstm_backward(const LstmGates<V>& gates, V c_before, V c, V dh, V& dc) {
  using T = typename Real<V>::Scalar;
  const T one = 1;
  const V tanh_c = tanh(c);
  dc += dh * gates.o * (one - tanh_c * tanh_c);
  return {dc * gates.g * sigmoid_slope(gates.i), dc * c_before * sigmoid_slope(gates.f),
          dc * gates.i * (one - gates.g * gates.g), dh * tanh_c * sigmoid_slope(gates.o)};
}

// GRU with the reset gate after the product, as in torch: n = tanh(n_x + r n_h), h = (1 - z) n + z h'.
template <class V>
struct GruGates {
  V r, z, n;
};

template <class V>
RECURVE_INLINE V gru_new_state(V r, V n_input, V n_hidden) {
  return tanh(n_input + r * n_hidden);
}

template <class V>
RECURVE_INLINE GruGates<V> gru_activate(V pre_r, V pre_z, V n_input, V n_hidden) {
  const V r = sigmoid(pre_r);
  return {r, sigmoid(pre_z), gru_new_state(r, n_input, n_hidden)};
}

template <class V>
RECURVE_INLINE V gru_hidden_state(V z, V n, V h_before) {
  return n + z * (h_before - n);
}

template <class V>
struct GruGradients {
  V n_input, r, z, n_hidden, h_before;
};

template <class V>
RECURVE_INLINE GruGradients<V> gru_backward(const GruGates<V>& gates, V n_hidden, V h_before, V dh) {
  using T = typename Real<V>::Scalar;
  const T one = 1;
  const V dn = dh * (one - gates.z) * (one - gates.n * gates.n);
  return {dn, dn * n_hidden * sigmoid_slope(gates.r), dh * (h_before - gates.n) * sigmoid_slope(gates.z), dn * gates.r,
          dh * gates.z};
}

// GRU with the reset gate before the product, as in Cho et al. 2014: n = tanh(n_x + U (r h')), the rest as above.
template <class V>
struct GruBeforeGradients {
  V n, z, h_before;
};

template <class V>
RECURVE_INLINE GruBeforeGradients<V> gru_before_backward(V z, V n, V h_before, V dh) {
  using T = typename Real<V>::Scalar;
  const T one = 1;
  return {dh * (one - z) * (one - n * n), dh * (h_before - n) * sigmoid_slope(z), dh * z};
}

}  // namespace recurve
