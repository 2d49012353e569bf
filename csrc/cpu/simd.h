// Vectors of the instruction set being compiled for, and loads and stores of a part of one.
#pragma once

#include <cstdint>

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

// The first `count` lanes; the others are zero.
template <class T>
RECURVE_INLINE Vector<T> load(const T* from, int64_t count) {
  if (count >= lanes<T>) return load(from);
  Vector<T> v{};
  for (int64_t i = 0; i < count; ++i) v[i] = from[i];
  return v;
}

template <class T>
RECURVE_INLINE void store(T* to, Vector<T> v, int64_t count) {
  if (count >= lanes<T>) return store(to, v);
  for (int64_t i = 0; i < count; ++i) to[i] = v[i];
}

// acc[r][g] += sum over k of a[r][k] * w[k][g]: R rows of `a` against G vectors per k, `stride` elements apart.
template <class T, int R, int G>
RECURVE_INLINE void product(Vector<T> (&acc)[R][G], const T* const* a, const T* w, int64_t stride, int64_t K) {
  for (int64_t k = 0; k < K; ++k) {
    Vector<T> b[G];
    RECURVE_UNROLL
    for (int g = 0; g < G; ++g) b[g] = load(w + k * stride + g * lanes<T>);
    RECURVE_UNROLL
    for (int r = 0; r < R; ++r) {
      RECURVE_UNROLL
      for (int g = 0; g < G; ++g) acc[r][g] += b[g] * a[r][k];
    }
  }
}

// The same with `a` laid out by k: element (r, k) stands at a[k * R + r].
template <class T, int R, int G>
RECURVE_INLINE void product_by_depth(Vector<T> (&acc)[R][G], const T* a, const T* w, int64_t stride, int64_t K) {
  for (int64_t k = 0; k < K; ++k) {
    Vector<T> b[G];
    RECURVE_UNROLL
    for (int g = 0; g < G; ++g) b[g] = load(w + k * stride + g * lanes<T>);
    RECURVE_UNROLL
    for (int r = 0; r < R; ++r) {
      RECURVE_UNROLL
      for (int g = 0; g < G; ++g) acc[r][g] += b[g] * a[k * R + r];
    }
  }
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
