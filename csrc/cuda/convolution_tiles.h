// The convolution block where the kernel is a square of 3, 5 or 7, moves by one and keeps the image's size. A block
// brings tiles of images to shared memory, and a thread sums regions of a few rows and 4 columns in registers, so that
// most of its instructions are multiply-adds. Gradients of pixels are made from those of y where they are read.
//
// A row that a thread reads, 12 pixels in 3 words, serves up to K rows of its region, which is up to 4 K K
// multiply-adds for each of its outputs.
#pragma once

#include "convolution_work.h"
#include "launch.h"

namespace recurve::cuda {

template <class T>
constexpr int resident_tiles = sizeof(Accumulate<T>) == 4 ? 4 : 2;  // of a processor: leaves 128 or 255 registers
constexpr int64_t most_plane = 1 << 22;                             // pixels
constexpr int region_columns = 4, most_across = 16;                 // of a region; regions of a tile
constexpr int64_t tile_bytes = 40000, plane_bytes = 20000;  // of a block, and of a plane in it: several blocks reside

// N elements that lie side by side, in accesses of up to 16 bytes.
template <int N, class T>
struct alignas(least(16, N * sizeof(T))) Several {
  T of[N];
};

// As they lie in memory: taken apart where they are used, they are not waited for before.
template <int BYTES>
struct alignas(least(16, BYTES)) Packed {
  uint32_t of[BYTES / 4];
};
template <>
struct alignas(2) Packed<2> {
  uint16_t of[1];
};

// Elements of a row from `column` on, where `from` points; zero outside.
template <int N, bool AT_ONCE, class T>
__device__ __forceinline__ Packed<N * sizeof(T)> load_several(const T* from, int column, int columns) {
  if constexpr (AT_ONCE) return together<Packed<N * sizeof(T)>>(from);
  Several<N, T> elements{};
#pragma unroll
  for (int i = 0; i < N; ++i)
    if (column + i < columns) elements.of[i] = from[i];
  return __builtin_bit_cast(Packed<N * sizeof(T)>, elements);
}

template <int N, class T>
__device__ __forceinline__ void store_several(T* row, const Several<N, T>& from, int column, int columns,
                                              bool at_once) {
  if (at_once) {
    if (column < columns) *reinterpret_cast<Several<N, T>*>(row + column) = from;
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i)
      if (column + i < columns) row[column + i] = from.of[i];
  }
}

// Division by a number that all threads share: of n < 2^31 / by.
struct Divisor {
  unsigned by = 1, factor = 0;

  Divisor() = default;
  __host__ __device__ explicit constexpr Divisor(int by_) : by(by_), factor((1u << 31) / by_ + 1) {}
  __device__ __forceinline__ int quotient(int n) const {
    return static_cast<int>(uint64_t{2 * static_cast<unsigned>(n)} * factor >> 32);
  }
  // The quotient; leaves the remainder.
  __device__ __forceinline__ int divide(int& n) const {
    const int q = quotient(n);
    n -= q * static_cast<int>(by);
    return q;
  }
};

// Planes of images, or of gradients of pixels: these follow from dy, y and places by window.
template <class T>
struct Pixels {
  int rows, columns;  // of `values`: of pixels or of windows
  int window;         // 1 or 2 pixels down and across
  const T *values, *y;
  const uint8_t* places;
  Activation activation;
  bool at_once;  // `values`, `y` and `places` may be read 4 / window at a time

  __device__ __forceinline__ Pixels from(int64_t plane) const {
    Pixels p = *this;
    const int64_t elements = plane * rows * columns;
    p.values += elements;
    if (y != nullptr) p.y += elements;
    if (places != nullptr) p.places += elements;
    return p;
  }
};

// Reads WINDOW rows of 4 pixels from `row` down, a multiple of WINDOW, and `column`, a multiple of 4; zero outside.
// What is read and what follows from it are apart, so that a thread has several reads under way.
template <class T, int WINDOW>
struct Reading {
  static constexpr int count = region_columns / WINDOW;
  Packed<count * sizeof(T)> values{}, y{};
  Packed<count> places{};

  template <bool AT_ONCE>
  __device__ __forceinline__ void begin(const Pixels<T>& p, bool exists, int plane, int row, int column) {
    row >>= WINDOW - 1, column >>= WINDOW - 1;
    if (!exists || static_cast<unsigned>(row) >= static_cast<unsigned>(p.rows) ||
        static_cast<unsigned>(column) >= static_cast<unsigned>(p.columns))
      return;
    const int at = (plane * p.rows + row) * p.columns + column;
    values = load_several<count, AT_ONCE>(p.values + at, column, p.columns);
    if (p.y != nullptr) y = load_several<count, AT_ONCE>(p.y + at, column, p.columns);
    if (WINDOW > 1 && p.places != nullptr) places = load_several<count, AT_ONCE>(p.places + at, column, p.columns);
  }
  __device__ __forceinline__ void begin(const Pixels<T>& p, bool exists, int plane, int row, int column) {
    if (p.at_once)
      begin<true>(p, exists, plane, row, column);
    else
      begin<false>(p, exists, plane, row, column);
  }

  template <class A = Accumulate<T>>
  __device__ __forceinline__ void finish(A (&to)[WINDOW][region_columns], const Pixels<T>& p) const {
    const auto values_ = __builtin_bit_cast(Several<count, T>, values), y_ = __builtin_bit_cast(Several<count, T>, y);
    const auto places_ = __builtin_bit_cast(Several<count, uint8_t>, places);
    A wide[count];
#pragma unroll
    for (int i = 0; i < count; ++i) wide[i] = widen(values_.of[i]);
    if (p.y != nullptr) {
      auto multiply_by_slopes = [&](Activation activation) {
#pragma unroll
        for (int i = 0; i < count; ++i) {
          const A of_y = widen(y_.of[i]);
          wide[i] *= activation_slope(of_y, of_y, activation);
        }
      };
      if (p.activation == Activation::relu)
        multiply_by_slopes(Activation::relu);
      else
        multiply_by_slopes(p.activation);
    }
#pragma unroll
    for (int r = 0; r < WINDOW; ++r)
#pragma unroll
      for (int s = 0; s < region_columns; ++s) {
        const A value = wide[s / WINDOW];
        if constexpr (WINDOW == 1)
          to[r][s] = value;
        else if (p.places == nullptr)
          to[r][s] = value / (WINDOW * WINDOW);
        else
          to[r][s] = places_.of[s / WINDOW] == r * WINDOW + s % WINDOW ? value : A{};
      }
  }
};

// How a block's tiles lie: `down` x `across` regions, with K / 2 rows above and below and 4 columns at the sides. In
// shared memory a plane has `height` rows of `quads` words of 4 columns.
struct Tiling {
  int across, down;              // regions of a tile
  int tiles_across, tiles_down;  // of an image
  int height, quads;
  Divisor by_across, by_down, by_height, by_pairs, by_quads;

  Tiling() = default;
  Tiling(int rows, int columns, int kernel, int region_rows, int most_regions, int64_t element_bytes) {
    const int regions_across = divide_up(columns, region_columns), regions_down = divide_up(rows, region_rows);
    tiles_across = divide_up(regions_across, most_across);
    across = divide_up(regions_across, tiles_across);
    quads = across + 2;
    const int rows_that_fit = static_cast<int>(plane_bytes / (quads * region_columns * element_bytes));
    const int fit = least(most_regions / across, (rows_that_fit - kernel + 1) / region_rows);
    tiles_down = divide_up(regions_down, fit > 1 ? fit : 1);
    down = divide_up(regions_down, tiles_down);
    height = down * region_rows + kernel - 1;
    by_across = Divisor(across), by_down = Divisor(down), by_quads = Divisor(quads);
    by_height = Divisor(height), by_pairs = Divisor(height / 2 + 1);
  }
  int regions() const { return across * down; }
  int plane() const { return height * quads * region_columns; }
};

// Brings planes that follow each other to shared memory, of which `existing` exist; the rest is zero. A thread keeps to
// its quad of the rows.
template <int WINDOW, bool AT_ONCE, class T, class A = Accumulate<T>>
__device__ __forceinline__ void stage(A* staged, const Pixels<T>& source, const Tiling& t, int planes, int existing,
                                      int top, int left) {
  constexpr int batch = AT_ONCE ? 4 : 1;
  const Divisor& by_steps = WINDOW == 1 ? t.by_height : t.by_pairs;
  const int first = top & ~(WINDOW - 1);  // of a window
  const int all = planes * static_cast<int>(by_steps.by), rows_at_once = t.by_quads.quotient(blockDim.x);
  int quad = threadIdx.x;
  const int mine = t.by_quads.divide(quad);
  if (mine >= rows_at_once) return;
  for (int begin = mine; begin < all; begin += batch * rows_at_once) {
    Reading<T, WINDOW> readings[batch];
    int rows[batch], to[batch];  // in the tile
#pragma unroll
    for (int b = 0; b < batch; ++b) {
      int step = begin + b * rows_at_once;
      const int p = by_steps.divide(step), row = first + step * WINDOW;
      rows[b] = row - top;
      to[b] = WINDOW == 1 ? begin + b * rows_at_once : p * t.height + rows[b];
      readings[b].template begin<AT_ONCE>(source, p < existing, p, row, left + (quad - 1) * region_columns);
    }
#pragma unroll
    for (int b = 0; b < batch; ++b) {
      A pixels[WINDOW][region_columns];
      readings[b].finish(pixels, source);
#pragma unroll
      for (int r = 0; r < WINDOW; ++r)
        if (begin + b * rows_at_once < all &&
            (WINDOW == 1 || static_cast<unsigned>(rows[b] + r) < static_cast<unsigned>(t.height)))
          *reinterpret_cast<Several<region_columns, A>*>(staged + ((to[b] + r) * t.quads + quad) * region_columns) = {
              {pixels[r][0], pixels[r][1], pixels[r][2], pixels[r][3]}};
    }
  }
}

template <class T, class A = Accumulate<T>>
__device__ __forceinline__ void stage(A* staged, const Pixels<T>& source, const Tiling& t, int planes, int existing,
                                      int top, int left) {
  auto run = [&]<bool AT_ONCE>(const Pixels<T>& p) {
    if (p.window == 1)
      stage<1, AT_ONCE>(staged, p, t, planes, existing, top, left);
    else
      stage<2, AT_ONCE>(staged, p, t, planes, existing, top, left);
  };
  Pixels<T> p = source;  // with what the compiler is to know
  if (!source.at_once)
    run.template operator()<false>(p);
  else if (source.y == nullptr)
    p.y = nullptr, run.template operator()<true>(p);
  else if (source.activation == Activation::relu)
    p.activation = Activation::relu, run.template operator()<true>(p);
  else
    run.template operator()<true>(p);
}

// What a region's row reads: its own 4 columns and 4 on either side.
template <class A>
__device__ __forceinline__ void read_row(A (&to)[3 * region_columns], const A* from) {
#pragma unroll
  for (int q = 0; q < 3; ++q) {
    const auto words = together<Several<region_columns, A>>(from + q * region_columns);
#pragma unroll
    for (int s = 0; s < region_columns; ++s) to[q * region_columns + s] = words.of[s];
  }
}

// Rows of a thread's region, and the outputs that it has at once: as many as leave registers free.
template <class T, int K, int OUTPUTS>
constexpr int region_rows = OUTPUTS == 1 && K < 7 && sizeof(Accumulate<T>) == 4 ? 8 : 4;
template <int K, int OUTPUTS>
constexpr int weight_count = round_up(K * K * OUTPUTS, 4);

// Calls f(output, row, column, tap, the pixel under the tap) for all of a region; `tile` is where its rows begin.
template <int K, int OUTPUTS, int ROWS, class A, class F>
__device__ __forceinline__ void for_taps(const A* tile, int pitch, const F& f) {
#pragma unroll
  for (int i = 0; i < ROWS + K - 1; ++i) {
    A values[3 * region_columns];
    read_row(values, tile + i * pitch);
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
#pragma unroll
      for (int t = 0; t < K * K; ++t)
        if (t / K == i - r) {
#pragma unroll
          for (int o = 0; o < OUTPUTS; ++o)
#pragma unroll
            for (int s = 0; s < region_columns; ++s) f(o, r, s, t, values[region_columns - K / 2 + t % K + s]);
        }
  }
}

template <int K, int OUTPUTS, int ROWS, class A>
__device__ __forceinline__ void convolve_region(A (&sums)[OUTPUTS][ROWS][region_columns], const A* tile, int pitch,
                                                const A* weights) {
  A w[weight_count<K, OUTPUTS>];
#pragma unroll
  for (int i = 0; i < weight_count<K, OUTPUTS>; i += 4) {
    const auto words = together<Several<4, A>>(weights + i);
#pragma unroll
    for (int j = 0; j < 4; ++j) w[i + j] = words.of[j];
  }
  for_taps<K, OUTPUTS, ROWS>(tile, pitch,
                             [&](int o, int r, int s, int t, A value) { sums[o][r][s] += w[t * OUTPUTS + o] * value; });
}

template <int K, int OUTPUTS, int ROWS, class A>
__device__ __forceinline__ void correlate_region(A (&sums)[OUTPUTS][K * K],
                                                 const A (&gradients)[OUTPUTS][ROWS][region_columns], const A* tile,
                                                 int pitch) {
  for_taps<K, OUTPUTS, ROWS>(tile, pitch,
                             [&](int o, int r, int s, int t, A value) { sums[o][t] += gradients[o][r][s] * value; });
}

// ------------------------------------------------------------------------------------------ images from images

// A thread sums OUTPUTS outputs of a region of a site, which is a group of an image, over a slice of the channels.
template <class T>
struct TiledConvolution {
  Convolution<T> of;
  Pixels<T> source;
  Tiling tiling;
  int sites, units, output_tiles, output_blocks;  // sites of a model and of a block; tiles of outputs of a block
  int slices, chunk;  // of channels; chunk: staged at a time, all of them where there are several units
  int weights_of_group;
  int site_tiles;
  bool at_once;  // y and places may be written several at a time
  Divisor by_chunk, by_output_tiles;
};

template <class T, int K, int OUTPUTS, int ROWS, class A = Accumulate<T>>
__device__ __forceinline__ void finish_region(A (&sums)[OUTPUTS][ROWS][region_columns], const TiledConvolution<T>& c,
                                              int64_t plane, const T* bias, int outputs, int row, int column) {
  const Convolution<T>& of = c.of;
  auto apply = [&](Activation activation) {
#pragma unroll
    for (int o = 0; o < OUTPUTS; ++o) {
      const A b = bias != nullptr && o < outputs ? widen(bias[o]) : A{};
#pragma unroll
      for (int r = 0; r < ROWS; ++r)
#pragma unroll
        for (int s = 0; s < region_columns; ++s) sums[o][r][s] = activate(sums[o][r][s] + b, activation);
    }
  };
  if (of.activation == Activation::relu)
    apply(Activation::relu);
  else if (of.activation == Activation::none)
    apply(Activation::none);
  else
    apply(of.activation);

  if (of.pool == Pool::none) {
#pragma unroll
    for (int o = 0; o < OUTPUTS; ++o)
#pragma unroll
      for (int r = 0; r < ROWS; ++r)
        if (o < outputs && row + r < of.rows.results) {
          Several<region_columns, T> four;
#pragma unroll
          for (int s = 0; s < region_columns; ++s) four.of[s] = narrow<T>(sums[o][r][s]);
          store_several(of.y + ((plane + o) * of.rows.results + row + r) * of.columns.results, four, column,
                        of.columns.results, c.at_once);
        }
    return;
  }
  const int rows = of.rows.results / 2, columns = of.columns.results / 2;
#pragma unroll
  for (int o = 0; o < OUTPUTS; ++o)
#pragma unroll
    for (int r = 0; r < ROWS; r += 2)
      if (o < outputs && (row + r) / 2 < rows) {
        Several<2, T> values;
        Several<2, uint8_t> places;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          Pooled<A> window;
#pragma unroll
          for (int p = 0; p < 4; ++p) window.see(sums[o][r + p / 2][2 * i + p % 2], p, of.pool);
          values.of[i] = narrow<T>(of.pool == Pool::average ? window.value / 4 : window.value);
          places.of[i] = static_cast<uint8_t>(window.largest);
        }
        const int64_t to = ((plane + o) * rows + (row + r) / 2) * columns;
        store_several(of.y + to, values, column / 2, columns, c.at_once);
        if (of.places != nullptr) store_several(of.places + to, places, column / 2, columns, c.at_once);
      }
}

template <class T, int K, int OUTPUTS>
__global__ void __launch_bounds__(conv_threads, resident_tiles<T>) convolve_tiles(const TiledConvolution<T> c) {
  using A = Accumulate<T>;
  constexpr int ROWS = region_rows<T, K, OUTPUTS>, count = weight_count<K, OUTPUTS>;
  const Convolution<T>& of = c.of;
  const Tiling& t = c.tiling;
  BlockNumber block;
  const int tile_column = block.digit(t.tiles_across), tile_row = block.digit(t.tiles_down);
  const int first_output = block.digit(c.output_blocks) * c.output_tiles * OUTPUTS;
  const int first_site = block.digit(c.site_tiles) * c.units;
  const int64_t model = block.rest, first_of_model = model * c.sites;
  const int top = tile_row * t.down * ROWS, left = tile_column * t.across * region_columns;
  const int plane_size = t.height * t.quads * region_columns;

  int column = threadIdx.x;  // of regions
  int row = t.by_across.divide(column);
  int output_tile = t.by_down.divide(row);
  int unit = c.by_output_tiles.divide(output_tile);
  int slice = 0;
  for (; unit >= c.units; unit -= c.units) ++slice;
  const bool takes_part = slice < c.slices && first_site + unit < c.sites;

  A* const of_weights = reinterpret_cast<A*>(shared_memory());
  A* const staged = of_weights + c.units * c.output_tiles * c.chunk * count;
  const A* const tile = staged + unit * c.chunk * plane_size + (row * ROWS * t.quads + column) * region_columns;
  const A* const weights = of_weights + (unit * c.output_tiles + output_tile) * c.chunk * count;
  const T* const of_model = of.weight + model * of.groups * c.weights_of_group;
  A sums[OUTPUTS][ROWS][region_columns] = {};
  for (int begin = 0; begin < of.inputs; begin += c.chunk) {
    __syncthreads();  // the channels before have been read
    const int64_t site_of_source = (of.shared ? 0 : first_of_model) + first_site;
    const Pixels<T> source = c.source.from(site_of_source * of.inputs + begin);
    const int planes = c.units * c.chunk, existing = (c.sites - first_site) * of.inputs - begin;
    stage(staged, source, t, planes, existing, top - K / 2, left);
    for (int i = threadIdx.x; i < c.units * c.output_tiles * c.chunk * count; i += blockDim.x) {
      const int element = i % count, tap = element / OUTPUTS;
      int channel = i / count;
      int output = c.by_chunk.divide(channel);
      const int site = first_site + c.by_output_tiles.divide(output);
      channel += begin, output = first_output + output * OUTPUTS + element % OUTPUTS;
      A weight{};
      if (tap < K * K && site < c.sites && output < of.outputs && channel < of.inputs) {
        const int group = of.groups == 1 ? 0 : site % of.groups;
        weight = widen(of_model[group * c.weights_of_group + output * static_cast<int>(of.weight_output) +
                                channel * static_cast<int>(of.weight_input) + (of.flipped ? K * K - 1 - tap : tap)]);
      }
      of_weights[i] = weight;
    }
    __syncthreads();
    if (takes_part)
      for (int k = slice; k < least(c.chunk, of.inputs - begin); k += c.slices)
        convolve_region<K>(sums, tile + k * plane_size, t.quads * region_columns, weights + k * count);
  }

  // The slices' sums, in their order.
  const int of_slice = c.units * c.output_tiles * t.down * t.across, me = threadIdx.x - slice * of_slice;
  A* const exchanged = reinterpret_cast<A*>(shared_memory());
  for (int other = 1; other < c.slices; ++other) {
    __syncthreads();
    if (slice == other)
#pragma unroll
      for (int i = 0; i < OUTPUTS * ROWS * region_columns; ++i)
        exchanged[i * of_slice + me] = sums[i / (ROWS * region_columns)][i / region_columns % ROWS][i % region_columns];
    __syncthreads();
    if (slice == 0)
#pragma unroll
      for (int i = 0; i < OUTPUTS * ROWS * region_columns; ++i)
        sums[i / (ROWS * region_columns)][i / region_columns % ROWS][i % region_columns] +=
            exchanged[i * of_slice + me];
  }
  const int output = first_output + output_tile * OUTPUTS, site = first_site + unit;
  if (slice > 0 || !takes_part || output >= of.outputs) return;
  const int group = of.groups == 1 ? 0 : site % of.groups;
  const T* bias = of.bias == nullptr ? nullptr : of.bias + (model * of.groups + group) * of.outputs + output;
  finish_region<T, K, OUTPUTS, ROWS>(sums, c, (first_of_model + site) * of.outputs + output, bias, of.outputs - output,
                                     top + row * ROWS, left + column * region_columns);
}

// -------------------------------------------------------------------------------- the gradient of the weights

// A warp sums OUTPUTS x CHANNELS kernels of a group over the regions of a part of the tiles; the bias rides along.
template <class T>
struct TiledCorrelation {
  Correlation<T> of;  // `places` are tiles of all images
  Pixels<T> images, gradients;
  Tiling tiling;
  int units, group_tiles, channel_tiles, jobs, job_tiles;  // groups of a block; tiles of outputs of a block
};

// Sums over a warp: leaves `count` of the N sums in a lane, the first of which is number `first`.
template <int LENGTH, int BIT, int N, class A>
__device__ __forceinline__ void sum_over_warp(A (&sums)[N], int& first, int& count) {
  constexpr int half = divide_up(LENGTH, 2);
  const bool is_upper = (lane() & BIT) != 0;  // and keeps the upper half
#pragma unroll
  for (int i = 0; i < half; ++i) {
    const A low = sums[i], high = half + i < LENGTH ? sums[least(half + i, LENGTH - 1)] : A{};
    sums[i] = (is_upper ? high : low) + from_opposite(is_upper ? low : high, BIT);
  }
  first += is_upper ? half : 0;
  count = is_upper ? (count > half ? count - half : 0) : least(count, half);
  if constexpr (BIT > 1) sum_over_warp<half, BIT / 2>(sums, first, count);
}

template <class T, int K, int OUTPUTS, int CHANNELS, int WINDOW>
__global__ void __launch_bounds__(conv_threads, resident_blocks<T>) correlate_tiles(const TiledCorrelation<T> c) {
  using A = Accumulate<T>;
  constexpr int ROWS = region_rows<T, K, OUTPUTS>, taps = K * K;
  constexpr bool reads_ahead = WINDOW == 2;  // of the barriers, where registers hold what is read
  const Correlation<T>& of = c.of;
  const Tiling& t = c.tiling;
  BlockNumber block;
  const int first_channel = block.digit(c.channel_tiles) * CHANNELS;
  const int first = block.digit(c.job_tiles) * c.jobs * OUTPUTS;
  const int first_group = block.digit(c.group_tiles) * c.units, part = block.digit(of.parts);
  const int64_t model = block.rest;
  const int unit = warp() / c.jobs, output = first + warp() % c.jobs * OUTPUTS, group = first_group + unit;
  const int outputs = group < of.groups ? least(OUTPUTS, of.outputs - output) : 0;
  int column = lane();  // of regions
  const int row = t.by_across.divide(column);
  const bool has_region = outputs > 0 && row < t.down;
  const int plane_size = t.height * t.quads * region_columns;

  A* const staged = reinterpret_cast<A*>(shared_memory());
  const A* const tile = staged + unit * CHANNELS * plane_size + (row * ROWS * t.quads + column) * region_columns;
  const int existing = (of.groups - first_group) * of.inputs - first_channel;
  A sums[CHANNELS][OUTPUTS][taps] = {}, bias[OUTPUTS] = {};
  const int end = least(of.places, (part + 1) * of.part_places);
  BlockNumber of_place{static_cast<unsigned>(part * of.part_places)};
  int tile_column = of_place.digit(t.tiles_across), tile_row = of_place.digit(t.tiles_down);
  int64_t image = of_place.rest;
  for (int place = part * of.part_places; place < end; ++place) {
    const int64_t image_of_model = model * of.batch + image;
    const int top = tile_row * t.down * ROWS, left = tile_column * t.across * region_columns;
    const Pixels<T> source = c.gradients.from((image_of_model * of.groups + group) * of.outputs + output);
    Reading<T, WINDOW> readings[OUTPUTS][ROWS / WINDOW];
    auto begin_reading = [&](int o) {
#pragma unroll
      for (int r = 0; r < ROWS / WINDOW; ++r)
        readings[o][r].begin(source, has_region && o < outputs, o, top + row * ROWS + r * WINDOW,
                             left + column * region_columns);
    };
    if (reads_ahead)
#pragma unroll
      for (int o = 0; o < OUTPUTS; ++o) begin_reading(o);

    const int64_t site = (of.shared ? image : image_of_model) * of.groups + first_group;
    __syncthreads();  // the place before has been read
    Pixels<T> images = c.images.from(site * of.inputs + first_channel);
    images.window = 1, images.y = nullptr, images.places = nullptr;  // for the compiler to know
    stage(staged, images, t, c.units * CHANNELS, existing, top - K / 2, left);
    __syncthreads();
    if (++tile_column == t.tiles_across) tile_column = 0, ++tile_row;
    if (tile_row == t.tiles_down) tile_row = 0, ++image;
    if (!has_region) continue;
    A gradients[OUTPUTS][ROWS][region_columns];
#pragma unroll
    for (int o = 0; o < OUTPUTS; ++o) {
      if (!reads_ahead) begin_reading(o);
#pragma unroll
      for (int r = 0; r < ROWS; r += WINDOW) {
        A pixels[WINDOW][region_columns];
        readings[o][r / WINDOW].finish(pixels, source);
#pragma unroll
        for (int i = 0; i < WINDOW * region_columns; ++i) {
          const A gradient = pixels[i / region_columns][i % region_columns];
          gradients[o][r + i / region_columns][i % region_columns] = gradient;
          bias[o] += gradient;
        }
      }
    }
#pragma unroll
    for (int k = 0; k < CHANNELS; ++k)
      correlate_region<K>(sums[k], gradients, tile + k * plane_size, t.quads * region_columns);
  }

  constexpr int all = CHANNELS * OUTPUTS * taps + OUTPUTS;
  A of_warp[all];
#pragma unroll
  for (int i = 0; i < all; ++i)
    of_warp[i] = i < all - OUTPUTS ? sums[i / taps / OUTPUTS % CHANNELS][i / taps % OUTPUTS][i % taps]
                                   : bias[(i - all + OUTPUTS) % OUTPUTS];
  int begin = 0, count = all;
  sum_over_warp<all, warp_size / 2>(of_warp, begin, count);
  const int64_t to = ((part * of.models + model) * of.groups + group) * of.outputs + output;
#pragma unroll
  for (int i = 0; i < divide_up(all, warp_size); ++i) {
    const int at = begin + i, is_bias = at >= all - OUTPUTS;
    const int o = is_bias ? at - all + OUTPUTS : at / taps % OUTPUTS, channel = first_channel + at / taps / OUTPUTS;
    if (i >= count || o >= outputs) continue;
    if (!is_bias && channel < of.inputs)
      of.weights[((to + o) * of.inputs + channel) * taps + at % taps] = of_warp[i];
    else if (is_bias && first_channel == 0 && of.biases != nullptr)
      of.biases[to + o] = of_warp[i];
  }
}

// ---------------------------------------------------------------------------------------------------- launches

inline bool tiles_serve(const ConvShape& s) {
  for (int axis = 0; axis < 2; ++axis)
    if (s.kernel[axis] != s.kernel[0] || s.stride[axis] != 1 || s.dilation[axis] != 1 ||
        s.padding[axis] != s.kernel[0] / 2)
      return false;
  // Weights, and places in a tile's planes, are counted in 32 bits.
  return s.batch * s.groups < most_size && s.height * s.width < most_plane &&
         (s.kernel[0] == 3 || s.kernel[0] == 5 || s.kernel[0] == 7);
}

// Whether a thread's region has whole windows.
template <class Shape>
bool tiles_hold_windows(const Shape& s) {
  return s.pool == Pool::none || (s.window[0] == 2 && s.window[1] == 2);
}

// Calls f.operator()<K, OUTPUTS>() with the kernel's size and how many outputs a thread has at once.
template <class T, class F>
auto with_outputs(int kernel, int outputs, const F& f) {
  constexpr bool is_double = sizeof(Accumulate<T>) == 8;
  switch (kernel) {
    case 3:
      if (outputs == 1) return f.template operator()<3, 1>();
      return f.template operator()<3, is_double ? 2 : 3>();
    case 5:
      return outputs == 1 ? f.template operator()<5, 1>() : f.template operator()<5, 2>();
    default:
      return f.template operator()<7, 1>();
  }
}

template <class T>
bool is_aligned(const T* pointer, int elements) {
  return reinterpret_cast<uintptr_t>(pointer) % least(16, elements * sizeof(T)) == 0;
}

template <class T>
Pixels<T> pixels_of(const ConvShape& s, const T* values, const T* y, const uint8_t* places, int window) {
  const int rows = static_cast<int>(s.height) / window, columns = static_cast<int>(s.width) / window;
  const int count = region_columns / window;
  return {rows,
          columns,
          window,
          values,
          y,
          places,
          s.activation,
          columns % count == 0 && is_aligned(values, count) && is_aligned(y, count) && is_aligned(places, count)};
}

// Gradients of pixels: from those of y, or as they are.
template <class T>
Pixels<T> gradients_of(const ConvBackward<T>& d, const T* pixels) {
  const ConvShape& s = d.shape;
  if (pixels != nullptr) return pixels_of<T>(s, pixels, nullptr, nullptr, 1);
  const bool needs_y = s.activation != Activation::none && s.pool != Pool::average;
  return pixels_of<T>(s, d.dy, needs_y ? d.y : nullptr, s.pool == Pool::max ? d.places : nullptr,
                      s.pool == Pool::none ? 1 : 2);
}

constexpr int at_least_one(int64_t n) { return n > 1 ? static_cast<int>(n) : 1; }

template <class T, int K, int OUTPUTS>
int64_t bytes_of_channel(const TiledConvolution<T>& c) {  // with its weights
  return (c.tiling.plane() + c.output_tiles * weight_count<K, OUTPUTS>)*sizeof(Accumulate<T>);
}

// A block has a warp's worth of regions or, where these are few, half of it, times outputs, slices of many channels, or
// sites of few.
template <class T, int K, int OUTPUTS>
TiledConvolution<T> tiled_convolution(const Convolution<T>& of, const Pixels<T>& source) {
  constexpr int rows = region_rows<T, K, OUTPUTS>, shallow = 8, most_slices = 8, most_output_tiles = 16;
  constexpr int64_t wanted_blocks = 512;
  TiledConvolution<T> c{};
  c.of = of, c.source = source;
  c.sites = static_cast<int>(of.batch * of.groups);
  c.weights_of_group = of.inputs * of.outputs * K * K;

  const int64_t of_site = int64_t{divide_up(of.columns.results, region_columns)} * divide_up(of.rows.results, rows);
  const bool deep = of.inputs >= shallow, few = of_site * c.sites * of.models < wanted_blocks * warp_size;
  const int most_regions = deep && few ? warp_size / 2 : warp_size;
  const int wanted_regions = of_site < most_regions ? static_cast<int>(of_site) : most_regions;
  const int tiles_of_outputs = divide_up(of.outputs, OUTPUTS);
  c.output_blocks = divide_up(tiles_of_outputs, least(most_output_tiles, conv_threads / wanted_regions));
  c.output_tiles = divide_up(tiles_of_outputs, c.output_blocks);
  c.tiling = Tiling(of.rows.results, of.columns.results, K, rows, deep ? wanted_regions : conv_threads / c.output_tiles,
                    sizeof(Accumulate<T>));

  const int at_once = at_least_one(conv_threads / (c.tiling.regions() * c.output_tiles));  // slices or sites
  const int channels_that_fit = at_least_one(tile_bytes / bytes_of_channel<T, K, OUTPUTS>(c));
  const int64_t tiles = of.models * c.sites * c.output_blocks * c.tiling.tiles_across * c.tiling.tiles_down;
  c.slices = deep ? least(least(most_slices, of.inputs / 2), least(at_once, channels_that_fit)) : 1;
  c.units =
      deep ? 1
           : least(at_once, least(at_least_one(tiles / wanted_blocks), at_least_one(channels_that_fit / of.inputs)));
  c.chunk = c.units > 1 ? of.inputs : least(of.inputs, channels_that_fit / c.slices * c.slices);
  c.site_tiles = divide_up(c.sites, c.units);
  c.by_chunk = Divisor(c.chunk), c.by_output_tiles = Divisor(c.output_tiles);
  c.at_once = of.pool == Pool::none
                  ? of.columns.results % 4 == 0 && is_aligned(of.y, 4)
                  : of.columns.results / 2 % 2 == 0 && is_aligned(of.y, 2) && is_aligned(of.places, 2);
  return c;
}

template <class T, int K, int OUTPUTS>
cudaError_t launch_tiles(const Convolution<T>& of, const Pixels<T>& source, cudaStream_t stream) {
  const TiledConvolution<T> c = tiled_convolution<T, K, OUTPUTS>(of, source);
  const Tiling& t = c.tiling;
  const int threads_of_slice = t.regions() * c.output_tiles * c.units;
  const int64_t staged = bytes_of_channel<T, K, OUTPUTS>(c) * c.units * c.chunk;
  const int64_t exchanged =
      int64_t{threads_of_slice} * OUTPUTS * region_rows<T, K, OUTPUTS> * region_columns * sizeof(Accumulate<T>);
  return launch(convolve_tiles<T, K, OUTPUTS>,
                of.models * c.site_tiles * c.output_blocks * t.tiles_across * t.tiles_down,
                round_up(threads_of_slice * c.slices, warp_size),
                c.slices > 1 && exchanged > staged ? exchanged : staged, stream, c);
}

template <class T>
cudaError_t launch_tiles(const Convolution<T>& of, const Pixels<T>& source, cudaStream_t stream) {
  return with_outputs<T>(of.rows.taps, of.outputs,
                         [&]<int K, int OUTPUTS>() { return launch_tiles<T, K, OUTPUTS>(of, source, stream); });
}

// How the sum over pixels is cut, by sizes alone.
struct TiledCorrelationPlan {
  Tiling tiling;
  int outputs, channels;  // of a warp
  int jobs, job_tiles, channel_tiles, units, group_tiles;
  int64_t places, parts, part_places, blocks;
};

// Calls f.operator()<K, OUTPUTS, CHANNELS>() likewise.
template <class T, class F>
auto with_kernels(const ConvShape& s, const F& f) {
  const int64_t inputs = s.channels / s.groups, outputs = s.outputs / s.groups;
  constexpr bool is_double = sizeof(Accumulate<T>) == 8;
  switch (s.kernel[0]) {
    case 3:
      if (outputs == 1) return f.template operator()<3, 1, 1>();
      if constexpr (is_double)
        return f.template operator()<3, 2, 1>();
      else
        return inputs % 3 == 0 ? f.template operator()<3, 2, 3>() : f.template operator()<3, 3, 1>();
    case 5:
      return f.template operator()<5, 1, 1>();
    default:
      return f.template operator()<7, 1, 1>();
  }
}

template <class T>
TiledCorrelationPlan tiled_correlation_plan(const ConvShape& s) {
  return with_kernels<T>(s, [&]<int K, int OUTPUTS, int CHANNELS>() {
    constexpr int warps_of_block = conv_threads / warp_size, wanted_blocks = 512;
    const int inputs = static_cast<int>(s.channels / s.groups), outputs = static_cast<int>(s.outputs / s.groups);
    TiledCorrelationPlan p{};
    p.outputs = OUTPUTS, p.channels = CHANNELS;
    p.tiling = Tiling(static_cast<int>(s.height), static_cast<int>(s.width), K, region_rows<T, K, OUTPUTS>, warp_size,
                      sizeof(Accumulate<T>));
    const int tiles_of_outputs = divide_up(outputs, OUTPUTS);
    p.job_tiles = divide_up(tiles_of_outputs, warps_of_block);
    p.jobs = divide_up(tiles_of_outputs, p.job_tiles), p.channel_tiles = divide_up(inputs, CHANNELS);
    const int64_t bytes = int64_t{p.tiling.plane()} * CHANNELS * sizeof(Accumulate<T>);
    p.units = least(warps_of_block / p.jobs, static_cast<int>(tile_bytes / bytes));
    p.units = inputs == CHANNELS && p.units > 1 ? least(p.units, static_cast<int>(s.groups)) : 1;
    p.group_tiles = divide_up(static_cast<int>(s.groups), p.units);
    p.places = s.batch * p.tiling.tiles_across * p.tiling.tiles_down;
    const int64_t of_a_part = s.models * p.group_tiles * p.job_tiles * p.channel_tiles;
    p.parts = (wanted_blocks + of_a_part - 1) / of_a_part;
    if (p.parts > p.places) p.parts = p.places;
    if (p.parts < 1) p.parts = 1;
    p.part_places = (p.places + p.parts - 1) / p.parts;
    p.blocks = p.parts * of_a_part;
    return p;
  });
}

template <class T>
cudaError_t launch_tiled_correlation(Correlation<T> of, const ConvShape& s, const Pixels<T>& gradients,
                                     const TiledCorrelationPlan& p, cudaStream_t stream) {
  of.places = static_cast<int>(p.places), of.parts = static_cast<int>(p.parts);
  of.part_places = static_cast<int>(p.part_places);
  TiledCorrelation<T> c{of,
                        pixels_of<T>(s, of.x, nullptr, nullptr, 1),
                        gradients,
                        p.tiling,
                        p.units,
                        p.group_tiles,
                        p.channel_tiles,
                        p.jobs,
                        p.job_tiles};
  const int64_t bytes = int64_t{p.units} * p.channels * p.tiling.plane() * sizeof(Accumulate<T>);
  return with_kernels<T>(s, [&]<int K, int OUTPUTS, int CHANNELS>() {
    auto kernel = gradients.window == 1 ? correlate_tiles<T, K, OUTPUTS, CHANNELS, 1>
                                        : correlate_tiles<T, K, OUTPUTS, CHANNELS, 2>;
    return launch(kernel, p.blocks, p.units * p.jobs * warp_size, bytes, stream, c);
  });
}

}  // namespace recurve::cuda
