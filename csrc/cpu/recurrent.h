// LSTM, GRU and RNN over a whole sequence: product with the recurrent weights and cell in one pass.
//
// A task owns some rows (sequences) of one model and runs them through all steps without meeting another task; where
// rows are few and weights many, threads share the units of each step instead. The weights are packed once per call, so
// that each block of units reads one contiguous panel. The arithmetic of a row and a unit does not depend on those
// beside it, so results are the same for any number of threads.
#pragma once

#include <numeric>

#include "gemm.h"

namespace recurve {
namespace {

// Where one row stands at one step.
struct RowStep {
  bool active;  // within the row's length
  bool first;   // the first step that the row takes
  bool reset;   // its state is zeroed before this step
};

RECURVE_INLINE int64_t time_of(const SequenceShape& s, int64_t step) { return s.reverse ? s.steps - 1 - step : step; }

RECURVE_INLINE RowStep row_step(const SequenceShape& s, int64_t t, int64_t b) {
  const int64_t length = s.lengths == nullptr ? s.steps : s.lengths[b];
  const int64_t start = s.reverse ? length - 1 : 0;
  return {t < length, t == start, s.resets != nullptr && s.resets[t * s.batch + b]};
}

// What lies `offset` elements on, or null where there is nothing.
template <class T>
RECURVE_INLINE T* part(T* tensor, int64_t offset) {
  return tensor == nullptr ? nullptr : tensor + offset;
}

// Rows of one model, [first, first + count), as tasks: all models, in parts where the models alone would leave threads
// idle.
template <class F>
void for_row_parts(const SequenceShape& s, const Parallel& parallel, F&& f) {
  const int64_t even = parallel.threads / std::gcd<int64_t>(parallel.threads, s.models);
  int64_t parts = least(s.batch, s.models < 4 * parallel.threads ? even : 1);
  const int64_t rows = divide_up(s.batch, parts);
  parts = divide_up(s.batch, rows);
  parallel_for(parallel, s.models * parts, [&](int64_t task) {
    const int64_t first = task % parts * rows;
    f(task / parts, first, least(rows, s.batch - first));
  });
}

// Whether threads share each step's units instead: too few rows for all of them and weights worth meeting for, or
// weights so large that every thread reading all of them at each step would wait for memory.
template <class T>
bool splits_units(const SequenceShape& s, const Parallel& parallel) {
  constexpr int64_t tile = most_rows<4>, worth_meeting = 1 << 19, beyond_cache = 1 << 23;
  const int64_t weight_bytes = gate_count(s.cell) * s.hidden * s.hidden * static_cast<int64_t>(sizeof(T));
  const int64_t tiles = s.models * divide_up(s.batch, tile);
  return (tiles < parallel.threads && weight_bytes >= worth_meeting) ||
         (s.models < parallel.threads && weight_bytes >= beyond_cache);
}

// Calls f(model, first row, rows, threads for the units of a step) for all rows of all models.
template <class T, class F>
void for_rows(const SequenceShape& s, const Parallel& parallel, F&& f) {
  if (splits_units<T>(s, parallel)) {
    for (int64_t model = 0; model < s.models; ++model) f(model, int64_t{0}, s.batch, parallel);
  } else {
    for_row_parts(s, parallel, [&](int64_t model, int64_t first, int64_t rows) {
      f(model, first, rows, Parallel{1, parallel.run});
    });
  }
}

// Rows whose products wait in the first-level cache for the cell's equations. Tile by tile the two would take turns,
// and the processor would wait at each turn for what the last instructions give.
constexpr int64_t group_rows = 48;

// Calls f(first, count) for groups of rows, about equally large.
template <class F>
RECURVE_INLINE void for_row_groups(int64_t rows, const F& f) {
  const int64_t groups = divide_up(rows, group_rows), count = divide_up(rows, most(1, groups));
  for (int64_t first = 0; first < rows; first += count) f(first, least(count, rows - first));
}

template <class T, int R, int G>
RECURVE_INLINE void store_tile(const Vector<T> (&tile)[R][G], Vector<T> (*to)[G]) {
  RECURVE_UNROLL
  for (int r = 0; r < R; ++r) {
    RECURVE_UNROLL
    for (int g = 0; g < G; ++g) to[r][g] = tile[r][g];
  }
}

// Calls f(first unit, end) for the units of a step, in parts of whole blocks of `width`.
template <class F>
RECURVE_INLINE void for_unit_parts(int64_t hidden, int64_t width, const Parallel& parallel, const F& f) {
  if (parallel.threads == 1) return f(int64_t{0}, hidden);
  const int64_t blocks = divide_up(hidden, width), part = divide_up(blocks, least(blocks, parallel.threads)) * width;
  parallel_for(parallel, divide_up(hidden, part), [&](int64_t i) { f(i * part, least(hidden, (i + 1) * part)); });
}

// Calls f(at, row) for one vector of units of some rows: that from `unit` on, of rows [first, first + rows) of those
// that `at` is the first of.
template <class T, class Unit, class F>
RECURVE_INLINE void for_each_row(Unit at, int64_t first, int64_t rows, int64_t unit, const F& f) {
  const int64_t units = at.H - unit;
  at.move(first, unit);
  const auto all = [&](int64_t count) RECURVE_INLINE_LAMBDA {
    for (int64_t r = 0; r < rows; ++r, at.move(1, 0)) {
      at.count = count;
      f(at, r);
    }
  };
  if (units >= lanes<T>)
    all(lanes<T>);  // a constant: loads and stores are of whole vectors
  else
    all(units);
}

// ---------------------------------------------------------------------------------------------------- forward
//
// A step runs in one or two stages: for each vector of units, the products of some gates, then what they lead to. Where
// an activation waits for others (activates_first, of one vector at a time), those of all rows are computed before: the
// processor has the next row's to work on while one row's takes its time.

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

// ---------------------------------------------------------------------------------------------------- backward
//
// From the last step to the first: the gradients of a step's gates times the weights are those of the state before it.

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
  T* dgates;
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
    dgates += rows * dgates_row + units;
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

// Some rows of one model, and where each stands at the present step. Step `steps` stands for "after the last", step -1
// for "before the first": there the state is h_n or h0. dh0 and dc0 carry the gradients of the state from step to step.
template <class T>
struct BackwardRows {
  const SequenceBackward<T>& s;
  int64_t model, row0, rows;
  int64_t step = 0, t = 0;
  Scratch<T> zeros;
  Scratch<const T*> later_gates, dn, h_before, c_before;  // dn: gradients of n, for a GRU whose reset acts before
  Scratch<RowStep> now, later;

  BackwardRows(const SequenceBackward<T>& s, int64_t model, int64_t row0, int64_t rows)
      : s(s),
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
    const int64_t size = s.shape.hidden * sizeof(T);
    __builtin_memset(zeros, 0, size);
    auto begin = [&](T* carry, const T* last) {
      if (last == nullptr)
        __builtin_memset(carry, 0, size);
      else
        __builtin_memcpy(carry, last, size);
    };
    for (int64_t r = 0; r < rows; ++r) {
      begin(s.dh0 + state(r), part(s.dh_n, state(r)));
      if (has_cell()) begin(s.dc0 + state(r), part(s.dc_n, state(r)));
    }
  }

  bool has_cell() const { return s.shape.cell == Cell::lstm; }
  int64_t at(int64_t time, int64_t r) const { return (model * s.shape.steps + time) * s.shape.batch + row0 + r; }
  int64_t state(int64_t r) const { return (model * s.shape.batch + row0 + r) * s.shape.hidden; }
  T* dgates(int64_t time, int64_t r) const {
    return s.dgates + at(time, r) * gradient_count(s.shape.cell) * s.shape.hidden;
  }

  void go_to(int64_t new_step) {
    const auto& shape = s.shape;
    const int64_t H = shape.hidden;
    step = new_step, t = time_of(shape, step);
    const int64_t t_before = shape.reverse ? t + 1 : t - 1, t_later = shape.reverse ? t - 1 : t + 1;
    constexpr RowStep none{false, false, false};
    for (int64_t r = 0; r < rows; ++r) {
      const bool is_last = step == shape.steps - 1;
      later[r] = is_last ? none : row_step(shape, t_later, row0 + r);
      now[r] = step < 0 ? none : row_step(shape, t, row0 + r);
      // The gradient of a GRU's n from the input, its first, does not pass the weights.
      later_gates[r] = is_last ? nullptr : dgates(t_later, r) + (shape.cell == Cell::gru ? H : 0);
      if (step < 0) continue;
      dn[r] = dgates(t, r) + 2 * H;
      if (!now[r].active) __builtin_memset(dgates(t, r), 0, gradient_count(shape.cell) * H * sizeof(T));
      h_before[r] = now[r].reset ? zeros.get() : now[r].first ? s.h0 + state(r) : s.y + at(t_before, r) * H;
      c_before[r] = !has_cell()    ? nullptr
                    : now[r].reset ? zeros.get()
                    : now[r].first ? s.c0 + state(r)
                                   : s.aux + at(t_before, r) * H;
    }
  }

  // The first unit of the first row at the present step; before the first step only the carried gradients are there.
  BackwardUnit<T> origin() const {
    const int64_t H = s.shape.hidden, row = step < 0 ? 0 : at(t, 0);
    const int64_t gates_row = gate_count(s.shape.cell) * H, dgates_row = gradient_count(s.shape.cell) * H;
    return {s.gates + row * gates_row,
            part(s.aux, row * H),
            s.y + row * H,
            part(s.dy, row * H),
            s.dgates + row * dgates_row,
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

// The present step of all rows for units [begin, end): gradients of the state, then of the gates.
template <class T, class CellBackward, int G>
void backward_step(const BackwardRows<T>& rows, const BackwardWeights<T, G>& weights, int64_t begin, int64_t end) {
  const auto& s = rows.s;
  const BackwardUnit<T> first = rows.origin();
  Vector<T> sums[group_rows][G];
  for (int64_t unit0 = begin; unit0 < end; unit0 += G * lanes<T>) {
    for_row_groups(rows.rows, [&](int64_t group, int64_t count) {
      for_row_tiles<most_rows<G>>(count, [&]<int R>(int64_t r0) {
        if (rows.step >= 0) prefetch_units<R, G>(first, rows, group + r0, unit0);
        Vector<T> acc[R][G] = {};
        if (rows.step < s.shape.steps - 1)
          product<T, R, G>(acc, rows.later_gates + group + r0, weights.panel(rows.model, unit0), G * lanes<T>,
                           weights.depth());
        store_tile<T, R, G>(acc, sums + r0);
      });
      for (int g = 0; g < G && unit0 + g * lanes<T> < s.shape.hidden; ++g) {
        const int64_t unit = unit0 + g * lanes<T>;
        for_each_row<T>(first, group, count, unit, [&](BackwardUnit<T>& at, int64_t r) RECURVE_INLINE_LAMBDA {
          const RowStep &now = rows.now[group + r], &later = rows.later[group + r];
          const Vector<T> dh = state_gradient<T, CellBackward>(at, now, later, sums[r][g]);
          if (!now.active) return store(at.dh_carry, dh, at.count);
          if (at.dh_squares != nullptr) *at.dh_squares += sum_of_squares<T>(dh);
          at.h_before = rows.h_before[group + r] + unit;
          at.c_before = part(rows.c_before[group + r], unit);
          CellBackward::finish(s, at, dh);
        });
      }
    });
  }
}

// Likewise of a GRU whose reset acts before the product: from the gradients of n to those of r and the state.
template <class T, int G>
void backward_reset(const BackwardRows<T>& rows, const BackwardWeights<T, G>& weights, int64_t begin, int64_t end) {
  const auto& s = rows.s;
  const BackwardUnit<T> first = rows.origin();
  Vector<T> sums[group_rows][G];
  for (int64_t unit0 = begin; unit0 < end; unit0 += G * lanes<T>) {
    for_row_groups(rows.rows, [&](int64_t group, int64_t count) {
      for_row_tiles<most_rows<G>>(count, [&]<int R>(int64_t r0) {
        Vector<T> acc[R][G] = {};
        product<T, R, G>(acc, rows.dn + group + r0, weights.panel(rows.model, unit0), G * lanes<T>, weights.depth());
        store_tile<T, R, G>(acc, sums + r0);
      });
      for (int g = 0; g < G && unit0 + g * lanes<T> < s.shape.hidden; ++g) {
        const int64_t unit = unit0 + g * lanes<T>;
        for_each_row<T>(first, group, count, unit, [&](BackwardUnit<T>& at, int64_t r) RECURVE_INLINE_LAMBDA {
          if (!rows.now[group + r].active) return;
          const Vector<T> reset = load(at.gates, at.count), h_before = load(rows.h_before[group + r] + unit, at.count);
          store(at.dgates, sums[r][g] * h_before * sigmoid_slope(reset), at.count);
          store(at.dh_carry, load(at.dh_carry, at.count) + sums[r][g] * reset, at.count);
        });
      }
    });
  }
}

template <class T, class CellBackward, int G>
void backward_blocks(const SequenceBackward<T>& s, const Parallel& parallel) {
  const bool resets_before = s.shape.cell == Cell::gru_before;
  const BackwardWeights<T, G> weights(s, 0, resets_before ? 2 : gate_count(s.shape.cell), parallel);
  const BackwardWeights<T, G> weights_n(s, 2, resets_before ? 1 : 0, parallel);
  for_rows<T>(s.shape, parallel, [&](int64_t model, int64_t row0, int64_t count, const Parallel& threads) {
    BackwardRows<T> rows(s, model, row0, count);
    // The squares of a row's units add up in one thread.
    const Parallel sharing = s.dh_squares == nullptr ? threads : Parallel{1, threads.run};
    auto for_units = [&](auto part) { for_unit_parts(s.shape.hidden, G * lanes<T>, sharing, part); };
    for (int64_t step = s.shape.steps - 1; step >= -1; --step) {
      rows.go_to(step);
      for_units([&](int64_t begin, int64_t end) { backward_step<T, CellBackward, G>(rows, weights, begin, end); });
      if (resets_before && step >= 0)
        for_units([&](int64_t begin, int64_t end) { backward_reset<T, G>(rows, weights_n, begin, end); });
    }
  });
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
  if (s.shape.models == 0 || s.shape.batch == 0) return;
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
