// The recurrent forward pass, step by step.
//
// A step runs in one or two stages: for each vector of units, the products of some gates, then what they lead to. Where
// an activation waits for others (activates_first, of one vector at a time), those of all rows are computed before: the
// processor has the next row's to work on while one row's takes its time.
#pragma once

#include "recurrent.h"

namespace recurve {
namespace {

// Packs (w_ih | w_hh) of a stage's gates for blocks of U vectors of units: panel[block][k][gate][u][lane], zero past H.
template <class T, class Stage, int U>
void pack_forward(const SequenceForward<T>& s, T* packed, const Parallel& parallel) {
  constexpr int GATES = Stage::gates;
  const int64_t H = s.shape.hidden, I = s.x == nullptr ? 0 : s.inputs, width = U * lanes<T>;
  const int64_t blocks = divide_up(H, width), all = gate_count(s.shape.cell) * H;
  parallel_for(parallel, s.shape.models * blocks, [&](int64_t task) {
    const int64_t model = task / blocks, block = task % blocks;
    T* panel = packed + task * (I + H) * GATES * width;
    for (int64_t gate = 0; gate < GATES; ++gate)
      for (int64_t unit = block * width; unit < (block + 1) * width; unit += lanes<T>) {
        const int64_t row = model * all + (Stage::first_gate + gate) * H + unit, units = least(lanes<T>, H - unit);
        T* to = panel + gate * width + unit - block * width;
        transpose_rows(s.w_ih + row * I, I, units, I, to, GATES * width);
        transpose_rows(s.w_hh + row * H, H, units, H, to + I * GATES * width, GATES * width);
      }
  });
}

// Where one vector of units of one row lies; gates one after the other, H apart.
template <class T>
struct ForwardUnit {
  const T* added;     // W x + biases, or the biases alone where W x is in the product
  int64_t added_row;  // from row to row
  T* gates;           // or null
  int64_t gates_row;
  T* aux;
  T* y;
  const T* bias_n;
  const T *h_before, *c_before;
  int64_t H, count;

  RECURVE_INLINE_MEMBER void move(int64_t rows, int64_t units) {
    added += rows * added_row + units;
    gates = part(gates, rows * gates_row + units);
    aux = part(aux, rows * H + units);
    y += rows * H + units;
    bias_n = part(bias_n, units);
  }
};

struct LstmForward {
  static constexpr int first_gate = 0, gates = 4;
  static constexpr bool splits = false, activates_first = true;
  template <class T>
  static RECURVE_INLINE_MEMBER void activate_gates(const ForwardUnit<T>& at, Vector<T>* product) {
    const LstmGates<Vector<T>> gate = lstm_activate<Vector<T>>(
        {product[0] + load(at.added, at.count), product[1] + load(at.added + at.H, at.count),
         product[2] + load(at.added + 2 * at.H, at.count), product[3] + load(at.added + 3 * at.H, at.count)});
    product[0] = gate.i, product[1] = gate.f, product[2] = gate.g, product[3] = gate.o;
  }
  template <class T>
  static RECURVE_INLINE_MEMBER void finish(const SequenceForward<T>& s, const ForwardUnit<T>& at,
                                           const Vector<T>* gates, Vector<T>) {
    using V = Vector<T>;
    const LstmGates<V> gate{gates[0], gates[1], gates[2], gates[3]};
    const V c = lstm_cell_state(gate, load(at.c_before, at.count));
    if (s.keep) {
      store(at.gates, gate.i, at.count);
      store(at.gates + at.H, gate.f, at.count);
      store(at.gates + 2 * at.H, gate.g, at.count);
      store(at.gates + 3 * at.H, gate.o, at.count);
    }
    store(at.aux, c, at.count);
    store(at.y, lstm_hidden_state(gate, c), at.count);
  }
};

struct GruForward {
  static constexpr int first_gate = 0, gates = 3;
  static constexpr bool splits = true;  // of n, W x stays apart from U h
  static constexpr bool activates_first = true;
  template <class T>
  static RECURVE_INLINE_MEMBER void activate_gates(const ForwardUnit<T>& at, Vector<T>* product) {
    product[0] = sigmoid(product[0] + load(at.added, at.count));
    product[1] = sigmoid(product[1] + load(at.added + at.H, at.count));
  }
  template <class T>
  static RECURVE_INLINE_MEMBER void finish(const SequenceForward<T>& s, const ForwardUnit<T>& at,
                                           const Vector<T>* gates, Vector<T> n_input) {
    using V = Vector<T>;
    V n_hidden = gates[2];
    if (at.bias_n != nullptr) n_hidden += load(at.bias_n, at.count);
    const V r = gates[0], z = gates[1];
    const V n = gru_new_state(r, n_input + load(at.added + 2 * at.H, at.count), n_hidden);
    if (s.keep) {
      store(at.gates, r, at.count);
      store(at.gates + at.H, z, at.count);
      store(at.gates + 2 * at.H, n, at.count);
      store(at.aux, n_hidden, at.count);
    }
    store(at.y, gru_hidden_state(z, n, load(at.h_before, at.count)), at.count);
  }
};

// The gates of a GRU whose reset acts before the product: r, z and the state that n will see.
struct GruBeforeGatesForward {
  static constexpr int first_gate = 0, gates = 2;
  static constexpr bool splits = false, activates_first = false;
  template <class T>
  static RECURVE_INLINE_MEMBER void finish(const SequenceForward<T>&, const ForwardUnit<T>& at,
                                           const Vector<T>* product, Vector<T>) {
    using V = Vector<T>;
    const V r = sigmoid(product[0] + load(at.added, at.count));
    store(at.gates, r, at.count);
    store(at.gates + at.H, sigmoid(product[1] + load(at.added + at.H, at.count)), at.count);
    store(at.aux, r * load(at.h_before, at.count), at.count);
  }
};

struct GruBeforeStateForward {
  static constexpr int first_gate = 2, gates = 1;
  static constexpr bool splits = false, activates_first = false;
  template <class T>
  static RECURVE_INLINE_MEMBER void finish(const SequenceForward<T>& s, const ForwardUnit<T>& at,
                                           const Vector<T>* product, Vector<T>) {
    using V = Vector<T>;
    const V n = tanh(product[0] + load(at.added + 2 * at.H, at.count)), z = load(at.gates + at.H, at.count);
    if (s.keep) store(at.gates + 2 * at.H, n, at.count);
    store(at.y, gru_hidden_state(z, n, load(at.h_before, at.count)), at.count);
  }
};

struct RnnForward {
  static constexpr int first_gate = 0, gates = 1;
  static constexpr bool splits = false, activates_first = false;
  template <class T>
  static RECURVE_INLINE_MEMBER void finish(const SequenceForward<T>& s, const ForwardUnit<T>& at,
                                           const Vector<T>* product, Vector<T>) {
    using V = Vector<T>;
    const T leak = static_cast<T>(s.shape.leak);
    const V a = activate(product[0] + load(at.added, at.count), s.shape.activation);
    if (s.keep) store(at.gates, a, at.count);
    store(at.y, leak == 1 ? a : a * leak + load(at.h_before, at.count) * (1 - leak), at.count);
  }
};

// Some rows of one model, and where each stands at the present step.
template <class T>
struct ForwardRows {
  const SequenceForward<T>& s;
  int64_t model, row0, rows;
  int64_t t = 0;
  Scratch<T> zeros;
  Scratch<const T*> x, h_before, c_before, reset_state;  // reset_state: r h' of a GRU whose reset acts before
  Scratch<bool> active;

  ForwardRows(const SequenceForward<T>& s, int64_t model, int64_t row0, int64_t rows)
      : s(s),
        model(model),
        row0(row0),
        rows(rows),
        zeros(gate_count(s.shape.cell) * s.shape.hidden),
        x(rows),
        h_before(rows),
        c_before(rows),
        reset_state(rows),
        active(rows) {
    __builtin_memset(zeros, 0, gate_count(s.shape.cell) * s.shape.hidden * sizeof(T));
  }

  int64_t at(int64_t time, int64_t r) const { return (model * s.shape.steps + time) * s.shape.batch + row0 + r; }
  int64_t state(int64_t r) const { return (model * s.shape.batch + row0 + r) * s.shape.hidden; }
  T* aux(int64_t time, int64_t r) const {
    return s.aux == nullptr ? nullptr : s.aux + (s.keep ? at(time, r) * s.shape.hidden : state(r));
  }

  // The first unit of the first row at the present step.
  ForwardUnit<T> origin() const {
    const int64_t H = s.shape.hidden, width = gate_count(s.shape.cell) * H;
    T* gates = part(s.gates, at(t, 0) * width);
    const T* biases = s.bias == nullptr ? zeros.get() : s.bias + model * width;
    return {s.x == nullptr ? gates : biases,
            s.x == nullptr ? width : 0,
            gates,
            width,
            aux(t, 0),
            s.y + at(t, 0) * H,
            part(s.bias_n, model * width),
            nullptr,
            nullptr,
            H,
            H};
  }

  void go_to(int64_t step) {
    const auto& shape = s.shape;
    const int64_t H = shape.hidden;
    t = time_of(shape, step);
    const int64_t t_before = shape.reverse ? t + 1 : t - 1;
    for (int64_t r = 0; r < rows; ++r) {
      const RowStep now = row_step(shape, t, row0 + r);
      active[r] = now.active;
      const bool zero = !now.active || now.reset;
      h_before[r] = zero ? zeros.get() : now.first ? s.h0 + state(r) : s.y + at(t_before, r) * H;
      c_before[r] = shape.cell != Cell::lstm ? nullptr
                    : zero                   ? zeros.get()
                    : now.first              ? s.c0 + state(r)
                                             : aux(t_before, r);
      if (shape.cell == Cell::gru_before) reset_state[r] = now.active ? aux(t, r) : zeros.get();
      if (s.x != nullptr) x[r] = s.x + (s.shared ? t * shape.batch + row0 + r : at(t, r)) * s.inputs;
      if (now.active) continue;
      __builtin_memset(s.y + at(t, r) * H, 0, H * sizeof(T));
      if (s.keep && s.aux != nullptr) __builtin_memset(aux(t, r), 0, H * sizeof(T));
    }
  }

  void leave_last_states() {
    const int64_t H = s.shape.hidden;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t length = s.shape.lengths == nullptr ? s.shape.steps : s.shape.lengths[row0 + r];
      const int64_t last = s.shape.reverse ? 0 : length - 1;
      const T* h = length == 0 ? s.h0 + state(r) : s.y + at(last, r) * H;
      __builtin_memcpy(s.h_n + state(r), h, H * sizeof(T));
      if (s.shape.cell != Cell::lstm) continue;
      __builtin_memcpy(s.c_n + state(r), length == 0 ? s.c0 + state(r) : aux(last, r), H * sizeof(T));
    }
  }
};

// One stage of the present step for units [begin, end): the products with x and with `states`, then its equations.
template <class T, class Stage, int U>
void run_stage(const ForwardRows<T>& rows, const T* packed, const T* const* states, int64_t begin, int64_t end) {
  constexpr int GATES = Stage::gates, P = GATES * U;
  const SequenceForward<T>& s = rows.s;
  const int64_t hidden = s.shape.hidden, inputs = s.x == nullptr ? 0 : s.inputs, width = U * lanes<T>;
  packed += rows.model * divide_up(hidden, width) * width * GATES * (inputs + hidden);
  const ForwardUnit<T> first = rows.origin();
  Vector<T> sums[group_rows][P], split[Stage::splits ? group_rows : 1][U];
  for (int64_t unit0 = begin; unit0 < end; unit0 += width) {
    const T* panel = packed + unit0 * GATES * (inputs + hidden);
    for_row_groups(rows.rows, [&](int64_t group, int64_t count) {
      for_row_tiles<P <= 4 ? most_rows<P> : 1>(count, [&]<int R>(int64_t r0) {
        if (first.gates != nullptr)
          for (int64_t r = group + r0; r < group + r0 + R; ++r)
            for (int g = 0; g < GATES; ++g)
              prefetch<U>(first.gates + r * first.gates_row + (Stage::first_gate + g) * hidden + unit0);
        Vector<T> acc[R][P] = {};
        product<T, R, P>(acc, rows.x + group + r0, panel, P * lanes<T>, inputs);
        if constexpr (Stage::splits) {
          RECURVE_UNROLL
          for (int r = 0; r < R; ++r) {
            RECURVE_UNROLL
            for (int u = 0; u < U; ++u) {
              split[r0 + r][u] = acc[r][(GATES - 1) * U + u];
              acc[r][(GATES - 1) * U + u] = zero_vector<T>();
            }
          }
        }
        product<T, R, P>(acc, states + group + r0, panel + inputs * P * lanes<T>, P * lanes<T>, hidden);
        store_tile<T, R, P>(acc, sums + r0);
      });
      const auto for_vectors = [&](const auto& f) RECURVE_INLINE_LAMBDA {
        for (int u = 0; u < U && unit0 + u * lanes<T> < hidden; ++u) {
          const int64_t unit = unit0 + u * lanes<T>;
          for_each_row<T>(first, group, count, unit, [&](ForwardUnit<T>& at, int64_t r) RECURVE_INLINE_LAMBDA {
            if (!rows.active[group + r]) return;
            at.h_before = rows.h_before[group + r] + unit;
            at.c_before = part(rows.c_before[group + r], unit);
            f(at, r, u);
          });
        }
      };
      if constexpr (Stage::activates_first)
        for_vectors([&](const ForwardUnit<T>& at, int64_t r, int u) RECURVE_INLINE_LAMBDA {
          Vector<T> gates[GATES];
          for (int g = 0; g < GATES; ++g) gates[g] = sums[r][g * U + u];
          Stage::activate_gates(at, gates);
          for (int g = 0; g < GATES; ++g) sums[r][g * U + u] = gates[g];
        });
      for_vectors([&](const ForwardUnit<T>& at, int64_t r, int u) RECURVE_INLINE_LAMBDA {
        Vector<T> gates[GATES];
        for (int g = 0; g < GATES; ++g) gates[g] = sums[r][g * U + u];
        Stage::finish(s, at, gates, split[Stage::splits ? r : 0][u]);
      });
    });
  }
}

// A stage with its packed weights.
template <class T, class Stage, int U>
class ForwardStage {
 public:
  ForwardStage(const SequenceForward<T>& s, const Parallel& parallel)
      : packed_(s.shape.models * divide_up(s.shape.hidden, U * lanes<T>) * U * lanes<T> * Stage::gates *
                (s.shape.hidden + (s.x == nullptr ? 0 : s.inputs))) {
    pack_forward<T, Stage, U>(s, packed_, parallel);
  }

  void operator()(const ForwardRows<T>& rows, const T* const* states, const Parallel& parallel) const {
    for_unit_parts(rows.s.shape.hidden, U * lanes<T>, parallel,
                   [&](int64_t begin, int64_t end) { run_stage<T, Stage, U>(rows, packed_, states, begin, end); });
  }

 private:
  Scratch<T> packed_;
};

// Runs `step(rows, threads)` for each step of all rows.
template <class T, class Step>
void forward_steps(const SequenceForward<T>& s, const Parallel& parallel, const Step& step) {
  for_rows<T>(s.shape, parallel, [&](int64_t model, int64_t row0, int64_t count, const Parallel& threads) {
    ForwardRows<T> rows(s, model, row0, count);
    for (int64_t i = 0; i < s.shape.steps; ++i) {
      rows.go_to(i);
      step(rows, threads);
    }
    rows.leave_last_states();
  });
}

template <class T, class Stage, int U>
void forward_single_stage(const SequenceForward<T>& s, const Parallel& parallel) {
  const ForwardStage<T, Stage, U> stage(s, parallel);
  forward_steps(s, parallel,
                [&](const ForwardRows<T>& rows, const Parallel& threads) { stage(rows, rows.h_before, threads); });
}

template <class T, int U>
void forward_gru_before(const SequenceForward<T>& s, const Parallel& parallel) {
  const ForwardStage<T, GruBeforeGatesForward, U / 2> gates(s, parallel);
  const ForwardStage<T, GruBeforeStateForward, U> state(s, parallel);
  forward_steps(s, parallel, [&](const ForwardRows<T>& rows, const Parallel& threads) {
    gates(rows, rows.h_before, threads);
    state(rows, rows.reset_state, threads);
  });
}

template <class T>
void sequence_forward(const SequenceForward<T>& s, const Parallel& parallel) {
  if (s.shape.models == 0 || s.shape.batch == 0) return;
  const bool wide = s.shape.hidden > 2 * lanes<T>;
  switch (s.shape.cell) {
    case Cell::lstm:
      return forward_single_stage<T, LstmForward, 1>(s, parallel);
    case Cell::gru:
      // The three sums of a lone sequence's vector of units would wait for themselves.
      return s.shape.batch == 1 ? forward_single_stage<T, GruForward, 2>(s, parallel)
                                : forward_single_stage<T, GruForward, 1>(s, parallel);
    case Cell::rnn:
      return wide ? forward_single_stage<T, RnnForward, 4>(s, parallel)
                  : forward_single_stage<T, RnnForward, 2>(s, parallel);
    case Cell::gru_before:
      return wide ? forward_gru_before<T, 4>(s, parallel) : forward_gru_before<T, 2>(s, parallel);
  }
}

}  // namespace
}  // namespace recurve
