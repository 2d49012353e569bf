// Vectors of the instruction set being compiled for, and loads and stores of a part of one.
#pragma once

#include <cstdint>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "../core/math.h"

#if defined(__AVX512F__)
#define RECURVE_VECTOR_BYTES 64
#define RECURVE_VECTOR_REGISTERS 32
#elif defined(__AVX2__)
#define RECURVE_VECTOR_BYTES 32
#define RECURVE_VECTOR_REGISTERS 16
#elif defined(__aarch64__)
#define RECURVE_VECTOR_BYTES 16
#define RECURVE_VECTOR_REGISTERS 32
#else
#define RECURVE_VECTOR_BYTES 16
#define RECURVE_VECTOR_REGISTERS 16
#endif

#if defined(__clang__)
#define RECURVE_UNROLL _Pragma("clang loop unroll(full)")
#else
#define RECURVE_UNROLL _Pragma("GCC unroll 16")
#endif

namespace recurve {

typedef float FloatVector __attribute__((vector_size(RECURVE_VECTOR_BYTES)));
typedef double DoubleVector __attribute__((vector_size(RECURVE_VECTOR_BYTES)));
typedef int32_t Int32Vector __attribute__((vector_size(RECURVE_VECTOR_BYTES)));
typedef int64_t Int64Vector __attribute__((vector_size(RECURVE_VECTOR_BYTES)));

template <>
struct Real<FloatVector> {
  using Scalar = float;
  using Bits = Int32Vector;
};
template <>
struct Real<DoubleVector> {
  using Scalar = double;
  using Bits = Int64Vector;
};

namespace {

template <class T>
struct VectorOf;
template <>
struct VectorOf<float> {
  using type = FloatVector;
};
template <>
struct VectorOf<double> {
  using type = DoubleVector;
};
template <class T>
using Vector = typename VectorOf<T>::type;

template <class T>
constexpr int64_t lanes = RECURVE_VECTOR_BYTES / sizeof(T);

template <class T>
RECURVE_INLINE Vector<T> zero_vector() {
  return Vector<T>{};
}

template <class T>
RECURVE_INLINE Vector<T> load(const T* from) {
  Vector<T> v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}

template <class T>
RECURVE_INLINE void store(T* to, Vector<T> v) {
  __builtin_memcpy(to, &v, sizeof v);
}

#if defined(__AVX512F__)
RECURVE_INLINE FloatVector load_part(const float* from, int64_t count) {
  return (FloatVector)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), from);
}
RECURVE_INLINE DoubleVector load_part(const double* from, int64_t count) {
  return (DoubleVector)_mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << count) - 1), from);
}
RECURVE_INLINE void store_part(float* to, FloatVector v, int64_t count) {
  _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << count) - 1), (__m512)v);
}
RECURVE_INLINE void store_part(double* to, DoubleVector v, int64_t count) {
  _mm512_mask_storeu_pd(to, static_cast<__mmask8>((1u << count) - 1), (__m512d)v);
}
#else
template <class T>
RECURVE_INLINE Vector<T> load_part(const T* from, int64_t count) {
  Vector<T> v{};
  for (int64_t i = 0; i < count; ++i) v[i] = from[i];
  return v;
}
template <class T>
RECURVE_INLINE void store_part(T* to, Vector<T> v, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = v[i];
}
#endif

// The first `count` lanes, if there are fewer than a vector has; the others are zero.
template <class T>
RECURVE_INLINE Vector<T> load(const T* from, int64_t count) {
  return count >= lanes<T> ? load(from) : load_part(from, count);
}

template <class T>
RECURVE_INLINE void store(T* to, Vector<T> v, int64_t count) {
  if (count >= lanes<T>)
    store(to, v);
  else
    store_part(to, v, count);
}

// Products of a tile: acc[r][g] += sum over k of a(r, k) * w(k)[g], where `a(r, k)` gives one element of R rows and
// `w(k)` the address of G vectors. The sum runs in blocks, each summed by itself: its rounding error stays that of a
// block where one long chain would let it grow with K.
constexpr int64_t product_block = 256;

template <class T, int R, int G, class A, class W>
RECURVE_INLINE void accumulate(Vector<T> (&acc)[R][G], const A& a, const W& w, int64_t k, int64_t end) {
  for (; k < end; ++k) {
    const T* at = w(k);
    Vector<T> b[G];
    RECURVE_UNROLL
    for (int g = 0; g < G; ++g) b[g] = load(at + g * lanes<T>);
    RECURVE_UNROLL
    for (int r = 0; r < R; ++r) {
      RECURVE_UNROLL
      for (int g = 0; g < G; ++g) acc[r][g] += b[g] * a(r, k);
    }
  }
}

template <class T, int R, int G, class A, class W>
RECURVE_INLINE void accumulate_blocks(Vector<T> (&acc)[R][G], const A& a, const W& w, int64_t K) {
  int64_t k = K < product_block ? K : product_block;
  accumulate<T, R, G>(acc, a, w, 0, k);
  while (k < K) {
    Vector<T> block[R][G] = {};
    const int64_t end = K < k + product_block ? K : k + product_block;
    accumulate<T, R, G>(block, a, w, k, end);
    RECURVE_UNROLL
    for (int r = 0; r < R; ++r) {
      RECURVE_UNROLL
      for (int g = 0; g < G; ++g) acc[r][g] += block[r][g];
    }
    k = end;
  }
}

// Rows of `a` against vectors `stride` elements apart.
template <class T, int R, int G>
RECURVE_INLINE void product(Vector<T> (&acc)[R][G], const T* const* a, const T* w, int64_t stride, int64_t K) {
  accumulate_blocks<T, R, G>(
      acc, [&](int r, int64_t k) { return a[r][k]; }, [&](int64_t k) { return w + k * stride; }, K);
}

// Rows of `a` against vectors at w + offsets[k].
template <class T, int R, int G>
RECURVE_INLINE void product_at_offsets(Vector<T> (&acc)[R][G], const T* const* a, const T* w, const int64_t* offsets,
                                       int64_t K) {
  accumulate_blocks<T, R, G>(
      acc, [&](int r, int64_t k) { return a[r][k]; }, [&](int64_t k) { return w + offsets[k]; }, K);
}

// `a` by k, element (r, k) at a[k * R + r], against vectors `stride` elements apart; K is at most a block.
template <class T, int R, int G>
RECURVE_INLINE void product_by_depth(Vector<T> (&acc)[R][G], const T* a, const T* w, int64_t stride, int64_t K) {
  accumulate<T, R, G>(
      acc, [&](int r, int64_t k) { return a[k * R + r]; }, [&](int64_t k) { return w + k * stride; }, 0, K);
}

// Rows that a tile of G vectors can hold in registers, beside the panel's vectors.
template <int G>
constexpr int most_rows = RECURVE_VECTOR_REGISTERS == 32 ? (G <= 2   ? 12
                                                            : G == 3 ? 8
                                                                     : 6)
                                                         : (G <= 2   ? 6
                                                            : G == 3 ? 4
                                                                     : 3);

// Calls tile.template operator()<R>(first) over `rows` rows, R at a time, in the largest tiles that fit.
template <int R, class Tile>
RECURVE_INLINE void for_row_tiles(int64_t first, int64_t rows, const Tile& tile) {
  for (; rows - first >= R; first += R) tile.template operator()<R>(first);
  if constexpr (R > 4) {
    for_row_tiles<4>(first, rows, tile);
  } else if constexpr (R > 1) {
    for_row_tiles<(R > 2 ? 2 : 1)>(first, rows, tile);
  }
}

}  // namespace
}  // namespace recurve
