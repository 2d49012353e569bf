// LSTM, GRU and RNN over a whole sequence: product with the recurrent weights and cell in one pass.
//
// A task owns some rows (sequences) of one model and runs them through all steps without meeting another task. The
// weights are packed once per call, so that each block of units reads one contiguous panel. A row's arithmetic does
// not depend on the rows beside it, so results are the same for any number of threads.
#pragma once

#include <numeric>

#include "gemm.h"

namespace recurve {
namespace {

// Where one row stands at one step.
struct RowStep {
  bool active;  // within the row's length
  bool first;   // the first step that the row takes
  bool last;    // the last one
  bool reset;   // its state is zeroed before this step
};

RECURVE_INLINE int64_t time_of(const SequenceShape& s, int64_t step) { return s.reverse ? s.steps - 1 - step : step; }

RECURVE_INLINE RowStep row_step(const SequenceShape& s, int64_t t, int64_t b) {
  const int64_t length = s.lengths == nullptr ? s.steps : s.lengths[b];
  const int64_t start = s.reverse ? length - 1 : 0, end = s.reverse ? 0 : length - 1;
  return {t < length, t == start, t == end, s.resets != nullptr && s.resets[t * s.batch + b]};
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

// ---------------------------------------------------------------------------------------------------- forward

// Packs w_hh (gates H, H) for blocks of U vectors of units: panel[block][k][gate][u][lane], zero past H.
template <class T, int GATES, int U>
void pack_forward(const SequenceForward<T>& s, T* packed, const Parallel& parallel) {
  const int64_t H = s.shape.hidden, width = U * lanes<T>, blocks = divide_up(H, width);
  parallel_for(parallel, s.shape.models * blocks, [&](int64_t task) {
    const int64_t model = task / blocks, block = task % blocks;
    const T* w = s.w_hh + model * GATES * H * H;
    T* panel = packed + task * H * GATES * width;
    const int64_t units = least(width, H - block * width);
    for (int64_t gate = 0; gate < GATES; ++gate)
      for (int64_t unit = 0; unit < width; unit += lanes<T>)
        transpose_rows(w + (gate * H + block * width + unit) * H, H, least(lanes<T>, units - unit), H,
                       panel + gate * width + unit, GATES * width);
  });
}

// One vector of units of one row: from the product with the weights to the new state.
template <class T>
struct ForwardUnit {
  T* gates;  // (gates H) of this step and row, at this unit
  T* aux;    // (H), likewise
  T* y;
  const T* h_before;
  const T* c_before;
  const T* bias_n;
  int64_t H, count;
};

struct LstmForward {
  static constexpr int gates = 4;
  template <class T>
  static RECURVE_INLINE_MEMBER void finish(const SequenceForward<T>& s, const ForwardUnit<T>& at,
                                           const Vector<T>* product) {
    using V = Vector<T>;
    const LstmGates<V> pre{product[0] + load(at.gates, at.count), product[1] + load(at.gates + at.H, at.count),
                           product[2] + load(at.gates + 2 * at.H, at.count),
                           product[3] + load(at.gates + 3 * at.H, at.count)};
    const LstmGates<V> gate = lstm_activate(pre);
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
  static constexpr int gates = 3;
  template <class T>
  static RECURVE_INLINE_MEMBER void finish(const SequenceForward<T>& s, const ForwardUnit<T>& at,
                                           const Vector<T>* product) {
    using V = Vector<T>;
    V n_hidden = product[2];
    if (at.bias_n != nullptr) n_hidden += load(at.bias_n, at.count);
    const GruGates<V> gate =
        gru_activate(product[0] + load(at.gates, at.count), product[1] + load(at.gates + at.H, at.count),
                     load(at.gates + 2 * at.H, at.count), n_hidden);
    if (s.keep) {
      store(at.gates, gate.r, at.count);
      store(at.gates + at.H, gate.z, at.count);
      store(at.gates + 2 * at.H, gate.n, at.count);
      store(at.aux, n_hidden, at.count);
    }
    store(at.y, gru_hidden_state(gate, load(at.h_before, at.count)), at.count);
  }
};

struct RnnForward {
  static constexpr int gates = 1;
  template <class T>
  static RECURVE_INLINE_MEMBER void finish(const SequenceForward<T>& s, const ForwardUnit<T>& at,
                                           const Vector<T>* product) {
    using V = Vector<T>;
    const T leak = static_cast<T>(s.shape.leak);
    const V a = activate(product[0] + load(at.gates, at.count), s.shape.activation);
    if (s.keep) store(at.gates, a, at.count);
    store(at.y, leak == 1 ? a : a * leak + load(at.h_before, at.count) * (1 - leak), at.count);
  }
};

template <class T, class CellForward, int U>
void forward_rows(const SequenceForward<T>& s, const T* packed, int64_t model, int64_t row0, int64_t rows) {
  constexpr int GATES = CellForward::gates, P = GATES * U;
  const auto& shape = s.shape;
  const int64_t T_ = shape.steps, B = shape.batch, H = shape.hidden, width = U * lanes<T>;
  const bool has_cell = shape.cell == Cell::lstm, keeps_aux = s.keep || !has_cell;
  Scratch<T> zeros(H);
  __builtin_memset(zeros, 0, H * sizeof(T));
  Scratch<const T*> h_before(rows), c_before(rows);
  Scratch<bool> active(rows);
  auto row_at = [&](int64_t t, int64_t b) { return (model * T_ + t) * B + b; };
  auto aux_at = [&](int64_t t, int64_t b) {
    return s.aux == nullptr ? nullptr : s.aux + (keeps_aux ? row_at(t, b) : model * B + b) * H;
  };
  for (int64_t step = 0; step < T_; ++step) {
    const int64_t t = time_of(shape, step), t_before = shape.reverse ? t + 1 : t - 1;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t b = row0 + r;
      const RowStep at = row_step(shape, t, b);
      active[r] = at.active;
      const bool zero = !at.active || at.reset;
      h_before[r] = zero ? zeros.get() : at.first ? s.h0 + (model * B + b) * H : s.y + row_at(t_before, b) * H;
      if (has_cell) c_before[r] = zero ? zeros.get() : at.first ? s.c0 + (model * B + b) * H : aux_at(t_before, b);
      if (!at.active) __builtin_memset(s.y + row_at(t, b) * H, 0, H * sizeof(T));
    }
    for (int64_t unit0 = 0; unit0 < H; unit0 += width) {
      const T* panel = packed + (model * divide_up(H, width) * width + unit0) * GATES * H;
      for_row_tiles<most_rows<(P < 4 ? P : 4)>>(rows, [&]<int R>(int64_t r0) {
        Vector<T> acc[R][P];
        RECURVE_UNROLL
        for (int r = 0; r < R; ++r) {
          RECURVE_UNROLL
          for (int p = 0; p < P; ++p) acc[r][p] = zero_vector<T>();
          const T* gates = s.gates + row_at(t, row0 + r0 + r) * GATES * H + unit0;
          for (int g = 0; g < GATES; ++g) prefetch<U>(gates + g * H);
        }
        product<T, R, P>(acc, h_before + r0, panel, P * lanes<T>, H);
        for (int r = 0; r < R; ++r) {
          if (!active[r0 + r]) continue;
          const int64_t b = row0 + r0 + r, row = row_at(t, b);
          T* aux = aux_at(t, b);
          for (int u = 0; u < U; ++u) {
            const int64_t unit = unit0 + u * lanes<T>, count = H - unit;
            if (count <= 0) break;
            Vector<T> gate_products[GATES];
            for (int g = 0; g < GATES; ++g) gate_products[g] = acc[r][g * U + u];
            const ForwardUnit<T> at{s.gates + row * GATES * H + unit,
                                    aux == nullptr ? nullptr : aux + unit,
                                    s.y + row * H + unit,
                                    h_before[r0 + r] + unit,
                                    has_cell ? c_before[r0 + r] + unit : nullptr,
                                    s.bias_n == nullptr ? nullptr : s.bias_n + model * H + unit,
                                    H,
                                    count};
            CellForward::finish(s, at, gate_products);
          }
        }
      });
    }
  }
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t b = row0 + r, state = (model * B + b) * H;
    const int64_t length = shape.lengths == nullptr ? T_ : shape.lengths[b];
    const int64_t t = shape.reverse ? 0 : length - 1;
    __builtin_memcpy(s.h_n + state, length == 0 ? s.h0 + state : s.y + row_at(t, b) * H, H * sizeof(T));
    if (has_cell) __builtin_memcpy(s.c_n + state, length == 0 ? s.c0 + state : aux_at(t, b), H * sizeof(T));
  }
}

template <class T, class CellForward, int U>
void forward_blocks(const SequenceForward<T>& s, const Parallel& parallel) {
  const auto& shape = s.shape;
  const int64_t width = U * lanes<T>, padded = divide_up(shape.hidden, width) * width;
  Scratch<T> packed(shape.models * padded * CellForward::gates * shape.hidden);
  pack_forward<T, CellForward::gates, U>(s, packed, parallel);
  for_row_parts(shape, parallel, [&](int64_t model, int64_t row0, int64_t rows) {
    forward_rows<T, CellForward, U>(s, packed, model, row0, rows);
  });
}

template <class T>
void sequence_forward(const SequenceForward<T>& s, const Parallel& parallel) {
  if (s.shape.models == 0 || s.shape.batch == 0) return;
  switch (s.shape.cell) {
    case Cell::lstm:
      return forward_blocks<T, LstmForward, 1>(s, parallel);
    case Cell::gru:
      return forward_blocks<T, GruForward, 1>(s, parallel);
    case Cell::rnn:
      return s.shape.hidden > 2 * lanes<T> ? forward_blocks<T, RnnForward, 4>(s, parallel)
                                           : forward_blocks<T, RnnForward, 2>(s, parallel);
  }
}

// ---------------------------------------------------------------------------------------------------- backward

// Packs w_hh (gates H, H) for blocks of G vectors of columns: panel[block][k][g][lane], zero past H.
template <class T, int G>
void pack_backward(const SequenceBackward<T>& s, T* packed, const Parallel& parallel) {
  const int64_t H = s.shape.hidden, K = gate_count(s.shape.cell) * H, width = G * lanes<T>;
  const int64_t blocks = divide_up(H, width);
  parallel_for(parallel, s.shape.models * blocks, [&](int64_t task) {
    const T* w = s.w_hh + task / blocks * K * H + task % blocks * width;
    T* panel = packed + task * K * width;
    const int64_t columns = least(width, H - task % blocks * width);
    if (columns < width) __builtin_memset(panel, 0, K * width * sizeof(T));
    for (int64_t k = 0; k < K; ++k) __builtin_memcpy(panel + k * width, w + k * H, columns * sizeof(T));
  });
}

// One vector of units of one row: from the gradient of the new state to those of the gates and the old state.
template <class T>
struct BackwardUnit {
  const T *gates, *aux, *y;
  const T *h_before, *c_before;
  T* dgates;
  T *dh_carry, *dc_carry;  // in: what reaches this state beside the product; out: the same for the state before
  int64_t H, count;
};

struct LstmBackward {
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
    store(at.dc_carry, dc, count);
  }
};

struct GruBackward {
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

struct RnnBackward {
  template <class T>
  static RECURVE_INLINE_MEMBER void finish(const SequenceBackward<T>& s, const BackwardUnit<T>& at, Vector<T> dh) {
    const T leak = static_cast<T>(s.shape.leak);
    const Vector<T> a = load(at.gates, at.count);
    const Vector<T> slope = activation_slope(a, a, s.shape.activation);
    store(at.dgates, dh * slope * leak, at.count);
    store(at.dh_carry, dh * (1 - leak), at.count);
  }
};

template <class T, class CellBackward, int G>
void backward_rows(const SequenceBackward<T>& s, const T* packed, int64_t model, int64_t row0, int64_t rows) {
  const auto& shape = s.shape;
  const int64_t T_ = shape.steps, B = shape.batch, H = shape.hidden, width = G * lanes<T>;
  const int64_t gates = gate_count(shape.cell) * H, gradients = gradient_count(shape.cell) * H;
  const int64_t skipped = gradients - gates;  // GRU: the gradient of n from the input does not pass the weights
  const bool has_cell = shape.cell == Cell::lstm;
  Scratch<T> zeros(H);
  __builtin_memset(zeros, 0, H * sizeof(T));
  Scratch<const T*> from_gates(rows), h_before(rows), c_before(rows);
  Scratch<RowStep> now(rows), later(rows);
  auto row_at = [&](int64_t t, int64_t b) { return (model * T_ + t) * B + b; };
  auto state_at = [&](int64_t b) { return (model * B + b) * H; };
  // dh0 and dc0 carry the gradients of the state from step to step.
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t state = state_at(row0 + r);
    if (s.dh_n == nullptr)
      __builtin_memset(s.dh0 + state, 0, H * sizeof(T));
    else
      __builtin_memcpy(s.dh0 + state, s.dh_n + state, H * sizeof(T));
    if (!has_cell) continue;
    if (s.dc_n == nullptr)
      __builtin_memset(s.dc0 + state, 0, H * sizeof(T));
    else
      __builtin_memcpy(s.dc0 + state, s.dc_n + state, H * sizeof(T));
  }
  // Step `steps` stands for "after the last", step -1 for "before the first": there the state is h_n or h0.
  for (int64_t step = T_ - 1; step >= -1; --step) {
    const int64_t t = time_of(shape, step), t_before = shape.reverse ? t + 1 : t - 1;
    const int64_t t_later = shape.reverse ? t - 1 : t + 1;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t b = row0 + r;
      later[r] = step == T_ - 1 ? RowStep{false, false, false, false} : row_step(shape, t_later, b);
      now[r] = step < 0 ? RowStep{false, false, false, false} : row_step(shape, t, b);
      from_gates[r] = step == T_ - 1 ? zeros.get() : s.dgates + row_at(t_later, b) * gradients + skipped;
      if (step < 0) continue;
      if (!now[r].active) __builtin_memset(s.dgates + row_at(t, b) * gradients, 0, gradients * sizeof(T));
      h_before[r] = now[r].reset ? zeros.get() : now[r].first ? s.h0 + state_at(b) : s.y + row_at(t_before, b) * H;
      if (has_cell)
        c_before[r] = now[r].reset ? zeros.get() : now[r].first ? s.c0 + state_at(b) : s.aux + row_at(t_before, b) * H;
    }
    for (int64_t unit0 = 0; unit0 < H; unit0 += width) {
      const T* panel = packed + model * divide_up(H, width) * width * gates + unit0 * gates;
      for_row_tiles<most_rows<G>>(rows, [&]<int R>(int64_t r0) {
        Vector<T> acc[R][G];
        RECURVE_UNROLL
        for (int r = 0; r < R; ++r) {
          RECURVE_UNROLL
          for (int g = 0; g < G; ++g) acc[r][g] = zero_vector<T>();
          if (step < 0) continue;
          const int64_t row = row_at(t, row0 + r0 + r);
          for (int g = 0; g < gate_count(shape.cell); ++g) prefetch<G>(s.gates + row * gates + g * H + unit0);
          if (s.aux != nullptr) prefetch<G>(s.aux + row * H + unit0);
          if (has_cell) prefetch<G>(c_before[r0 + r] + unit0);
          if (s.dy != nullptr) prefetch<G>(s.dy + row * H + unit0);
        }
        if (step < T_ - 1) product<T, R, G>(acc, from_gates + r0, panel, width, gates);
        for (int r = 0; r < R; ++r) {
          const RowStep& at = now[r0 + r];
          const RowStep& after = later[r0 + r];
          const int64_t b = row0 + r0 + r, state = state_at(b), row = row_at(t, b);
          for (int g = 0; g < G; ++g) {
            const int64_t unit = unit0 + g * lanes<T>, count = H - unit;
            if (count <= 0) break;
            T* dh_carry = s.dh0 + state + unit;
            T* dc_carry = has_cell ? s.dc0 + state + unit : nullptr;
            Vector<T> dh = load(dh_carry, count);
            if (after.active) dh = has_cell ? acc[r][g] : dh + acc[r][g];
            if (after.reset && after.active) {
              dh = zero_vector<T>();
              if (has_cell) store(dc_carry, zero_vector<T>(), count);
            }
            if (!at.active) {
              store(dh_carry, dh, count);
              continue;
            }
            if (s.dy != nullptr) dh += load(s.dy + row * H + unit, count);
            const BackwardUnit<T> where{s.gates + row * gates + unit,
                                        s.aux == nullptr ? nullptr : s.aux + row * H + unit,
                                        s.y + row * H + unit,
                                        h_before[r0 + r] + unit,
                                        has_cell ? c_before[r0 + r] + unit : nullptr,
                                        s.dgates + row * gradients + unit,
                                        dh_carry,
                                        dc_carry,
                                        H,
                                        count};
            CellBackward::finish(s, where, dh);
          }
        }
      });
    }
  }
}

template <class T, class CellBackward, int G>
void backward_blocks(const SequenceBackward<T>& s, const Parallel& parallel) {
  const auto& shape = s.shape;
  const int64_t width = G * lanes<T>, padded = divide_up(shape.hidden, width) * width;
  Scratch<T> packed(shape.models * padded * gate_count(shape.cell) * shape.hidden);
  pack_backward<T, G>(s, packed, parallel);
  for_row_parts(shape, parallel, [&](int64_t model, int64_t row0, int64_t rows) {
    backward_rows<T, CellBackward, G>(s, packed, model, row0, rows);
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
  }
}

}  // namespace
}  // namespace recurve
