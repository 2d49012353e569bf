// Products of a block's states with the recurrent weights, tile by tile of rows (sequences) and units: plain, or on
// tensor cores. Both keep the first `kept` of the depth in shared memory and read the rest from global memory.
//
// The weights come in segments, each `depth` deep, whose states lie beside each other: one segment forward (the
// states), one per gate backward (the gradients of the gates). A thread gets the sums of some positions (row, unit) for
// all gates.
#pragma once

#include "device.h"

namespace recurve::cuda {

template <class T>
struct Weights {
  const T* global;  // of the block's model
  T* shared;        // what is kept of them
  int units;        // H
  int segments;
  int columns;  // of a segment: gates H forward, H backward
  int kept;     // of each segment's depth H, a whole number of steps
};

// A thread owns one unit of ROWS rows. Weights by depth: (segments, depth, columns).
template <class T, int ROWS>
struct Plain {
  static constexpr int positions = ROWS, row_tile = ROWS, unit_tile = warp_size;
  static constexpr int depth_step = 16 / sizeof(T), padding = 0;
  static constexpr int most_threads = ROWS * sizeof(T) >= 32 ? 256 : 384;  // as registers allow

  static __device__ __forceinline__ int row_of(int position) { return position; }
  static __device__ __forceinline__ int unit_of(int) { return lane(); }
  static constexpr int64_t kept_elements(int segments, int columns, int kept) {
    return int64_t{1} * segments * columns * kept;
  }

  static __device__ __forceinline__ void keep(const Weights<T>& w) {
    for (int segment = 0; segment < w.segments; ++segment) {
      const int count = least(w.kept, w.units) * w.columns;
      const T* from = w.global + int64_t{1} * segment * w.units * w.columns;
      T* to = w.shared + segment * w.kept * w.columns;
      for (int i = threadIdx.x; i < count; i += blockDim.x) to[i] = from[i];
    }
  }

  // acc[gate][position] += the states of a segment times its weights; `states` at the tile's first row.
  template <int GATES>
  static __device__ __forceinline__ void accumulate(T (&acc)[GATES][ROWS], const Weights<T>& w, const T* states,
                                                    int stride, int segment, int first_gate, int unit0) {
    const int column = first_gate * w.units + least(unit0 + lane(), w.units - 1), kept = least(w.kept, w.units);
    add<GATES>(acc, w.shared + segment * w.kept * w.columns + column, w.columns, w.units, states, stride, kept);
    add<GATES>(acc, w.global + (int64_t{1} * segment * w.units + kept) * w.columns + column, w.columns, w.units,
               states + kept, stride, w.units - kept);
  }

 private:
  template <int GATES>
  static __device__ __forceinline__ void add(T (&acc)[GATES][ROWS], const T* weights, int columns, int units,
                                             const T* states, int stride, int depth) {
    struct alignas(16) Step {
      T values[depth_step];
    };
    int k = 0;
#pragma unroll 1  // as registers allow
    for (; k + depth_step <= depth; k += depth_step) {
      Step rows[ROWS];
#pragma unroll
      for (int r = 0; r < ROWS; ++r) rows[r] = together<Step>(states + r * stride + k);
#pragma unroll
      for (int i = 0; i < depth_step; ++i, weights += columns)
#pragma unroll
        for (int g = 0; g < GATES; ++g) {
          const T weight = weights[g * units];
#pragma unroll
          for (int r = 0; r < ROWS; ++r) acc[g][r] += rows[r].values[i] * weight;
        }
    }
    for (; k < depth; ++k, weights += columns)
#pragma unroll
      for (int g = 0; g < GATES; ++g)
#pragma unroll
        for (int r = 0; r < ROWS; ++r) acc[g][r] += states[r * stride + k] * weights[g * units];
  }
};

// A warp owns tiles of 16 rows by 8 units. Weights by column: (columns, segments, depth). In words of 4 bytes, since
// the tensor cores' layout is the same for all types.
template <class T, int TILES>
struct TensorCores {
  static constexpr int positions = 4 * TILES, row_tile = 16 * TILES, unit_tile = 8;
  static constexpr int in_word = 4 / sizeof(T), depth_step = 8 * in_word, padding = 4 * in_word;
  static constexpr int most_threads = TILES == 1 ? 384 : 512;  // as registers allow

  static __device__ __forceinline__ int row_of(int position) {
    return position / 4 * 16 + lane() / 4 + position % 4 / 2 * 8;
  }
  static __device__ __forceinline__ int unit_of(int position) { return lane() % 4 * 2 + position % 2; }
  static constexpr int64_t kept_elements(int segments, int columns, int kept) {
    return kept == 0 ? 0 : int64_t{1} * segments * columns * (kept + padding);
  }

  static __device__ __forceinline__ void keep(const Weights<T>& w) {
    for (int row = warp(); row < w.segments * w.columns; row += warps()) {
      const T* from = row_of_weights(w, row / w.columns, row % w.columns);
      T* to = w.shared + row * (w.kept + padding);
      for (int k = lane(); k < w.kept; k += warp_size) to[k] = k < w.units ? kept_operand(from[k]) : T{};
    }
  }

  template <int GATES>
  static __device__ __forceinline__ void accumulate(float (&acc)[GATES][positions], const Weights<T>& w,
                                                    const T* states, int stride, int segment, int first_gate,
                                                    int unit0) {
    const int column = first_gate * w.units + least(unit0 + lane() / 4, w.units - 1);
    const T* shared = w.shared + (segment * w.columns + column) * (w.kept + padding);
    const T* global = row_of_weights(w, segment, column);
    const int gate_shared = w.units * (w.kept + padding);
    const int64_t gate_global = int64_t{1} * w.units * w.segments * w.units;
    const T* rows = states + lane() / 4 * stride;
    auto step = [&](int k, float (&sums)[GATES][positions], const auto& weight) {
      uint32_t a[TILES][4];
#pragma unroll
      for (int tile = 0; tile < TILES; ++tile)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          a[tile][i] = operand<T>(word(rows + (tile * 16 + i % 2 * 8) * stride, k / in_word + i / 2 * 4));
#pragma unroll
      for (int g = 0; g < GATES; ++g) {
        const uint32_t b[2] = {weight(g, k / in_word), weight(g, k / in_word + 4)};
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
          float d[4];
#pragma unroll
          for (int i = 0; i < 4; ++i) d[i] = sums[g][tile * 4 + i];
          multiply<T>(d, a[tile], b);
#pragma unroll
          for (int i = 0; i < 4; ++i) sums[g][tile * 4 + i] = d[i];
        }
      }
    };
    auto kept = [&](int g, int first) { return word(shared + g * gate_shared, first); };
    auto streamed = [&](int g, int first) { return operand<T>(bounded(global + g * gate_global, first, w.units)); };
    const int shared_depth = least(w.kept, round_up(w.units, depth_step));
    int k = 0;
    if constexpr (GATES * TILES < 3) {  // a sum waits for the one before: two at a time
      float others[GATES][positions] = {};
      for (; k + depth_step < shared_depth; k += 2 * depth_step) {
        step(k, acc, kept);
        step(k + depth_step, others, kept);
      }
#pragma unroll
      for (int g = 0; g < GATES; ++g)
#pragma unroll
        for (int p = 0; p < positions; ++p) acc[g][p] += others[g][p];
    }
    for (; k < shared_depth; k += depth_step) step(k, acc, kept);
    for (; k < w.units; k += depth_step) step(k, acc, streamed);
  }

 private:
  static __device__ __forceinline__ const T* row_of_weights(const Weights<T>& w, int segment, int column) {
    return w.global + (int64_t{1} * column * w.segments + segment) * w.units;
  }
  // The lane's word of a step.
  static __device__ __forceinline__ uint32_t word(const T* row, int first) {
    return together<uint32_t>(row + (first + lane() % 4) * in_word);
  }
  // The same of a row that may lie at an odd place, zero past its end.
  static __device__ __forceinline__ uint32_t bounded(const T* row, int first, int depth) {
    const int k = (first + lane() % 4) * in_word;
    if constexpr (in_word == 1) {
      return k < depth ? __builtin_bit_cast(uint32_t, row[k]) : 0;
    } else {
      const uint32_t low = k < depth ? row[k].bits : 0, high = k + 1 < depth ? row[k + 1].bits : 0;
      return low | high << 16;
    }
  }
};

// Rows of a block's states in shared memory, with zeros past each segment's depth.
template <class P>
constexpr int states_stride(int segments, int units) {
  return segments * round_up(units, P::depth_step) + P::padding;
}

// One of a thread's positions in a tile.
struct Position {
  int index;
  bool first;  // of the warp's first tile
  bool valid;  // within the block's rows and units
  int row, unit;
};

// A block's positions as its warps own them: tile by tile, the same at every step.
template <class P>
struct Tiles {
  int rows, units, row_tiles, count;

  __device__ __forceinline__ Tiles(int rows_, int units_)
      : rows(rows_),
        units(units_),
        row_tiles(divide_up(rows_, P::row_tile)),
        count(row_tiles * divide_up(units_, P::unit_tile)) {}

  // Calls f(tile, row0, unit0) for all tiles of the warp.
  template <class F>
  __device__ __forceinline__ void for_tiles(const F& f) const {
    for (int tile = warp(); tile < count; tile += warps()) {
      const int column = row_tiles == 1 ? tile : tile / row_tiles;
      f(tile, (tile - column * row_tiles) * P::row_tile, column * P::unit_tile);
    }
  }
  __device__ __forceinline__ Position position(int tile, int row0, int unit0, int index) const {
    const int row = row0 + P::row_of(index), unit = unit0 + P::unit_of(index);
    return {index, tile == warp(), row < rows && unit < units, row, unit};
  }
  // For all positions of a tile: compute(position) for a few, for valid ones or not, then finish(position, computed)
  // for those of them that are valid: no position waits for another.
  template <class Compute, class Finish>
  __device__ __forceinline__ void in_tile(int tile, int row0, int unit0, const Compute& compute,
                                          const Finish& finish) const {
    constexpr int few = P::positions < 4 ? P::positions : 4;
#pragma unroll
    for (int begin = 0; begin < P::positions; begin += few) {
      decltype(compute(Position{})) computed[few];
#pragma unroll
      for (int i = 0; i < few; ++i) computed[i] = compute(position(tile, row0, unit0, begin + i));
#pragma unroll
      for (int i = 0; i < few; ++i) {
        const Position at = position(tile, row0, unit0, begin + i);
        if (at.valid) finish(at, computed[i]);
      }
    }
  }
  template <class Compute, class Finish>
  __device__ __forceinline__ void for_all(const Compute& compute, const Finish& finish) const {
    for_tiles([&](int tile, int row0, int unit0) { in_tile(tile, row0, unit0, compute, finish); });
  }
  // Calls f(position) for valid positions: all, or those of the warp's first tile.
  template <class F>
  __device__ __forceinline__ void for_all(const F& f) const {
    for_tiles([&](int tile, int row0, int unit0) { in_valid(tile, row0, unit0, f); });
  }
  template <class F>
  __device__ __forceinline__ void for_first(const F& f) const {
    const int column = row_tiles == 1 ? warp() : warp() / row_tiles;
    if (warp() < count) in_valid(warp(), (warp() - column * row_tiles) * P::row_tile, column * P::unit_tile, f);
  }

 private:
  template <class F>
  __device__ __forceinline__ void in_valid(int tile, int row0, int unit0, const F& f) const {
#pragma unroll
    for (int i = 0; i < P::positions; ++i) {
      const Position at = position(tile, row0, unit0, i);
      if (at.valid) f(at);
    }
  }
};

// For all positions: compute(position, sums of GATES gates), then finish(position, computed), as `Tiles::in_tile`.
template <int GATES, class T, class P, class Compute, class Finish>
__device__ __forceinline__ void for_products(const Weights<T>& w, const Tiles<P>& tiles, const T* states, int stride,
                                             int first_segment, int segments, int first_gate, const Compute& compute,
                                             const Finish& finish) {
  tiles.for_tiles([&](int tile, int row0, int unit0) {
    Accumulate<T> acc[GATES][P::positions] = {};
    for (int segment = first_segment; segment < first_segment + segments; ++segment)
      P::template accumulate<GATES>(acc, w, states + row0 * stride + segment * round_up(w.units, P::depth_step), stride,
                                    segment, first_gate, unit0);
    auto with_sums = [&](const Position& at) {
      Accumulate<T> sums[GATES];
#pragma unroll
      for (int g = 0; g < GATES; ++g) sums[g] = acc[g][at.index];
      return compute(at, sums);
    };
    tiles.in_tile(tile, row0, unit0, with_sums, finish);
  });
}

}  // namespace recurve::cuda
