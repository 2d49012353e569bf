// Winograd's minimal filtering (Lavin and Gray 2016): kernels of 3 x 3 at a quarter or 4/9 of the multiplications.
//
// M x M outputs come from (M + 2)^2 inputs: both are transformed, and for each of the (M + 2)^2 places there is a
// product over the channels. Inputs are transformed with channels side by side, outputs with output channels side by
// side, in strips: a row of tiles of an image. The error in float32 is several times that of the direct sum. What is
// not finite would spread over its tile, so such strips are computed directly.
#pragma once

#include "conv_forward.h"

namespace recurve {
namespace {

constexpr int64_t winograd_bytes = 256 * 1024;  // of the transformed inputs of one task
constexpr int64_t winograd_gap = 16;            // elements between places, so that they differ in their cache sets

// One-dimensional transforms, for M outputs of a kernel of 3.
template <int M>
struct Winograd;

template <>
struct Winograd<2> {
  template <class V>
  RECURVE_INLINE void input(const V (&d)[4], V (&t)[4]) {
    t[0] = d[0] - d[2], t[1] = d[1] + d[2], t[2] = d[2] - d[1], t[3] = d[1] - d[3];
  }
  template <class V>
  RECURVE_INLINE void kernel(const V (&g)[3], V (&u)[4]) {
    using T = typename Real<V>::Scalar;
    const V even = (g[0] + g[2]) * T(0.5), odd = g[1] * T(0.5);
    u[0] = g[0], u[1] = even + odd, u[2] = even - odd, u[3] = g[2];
  }
  template <class V>
  RECURVE_INLINE void output(const V (&m)[4], V (&y)[2]) {
    y[0] = m[0] + m[1] + m[2], y[1] = m[1] - m[2] - m[3];
  }
};

template <>
struct Winograd<4> {
  template <class V>
  RECURVE_INLINE void input(const V (&d)[6], V (&t)[6]) {
    using T = typename Real<V>::Scalar;
    const V a = d[4] - d[2] * T(4), b = d[3] - d[1] * T(4), c = d[4] - d[2], e = (d[3] - d[1]) * T(2);
    t[0] = d[0] * T(4) - d[2] * T(5) + d[4];
    t[1] = a + b, t[2] = a - b, t[3] = c + e, t[4] = c - e;
    t[5] = d[1] * T(4) - d[3] * T(5) + d[5];
  }
  template <class V>
  RECURVE_INLINE void kernel(const V (&g)[3], V (&u)[6]) {
    using T = typename Real<V>::Scalar;
    const V a = (g[0] + g[2]) * T(-1. / 6), b = g[1] * T(1. / 6), c = g[0] * T(1. / 24) + g[2] * T(1. / 6);
    const V e = g[1] * T(1. / 12);
    u[0] = g[0] * T(0.25), u[1] = a - b, u[2] = a + b, u[3] = c + e, u[4] = c - e, u[5] = g[2];
  }
  template <class V>
  RECURVE_INLINE void output(const V (&m)[6], V (&y)[4]) {
    using T = typename Real<V>::Scalar;
    const V s = m[1] + m[2], d = m[1] - m[2], u = m[3] + m[4], v = m[3] - m[4];
    y[0] = m[0] + s + u, y[1] = d + v * T(2), y[2] = s + u * T(4), y[3] = d + v * T(8) + m[5];
  }
};

// The transform `f` of rows, then of columns: from (A, A) to (B, B) elements.
template <int A, int B, class V, class F>
RECURVE_INLINE void transform_both(const V (&from)[A][A], V (&to)[B][B], const F& f) {
  V half[A][B];
  RECURVE_UNROLL
  for (int r = 0; r < A; ++r) f(from[r], half[r]);
  RECURVE_UNROLL
  for (int c = 0; c < B; ++c) {
    V column[A], result[B];
    RECURVE_UNROLL
    for (int r = 0; r < A; ++r) column[r] = half[r][c];
    f(column, result);
    RECURVE_UNROLL
    for (int r = 0; r < B; ++r) to[r][c] = result[r];
  }
}

// Output pixels a side of a tile, which holds whole pooling windows: what multiplies least, and of equals the smaller,
// whose error is smaller.
inline int winograd_tile(const ConvShape& s, const Grid& grid) {
  if (s.window[0] == 4) return 4;
  const int64_t by_2 = divide_up(grid.rows, 2) * divide_up(grid.columns, 2) * 16;
  const int64_t by_4 = divide_up(grid.rows, 4) * divide_up(grid.columns, 4) * 36;
  return by_2 <= by_4 ? 2 : 4;
}

// Whether no value is so large, or not a number, that its transform might not be finite.
template <class T>
bool is_moderate(Vector<T> squares) {
  for (int64_t i = 0; i < lanes<T>; ++i)
    if (!(squares[i] * T(0) == 0)) return false;
  return true;
}

template <class T, int M>
struct WinogradPlan {
  static constexpr int side = M + 2, places = side * side;
  const ForwardPlan<T>& direct;
  int64_t channels;      // in whole vectors
  int64_t down, across;  // tiles of an image
  int64_t width;         // pixels of a row that tiles read
  int64_t strips;        // rows of tiles that a task works on at once
  Scratch<T> kernels;    // (E, groups, blocks, places, inputs, width of the block)
  bool moderate;         // weights are

  WinogradPlan(const ForwardPlan<T>& direct_, const Parallel& parallel)
      : direct(direct_),
        channels(whole_vectors<T>(direct_.grid.inputs)),
        down(divide_up(direct_.grid.rows, M)),
        across(divide_up(direct_.grid.columns, M)),
        width(across * M + 2),
        strips(most(1, winograd_bytes / (across * places * channels * static_cast<int64_t>(sizeof(T))))),
        kernels(sets() * direct_.blocks.vectors * lanes<T> * places * direct_.grid.inputs) {
    const int64_t blocks = direct.blocks.count, all = sets() * direct.f.shape.batch * down;
    strips = most(1, least(strips, parallel.threads == 1 ? all : all / (2 * parallel.threads)));
    Scratch<bool> moderates(sets() * blocks);
    parallel_for(parallel, sets() * blocks, [&](int64_t task) {
      direct.blocks.with_width(task % blocks,
                               [&]<int G>() { moderates[task] = transform_kernels<G>(task / blocks, task % blocks); });
    });
    moderate = true;
    for (int64_t i = 0; i < sets() * blocks; ++i) moderate = moderate && moderates[i];
  }

  int64_t sets() const { return direct.f.shape.models * direct.f.shape.groups; }

  T* kernels_of(int64_t set, int64_t block) const {
    return kernels +
           (set * direct.blocks.vectors + direct.blocks.first(block)) * lanes<T> * places * direct.grid.inputs;
  }

  template <int G>
  bool transform_kernels(int64_t set, int64_t block) const {
    constexpr int64_t step = G * lanes<T>;
    const T* from = direct.weights_of(set, block);
    T* to = kernels_of(set, block);
    Vector<T> squares = zero_vector<T>();
    for (int64_t c = 0; c < direct.grid.inputs; ++c)
      for (int64_t g = 0; g < G; ++g) {
        Vector<T> half[3][side];
        for (int r = 0; r < 3; ++r) {
          Vector<T> row[3];
          for (int k = 0; k < 3; ++k) {
            row[k] = load(from + (c * 9 + r * 3 + k) * step + g * lanes<T>);
            squares += row[k] * row[k];
          }
          Winograd<M>::kernel(row, half[r]);
        }
        for (int k = 0; k < side; ++k) {
          const Vector<T> column[3] = {half[0][k], half[1][k], half[2][k]};
          Vector<T> result[side];
          Winograd<M>::kernel(column, result);
          for (int r = 0; r < side; ++r)
            store(to + ((r * side + k) * direct.grid.inputs + c) * step + g * lanes<T>, result[r]);
        }
      }
    return is_moderate<T>(squares);
  }
};

// What one task works in.
template <class T, int M>
struct WinogradScratch {
  using Plan = WinogradPlan<T, M>;
  int64_t place;               // elements from a place's inputs to the next one's
  Scratch<T> rows;             // (side, width, channels): the pixels that a strip reads
  Scratch<T> input;            // (places, tiles, channels), transformed
  Scratch<T> products;         // (places, tiles, up to 3 vectors)
  Scratch<T> output, largest;  // (M, across M, up to 3 vectors): pixels of the convolution, places of the largest
  Scratch<bool> moderate;      // of the strips

  explicit WinogradScratch(const Plan& p)
      : place(p.strips * p.across * p.channels + winograd_gap),
        rows(Plan::side * p.width * p.channels),
        input(Plan::places * place),
        products(Plan::places * (p.strips * p.across * 3 * lanes<T> + winograd_gap)),
        output(M * p.across * M * 3 * lanes<T>),
        largest(p.direct.f.places == nullptr ? 0 : M * p.across * M * 3 * lanes<T>),
        moderate(p.strips) {}
};

// Row y of the padded image with its channels side by side; returns whether its values are moderate.
template <class T, int M>
bool pack_row(const WinogradPlan<T, M>& plan, const T* image, int64_t y, T* to) {
  const ConvShape& s = plan.direct.f.shape;
  const int64_t plane = s.height * s.width, pitch = plan.channels, row = y - s.padding[0];
  if (row < 0 || row >= s.height) {
    __builtin_memset(to, 0, plan.width * pitch * sizeof(T));
    return true;
  }
  const int64_t used = least(s.width, plan.width - s.padding[1]);  // what pooling drops may lie beyond the tiles
  __builtin_memset(to, 0, least(plan.width, s.padding[1]) * pitch * sizeof(T));
  Vector<T> squares = zero_vector<T>();
  for (int64_t c = 0; c < plan.direct.grid.inputs; c += lanes<T>) {
    const int64_t count = least(lanes<T>, plan.direct.grid.inputs - c);
    const T* from = image + c * plane + row * s.width;
    T* pixels = to + s.padding[1] * pitch + c;
    for (int64_t i = 0; i < used; i += lanes<T>) {
      Vector<T> vectors[lanes<T>];
      for (int64_t n = 0; n < lanes<T>; ++n) {
        vectors[n] = n < count ? load(from + n * plane + i, used - i) : zero_vector<T>();
        squares += vectors[n] * vectors[n];
      }
      transpose<T>(vectors);
      for (int64_t n = 0; n < lanes<T>; ++n)
        if (i + n < used) store(pixels + (i + n) * pitch, vectors[n]);
    }
  }
  const int64_t end = s.padding[1] + most(used, 0);
  if (end < plan.width) __builtin_memset(to + end * pitch, 0, (plan.width - end) * pitch * sizeof(T));
  return is_moderate<T>(squares);
}

// The tiles of a strip from its rows, into the task's transformed inputs from tile `first` on.
template <class T, int M>
void transform_inputs(const WinogradPlan<T, M>& plan, const WinogradScratch<T, M>& t, int64_t first) {
  constexpr int side = M + 2;
  const int64_t pitch = plan.channels;
  for (int64_t tile = 0; tile < plan.across; ++tile)
    for (int64_t c = 0; c < pitch; c += lanes<T>) {
      Vector<T> pixels[side][side], result[side][side];
      const T* from = t.rows + tile * M * pitch + c;
      RECURVE_UNROLL
      for (int r = 0; r < side; ++r) {
        RECURVE_UNROLL
        for (int k = 0; k < side; ++k) pixels[r][k] = load(from + (r * plan.width + k) * pitch);
      }
      transform_both<side, side>(pixels, result,
                                 [](const auto& d, auto& transformed) { Winograd<M>::input(d, transformed); });
      T* to = t.input + (first + tile) * pitch + c;
      RECURVE_UNROLL
      for (int r = 0; r < side; ++r) {
        RECURVE_UNROLL
        for (int k = 0; k < side; ++k) store(to + (r * side + k) * t.place, result[r][k]);
      }
    }
}

// Strips [first, first + count) of a model and group, counted over its images.
template <class T, int M>
void winograd_strips(const WinogradPlan<T, M>& plan, const WinogradScratch<T, M>& t, int64_t set, int64_t first,
                     int64_t count) {
  constexpr int side = M + 2, places = side * side;
  const ForwardPlan<T>& direct = plan.direct;
  const ConvShape& s = direct.f.shape;
  const Grid& grid = direct.grid;
  const int64_t model = set / s.groups, group = set % s.groups, pitch = plan.channels, row = plan.width * pitch;
  const int64_t tiles = count * plan.across, plane = s.pooled(0) * s.pooled(1), pooled_rows = M / s.window[0];
  bool moderate[side] = {};
  for (int64_t i = 0; i < count; ++i) {
    const int64_t strip = (first + i) % plan.down, image = model * s.batch + (first + i) / plan.down;
    const bool goes_on = i > 0 && strip > 0;  // two rows are those of the strip above
    if (goes_on) {
      __builtin_memcpy(t.rows, t.rows + M * row, 2 * row * sizeof(T));
      moderate[0] = moderate[M], moderate[1] = moderate[M + 1];
    }
    t.moderate[i] = true;
    for (int r = 0; r < side; ++r) {
      if (r >= 2 || !goes_on) moderate[r] = pack_row(plan, direct.image(image, group), strip * M + r, t.rows + r * row);
      t.moderate[i] = t.moderate[i] && moderate[r];
    }
    transform_inputs(plan, t, i * plan.across);
  }
  for (int64_t block = 0; block < direct.blocks.count; ++block)
    direct.blocks.with_width(block, [&]<int G>() {
      constexpr int64_t width = G * lanes<T>;
      const int64_t output = direct.blocks.first(block) * lanes<T>, place = tiles * width + winograd_gap;
      const T* bias = direct.biases_of(set, block);
      for (int64_t p = 0; p < places; ++p) {
        const T *input = t.input + p * t.place, *kernels = plan.kernels_of(set, block) + p * grid.inputs * width;
        for_row_tiles<tile_pixels<G>>(tiles, [&]<int R>(int64_t tile) {
          Vector<T> sums[R][G] = {};
          const T* a[R];
          for (int r = 0; r < R; ++r) a[r] = input + (tile + r) * pitch;
          product<T, R, G>(sums, a, kernels, width, grid.inputs);
          RECURVE_UNROLL
          for (int r = 0; r < R; ++r) {
            RECURVE_UNROLL
            for (int g = 0; g < G; ++g) store(t.products + p * place + (tile + r) * width + g * lanes<T>, sums[r][g]);
          }
        });
      }
      for (int64_t i = 0; i < count; ++i) {
        const int64_t strip = (first + i) % plan.down, image = model * s.batch + (first + i) / plan.down;
        for (int64_t tile = 0; tile < plan.across; ++tile)
          for (int64_t g = 0; g < width; g += lanes<T>) {
            Vector<T> from[side][side], half[side][M];
            const T* at = t.products + (i * plan.across + tile) * width + g;
            RECURVE_UNROLL
            for (int r = 0; r < side; ++r) {
              RECURVE_UNROLL
              for (int k = 0; k < side; ++k) from[r][k] = load(at + (r * side + k) * place);
              Winograd<M>::output(from[r], half[r]);
            }
            const Vector<T> start = load(bias + g);
            RECURVE_UNROLL
            for (int k = 0; k < M; ++k) {
              Vector<T> column[side], result[M];
              RECURVE_UNROLL
              for (int r = 0; r < side; ++r) column[r] = half[r][k];
              Winograd<M>::output(column, result);
              RECURVE_UNROLL
              for (int r = 0; r < M; ++r)
                store(t.output + ((r * plan.across + tile) * M + k) * width + g, result[r] + start);
            }
          }
        const int64_t to =
            (image * s.outputs + group * grid.outputs + output) * plane + strip * pooled_rows * s.pooled(1);
        finish_rows<T, G>(s, t.output, plan.across * M, least(pooled_rows, s.pooled(0) - strip * pooled_rows),
                          grid.outputs - output, direct.f.y + to,
                          direct.f.places == nullptr ? nullptr : direct.f.places + to, t.largest);
      }
    });
  for (int64_t i = 0; i < count; ++i) {
    if (t.moderate[i]) continue;
    const int64_t row_of_y = (first + i) % plan.down * pooled_rows;
    direct_rows(direct, model * s.batch + (first + i) / plan.down, group, row_of_y,
                least(s.pooled(0), row_of_y + pooled_rows));
  }
}

template <class T, int M>
void winograd_tiles(const ForwardPlan<T>& direct, const Parallel& parallel) {
  const ConvShape& s = direct.f.shape;
  const WinogradPlan<T, M> plan(direct, parallel);
  if (!plan.moderate) return direct_forward(direct, parallel);
  const int64_t all = s.batch * plan.down, parts = divide_up(all, plan.strips);
  parallel_for(parallel, plan.sets() * parts, [&](int64_t task) {
    const WinogradScratch<T, M> scratch(plan);
    const int64_t first = task % parts * plan.strips;
    winograd_strips(plan, scratch, task / parts, first, least(plan.strips, all - first));
  });
}

template <class T>
void winograd_forward(const ForwardPlan<T>& plan, const Parallel& parallel) {
  if (winograd_tile(plan.f.shape, plan.grid) == 2)
    winograd_tiles<T, 2>(plan, parallel);
  else
    winograd_tiles<T, 4>(plan, parallel);
}

}  // namespace
}  // namespace recurve
