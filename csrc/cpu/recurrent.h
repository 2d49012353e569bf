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
  if (s.batch == 0) return;
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

}  // namespace
}  // namespace recurve
