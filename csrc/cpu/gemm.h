// Matrix product on packed panels. The sum over K runs in one fixed order, whatever the number of threads.
#pragma once

#include <cstdlib>

#include "kernels.h"
#include "simd.h"

namespace recurve {
namespace {

// Memory of one call, aligned for vectors.
template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t count)
      : data_(static_cast<T*>(std::aligned_alloc(64, (count * sizeof(T) + 127) / 64 * 64))) {
    if (data_ == nullptr) std::abort();
  }
  ~Scratch() { std::free(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  operator T*() const { return data_; }
  T* get() const { return data_; }

 private:
  T* data_;
};

template <class F>
void parallel_for(const Parallel& parallel, int64_t tasks, F&& f) {
  if (tasks == 1 || parallel.threads == 1) {
    for (int64_t i = 0; i < tasks; ++i) f(i);
  } else {
    parallel.run(tasks, [](void* context, int64_t i) { (*static_cast<F*>(context))(i); }, &f);
  }
}

RECURVE_INLINE int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
RECURVE_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
RECURVE_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

constexpr int64_t gemm_depth = 128;   // of a packed block
constexpr int64_t gemm_columns = 32;  // vectors in a block's width
constexpr int64_t gemm_rows = 384;    // of a block whose part of `a` is packed
constexpr int64_t gemm_tall = 768;    // of a block that reads `a` in place

// Packs rows [k0, k0 + K) and columns [n0, n1) of b into panels of G vectors: to[panel][k][lane], zero past n1.
template <class T, int G>
void pack_columns(const Gemm<T>& g, const T* b, int64_t k0, int64_t K, int64_t n0, int64_t n1, T* to) {
  constexpr int64_t width = G * lanes<T>, chunk = 16;
  for (int64_t first = n0; first < n1; first += width, to += K * width) {
    const int64_t count = least(width, n1 - first);
    if (count < width) __builtin_memset(to, 0, width * K * sizeof(T));
    if (g.b_column == 1) {
      for (int64_t k = 0; k < K; ++k)
        __builtin_memcpy(to + k * width, b + (k0 + k) * g.b_row + first, count * sizeof(T));
      continue;
    }
    for (int64_t c = 0; c < K; c += chunk)  // a chunk of the panel stays in the first-level cache
      for (int64_t n = 0; n < count; ++n)
        for (int64_t k = c; k < least(K, c + chunk); ++k)
          to[k * width + n] = b[(k0 + k) * g.b_row + (first + n) * g.b_column];
  }
}

// One block of C: rows [m0, m1), columns [n0, n1), all of K.
template <class T, int G>
void gemm_block(const Gemm<T>& g, int64_t model, int64_t m0, int64_t m1, int64_t n0, int64_t n1) {
  constexpr int64_t width = G * lanes<T>;
  const T* a = g.a + model * g.a_batch;
  const T* b = g.b + model * g.b_batch;
  T* c = g.c + model * g.c_batch;
  const T* bias = g.bias == nullptr ? nullptr : g.bias + model * g.bias_batch;
  const int64_t rows = m1 - m0, panels = divide_up(n1 - n0, width), depth = least(gemm_depth, g.K);
  const bool by_row = g.a_column == 1;  // rows of `a` are read in place; else its block is packed by k
  const bool b_in_place = g.b_column == 1 && rows <= most_rows<G> && (n1 - n0) % width == 0;
  Scratch<T> packed_a(by_row ? 0 : rows * depth), packed_b(b_in_place ? 0 : panels * width * depth);
  for (int64_t k0 = 0; k0 < g.K || k0 == 0; k0 += gemm_depth) {
    const int64_t K = least(gemm_depth, g.K - k0);
    if (!by_row)
      for_row_tiles<most_rows<G>>(0, rows, [&]<int R>(int64_t m) {
        T* to = packed_a + m * K;
        const T* from = a + (m0 + m) * g.a_row + k0 * g.a_column;
        for (int64_t k = 0; k < K; ++k, from += g.a_column, to += R) {
          if (g.a_row == 1)
            __builtin_memcpy(to, from, R * sizeof(T));
          else
            for (int r = 0; r < R; ++r) to[r] = from[r * g.a_row];
        }
      });
    if (!b_in_place) pack_columns<T, G>(g, b, k0, K, n0, n1, packed_b.get());
    const bool fresh = k0 == 0 && !g.accumulate;
    for (int64_t p = 0; p < panels; ++p) {
      const int64_t first = n0 + p * width;
      const T* panel = b_in_place ? b + k0 * g.b_row + first : packed_b + p * width * K;
      const int64_t stride = b_in_place ? g.b_row : width;
      for_row_tiles<most_rows<G>>(0, rows, [&]<int R>(int64_t m) {
        Vector<T> acc[R][G];
        const T* a_rows[R];
        RECURVE_UNROLL
        for (int r = 0; r < R; ++r) {
          a_rows[r] = a + (m0 + m + r) * g.a_row + k0;
          RECURVE_UNROLL
          for (int i = 0; i < G; ++i) acc[r][i] = zero_vector<T>();
        }
        if (by_row)
          product<T, R, G>(acc, a_rows, panel, stride, K);
        else
          product_by_depth<T, R, G>(acc, packed_a + m * K, panel, stride, K);
        RECURVE_UNROLL
        for (int r = 0; r < R; ++r) {
          RECURVE_UNROLL
          for (int i = 0; i < G; ++i) {
            const int64_t n = first + i * lanes<T>, count = n1 - n;
            if (count <= 0) continue;
            T* to = c + (m0 + m + r) * g.c_row + n;
            Vector<T> sum = acc[r][i];
            if (!fresh)
              sum += load(to, count);
            else if (bias != nullptr)
              sum += load(bias + n, count);
            store(to, sum, count);
          }
        }
      });
    }
  }
}

template <class T>
void gemm_wide(const Gemm<T>& g, const Parallel& parallel) {
  const int64_t n_step = least(g.N, gemm_columns * lanes<T>), n_blocks = divide_up(g.N, n_step);
  const int64_t vectors = divide_up(n_step, lanes<T>);
  int64_t m_step = g.a_column == 1 ? gemm_tall : gemm_rows;
  while (m_step > 24 && g.batch * n_blocks * divide_up(g.M, m_step) < 2 * parallel.threads) m_step /= 2;
  const int64_t m_blocks = divide_up(g.M, m_step);
  parallel_for(parallel, g.batch * m_blocks * n_blocks, [&](int64_t task) {
    const int64_t n = task % n_blocks, m = task / n_blocks % m_blocks, model = task / n_blocks / m_blocks;
    const int64_t m0 = m * m_step, m1 = least(g.M, m0 + m_step);
    const int64_t n0 = n * n_step, n1 = least(g.N, n0 + n_step);
    switch (vectors) {
      case 1:
        return gemm_block<T, 1>(g, model, m0, m1, n0, n1);
      case 2:
        return gemm_block<T, 2>(g, model, m0, m1, n0, n1);
      case 3:
        return gemm_block<T, 3>(g, model, m0, m1, n0, n1);
      default:
        return gemm_block<T, 4>(g, model, m0, m1, n0, n1);
    }
  });
}

template <class T>
void gemm(const Gemm<T>& g, const Parallel& parallel) {
  if (g.batch == 0 || g.M == 0 || g.N == 0) return;
  if (g.N >= lanes<T> || g.N >= g.M || g.bias != nullptr) return gemm_wide(g, parallel);
  // Few columns would leave most of a vector idle: the transposed product fills it.
  Scratch<T> transposed(g.batch * g.N * g.M);
  Gemm<T> t{g.batch,   g.N,        g.M,     g.K,        g.b,       g.b_batch, g.b_column, g.b_row, g.a,
            g.a_batch, g.a_column, g.a_row, transposed, g.N * g.M, g.M,       nullptr,    0,       false};
  gemm_wide(t, parallel);
  for (int64_t e = 0; e < g.batch; ++e)
    for (int64_t m = 0; m < g.M; ++m)
      for (int64_t n = 0; n < g.N; ++n) {
        T& to = g.c[e * g.c_batch + m * g.c_row + n];
        const T sum = transposed[(e * g.N + n) * g.M + m];
        to = g.accumulate ? to + sum : sum;
      }
}

// out (E, columns) = the sum over the rows of matrix (E, rows, columns), in the order of the rows.
template <class T>
void column_sums(const T* matrix, int64_t models, int64_t rows, int64_t columns, T* out, const Parallel& parallel) {
  constexpr int64_t width = 32 * lanes<T>;
  const int64_t blocks = divide_up(columns, width);
  parallel_for(parallel, models * blocks, [&](int64_t task) {
    const int64_t model = task / blocks, first = task % blocks * width, count = least(width, columns - first);
    const T* from = matrix + model * rows * columns + first;
    T* sums = out + model * columns + first;
    __builtin_memset(sums, 0, count * sizeof(T));
    for (int64_t r = 0; r < rows; ++r, from += columns)
      for (int64_t i = 0; i < count; ++i) sums[i] += from[i];
  });
}

}  // namespace
}  // namespace recurve
