// The recurrent backward pass, step by step.
//
// From the last step to the first: the gradients of a step's gates times the weights are those of the state before it.
#pragma once

#include "recurrent_gradients.h"

namespace recurve {
namespace {

// Packs rows [first_gate H, (first_gate + gates) H) of w_hh for blocks of G vectors of columns:
// panel[block][k][g][lane], zero past H.
template <class T, int G>
class BackwardWeights {
 public:
  BackwardWeights(const SequenceBackward<T>& s, int64_t first_gate, int64_t gates, const Parallel& parallel)
      : blocks_(divide_up(s.shape.hidden, G * lanes<T>)),
        depth_(gates * s.shape.hidden),
        packed_(s.shape.models * blocks_ * depth_ * G * lanes<T>) {
    constexpr int64_t width = G * lanes<T>;
    const int64_t H = s.shape.hidden, all = gate_count(s.shape.cell) * H;
    parallel_for(parallel, s.shape.models * blocks_, [&](int64_t task) {
      const int64_t first = task % blocks_ * width, columns = least(width, H - first);
      const T* w = s.w_hh + (task / blocks_ * all + first_gate * H) * H + first;
      T* panel = packed_ + task * depth_ * width;
      if (columns < width) __builtin_memset(panel, 0, depth_ * width * sizeof(T));
      for (int64_t k = 0; k < depth_; ++k) __builtin_memcpy(panel + k * width, w + k * H, columns * sizeof(T));
    });
  }

  const T* panel(int64_t model, int64_t unit0) const {
    return packed_ + (model * blocks_ * G * lanes<T> + unit0) * depth_;
  }
  int64_t depth() const { return depth_; }

 private:
  int64_t blocks_, depth_;
  Scratch<T> packed_;
};

template <class T>
RECURVE_INLINE T sum_of_squares(Vector<T> v) {
  T sum = 0;
  for (int64_t i = 0; i < lanes<T>; ++i) sum += v[i] * v[i];
  return sum;
}

// Where one vector of units of one row lies; gates and their gradients one after the other, H apart.
template <class T>
struct BackwardUnit {
  const T *gates, *aux, *y, *dy;  // aux and dy may be null
  T* dgates;                      // or null
  int64_t gates_row, dgates_row;  // from row to row
  T *dh_carry, *dc_carry;         // in: what reaches this state beside the product; out: the same for the state before
  T *dh_squares, *dc_squares;     // of the row, or null: what the squares of the state's gradients are added to
  const T *h_before, *c_before;
  int64_t H, count;

  RECURVE_INLINE_MEMBER void move(int64_t rows, int64_t units) {
    gates += rows * gates_row + units;
    aux = part(aux, rows * H + units);
    y += rows * H + units;
    dy = part(dy, rows * H + units);
    dgates = part(dgates, rows * dgates_row + units);
    dh_carry += rows * H + units;
    dc_carry = part(dc_carry, rows * H + units);
    dh_squares = part(dh_squares, rows);
    dc_squares = part(dc_squares, rows);
  }
};

struct LstmBackward {
  static constexpr bool carries_state = false;  // a path from state to state beside the weights
  template <class T>
  static RECURVE_INLINE_MEMBER void finish(const SequenceBackward<T>&, const BackwardUnit<T>& at, Vector<T> dh) {
    using V = Vector<T>;
    const int64_t H = at.H, count = at.count;
    const LstmGates<V> gates{load(at.gates, count), load(at.gates + H, count), load(at.gates + 2 * H, count),
                             load(at.gates + 3 * H, count)};
    V dc = load(at.dc_carry, count);
    const LstmGates<V> d = lstm_backward(gates, load(at.c_before, count), load(at.aux, count), dh, dc);
    store(at.dgates, d.i, count);
    store(at.dgates + H, d.f, count);
    store(at.dgates + 2 * H, d.g, count);
    store(at.dgates + 3 * H, d.o, count);
    store(at.dc_carry, dc * gates.f, count);
    if (at.dc_squares != nullptr) *at.dc_squares += sum_of_squares<T>(dc);
  }
};

struct GruBackward {
  static constexpr bool carries_state = true;
  template <class T>
  static RECURVE_INLINE_MEMBER void finish(const SequenceBackward<T>&, const BackwardUnit<T>& at, Vector<T> dh) {
    using V = Vector<T>;
    const int64_t H = at.H, count = at.count;
    const GruGates<V> gates{load(at.gates, count), load(at.gates + H, count), load(at.gates + 2 * H, count)};
    const GruGradients<V> d = gru_backward(gates, load(at.aux, count), load(at.h_before, count), dh);
    store(at.dgates, d.n_input, count);
    store(at.dgates + H, d.r, count);
    store(at.dgates + 2 * H, d.z, count);
    store(at.dgates + 3 * H, d.n_hidden, count);
    store(at.dh_carry, d.h_before, count);
  }
};

// The gradient of r follows once those of n are known for all units: see backward_reset.
struct GruBeforeBackward {
  static constexpr bool carries_state = true;
  template <class T>
  static RECURVE_INLINE_MEMBER void finish(const SequenceBackward<T>&, const BackwardUnit<T>& at, Vector<T> dh) {
    const int64_t H = at.H, count = at.count;
    const GruBeforeGradients<Vector<T>> d =
        gru_before_backward(load(at.gates + H, count), load(at.gates + 2 * H, count), load(at.h_before, count), dh);
    store(at.dgates + H, d.z, count);
    store(at.dgates + 2 * H, d.n, count);
    store(at.dh_carry, d.h_before, count);
  }
};

struct RnnBackward {
  static constexpr bool carries_state = true;
  template <class T>
  static RECURVE_INLINE_MEMBER void finish(const SequenceBackward<T>& s, const BackwardUnit<T>& at, Vector<T> dh) {
    const T leak = static_cast<T>(s.shape.leak);
    const Vector<T> a = load(at.gates, at.count);
    const Vector<T> slope = activation_slope(a, a, s.shape.activation);
    store(at.dgates, dh * slope * leak, at.count);
    store(at.dh_carry, dh * (1 - leak), at.count);
  }
};

// Some rows of one model, and where each stands at the present step, one of `steps` or the one before them: there
// remains what the gradients of the first one's gates give. dh0 and dc0 carry the gradients of the state from step to
// step.
template <class T>
struct BackwardRows {
  const BackwardSteps<T>& steps;
  const SequenceBackward<T>& s = steps.s;
  int64_t model, row0, rows;
  int64_t step = 0, t = 0;
  Scratch<T> zeros;
  Scratch<const T*> later_gates, dn, h_before, c_before;  // dn: gradients of n, for a GRU whose reset acts before
  Scratch<RowStep> now, later;

  BackwardRows(const BackwardSteps<T>& steps, int64_t model, int64_t row0, int64_t rows)
      : steps(steps),
        model(model),
        row0(row0),
        rows(rows),
        zeros(s.shape.hidden),
        later_gates(rows),
        dn(rows),
        h_before(rows),
        c_before(rows),
        now(rows),
        later(rows) {
    __builtin_memset(zeros, 0, s.shape.hidden * sizeof(T));
  }

  bool has_cell() const { return s.shape.cell == Cell::lstm; }
  int64_t at(int64_t time, int64_t r) const { return (model * s.shape.steps + time) * s.shape.batch + row0 + r; }
  int64_t state(int64_t r) const { return (model * s.shape.batch + row0 + r) * s.shape.hidden; }
  T* dgates(int64_t time, int64_t r) const { return steps.gates_at(model, time, row0 + r); }
  bool is_last() const { return step == steps.end - 1; }
  bool is_before() const { return step < steps.begin; }

  void go_to(int64_t new_step) {
    const auto& shape = s.shape;
    const int64_t H = shape.hidden;
    step = new_step, t = time_of(shape, step);
    const int64_t t_before = shape.reverse ? t + 1 : t - 1, t_later = shape.reverse ? t - 1 : t + 1;
    const int64_t gradients = gradient_count(shape.cell) * H;
    constexpr RowStep none{false, false, false};
    // The gradient of a GRU's n from the input, its first, does not pass the weights.
    const T* after = is_last() ? nullptr : dgates(t_later, 0) + (shape.cell == Cell::gru ? H : 0);
    T* own = is_before() ? nullptr : dgates(t, 0);
    for (int64_t r = 0; r < rows; ++r) {
      later[r] = is_last() ? none : now[r];
      later_gates[r] = part(after, r * gradients);
      now[r] = is_before() ? none : row_step(shape, t, row0 + r);
      if (is_before()) continue;
      dn[r] = own + r * gradients + 2 * H;
      if (!now[r].active) __builtin_memset(own + r * gradients, 0, gradients * sizeof(T));
      h_before[r] = now[r].reset ? zeros.get() : now[r].first ? s.h0 + state(r) : s.y + at(t_before, r) * H;
      c_before[r] = !has_cell()    ? nullptr
                    : now[r].reset ? zeros.get()
                    : now[r].first ? s.c0 + state(r)
                                   : s.aux + at(t_before, r) * H;
    }
  }

  // The first unit of the first row at the present step; before the steps only the carried gradients are there.
  BackwardUnit<T> origin() const {
    const int64_t H = s.shape.hidden, row = is_before() ? 0 : at(t, 0);
    const int64_t gates_row = gate_count(s.shape.cell) * H, dgates_row = gradient_count(s.shape.cell) * H;
    return {s.gates + row * gates_row,
            part(s.aux, row * H),
            s.y + row * H,
            part(s.dy, row * H),
            is_before() ? nullptr : dgates(t, 0),
            gates_row,
            dgates_row,
            s.dh0 + state(0),
            part(s.dc0, state(0)),
            part(s.dh_squares, row),
            part(s.dc_squares, row),
            nullptr,
            nullptr,
            H,
            H};
  }
};

// The gradient of a vector of units of the state after this step, from `product`, that of the later gates with the
// weights, from what is carried, and from y.
template <class T, class CellBackward>
RECURVE_INLINE Vector<T> state_gradient(const BackwardUnit<T>& at, const RowStep& now, const RowStep& later,
                                        Vector<T> product) {
  Vector<T> dh = load(at.dh_carry, at.count);
  if (later.active) dh = CellBackward::carries_state ? dh + product : product;
  if (later.active && later.reset) {
    dh = zero_vector<T>();
    if (at.dc_carry != nullptr) store(at.dc_carry, zero_vector<T>(), at.count);
  }
  if (now.active && at.dy != nullptr) dh += load(at.dy, at.count);
  return dh;
}

// What the cells of R rows and G vectors of units will read.
template <int R, int G, class T>
RECURVE_INLINE void prefetch_units(BackwardUnit<T> at, const BackwardRows<T>& rows, int64_t row, int64_t unit) {
  at.move(row, unit);
  for (int r = 0; r < R; ++r, at.move(1, 0)) {
    for (int64_t g = 0; g < at.gates_row; g += at.H) prefetch<G>(at.gates + g);
    if (at.aux != nullptr) prefetch<G>(at.aux);
    if (at.dy != nullptr) prefetch<G>(at.dy);
    prefetch<G>((rows.has_cell() ? rows.c_before : rows.h_before)[row + r] + unit);
  }
}

// Calls `finish(at, row, unit, product)` for each vector of units [begin, end) of each row: `product` is that of the
// gradients that `gates` points to, for each row, with the weights; zero if it is null.
template <class T, int G, class Finish>
RECURVE_INLINE void for_products(const BackwardRows<T>& rows, const T* const* gates,
                                 const BackwardWeights<T, G>& weights, int64_t begin, int64_t end,
                                 const Finish& finish) {
  const BackwardUnit<T> first = rows.origin();
  Vector<T> sums[group_rows][G];
  for (int64_t unit0 = begin; unit0 < end; unit0 += G * lanes<T>) {
    for_row_groups(rows.rows, [&](int64_t group, int64_t count) {
      for_row_tiles<most_rows<G>>(count, [&]<int R>(int64_t r0) {
        if (!rows.is_before()) prefetch_units<R, G>(first, rows, group + r0, unit0);
        Vector<T> acc[R][G] = {};
        if (gates != nullptr)
          product<T, R, G>(acc, gates + group + r0, weights.panel(rows.model, unit0), G * lanes<T>, weights.depth());
        store_tile<T, R, G>(acc, sums + r0);
      });
      for (int g = 0; g < G && unit0 + g * lanes<T> < rows.s.shape.hidden; ++g) {
        const int64_t unit = unit0 + g * lanes<T>;
        for_each_row<T>(first, group, count, unit, [&](BackwardUnit<T>& at, int64_t r) RECURVE_INLINE_LAMBDA {
          finish(at, group + r, unit, sums[r][g]);
        });
      }
    });
  }
}

// The present step of all rows for units [begin, end): gradients of the state, then of the gates.
template <class T, class CellBackward, int G>
void backward_step(const BackwardRows<T>& rows, const BackwardWeights<T, G>& weights, int64_t begin, int64_t end) {
  const T* const* later_gates = rows.is_last() ? nullptr : rows.later_gates.get();
  auto finish = [&](BackwardUnit<T>& at, int64_t row, int64_t unit, Vector<T> product) RECURVE_INLINE_LAMBDA {
    const RowStep& now = rows.now[row];
    const Vector<T> dh = state_gradient<T, CellBackward>(at, now, rows.later[row], product);
    if (!now.active) return store(at.dh_carry, dh, at.count);
    if (at.dh_squares != nullptr) *at.dh_squares += sum_of_squares<T>(dh);
    at.h_before = rows.h_before[row] + unit;
    at.c_before = part(rows.c_before[row], unit);
    CellBackward::finish(rows.s, at, dh);
  };
  for_products(rows, later_gates, weights, begin, end, finish);
}

// Likewise of a GRU whose reset acts before the product: from the gradients of n to those of r and the state.
template <class T, int G>
void backward_reset(const BackwardRows<T>& rows, const BackwardWeights<T, G>& weights, int64_t begin, int64_t end) {
  auto finish = [&](BackwardUnit<T>& at, int64_t row, int64_t unit, Vector<T> product) RECURVE_INLINE_LAMBDA {
    if (!rows.now[row].active) return;
    const Vector<T> reset = load(at.gates, at.count), h_before = load(rows.h_before[row] + unit, at.count);
    store(at.dgates, product * h_before * sigmoid_slope(reset), at.count);
    store(at.dh_carry, load(at.dh_carry, at.count) + product * reset, at.count);
  };
  for_products(rows, rows.dn.get(), weights, begin, end, finish);
}

// What is carried to the last step.
template <class T>
void begin_carried(const SequenceBackward<T>& s) {
  const int64_t size = s.shape.models * s.shape.batch * s.shape.hidden * sizeof(T);
  auto begin = [&](T* carry, const T* last) {
    if (carry == nullptr) return;
    if (last == nullptr)
      __builtin_memset(carry, 0, size);
    else
      __builtin_memcpy(carry, last, size);
  };
  begin(s.dh0, s.dh_n);
  begin(s.dc0, s.dc_n);
}

template <class T, class CellBackward, int G>
void backward_blocks(const SequenceBackward<T>& s, const Parallel& parallel) {
  const bool resets_before = s.shape.cell == Cell::gru_before;
  const BackwardWeights<T, G> weights(s, 0, resets_before ? 2 : gate_count(s.shape.cell), parallel);
  const BackwardWeights<T, G> weights_n(s, 2, resets_before ? 1 : 0, parallel);
  const GradientSums<T> sums(s);
  begin_carried(s);
  auto run = [&](const BackwardSteps<T>& steps, int64_t model, int64_t row0, int64_t count, const Parallel& threads) {
    BackwardRows<T> rows(steps, model, row0, count);
    // The squares of a row's units add up in one thread.
    const Parallel sharing = s.dh_squares == nullptr ? threads : Parallel{1, threads.run};
    auto for_units = [&](auto part) { for_unit_parts(s.shape.hidden, G * lanes<T>, sharing, part); };
    for (int64_t step = steps.end - 1; step >= steps.begin - 1; --step) {
      rows.go_to(step);
      for_units([&](int64_t begin, int64_t end) { backward_step<T, CellBackward, G>(rows, weights, begin, end); });
      if (resets_before && !rows.is_before())
        for_units([&](int64_t begin, int64_t end) { backward_reset<T, G>(rows, weights_n, begin, end); });
    }
  };
  const int64_t group = steps_of_group(s.shape), tasks = s.shape.models * sums.parts.count;
  if (tasks % parallel.threads == 0 || tasks >= 4 * parallel.threads) {
    parallel_for(parallel, tasks, [&](int64_t task) {
      const int64_t model = task / sums.parts.count, part = task % sums.parts.count, row0 = part * sums.parts.rows;
      const int64_t rows = least(sums.parts.rows, s.shape.batch - row0);
      for_backward_steps(s, model, 1, row0, rows, group, [&](const BackwardSteps<T>& steps) {
        if (rows > 0) run(steps, model, row0, rows, Parallel{1, parallel.run});
        sums.add_part(steps, part);
      });
    });
  } else {
    // Threads meet after each group of steps: the more of them, the more steps at once.
    const int64_t at_once = group * most(1, parallel.threads / 2);
    for_backward_steps(s, 0, s.shape.models, 0, s.shape.batch, at_once, [&](const BackwardSteps<T>& steps) {
      for_rows<T>(s.shape, parallel, [&](int64_t model, int64_t row0, int64_t count, const Parallel& threads) {
        run(steps, model, row0, count, threads);
      });
      sums.add_all(steps, parallel);
    });
  }
  sums.finish(parallel);
}

template <class T, class CellBackward>
void backward_cell(const SequenceBackward<T>& s, const Parallel& parallel) {
  switch (divide_up(s.shape.hidden, lanes<T>)) {
    case 1:
      return backward_blocks<T, CellBackward, 1>(s, parallel);
    case 2:
      return backward_blocks<T, CellBackward, 2>(s, parallel);
    case 3:
      return backward_blocks<T, CellBackward, 3>(s, parallel);
    default:
      return backward_blocks<T, CellBackward, 4>(s, parallel);
  }
}

template <class T>
void sequence_backward(const SequenceBackward<T>& s, const Parallel& parallel) {
  if (s.shape.models == 0) return;
  switch (s.shape.cell) {
    case Cell::lstm:
      return backward_cell<T, LstmBackward>(s, parallel);
    case Cell::gru:
      return backward_cell<T, GruBackward>(s, parallel);
    case Cell::rnn:
      return backward_cell<T, RnnBackward>(s, parallel);
    case Cell::gru_before:
      return backward_cell<T, GruBeforeBackward>(s, parallel);
  }
}

}  // namespace
}  // namespace recurve
