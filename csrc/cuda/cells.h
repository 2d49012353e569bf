// One step of one unit of one sequence, forward and backward: what lies in global memory, around the equations of core.
#pragma once

#include "device.h"
#include "kernels.h"

namespace recurve::cuda {

struct RowStep {
  bool active;  // within the row's length
  bool reset;   // its state is zeroed before this step
};

__device__ __forceinline__ int64_t time_of(const SequenceShape& s, int64_t step) {
  return s.reverse ? s.steps - 1 - step : step;
}

__device__ __forceinline__ int64_t length_of(const SequenceShape& s, int b) {
  if (s.lengths == nullptr) return s.steps;
  const int64_t length = s.lengths[b];
  return length < 0 ? 0 : length > s.steps ? s.steps : length;
}

__device__ __forceinline__ RowStep row_step(const SequenceShape& s, int64_t step, int b) {
  const int64_t t = time_of(s, step);
  const bool active = s.lengths == nullptr || t < length_of(s, b);
  return {active, active && s.resets != nullptr && s.resets[t * s.batch + b]};
}

// Where one unit of one row is at one step.
struct Place {
  int64_t model, step;
  int b, unit;

  __device__ __forceinline__ int64_t row(const SequenceShape& s) const {  // of (E, T, B)
    return (model * s.steps + time_of(s, step)) * s.batch + b;
  }
  __device__ __forceinline__ int64_t gate(const SequenceShape& s, int gates) const {
    return row(s) * gates * s.hidden + unit;
  }
  __device__ __forceinline__ int64_t output(const SequenceShape& s) const { return row(s) * s.hidden + unit; }
  __device__ __forceinline__ int64_t state(const SequenceShape& s) const {  // in (E, B, H)
    return (model * s.batch + b) * s.hidden + unit;
  }
};

// ---------------------------------------------------------------------------------------------------- forward

// W x + biases of some gates.
template <class T, int GATES>
struct Projected {
  T gates[GATES];
};

template <int GATES, class T>
__device__ __forceinline__ Projected<T, GATES> projected(const SequenceForward<T>& s, const Place& at, int first_gate) {
  Projected<T, GATES> from;
  const T* gates = s.gates + at.gate(s.shape, gate_count(s.shape.cell)) + first_gate * s.shape.hidden;
#pragma unroll
  for (int g = 0; g < GATES; ++g) from.gates[g] = gates[g * s.shape.hidden];
  return from;
}

// The gates that a step's last product gives, the first of them, and the new state.
template <Cell CELL>
struct Forward;

template <>
struct Forward<Cell::lstm> {
  static constexpr int first_gate = 0, gates = 4;
  template <class T, class A = Accumulate<T>>
  static __device__ __forceinline__ A state(const SequenceForward<T>& s, const Place& at, const A (&product)[4],
                                            const Projected<T, 4>& in, A, A& c) {
    const LstmGates<A> gate =
        lstm_activate(LstmGates<A>{product[0] + widen(in.gates[0]), product[1] + widen(in.gates[1]),
                                   product[2] + widen(in.gates[2]), product[3] + widen(in.gates[3])});
    c = lstm_cell_state(gate, c);
    if (s.keep) {
      const int64_t H = s.shape.hidden;
      T* kept = s.gates + at.gate(s.shape, 4);
      kept[0] = narrow<T>(gate.i);
      kept[H] = narrow<T>(gate.f);
      kept[2 * H] = narrow<T>(gate.g);
      kept[3 * H] = narrow<T>(gate.o);
      s.aux[at.output(s.shape)] = c;
    }
    return lstm_hidden_state(gate, c);
  }
};

template <>
struct Forward<Cell::gru> {
  static constexpr int first_gate = 0, gates = 3;
  template <class T, class A = Accumulate<T>>
  static __device__ __forceinline__ A state(const SequenceForward<T>& s, const Place& at, const A (&product)[3],
                                            const Projected<T, 3>& in, A h_before, A&) {
    const int64_t H = s.shape.hidden;
    const A n_hidden = s.bias_n == nullptr ? product[2] : product[2] + widen(s.bias_n[at.model * H + at.unit]);
    const GruGates<A> gate = gru_activate(product[0] + widen(in.gates[0]), product[1] + widen(in.gates[1]),
                                          static_cast<A>(widen(in.gates[2])), n_hidden);
    if (s.keep) {
      T* kept = s.gates + at.gate(s.shape, 3);
      kept[0] = narrow<T>(gate.r);
      kept[H] = narrow<T>(gate.z);
      kept[2 * H] = narrow<T>(gate.n);
      s.aux[at.output(s.shape)] = n_hidden;
    }
    return gru_hidden_state(gate.z, gate.n, h_before);
  }
};

// The gates r and z of a GRU whose reset acts before the product; returns r h', which n will see.
template <class T, class A = Accumulate<T>>
__device__ __forceinline__ A gru_before_gates(const SequenceForward<T>& s, const Place& at, const A (&product)[2],
                                              const Projected<T, 2>& in, A h_before) {
  if (!row_step(s.shape, at.step, at.b).active) return 0;
  T* kept = s.gates + at.gate(s.shape, 3);
  const A r = sigmoid(product[0] + widen(in.gates[0]));
  kept[0] = narrow<T>(r);
  kept[s.shape.hidden] = narrow<T>(sigmoid(product[1] + widen(in.gates[1])));
  if (s.keep) s.aux[at.output(s.shape)] = r * h_before;
  return r * h_before;
}

template <>
struct Forward<Cell::gru_before> {
  static constexpr int first_gate = 2, gates = 1;
  template <class T, class A = Accumulate<T>>
  static __device__ __forceinline__ A state(const SequenceForward<T>& s, const Place& at, const A (&product)[1],
                                            const Projected<T, 1>& in, A h_before, A&) {
    T* kept = s.gates + at.gate(s.shape, 3);
    const A n = tanh(product[0] + widen(in.gates[0])), z = widen(kept[s.shape.hidden]);
    if (s.keep) kept[2 * s.shape.hidden] = narrow<T>(n);
    return gru_hidden_state(z, n, h_before);
  }
};

template <>
struct Forward<Cell::rnn> {
  static constexpr int first_gate = 0, gates = 1;
  template <class T, class A = Accumulate<T>>
  static __device__ __forceinline__ A state(const SequenceForward<T>& s, const Place& at, const A (&product)[1],
                                            const Projected<T, 1>& in, A h_before, A&) {
    const A leak = static_cast<A>(s.shape.leak);
    const A a = activate(product[0] + widen(in.gates[0]), s.shape.activation);
    if (s.keep) s.gates[at.gate(s.shape, 1)] = narrow<T>(a);
    return leak == 1 ? a : a * leak + h_before * (1 - leak);
  }
};

// Takes the step from h and c of the running state to `h_after` and c; where the next step starts with a reset they are
// zero already. Past a row's length the state stays.
template <Cell CELL, class T, class A = Accumulate<T>>
__device__ __forceinline__ void finish_step(const SequenceForward<T>& s, const Place& at,
                                            const A (&product)[Forward<CELL>::gates],
                                            const Projected<T, Forward<CELL>::gates>& in, A h, T* h_after, A* c) {
  const SequenceShape& shape = s.shape;
  A cell = CELL == Cell::lstm ? *c : A{};
  if (row_step(shape, at.step, at.b).active) {
    h = Forward<CELL>::state(s, at, product, in, h, cell);
    s.y[at.output(shape)] = narrow<T>(h);
  } else {
    s.y[at.output(shape)] = T{};
    if (s.keep && CELL != Cell::rnn) s.aux[at.output(shape)] = 0;
  }
  const bool zeroed = at.step + 1 < shape.steps && row_step(shape, at.step + 1, at.b).reset;
  *h_after = zeroed ? T{} : narrow<T>(h);
  if (CELL == Cell::lstm) *c = zeroed ? A{} : cell;
}

// The running state before the first step, and what is left of it after the last.
template <class T>
__device__ __forceinline__ T first_state(const SequenceShape& s, const T* state, const Place& at) {
  return row_step(s, 0, at.b).reset ? T{} : state[at.state(s)];
}

// --------------------------------------------------------------------------------------------------- backward

// The state before a step, from the states of all steps and the first.
template <class Steps, class T>
__device__ __forceinline__ auto state_before(const SequenceShape& s, const Place& at, const Steps* steps,
                                             const T* first) {
  const int64_t t = time_of(s, at.step), start = s.reverse ? length_of(s, at.b) - 1 : 0;
  if (row_step(s, at.step, at.b).reset) return decltype(widen(*first)){};
  if (t == start) return widen(first[at.state(s)]);
  const int64_t before = (at.model * s.steps + (s.reverse ? t + 1 : t - 1)) * s.batch + at.b;
  return widen(steps[before * s.hidden + at.unit]);
}

// From the gradients of the state after an active step, dh and dc, to those of its gates, and to what reaches the state
// before beside the weights. `passing`: the gradients that pass the weights, in the order of the weights' gates; of a
// GRU whose reset acts before the product, that of r follows once those of n are known for all units.
template <Cell CELL, class T, class A = Accumulate<T>>
__device__ __forceinline__ void differentiate(const SequenceBackward<T>& s, const Place& at, A& dh, A& dc,
                                              A (&passing)[gate_count(CELL)]) {
  const SequenceShape& shape = s.shape;
  const int64_t H = shape.hidden;
  const T* gates = s.gates + at.gate(shape, gate_count(CELL));
  T* left = s.dgates + at.gate(shape, gradient_count(CELL));
  if constexpr (CELL == Cell::lstm) {
    const LstmGates<A> gate{widen(gates[0]), widen(gates[H]), widen(gates[2 * H]), widen(gates[3 * H])};
    const LstmGates<A> d =
        lstm_backward(gate, static_cast<A>(state_before(shape, at, s.aux, s.c0)), s.aux[at.output(shape)], dh, dc);
    if (s.dc_steps != nullptr) s.dc_steps[at.output(shape)] = dc;
    passing[0] = d.i, passing[1] = d.f, passing[2] = d.g, passing[3] = d.o;
    dh = 0, dc *= gate.f;
  } else if constexpr (CELL == Cell::gru) {
    const GruGates<A> gate{widen(gates[0]), widen(gates[H]), widen(gates[2 * H])};
    const GruGradients<A> d =
        gru_backward(gate, s.aux[at.output(shape)], static_cast<A>(state_before(shape, at, s.y, s.h0)), dh);
    passing[0] = d.r, passing[1] = d.z, passing[2] = d.n_hidden;
    left[0] = narrow<T>(d.n_input);
    left += H;
    dh = d.h_before;
  } else if constexpr (CELL == Cell::gru_before) {
    const GruBeforeGradients<A> d =
        gru_before_backward(static_cast<A>(widen(gates[H])), static_cast<A>(widen(gates[2 * H])),
                            static_cast<A>(state_before(shape, at, s.y, s.h0)), dh);
    passing[0] = 0, passing[1] = d.z, passing[2] = d.n;
    dh = d.h_before;
  } else {
    const A a = widen(gates[0]), leak = static_cast<A>(shape.leak);
    passing[0] = dh * activation_slope(a, a, shape.activation) * leak;
    dh *= 1 - leak;
  }
#pragma unroll
  for (int g = 0; g < gate_count(CELL); ++g) left[g * H] = narrow<T>(passing[g]);
}

// Asks for what begin_step_back will read, so that it is near once the later step's products are done.
template <Cell CELL, class T>
__device__ __forceinline__ void expect_step_back(const SequenceBackward<T>& s, const Place& at) {
  if (at.step < 0) return;
  const SequenceShape& shape = s.shape;
#pragma unroll
  for (int g = 0; g < gate_count(CELL); ++g) prefetch(s.gates + at.gate(shape, gate_count(CELL)) + g * shape.hidden);
  if (s.dy != nullptr) prefetch(s.dy + at.output(shape));
  if (CELL == Cell::lstm || CELL == Cell::gru) prefetch(s.aux + at.output(shape));
  if (CELL != Cell::lstm && CELL != Cell::rnn) prefetch(s.y + at.output(shape));
}

// The step's gradients of a unit from those of its state in dh and dc; a row past its length only waits. Adds dy first.
template <Cell CELL, class T, class A = Accumulate<T>>
__device__ __forceinline__ void begin_step_back(const SequenceBackward<T>& s, const Place& at, A& dh, A& dc,
                                                A (&passing)[gate_count(CELL)]) {
  const SequenceShape& shape = s.shape;
  if (row_step(shape, at.step, at.b).active) {
    if (s.dy != nullptr) dh += widen(s.dy[at.output(shape)]);
    if (s.dh_steps != nullptr) s.dh_steps[at.output(shape)] = dh;
    differentiate<CELL>(s, at, dh, dc, passing);
  } else {
    T* left = s.dgates + at.gate(shape, gradient_count(CELL));
    for (int g = 0; g < gradient_count(CELL); ++g) left[g * shape.hidden] = T{};
    for (A& gradient : passing) gradient = 0;
  }
}

// Likewise the gradient of r of a GRU whose reset acts before the product, from `product`, that of r h'.
template <class T, class A = Accumulate<T>>
__device__ __forceinline__ A differentiate_reset(const SequenceBackward<T>& s, const Place& at, A product, A& dh) {
  if (!row_step(s.shape, at.step, at.b).active) return 0;
  const A r = widen(s.gates[at.gate(s.shape, 3)]);
  const A d = product * static_cast<A>(state_before(s.shape, at, s.y, s.h0)) * sigmoid_slope(r);
  s.dgates[at.gate(s.shape, 3)] = narrow<T>(d);
  dh += product * r;
  return d;
}

// From what reaches the state before a step beside the weights, and through them, to all of its gradient.
template <class T, class A = Accumulate<T>>
__device__ __forceinline__ void end_step_back(const SequenceShape& s, const Place& at, A product, A& dh, A& dc) {
  dh += product;
  if (row_step(s, at.step, at.b).reset) dh = 0, dc = 0;
}

}  // namespace recurve::cuda
