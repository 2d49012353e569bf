// Matrix product on packed panels. The sum over K runs in one fixed order, whatever the number of threads.
#pragma once

#include "kernels.h"
#include "memory.h"
#include "simd.h"

namespace recurve {
namespace {

RECURVE_INLINE int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
RECURVE_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
RECURVE_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

constexpr bool many_registers = RECURVE_VECTOR_REGISTERS == 32;
constexpr int gemm_vectors = many_registers ? 4 : 2;         // of a panel, where there are enough columns
constexpr int64_t gemm_depth = many_registers ? 1024 : 512;  // most of K that is packed at once
constexpr int64_t gemm_rows = 96;         // of a task: its part of `a` stays in the second-level cache
constexpr int64_t gemm_serial = 1 << 16;  // multiply-adds that no second thread speeds up

// Calls f(k, count, group, within) for runs of [k0, k0 + K) that lie evenly, at most `most_at_once` each: k counts from
// k0, and the run starts at element `within` of `group`.
template <class T, class F>
void for_even_runs(const Gemm<T>& g, int64_t k0, int64_t K, int64_t most_at_once, const F& f) {
  const int64_t size = g.k_group > 0 ? g.k_group : most(1, g.K);
  for (int64_t k = k0, count; k < k0 + K; k += count) {
    count = least(most_at_once, least(size - k % size, k0 + K - k));
    f(k - k0, count, k / size, k % size);
  }
}

// Packs rows [k0, k0 + K) of b's columns [first, first + G vectors) into to[k][lane], zero past N.
template <class T, int G>
void pack_panel(const Gemm<T>& g, int64_t model, int64_t k0, int64_t K, int64_t first, T* to) {
  constexpr int64_t width = G * lanes<T>;
  const T* b = g.b + model * g.b_batch + first * g.b_column;
  const int64_t count = least(width, g.N - first);
  if (g.b_column != 1) {
    for (int64_t n = 0; n < width; n += lanes<T>)
      transpose_rows(b + n * g.b_column + k0 * g.b_row, g.b_column, least(lanes<T>, count - n), K, to + n, width);
    return;
  }
  for_even_runs(g, k0, K, K, [&](int64_t k0_of_run, int64_t run, int64_t group, int64_t within) {
    const int64_t b_row = g.b_row;
    const T* from = b + group * g.b_group + within * b_row;
    T* row = to + k0_of_run * width;
    const auto pack = [&](int64_t columns) RECURVE_INLINE_LAMBDA {
      for (int64_t k = 0; k < run; ++k, from += b_row, row += width)
        for (int64_t i = 0; i < width; i += lanes<T>)
          store(row + i, i < columns ? load(from + i, columns - i) : zero_vector<T>());
    };
    if (count >= width)
      pack(width);  // a constant: of whole vectors
    else
      pack(count);
  });
}

// Packs R columns of `a` as to[k][r]. A whole vector is written for each k and what is too much of it is written over
// by the next, save for the last few k, where it would leave the tile; `available` columns are there to be read.
template <class T, int R>
void pack_columns(const T* a, int64_t a_column, int64_t available, int64_t K, T* to) {
  constexpr int64_t width = (R + lanes<T> - 1) / lanes<T> * lanes<T>;
  const int64_t whole = available < width ? 0 : most(0, K + 1 - divide_up(width, R));
  for (int64_t k = 0; k < whole; ++k)
    for (int64_t i = 0; i < width; i += lanes<T>) store(to + k * R + i, load(a + k * a_column + i));
  for (int64_t k = whole; k < K; ++k) __builtin_memcpy(to + k * R, a + k * a_column, R * sizeof(T));
}

// Packs `rows` columns of `a`, elements [k0, k0 + K) of each, tile by tile and a few k at a time: what a tile leaves of
// a line, the next finds in the cache, also where rows lie a power of two apart and few lines of them fit.
template <class T, int G>
void pack_tiles(const Gemm<T>& g, const T* a, int64_t rows, int64_t available, int64_t k0, int64_t K, T* to) {
  constexpr int64_t few = 16;
  for_even_runs(g, k0, K, few, [&](int64_t k, int64_t run, int64_t group, int64_t within) {
    const T* from = a + group * g.a_group + within * g.a_column;
    for_row_tiles<most_rows<G>>(rows, [&]<int R>(int64_t m) {
      pack_columns<T, R>(from + m, g.a_column, available - m, run, to + m * K + k * R);
    });
  });
}

// The panels of one model's b: the first vector of each row, and how far apart rows and panels are.
template <class T>
struct Panels {
  const T* first;
  int64_t row, panel;
};

// Rows [m0, m0 + rows) of C, panels [p0, p1): adds the product over [k0, k0 + K).
template <class T, int G>
void gemm_block(const Gemm<T>& g, int64_t model, int64_t m0, int64_t rows, int64_t p0, int64_t p1, int64_t k0,
                int64_t K, const Panels<T>& panels) {
  constexpr int64_t width = G * lanes<T>;
  const T* a = g.a + model * g.a_batch + m0 * g.a_row;
  const T* bias = g.bias == nullptr || k0 > 0 ? nullptr : g.bias + model * g.bias_batch;
  const bool by_row = g.a_column == 1 && g.k_group == 0, adds = k0 > 0 || g.accumulate;
  T* c = g.c + model * g.c_batch + m0 * g.c_row;
  Scratch<T> columns(by_row ? 0 : rows * K);
  if (!by_row) pack_tiles<T, G>(g, a, rows, g.M - m0, k0, K, columns);
  for (int64_t p = p0; p < p1; ++p) {
    const T* panel = panels.first + p * panels.panel;
    const int64_t stride = panels.row;
    for_row_tiles<most_rows<G>>(rows, [&]<int R>(int64_t m) {
      for (int64_t r = m; r < m + R; ++r) prefetch<G>(c + r * g.c_row + p * width);
      Vector<T> acc[R][G] = {};
      if (by_row) {
        const T* a_rows[R];
        for (int r = 0; r < R; ++r) a_rows[r] = a + (m + r) * g.a_row + k0;
        product<T, R, G>(acc, a_rows, panel, stride, K);
      } else {
        product_by_column<T, R, G>(acc, columns + m * K, R, panel, stride, K);
      }
      RECURVE_UNROLL
      for (int r = 0; r < R; ++r) {
        RECURVE_UNROLL
        for (int i = 0; i < G; ++i) {
          const int64_t n = p * width + i * lanes<T>, count = g.N - n;
          if (count <= 0) continue;
          T* to = c + (m + r) * g.c_row + n;
          Vector<T> sum = acc[r][i];
          if (adds)
            sum += load(to, count);
          else if (bias != nullptr)
            sum += load(bias + n, count);
          store(to, sum, count);
        }
      }
    });
  }
}

template <class T, int G>
void gemm_panels(const Gemm<T>& g, const Parallel& parallel) {
  constexpr int64_t width = G * lanes<T>;
  const int64_t panels = divide_up(g.N, width), chunks = most(1, divide_up(g.K, gemm_depth));
  const int64_t depth = most(1, divide_up(g.K, chunks));
  // Tasks of a few rows, rather than of a few panels, each of which would pack the same part of `a`.
  const int64_t tasks = parallel.threads == 1 ? 1 : divide_up(2 * parallel.threads, g.batch);
  const int64_t even_rows = divide_up(g.M, most(divide_up(g.M, gemm_rows), least(tasks, g.M / (2 * most_rows<G>))));
  const int64_t rows = divide_up(even_rows, most_rows<G>) * most_rows<G>, m_blocks = divide_up(g.M, rows);
  const int64_t wanted = divide_up(2 * parallel.threads, g.batch * m_blocks);
  const int64_t p_step = divide_up(panels, least(panels, wanted)), p_blocks = divide_up(panels, p_step);
  // Where a panel is b itself, or few rows use it, packing would not pay.
  const bool in_place =
      g.b_column == 1 && g.k_group == 0 && g.N % width == 0 && (g.b_row == width || g.M <= most_rows<G>);
  Scratch<T> packed(in_place ? 0 : g.batch * panels * width * depth);
  for (int64_t k0 = 0; k0 == 0 || k0 < g.K; k0 += depth) {
    const int64_t K = least(depth, g.K - k0);
    if (!in_place)
      parallel_for(parallel, g.batch * panels, [&](int64_t task) {
        pack_panel<T, G>(g, task / panels, k0, K, task % panels * width, packed + task * width * K);
      });
    parallel_for(parallel, g.batch * m_blocks * p_blocks, [&](int64_t task) {
      const int64_t p0 = task % p_blocks * p_step, m0 = task / p_blocks % m_blocks * rows;
      const int64_t model = task / p_blocks / m_blocks;
      const Panels<T> b = in_place ? Panels<T>{g.b + model * g.b_batch + k0 * g.b_row, g.b_row, width}
                                   : Panels<T>{packed + model * panels * width * K, width, width * K};
      gemm_block<T, G>(g, model, m0, least(rows, g.M - m0), p0, least(panels, p0 + p_step), k0, K, b);
    });
  }
}

template <class T>
void gemm_wide(const Gemm<T>& g, const Parallel& parallel) {
  switch (divide_up(g.N, lanes<T>)) {
    case 1:
      return gemm_panels<T, 1>(g, parallel);
    case 2:
      return gemm_panels<T, 2>(g, parallel);
    case 3:
      return gemm_panels<T, 3>(g, parallel);
    default:
      return gemm_panels<T, gemm_vectors>(g, parallel);
  }
}

template <class T>
void gemm(const Gemm<T>& g, const Parallel& all) {
  if (g.batch == 0 || g.M == 0 || g.N == 0) return;
  const Parallel parallel{g.batch * g.M * g.N * g.K < gemm_serial ? 1 : all.threads, all.run};
  if (g.N >= lanes<T> || g.N >= g.M || g.bias != nullptr) return gemm_wide(g, parallel);
  // Few columns would leave most of a vector idle: the transposed product fills it, with the same sums in the same
  // order.
  Scratch<T> transposed(g.batch * g.N * g.M);
  const auto for_each = [&](const auto& f) {
    for (int64_t e = 0; e < g.batch; ++e)
      for (int64_t m = 0; m < g.M; ++m)
        for (int64_t n = 0; n < g.N; ++n) f(g.c[e * g.c_batch + m * g.c_row + n], transposed[(e * g.N + n) * g.M + m]);
  };
  if (g.accumulate) for_each([](const T& in_place, T& turned) { turned = in_place; });
  Gemm<T> t{g.batch, g.N,     g.M,       g.K,          g.b,       g.b_batch,  g.b_column,
            g.b_row, g.a,     g.a_batch, g.a_column,   g.a_row,   transposed, g.N * g.M,
            g.M,     nullptr, 0,         g.accumulate, g.k_group, g.b_group,  g.a_group};
  gemm_wide(t, parallel);
  for_each([](T& in_place, const T& turned) { in_place = turned; });
}

constexpr int64_t sums_width = 32;  // vectors of columns that are summed together

// Columns [0, count), at most sums_width vectors: the rows added in pairs of halves, so that rounding hardly grows.
template <class T>
void pairwise_sums(const T* from, int64_t rows, int64_t row_length, int64_t count, T* sums) {
  if (rows <= 16) {
    __builtin_memset(sums, 0, count * sizeof(T));
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t i = 0; i < count; ++i) sums[i] += from[r * row_length + i];
    return;
  }
  T rest[sums_width * lanes<T>];
  pairwise_sums(from, rows / 2, row_length, count, sums);
  pairwise_sums(from + rows / 2 * row_length, rows - rows / 2, row_length, count, rest);
  for (int64_t i = 0; i < count; ++i) sums[i] += rest[i];
}

}  // namespace
}  // namespace recurve
