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

// One-dimensional transforms, for M outputs of a kernel of 3, and their adjoints, which take gradients back.
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
  template <class V>
  RECURVE_INLINE void input_back(const V (&t)[4], V (&d)[4]) {
    d[0] = t[0], d[1] = t[1] - t[2] + t[3], d[2] = t[1] + t[2] - t[0], d[3] = -t[3];
  }
  template <class V>
  RECURVE_INLINE void kernel_back(const V (&u)[4], V (&g)[3]) {
    using T = typename Real<V>::Scalar;
    const V sum = (u[1] + u[2]) * T(0.5);
    g[0] = u[0] + sum, g[1] = (u[1] - u[2]) * T(0.5), g[2] = sum + u[3];
  }
  template <class V>
  RECURVE_INLINE void output_back(const V (&y)[2], V (&m)[4]) {
    m[0] = y[0], m[1] = y[0] + y[1], m[2] = y[0] - y[1], m[3] = -y[1];
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
  template <class V>
  RECURVE_INLINE void input_back(const V (&t)[6], V (&d)[6]) {
    using T = typename Real<V>::Scalar;
    const V a = t[1] + t[2], b = t[1] - t[2], c = t[3] + t[4], e = (t[3] - t[4]) * T(2);
    d[0] = t[0] * T(4), d[1] = (t[5] - b) * T(4) - e, d[2] = t[0] * T(-5) - a * T(4) - c;
    d[3] = b + e - t[5] * T(5), d[4] = t[0] + a + c, d[5] = t[5];
  }
  template <class V>
  RECURVE_INLINE void kernel_back(const V (&u)[6], V (&g)[3]) {
    using T = typename Real<V>::Scalar;
    const V a = (u[1] + u[2]) * T(1. / 6), c = u[3] + u[4];
    g[0] = u[0] * T(0.25) - a + c * T(1. / 24);
    g[1] = (u[2] - u[1]) * T(1. / 6) + (u[3] - u[4]) * T(1. / 12);
    g[2] = c * T(1. / 6) - a + u[5];
  }
  template <class V>
  RECURVE_INLINE void output_back(const V (&y)[4], V (&m)[6]) {
    using T = typename Real<V>::Scalar;
    const V even = y[0] + y[2], odd = y[1] + y[3], a = y[0] + y[2] * T(4), b = y[1] * T(2) + y[3] * T(8);
    m[0] = y[0], m[1] = even + odd, m[2] = even - odd, m[3] = a + b, m[4] = a - b, m[5] = y[3];
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

// The tiles of a convolution, and the pixels that a strip of them reads.
template <class T, int M>
struct WinogradTiles {
  static constexpr int side = M + 2, places = side * side;
  const ConvShape& s;
  int64_t inputs, channels;  // of a group; in whole vectors
  int64_t down, across;      // tiles of an image
  int64_t width;             // pixels of a row that tiles read

  WinogradTiles(const ConvShape& s_, const Grid& grid)
      : s(s_),
        inputs(grid.inputs),
        channels(whole_vectors<T>(grid.inputs)),
        down(divide_up(grid.rows, M)),
        across(divide_up(grid.columns, M)),
        width(across * M + 2) {}

  int64_t row() const { return width * channels; }
  int64_t sets() const { return s.models * s.groups; }
};

// Transformed weights, for products over `depth` channels that give blocks of others: (sets, blocks, places, depth,
// width of the block), from packed ones (sets, blocks, depth, 9, width of the block).
template <class T, int M>
struct WinogradKernels {
  static constexpr int side = M + 2, places = side * side;
  OutputBlocks blocks;
  int64_t depth;
  Scratch<T> data;
  bool moderate;  // all weights are

  WinogradKernels(const T* packed, int64_t sets, OutputBlocks blocks_, int64_t depth_, const Parallel& parallel)
      : blocks(blocks_), depth(depth_), data(sets * blocks.vectors * lanes<T> * places * depth), moderate(true) {
    Scratch<bool> moderates(sets * blocks.count);
    parallel_for(parallel, sets * blocks.count, [&](int64_t task) {
      const int64_t set = task / blocks.count, block = task % blocks.count;
      const T* from = packed + (set * blocks.vectors + blocks.first(block)) * lanes<T> * 9 * depth;
      blocks.with_width(block, [&]<int G>() { moderates[task] = transform<G>(from, of(set, block)); });
    });
    for (int64_t i = 0; i < sets * blocks.count; ++i) moderate = moderate && moderates[i];
  }

  T* of(int64_t set, int64_t block) const {
    return data + (set * blocks.vectors + blocks.first(block)) * lanes<T> * places * depth;
  }

  template <int G>
  bool transform(const T* from, T* to) const {
    constexpr int64_t step = G * lanes<T>;
    Vector<T> squares = zero_vector<T>();
    for (int64_t c = 0; c < depth; ++c)
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
          for (int r = 0; r < side; ++r) store(to + ((r * side + k) * depth + c) * step + g * lanes<T>, result[r]);
        }
      }
    return is_moderate<T>(squares);
  }
};

// For each place, products of tiles (places, tiles, pitch), `place` elements apart, with the kernels (places, depth, G
// vectors): `products` (places, tiles, G vectors), winograd_gap elements between places.
template <class T, int M, int G>
void multiply_places(const T* tiles, int64_t place, int64_t pitch, int64_t count, const T* kernels, int64_t depth,
                     T* products) {
  constexpr int64_t width = G * lanes<T>;
  for (int64_t p = 0; p < (M + 2) * (M + 2); ++p) {
    const T *from = tiles + p * place, *weights = kernels + p * depth * width;
    T* to = products + p * (count * width + winograd_gap);
    for_row_tiles<tile_pixels<G>>(count, [=]<int R>(int64_t tile) {
      Vector<T> sums[R][G] = {};
      const T* a[R];
      for (int r = 0; r < R; ++r) a[r] = from + (tile + r) * pitch;
      product<T, R, G>(sums, a, weights, width, depth);
      RECURVE_UNROLL
      for (int r = 0; r < R; ++r) {
        RECURVE_UNROLL
        for (int g = 0; g < G; ++g) store(to + (tile + r) * width + g * lanes<T>, sums[r][g]);
      }
    });
  }
}

template <class T, int M>
struct WinogradPlan {
  const ForwardPlan<T>& direct;
  WinogradTiles<T, M> tiles;
  WinogradKernels<T, M> kernels;
  int64_t strips;  // that a task works on at once

  WinogradPlan(const ForwardPlan<T>& direct_, const Parallel& parallel)
      : direct(direct_),
        tiles(direct_.f.shape, direct_.grid),
        kernels(direct_.weights, tiles.sets(), direct_.blocks, direct_.grid.inputs, parallel),
        strips(winograd_bytes / (tiles.across * tiles.places * tiles.channels * static_cast<int64_t>(sizeof(T)))) {
    const int64_t all = tiles.sets() * tiles.s.batch * tiles.down;
    strips = most(1, least(strips, parallel.threads == 1 ? all : all / (2 * parallel.threads)));
  }
};

// What one task works in.
template <class T, int M>
struct WinogradScratch {
  using Tiles = WinogradTiles<T, M>;
  int64_t place;               // elements from a place's inputs to the next one's
  Scratch<T> rows;             // (side, width, channels): the pixels that a strip reads
  Scratch<T> input;            // (places, tiles, channels), transformed
  Scratch<T> products;         // (places, tiles, up to 3 vectors)
  Scratch<T> output, largest;  // (M, across M, up to 3 vectors): pixels of the convolution, places of the largest
  Scratch<bool> moderate;      // of the strips

  explicit WinogradScratch(const WinogradPlan<T, M>& p)
      : place(p.strips * p.tiles.across * p.tiles.channels + winograd_gap),
        rows(Tiles::side * p.tiles.row()),
        input(Tiles::places * place),
        products(Tiles::places * (p.strips * p.tiles.across * 3 * lanes<T> + winograd_gap)),
        output(M * p.tiles.across * M * 3 * lanes<T>),
        largest(p.direct.f.places == nullptr ? 0 : M * p.tiles.across * M * 3 * lanes<T>),
        moderate(p.strips) {}
};

// Row y of the padded image with its channels side by side; returns whether its values are moderate.
template <class T, int M>
bool pack_row(const WinogradTiles<T, M>& tiles, const T* image, int64_t y, T* to) {
  const ConvShape& s = tiles.s;
  const ImageLayout layout = s.x_layout();
  const int64_t plane = layout.channel, pitch = tiles.channels, row = y - s.padding[0];
  if (row < 0 || row >= s.height) {
    __builtin_memset(to, 0, tiles.width * pitch * sizeof(T));
    return true;
  }
  const int64_t used = least(s.width, tiles.width - s.padding[1]);  // what pooling drops may lie beyond the tiles
  __builtin_memset(to, 0, least(tiles.width, s.padding[1]) * pitch * sizeof(T));
  Vector<T> squares = zero_vector<T>();
  for (int64_t c = 0; c < tiles.inputs; c += lanes<T>) {
    const int64_t count = least(lanes<T>, tiles.inputs - c);
    T* pixels = to + s.padding[1] * pitch + c;
    if (layout.pixel > 1) {
      for (int64_t i = 0; i < used; ++i) {
        const Vector<T> vector = load(image + (row * s.width + i) * layout.pixel + c, count);
        squares += vector * vector;
        store(pixels + i * pitch, vector);
      }
      continue;
    }
    const T* from = image + c * plane + row * s.width;
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
  if (end < tiles.width) __builtin_memset(to + end * pitch, 0, (tiles.width - end) * pitch * sizeof(T));
  return is_moderate<T>(squares);
}

// The tiles of a strip from its rows: to (places, tiles, channels), `place` elements from place to place.
template <class T, int M>
void transform_inputs(const WinogradTiles<T, M>& tiles, const T* rows, T* to, int64_t place) {
  constexpr int side = M + 2;
  const int64_t pitch = tiles.channels, row = tiles.row(), across = tiles.across;
  for (int64_t tile = 0; tile < across; ++tile)
    for (int64_t c = 0; c < pitch; c += lanes<T>) {
      Vector<T> pixels[side][side], result[side][side];
      const T* from = rows + tile * M * pitch + c;
      RECURVE_UNROLL
      for (int r = 0; r < side; ++r) {
        RECURVE_UNROLL
        for (int k = 0; k < side; ++k) pixels[r][k] = load(from + r * row + k * pitch);
      }
      transform_both<side, side>(pixels, result,
                                 [](const auto& d, auto& transformed) { Winograd<M>::input(d, transformed); });
      RECURVE_UNROLL
      for (int r = 0; r < side; ++r) {
        RECURVE_UNROLL
        for (int k = 0; k < side; ++k) store(to + (r * side + k) * place + tile * pitch + c, result[r][k]);
      }
    }
}

// Rows of strip `strip` of an image, of which the first two are kept from the strip above if there is one; `moderate`
// says of each row whether its values are. Returns whether all are.
template <class T, int M>
bool pack_strip(const WinogradTiles<T, M>& tiles, const T* image, int64_t strip, bool goes_on, T* rows,
                bool (&moderate)[M + 2]) {
  if (goes_on) {
    __builtin_memcpy(rows, rows + M * tiles.row(), 2 * tiles.row() * sizeof(T));
    moderate[0] = moderate[M], moderate[1] = moderate[M + 1];
  }
  bool all = true;
  for (int r = 0; r < M + 2; ++r) {
    if (r >= 2 || !goes_on) moderate[r] = pack_row(tiles, image, strip * M + r, rows + r * tiles.row());
    all = all && moderate[r];
  }
  return all;
}

// Strips [first, first + count) of a model and group, counted over its images.
template <class T, int M>
void winograd_strips(const WinogradPlan<T, M>& plan, const WinogradScratch<T, M>& t, int64_t set, int64_t first,
                     int64_t count) {
  constexpr int side = M + 2;
  const ForwardPlan<T>& direct = plan.direct;
  const WinogradTiles<T, M>& tiles = plan.tiles;
  const ConvShape& s = direct.f.shape;
  const Grid& grid = direct.grid;
  const int64_t model = set / s.groups, group = set % s.groups, all = count * tiles.across;
  const int64_t pooled_rows = M / s.window[0];
  bool moderate[side] = {};
  for (int64_t i = 0; i < count; ++i) {
    const int64_t strip = (first + i) % tiles.down, image = model * s.batch + (first + i) / tiles.down;
    t.moderate[i] = pack_strip(tiles, direct.image(image, group), strip, i > 0 && strip > 0, t.rows.get(), moderate);
    transform_inputs<T, M>(tiles, t.rows, t.input + i * tiles.across * tiles.channels, t.place);
  }
  for (int64_t block = 0; block < direct.blocks.count; ++block)
    direct.blocks.with_width(block, [&]<int G>() {
      constexpr int64_t width = G * lanes<T>;
      const int64_t output = direct.blocks.first(block) * lanes<T>, place = all * width + winograd_gap;
      const T* bias = direct.biases_of(set, block);
      multiply_places<T, M, G>(t.input, t.place, tiles.channels, all, plan.kernels.of(set, block), grid.inputs,
                               t.products);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t strip = (first + i) % tiles.down, image = model * s.batch + (first + i) / tiles.down;
        for (int64_t tile = 0; tile < tiles.across; ++tile)
          for (int64_t g = 0; g < width; g += lanes<T>) {
            Vector<T> from[side][side], half[side][M];
            const T* at = t.products + (i * tiles.across + tile) * width + g;
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
                store(t.output + ((r * tiles.across + tile) * M + k) * width + g, result[r] + start);
            }
          }
        const int64_t to = s.y_layout().at(image, group * grid.outputs + output, strip * pooled_rows * s.pooled(1));
        finish_rows<T, G>(s, t.output, tiles.across * M, least(pooled_rows, s.pooled(0) - strip * pooled_rows),
                          grid.outputs - output, direct.f.y + to,
                          direct.f.places == nullptr ? nullptr : direct.f.places + to, t.largest);
      }
    });
  for (int64_t i = 0; i < count; ++i) {
    if (t.moderate[i]) continue;
    const int64_t row_of_y = (first + i) % tiles.down * pooled_rows;
    direct_rows(direct, model * s.batch + (first + i) / tiles.down, group, row_of_y,
                least(s.pooled(0), row_of_y + pooled_rows));
  }
}

template <class T, int M>
void winograd_tiles(const ForwardPlan<T>& direct, const Parallel& parallel) {
  const ConvShape& s = direct.f.shape;
  const WinogradPlan<T, M> plan(direct, parallel);
  if (!plan.kernels.moderate) return direct_forward(direct, parallel);
  const int64_t all = s.batch * plan.tiles.down, parts = divide_up(all, plan.strips);
  parallel_for(parallel, plan.tiles.sets() * parts, [&](int64_t task) {
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
