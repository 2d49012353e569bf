// Vectors of the instruction set being compiled for, and loads and stores of a part of one.
#pragma once

#include <cstdint>
#include <utility>

#if defined(__AVX2__)
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
#if defined(__AVX2__)
RECURVE_INLINE FloatVector load_part(const float* from, int64_t count) {
  const Int32Vector lane = {0, 1, 2, 3, 4, 5, 6, 7};
  return (FloatVector)_mm256_maskload_ps(from, (__m256i)(lane < static_cast<int32_t>(count)));
}
RECURVE_INLINE DoubleVector load_part(const double* from, int64_t count) {
  const Int64Vector lane = {0, 1, 2, 3};
  return (DoubleVector)_mm256_maskload_pd(from, (__m256i)(lane < count));
}
#else
template <class T>
RECURVE_INLINE Vector<T> load_part(const T* from, int64_t count) {
  Vector<T> v{};
  for (int64_t i = 0; i < count; ++i) v[i] = from[i];
  return v;
}
#endif
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

// Asks for G vectors that will be read soon.
template <int G, class T>
RECURVE_INLINE void prefetch(const T* from) {
  RECURVE_UNROLL
  for (int g = 0; g < G; ++g) __builtin_prefetch(from + g * lanes<T>);
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

// Columns of `a`, element (r, k) at a[k * a_stride + r], against vectors `stride` elements apart.
template <class T, int R, int G>
RECURVE_INLINE void product_by_column(Vector<T> (&acc)[R][G], const T* a, int64_t a_stride, const T* w, int64_t stride,
                                      int64_t K) {
  accumulate_blocks<T, R, G>(
      acc, [&](int r, int64_t k) { return a[k * a_stride + r]; }, [&](int64_t k) { return w + k * stride; }, K);
}

// Rows that a tile of G vectors can hold in registers, beside the panel's vectors.
template <int G>
constexpr int most_rows = RECURVE_VECTOR_REGISTERS == 32 ? (G <= 2   ? 12
                                                            : G == 3 ? 8
                                                                     : 6)
                                                         : (G <= 2   ? 6
                                                            : G == 3 ? 4
                                                                     : 3);

// Heights of tiles that are compiled.
constexpr bool is_tile_height(int64_t rows) { return rows <= 6 || rows == 8 || rows == 12; }

template <int R, class Tile>
RECURVE_INLINE void call_tile(int64_t height, int64_t first, const Tile& tile) {
  if constexpr (is_tile_height(R)) {
    if (height == R) return tile.template operator()<R>(first);
  }
  if constexpr (R > 1) call_tile<R - 1>(height, first, tile);
}

// Calls tile.template operator()<R>(first) over `rows` rows, in as few tiles of at most MAX rows as can be, about
// equally high: a low last tile would wait for memory.
template <int MAX, class Tile>
RECURVE_INLINE void for_row_tiles(int64_t rows, const Tile& tile) {
  for (int64_t first = 0, height; first < rows; first += height) {
    const int64_t rest = rows - first, tiles = (rest + MAX - 1) / MAX;
    height = (rest + tiles - 1) / tiles;
    while (height < rest && height < MAX && !is_tile_height(height)) ++height;
    while (!is_tile_height(height)) --height;
    call_tile<MAX>(height, first, tile);
  }
}

template <class T>
using Lanes = std::make_integer_sequence<int, static_cast<int>(lanes<T>)>;

// The lanes of a and b that `I` names; those of b follow those of a.
template <class T, int... I>
RECURVE_INLINE Vector<T> shuffle(Vector<T> a, Vector<T> b, std::integer_sequence<int, I...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, I...);
#else
  return __builtin_shuffle(a, b, typename Real<Vector<T> >::Bits{I...});
#endif
}

// Where lane I of the even ones comes from, where quarters of 16 bytes keep to themselves: one instruction.
template <class T>
constexpr int even_lane(int lane) {
  constexpr int quarter = 16 / sizeof(T), half = quarter / 2;
  const int own = lane % quarter, first = lane / quarter * quarter;
  return own < half ? first + 2 * own : static_cast<int>(lanes<T>) + first + 2 * (own - half);
}

// And which lane of them is the I-th of the even ones in order.
template <class T>
constexpr int ordered_lane(int lane) {
  constexpr int half = 8 / sizeof(T), all = lanes<T> / 2;
  return lane / all * half + lane % all / half * 2 * half + lane % half;
}

template <class T, int... I>
RECURVE_INLINE void split_pairs(Vector<T> a, Vector<T> b, Vector<T>& even, Vector<T>& odd,
                                std::integer_sequence<int, I...>) {
  even = shuffle<T>(a, b, std::integer_sequence<int, even_lane<T>(I)...>{});
  odd = shuffle<T>(a, b, std::integer_sequence<int, even_lane<T>(I) + 1 ...>{});
}

// Of the lanes of a and then b, those at even and those at odd places, both in an order that in_order() mends.
template <class T>
RECURVE_INLINE void split_pairs(Vector<T> a, Vector<T> b, Vector<T>& even, Vector<T>& odd) {
  split_pairs<T>(a, b, even, odd, Lanes<T>{});
}

template <class T, int... I>
RECURVE_INLINE Vector<T> in_order(Vector<T> split, std::integer_sequence<int, I...>) {
  return shuffle<T>(split, split, std::integer_sequence<int, ordered_lane<T>(I)...>{});
}
template <class T>
RECURVE_INLINE Vector<T> in_order(Vector<T> split) {
  return in_order<T>(split, Lanes<T>{});
}

// Exchanges, between rows D apart, the lanes that have not the row's own bit D: one step of a transposition.
template <class T, int D, int... L>
RECURVE_INLINE void exchange(Vector<T>* rows, std::integer_sequence<int, L...>) {
  using Low = std::integer_sequence<int, ((L & D) == 0 ? L : lanes<T> + L - D)...>;
  using High = std::integer_sequence<int, ((L & D) == 0 ? L + D : lanes<T> + L)...>;
  RECURVE_UNROLL
  for (int r = 0; r < lanes<T>; ++r) {
    if (r & D) continue;
    const Vector<T> a = rows[r], b = rows[r + D];
    rows[r] = shuffle<T>(a, b, Low{});
    rows[r + D] = shuffle<T>(a, b, High{});
  }
}

// Transposes as many rows as a vector has lanes.
template <class T, int D = lanes<T> / 2>
RECURVE_INLINE void transpose(Vector<T>* rows) {
  exchange<T, D>(rows, Lanes<T>{});
  if constexpr (D > 1) transpose<T, D / 2>(rows);
}

// to[k * to_stride + n] = from[n * from_stride + k] for n < count, at most a vector, and k < K; zero for the other n.
template <class T>
RECURVE_INLINE void transpose_rows(const T* from, int64_t from_stride, int64_t count, int64_t K, T* to,
                                   int64_t to_stride) {
  for (int64_t k = 0; k < K; k += lanes<T>) {
    const int64_t depth = K - k;
    Vector<T> rows[lanes<T>];
    for (int n = 0; n < lanes<T>; ++n) rows[n] = n < count ? load(from + n * from_stride + k, depth) : zero_vector<T>();
    transpose<T>(rows);
    for (int i = 0; i < lanes<T>; ++i)
      if (i < depth) store(to + (k + i) * to_stride, rows[i]);
  }
}

}  // namespace
}  // namespace recurve
