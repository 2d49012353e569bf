// One step of one unit of one sequence, forward and backward: what lies in global memory, around the equations of core.
#pragma once

#include "device.h"
#include "kernels.h"

namespace recurve::cuda {

// One step of some sequences: those from b0 on.
struct Step {
  int number, time;  // counted in the direction of the sequences, and from their first element
  int b0;
  bool masked;  // there are lengths or resets
};

__device__ __forceinline__ Step step_of(const SequenceShape& s, int b0, int number) {
  const int time = s.reverse ? static_cast<int>(s.steps) - 1 - number : number;
  return {number, time, b0, s.lengths != nullptr || s.resets != nullptr};
}

// How many rows of (E, T, B) on the step after lies.
__device__ __forceinline__ int64_t rows_of_step(const SequenceShape& s) { return s.reverse ? -s.batch : s.batch; }

__device__ __forceinline__ Step after(const SequenceShape& s, const Step& step, int steps) {
  return {step.number + steps, step.time + (s.reverse ? -steps : steps), step.b0, step.masked};
}

// One unit of one row of a step: of sequence b0 + row.
struct Place {
  Step step;
  int row, unit;

  __device__ __forceinline__ int b() const { return step.b0 + row; }
  // Among the step's values of so many a row, which a pointer to the step's first row leaves small.
  __device__ __forceinline__ int of(int width) const { return row * width + unit; }
};

template <class V>
__device__ __forceinline__ V* moved(V* values, int64_t by) {
  return values == nullptr ? nullptr : values + by;
}

// The sequence with its pointers to values of each step moved by so many rows of (E, T, B): to a step's first row.
template <class T>
__device__ __forceinline__ SequenceForward<T> moved(SequenceForward<T> s, int64_t rows) {
  const int64_t H = s.shape.hidden;
  s.gates = moved(s.gates, rows * gate_count(s.shape.cell) * H);
  s.aux = moved(s.aux, rows * H);
  s.y = moved(s.y, rows * H);
  return s;
}
template <class T>
__device__ __forceinline__ SequenceBackward<T> moved(SequenceBackward<T> s, int64_t rows) {
  const int64_t H = s.shape.hidden;
  s.gates = moved(s.gates, rows * gate_count(s.shape.cell) * H);
  s.dgates = moved(s.dgates, rows * gradient_count(s.shape.cell) * H);
  s.aux = moved(s.aux, rows * H);
  s.y = moved(s.y, rows * H);
  s.dy = moved(s.dy, rows * H);
  return s;
}
// The sequence with its pointers moved to a step's first row, and those to states (E, B, H) to the same sequence.
template <class T>
__device__ __forceinline__ SequenceForward<T> moved(SequenceForward<T> s, int64_t model, const Step& step) {
  const int64_t B = s.shape.batch, states = (model * B + step.b0) * s.shape.hidden;
  s.h0 = moved(s.h0, states), s.c0 = moved(s.c0, states);
  s.h_n = moved(s.h_n, states), s.c_n = moved(s.c_n, states);
  s.bias_n = moved(s.bias_n, model * s.shape.hidden);
  return moved(s, (model * s.shape.steps + step.time) * B + step.b0);
}
template <class T>
__device__ __forceinline__ SequenceBackward<T> moved(SequenceBackward<T> s, int64_t model, const Step& step) {
  const int64_t B = s.shape.batch, states = (model * B + step.b0) * s.shape.hidden;
  s.h0 = moved(s.h0, states), s.c0 = moved(s.c0, states);
  s.dh_n = moved(s.dh_n, states), s.dc_n = moved(s.dc_n, states);
  s.dh0 = moved(s.dh0, states), s.dc0 = moved(s.dc0, states);
  return moved(s, (model * s.shape.steps + step.time) * B + step.b0);
}

struct RowStep {
  bool active;  // within the row's length
  bool reset;   // its state is zeroed before this step
};

__device__ __forceinline__ int64_t length_of(const SequenceShape& s, int b) {
  if (s.lengths == nullptr) return s.steps;
  const int64_t length = s.lengths[b];
  return length < 0 ? 0 : length > s.steps ? s.steps : length;
}

__device__ __forceinline__ RowStep row_step(const SequenceShape& s, const Step& step, int b) {
  if (!step.masked) return {true, false};
  const bool active = step.time < length_of(s, b);
  return {active, active && s.resets != nullptr && s.resets[step.time * s.batch + b]};
}
__device__ __forceinline__ RowStep row_step(const SequenceShape& s, const Place& at) {
  return row_step(s, at.step, at.b());
}

// ---------------------------------------------------------------------------------------------------- forward

// What a step needs beside the states: W x + biases of some gates, and the bias that n of a GRU has beside it.
template <class T, int GATES>
struct Projected {
  T gates[GATES];
  T bias_n;
};

template <int GATES, class T>
__device__ __forceinline__ Projected<T, GATES> projected(const SequenceForward<T>& s, const Place& at, int first_gate) {
  Projected<T, GATES> from{};
  const int H = static_cast<int>(s.shape.hidden);
  const T* gates = s.gates + at.of(gate_count(s.shape.cell) * H) + first_gate * H;
#pragma unroll
  for (int g = 0; g < GATES; ++g) from.gates[g] = gates[g * H];
  if (GATES == 3 && s.bias_n != nullptr) from.bias_n = s.bias_n[at.unit];
  return from;
}

// What a step leaves of a unit. Computed for several units first and stored then, so that none waits for another.
template <class A, int GATES>
struct Reached {
  A gates[GATES];
  A aux, h, c;
};

// The gates that a step's last product gives, the first of them, and the new state.
template <Cell CELL>
struct Forward;

template <>
struct Forward<Cell::lstm> {
  static constexpr int first_gate = 0, gates = 4;
  template <class T, class A = Accumulate<T>>
  static __device__ __forceinline__ Reached<A, 4> reach(const SequenceForward<T>&, const Place&, const A (&product)[4],
                                                        const Projected<T, 4>& in, A, A c) {
    const LstmGates<A> gate =
        lstm_activate(LstmGates<A>{product[0] + widen(in.gates[0]), product[1] + widen(in.gates[1]),
                                   product[2] + widen(in.gates[2]), product[3] + widen(in.gates[3])});
    c = lstm_cell_state(gate, c);
    return {{gate.i, gate.f, gate.g, gate.o}, c, lstm_hidden_state(gate, c), c};
  }
};

template <>
struct Forward<Cell::gru> {
  static constexpr int first_gate = 0, gates = 3;
  template <class T, class A = Accumulate<T>>
  static __device__ __forceinline__ Reached<A, 3> reach(const SequenceForward<T>&, const Place&, const A (&product)[3],
                                                        const Projected<T, 3>& in, A h, A) {
    const A n_hidden = product[2] + widen(in.bias_n);
    const GruGates<A> gate = gru_activate(product[0] + widen(in.gates[0]), product[1] + widen(in.gates[1]),
                                          static_cast<A>(widen(in.gates[2])), n_hidden);
    return {{gate.r, gate.z, gate.n}, n_hidden, gru_hidden_state(gate.z, gate.n, h), A{}};
  }
};

// Of a GRU whose reset acts before the product, the gates r and z come first.
template <>
struct Forward<Cell::gru_before> {
  static constexpr int first_gate = 2, gates = 1;
  template <class T, class A = Accumulate<T>>
  static __device__ __forceinline__ Reached<A, 1> reach(const SequenceForward<T>& s, const Place& at,
                                                        const A (&product)[1], const Projected<T, 1>& in, A h, A) {
    const int H = static_cast<int>(s.shape.hidden);
    const A n = tanh(product[0] + widen(in.gates[0])), z = widen(s.gates[at.of(3 * H) + H]);
    return {{n}, A{}, gru_hidden_state(z, n, h), A{}};
  }
};

template <>
struct Forward<Cell::rnn> {
  static constexpr int first_gate = 0, gates = 1;
  template <class T, class A = Accumulate<T>>
  static __device__ __forceinline__ Reached<A, 1> reach(const SequenceForward<T>& s, const Place&,
                                                        const A (&product)[1], const Projected<T, 1>& in, A h, A) {
    const A leak = static_cast<A>(s.shape.leak);
    const A a = activate(product[0] + widen(in.gates[0]), s.shape.activation);
    return {{a}, A{}, leak == 1 ? a : a * leak + h * (1 - leak), A{}};
  }
};

// The gates r and z of a GRU whose reset acts before the product, and r h', which n will see, as `aux`.
template <class T, class A = Accumulate<T>>
__device__ __forceinline__ Reached<A, 2> reach_gates(const A (&product)[2], const Projected<T, 2>& in, A h) {
  const A r = sigmoid(product[0] + widen(in.gates[0])), z = sigmoid(product[1] + widen(in.gates[1]));
  return {{r, z}, r * h, A{}, A{}};
}
// Returns what n will see.
template <class T, class A = Accumulate<T>>
__device__ __forceinline__ T store_gates(const SequenceForward<T>& s, const Place& at, const Reached<A, 2>& reached) {
  if (!row_step(s.shape, at).active) return T{};
  const int H = static_cast<int>(s.shape.hidden);
  T* kept = s.gates + at.of(3 * H);
  kept[0] = narrow<T>(reached.gates[0]);
  kept[H] = narrow<T>(reached.gates[1]);
  if (s.keep) s.aux[at.of(H)] = reached.aux;
  return narrow<T>(reached.aux);
}

// Stores what a step has reached and takes the running state there, from h to `h_after` and in c; where the next step
// starts with a reset they are zero already. Past a row's length the state stays.
template <Cell CELL, class T, class A = Accumulate<T>>
__device__ __forceinline__ void finish_step(const SequenceForward<T>& s, const Place& at,
                                            const Reached<A, Forward<CELL>::gates>& reached, T h, T* h_after, A* c) {
  const SequenceShape& shape = s.shape;
  const int H = static_cast<int>(shape.hidden), i = at.of(H);
  const bool active = row_step(shape, at).active;
  if (active) {
    h = narrow<T>(reached.h);
    if (CELL == Cell::lstm) *c = reached.c;
    if (s.keep) {
      T* kept = s.gates + at.of(gate_count(CELL) * H) + Forward<CELL>::first_gate * H;
#pragma unroll
      for (int g = 0; g < Forward<CELL>::gates; ++g) kept[g * H] = narrow<T>(reached.gates[g]);
      if (CELL == Cell::lstm || CELL == Cell::gru) s.aux[i] = reached.aux;
    }
  } else if (s.keep && CELL != Cell::rnn) {
    s.aux[i] = 0;
  }
  s.y[i] = active ? h : T{};
  const bool zeroed = at.step.masked && shape.resets != nullptr && at.step.number + 1 < shape.steps &&
                      row_step(shape, after(shape, at.step, 1), at.b()).reset;
  *h_after = zeroed ? T{} : h;
  if (CELL == Cell::lstm && zeroed) *c = 0;
}

// The running state before the first step.
template <class T>
__device__ __forceinline__ T first_state(const SequenceShape& s, const T* first, const Place& at) {
  return row_step(s, at).reset ? T{} : first[at.of(static_cast<int>(s.hidden))];
}

// --------------------------------------------------------------------------------------------------- backward

// The state before a step, from the states of all steps and the first.
template <class Steps, class T>
__device__ __forceinline__ auto state_before(const SequenceShape& s, const Place& at, const Steps* steps,
                                             const T* first) {
  const int i = at.of(static_cast<int>(s.hidden));
  if (row_step(s, at).reset) return decltype(widen(*first)){};
  const bool is_first = at.step.masked && s.reverse ? at.step.time == length_of(s, at.b()) - 1 : at.step.number == 0;
  if (is_first) return widen(first[i]);
  return widen(steps[i - rows_of_step(s) * s.hidden]);
}

// What a step's gradients need beside those of its state: loaded early, since memory is far.
template <class T, Cell CELL>
struct Saved {
  T gates[gate_count(CELL)];
  Accumulate<T> aux, before;  // of an LSTM the cell states after and before; else n_hidden and the state before
  T dy;
};

// Nothing for a row past its length.
template <Cell CELL, class T>
__device__ __forceinline__ Saved<T, CELL> saved(const SequenceBackward<T>& s, const Place& at) {
  Saved<T, CELL> found{};
  if (!row_step(s.shape, at).active) return found;
  const int H = static_cast<int>(s.shape.hidden);
  const T* gates = s.gates + at.of(gate_count(CELL) * H);
#pragma unroll
  for (int g = 0; g < gate_count(CELL); ++g) found.gates[g] = gates[g * H];
  if (s.dy != nullptr) found.dy = s.dy[at.of(H)];
  if constexpr (CELL == Cell::lstm || CELL == Cell::gru) found.aux = s.aux[at.of(H)];
  if constexpr (CELL == Cell::lstm) found.before = state_before(s.shape, at, s.aux, s.c0);
  if constexpr (CELL == Cell::gru || CELL == Cell::gru_before) found.before = state_before(s.shape, at, s.y, s.h0);
  return found;
}

// A unit's gradients at a step: of the gates from the input, of those that pass the weights, in the order of the
// weights' gates, of the state (`of_h` and `of_c` all of it), and what of it reaches the state before beside the
// weights. Of a GRU whose reset acts before the product, that of r follows once those of n are known for all units.
template <class A, int GATES>
struct Differentiated {
  A passing[GATES];
  A n_input, of_h, of_c, dh, dc;
};

// From the gradients of the state that later steps gave. A row past its length only waits.
template <Cell CELL, class T, class A = Accumulate<T>>
__device__ __forceinline__ Differentiated<A, gate_count(CELL)> differentiate(const SequenceShape& shape,
                                                                             const Place& at,
                                                                             const Saved<T, CELL>& from, A dh, A dc) {
  Differentiated<A, gate_count(CELL)> d{};
  A gates[gate_count(CELL)];
#pragma unroll
  for (int g = 0; g < gate_count(CELL); ++g) gates[g] = widen(from.gates[g]);
  d.of_h = dh + widen(from.dy), d.of_c = dc;
  if constexpr (CELL == Cell::lstm) {
    const LstmGates<A> g =
        lstm_backward(LstmGates<A>{gates[0], gates[1], gates[2], gates[3]}, from.before, from.aux, d.of_h, d.of_c);
    d.passing[0] = g.i, d.passing[1] = g.f, d.passing[2] = g.g, d.passing[3] = g.o;
    d.dc = d.of_c * gates[1];
  } else if constexpr (CELL == Cell::gru) {
    const GruGradients<A> g = gru_backward(GruGates<A>{gates[0], gates[1], gates[2]}, from.aux, from.before, d.of_h);
    d.passing[0] = g.r, d.passing[1] = g.z, d.passing[2] = g.n_hidden;
    d.n_input = g.n_input, d.dh = g.h_before;
  } else if constexpr (CELL == Cell::gru_before) {
    const GruBeforeGradients<A> g = gru_before_backward(gates[1], gates[2], from.before, d.of_h);
    d.passing[1] = g.z, d.passing[2] = g.n;
    d.dh = g.h_before;
  } else {
    const A leak = static_cast<A>(shape.leak);
    d.passing[0] = d.of_h * activation_slope(gates[0], gates[0], shape.activation) * leak;
    d.dh = d.of_h * (1 - leak);
  }
  if (row_step(shape, at).active) return d;
  Differentiated<A, gate_count(CELL)> waiting{};
  waiting.dh = dh, waiting.dc = dc;
  return waiting;
}

template <Cell CELL, class T, class A = Accumulate<T>>
__device__ __forceinline__ void store_gradients(const SequenceBackward<T>& s, const Place& at,
                                                const Differentiated<A, gate_count(CELL)>& d) {
  const int H = static_cast<int>(s.shape.hidden);
  T* left = s.dgates + at.of(gradient_count(CELL) * H);
  if (CELL == Cell::gru) {
    left[0] = narrow<T>(d.n_input);
    left += H;
  }
#pragma unroll
  for (int g = 0; g < gate_count(CELL); ++g) left[g * H] = narrow<T>(d.passing[g]);
}

// The gradients of a step's state, if they are asked for; `s` as it was given, since it is rarely so.
template <Cell CELL, class T, class A = Accumulate<T>>
__device__ __forceinline__ void store_state_gradients(const SequenceBackward<T>& s, int64_t model, const Place& at,
                                                      const Differentiated<A, gate_count(CELL)>& d) {
  if (s.dh_steps == nullptr || !row_step(s.shape, at).active) return;
  const int64_t row = (model * s.shape.steps + at.step.time) * s.shape.batch + at.b();
  s.dh_steps[row * s.shape.hidden + at.unit] = d.of_h;
  if (CELL == Cell::lstm) s.dc_steps[row * s.shape.hidden + at.unit] = d.of_c;
}

// Likewise the gradient of r of a GRU whose reset acts before the product, from `product`, that of r h'.
template <class T, class A = Accumulate<T>>
__device__ __forceinline__ A differentiate_reset(const SequenceBackward<T>& s, const Place& at, A product, A& dh) {
  if (!row_step(s.shape, at).active) return 0;
  const int H = static_cast<int>(s.shape.hidden);
  const A r = widen(s.gates[at.of(3 * H)]);
  const A d = product * static_cast<A>(state_before(s.shape, at, s.y, s.h0)) * sigmoid_slope(r);
  s.dgates[at.of(3 * H)] = narrow<T>(d);
  dh += product * r;
  return d;
}

// From what reaches the state before a step beside the weights, and through them, to all of its gradient.
template <class A>
__device__ __forceinline__ void end_step_back(const SequenceShape& s, const Place& at, A product, A& dh, A& dc) {
  dh += product;
  if (row_step(s, at).reset) dh = 0, dc = 0;
}

}  // namespace recurve::cuda
