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
  operator T*() { return data_; }
  T* get() { return data_; }

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

constexpr int64_t gemm_depth = 256;  // of a packed block

// One block of C: rows [m0, m1), columns [n0, n1), all of K.
template <class T, int G>
void gemm_block(const Gemm<T>& g, int64_t model, int64_t m0, int64_t m1, int64_t n0, int64_t n1) {
  constexpr int64_t panel = G * lanes<T>;
  const T* a = g.a + model * g.a_batch;
  const T* b = g.b + model * g.b_batch;
  T* c = g.c + model * g.c_batch;
  const T* bias = g.bias == nullptr ? nullptr : g.bias + model * g.bias_batch;
  const int64_t rows = m1 - m0, panels = divide_up(n1 - n0, panel);
  const int64_t depth = least(gemm_depth, g.K);
  Scratch<T> packed_a(rows * depth), packed_b(panels * panel * depth);
  for (int64_t k0 = 0; k0 < g.K || k0 == 0; k0 += gemm_depth) {
    const int64_t K = least(gemm_depth, g.K - k0);
    for (int64_t m = 0; m < rows; ++m) {
      const T* from = a + (m0 + m) * g.a_row + k0 * g.a_column;
      for (int64_t k = 0; k < K; ++k) packed_a[m * K + k] = from[k * g.a_column];
    }
    for (int64_t p = 0; p < panels; ++p) {
      const int64_t first = n0 + p * panel, count = least(panel, n1 - first);
      T* to = packed_b + p * panel * K;
      if (count < panel) __builtin_memset(to, 0, panel * K * sizeof(T));
      if (g.b_column == 1) {
        for (int64_t k = 0; k < K; ++k)
          __builtin_memcpy(to + k * panel, b + (k0 + k) * g.b_row + first, count * sizeof(T));
      } else {
        for (int64_t n = 0; n < count; ++n)
          for (int64_t k = 0; k < K; ++k) to[k * panel + n] = b[(k0 + k) * g.b_row + (first + n) * g.b_column];
      }
    }
    const bool fresh = k0 == 0 && !g.accumulate;
    for (int64_t p = 0; p < panels; ++p) {
      const int64_t first = n0 + p * panel;
      for_row_tiles<most_rows<G>>(0, rows, [&]<int R>(int64_t m) {
        Vector<T> acc[R][G];
        const T* a_rows[R];
        RECURVE_UNROLL
        for (int r = 0; r < R; ++r) {
          a_rows[r] = packed_a + (m + r) * K;
          RECURVE_UNROLL
          for (int i = 0; i < G; ++i) acc[r][i] = zero_vector<T>();
        }
        product<T, R, G>(acc, a_rows, packed_b + p * panel * K, panel, K);
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
  const int64_t vectors = divide_up(g.N, lanes<T>);
  const int64_t n_step = least(g.N, 4 * lanes<T> * 4);
  int64_t m_step = 96;
  const int64_t n_blocks = divide_up(g.N, n_step);
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

}  // namespace
}  // namespace recurve
