// The forward pass with output channels side by side: direct at any stride, or by Winograd's algorithm.
//
// A vector holds output channels of one pixel. Weights are packed so that an element of all these channels' kernels is
// a vector; an input pixel, read where it lies, is multiplied with it. Rows of the convolution stay in the first-level
// cache until they are activated, pooled and turned into planes: only what pooling keeps leaves it.
#pragma once

#include "conv_grid.h"
#include "conv_pool.h"

namespace recurve {
namespace {

constexpr int64_t rows_bytes = 8 * 1024;  // of the convolution's rows that are pooled together, of some vectors

// Pixels by G vectors of output channels that a tile holds in registers.
template <int G>
constexpr int tile_pixels = RECURVE_VECTOR_REGISTERS == 32 ? (G == 3 ? 8 : 12) : 12 / G;

// Output channels of a group in blocks of two vectors, the last of one or three.
struct OutputBlocks {
  int64_t vectors, count;

  explicit OutputBlocks(int64_t vectors_) : vectors(vectors_), count(most(1, vectors_ / 2)) {}
  int64_t first(int64_t block) const { return 2 * block; }
  int64_t width(int64_t block) const { return block == count - 1 ? vectors - 2 * block : 2; }

  // f.template operator()<G>() for the block's width G.
  template <class F>
  void with_width(int64_t block, const F& f) const {
    switch (width(block)) {
      case 1:
        return f.template operator()<1>();
      case 2:
        return f.template operator()<2>();
      default:
        return f.template operator()<3>();
    }
  }
};

// What all images of a call share.
template <class T>
struct ForwardPlan {
  ConvForward<T> f;
  Grid grid;
  OutputBlocks blocks;
  bool padded;
  int64_t channel, pixel;      // elements from one to the next in what is convolved
  Scratch<T> weights, biases;  // (E, groups, blocks, depth, width of the block), (E, groups, vectors)
  Scratch<int64_t> offsets;

  ForwardPlan(const ConvForward<T>& f_, const Parallel& parallel)
      : f(f_),
        grid(f_.shape),
        blocks(divide_up(grid.outputs, lanes<T>)),
        padded(f_.shape.padding[0] > 0 || f_.shape.padding[1] > 0),
        channel(f_.shape.channels_last ? 1 : grid.plane()),
        pixel(!f_.shape.channels_last ? 1
              : padded                ? grid.inputs
                                      : f_.shape.channels),
        weights(f_.shape.models * f_.shape.groups * blocks.vectors * lanes<T> * grid.depth),
        biases(f_.shape.models * f_.shape.groups * blocks.vectors * lanes<T>),
        offsets(grid.depth) {
    patch_offsets(f.shape, grid, channel, pixel, offsets.get());
    const int64_t whole = blocks.vectors * lanes<T>, sets = f.shape.models * f.shape.groups;
    for (int64_t set = 0; set < sets; ++set)
      for (int64_t o = 0; o < whole; ++o)
        biases[set * whole + o] = f.bias != nullptr && o < grid.outputs ? f.bias[set * grid.outputs + o] : T(0);
    const Parallel few{sets * whole * grid.depth < gemm_serial ? 1 : parallel.threads, parallel.run};
    parallel_for(few, sets * blocks.count, [&](int64_t task) {
      const int64_t set = task / blocks.count, block = task % blocks.count;
      const int64_t width = blocks.width(block) * lanes<T>, first = blocks.first(block) * lanes<T>;
      for (int64_t o = 0; o < width; o += lanes<T>)
        transpose_rows(f.weight + (set * grid.outputs + first + o) * grid.depth, grid.depth,
                       least(lanes<T>, grid.outputs - first - o), grid.depth, weights_of(set, block) + o, width);
    });
  }

  T* weights_of(int64_t set, int64_t block) const {
    return weights + (set * blocks.vectors + blocks.first(block)) * lanes<T> * grid.depth;
  }
  const T* biases_of(int64_t set, int64_t block) const {
    return biases + (set * blocks.vectors + blocks.first(block)) * lanes<T>;
  }
  // The group's channels of an image.
  const T* image(int64_t index, int64_t group) const {
    const ConvShape& s = f.shape;
    const int64_t source = s.shared ? index % s.batch : index;
    return f.x + s.x_layout().at(source, group * grid.inputs, 0);
  }
};

// Adds to `count` pixels, `pitch` elements apart, the sums over [k, end) of weights[k] x[pixel's place + offsets[k]];
// where k is 0, they begin as the bias.
template <class T, int G, bool UNIT>
void add_to_row(const T* x, int64_t step, const int64_t* offsets, int64_t k, int64_t end, const T* weights,
                const T* bias, int64_t count, T* to, int64_t pitch) {
  constexpr int64_t width = G * lanes<T>;
  for_row_tiles<tile_pixels<G>>(count, [&]<int P>(int64_t first) {
    Vector<T> sums[P][G] = {};
    const T* at = x + first * (UNIT ? 1 : step);
    accumulate<T, P, G>(
        sums, [&](int p, int64_t i) { return at[offsets[i] + p * (UNIT ? 1 : step)]; },
        [&](int64_t i) { return weights + i * width; }, k, end);
    RECURVE_UNROLL
    for (int p = 0; p < P; ++p) {
      T* pixel = to + (first + p) * pitch;
      RECURVE_UNROLL
      for (int g = 0; g < G; ++g)
        store(pixel + g * lanes<T>, sums[p][g] + load((k == 0 ? bias : pixel) + g * lanes<T>));
    }
  });
}

// As pad_rows where a pixel's channels lie side by side, and stay so.
template <class T>
void pad_rows_of_pixels(const ConvShape& s, const Grid& grid, const T* image, int64_t first, int64_t last, T* padded) {
  const int64_t margin = s.padding[1] * grid.inputs;
  for (int64_t y = first; y < last; ++y) {
    T* to = padded + y * grid.width * grid.inputs;
    const int64_t row = y - s.padding[0];
    if (row < 0 || row >= s.height) {
      __builtin_memset(to, 0, grid.width * grid.inputs * sizeof(T));
      continue;
    }
    __builtin_memset(to, 0, margin * sizeof(T));
    __builtin_memset(to + (grid.width * grid.inputs - margin), 0, margin * sizeof(T));
    const T* from = image + row * s.width * s.channels;
    if (s.groups == 1)
      __builtin_memcpy(to + margin, from, s.width * s.channels * sizeof(T));
    else
      for (int64_t i = 0; i < s.width; ++i)
        __builtin_memcpy(to + margin + i * grid.inputs, from + i * s.channels, grid.inputs * sizeof(T));
  }
}

// The channels of a group with their padding, rows [first, last) of the padded image.
template <class T>
void pad_rows(const ConvShape& s, const Grid& grid, const T* image, int64_t first, int64_t last, T* padded) {
  if (s.channels_last) return pad_rows_of_pixels(s, grid, image, first, last, padded);
  for (int64_t c = 0; c < grid.inputs; ++c)
    for (int64_t y = first; y < last; ++y) {
      T* to = padded + c * grid.plane() + y * grid.width;
      const int64_t row = y - s.padding[0];
      if (row < 0 || row >= s.height) {
        __builtin_memset(to, 0, grid.width * sizeof(T));
        continue;
      }
      for (int64_t i = 0; i < s.padding[1]; ++i) to[i] = to[grid.width - 1 - i] = 0;
      __builtin_memcpy(to + s.padding[1], image + (c * s.height + row) * s.width, s.width * sizeof(T));
    }
}

// Rows [first, first + count) of the convolution of a padded image, with a block's weights: `rows`, pixel by pixel.
template <class T, int G>
void convolve_rows(const ForwardPlan<T>& plan, const T* x, const T* weights, const T* bias, int64_t first,
                   int64_t count, T* rows) {
  constexpr int64_t width = G * lanes<T>;
  const ConvShape& s = plan.f.shape;
  const Grid& grid = plan.grid;
  for (int64_t k = 0; k == 0 || k < grid.depth; k += product_block) {
    const int64_t end = least(grid.depth, k + product_block);
    for (int64_t r = 0; r < count; ++r) {
      const T* from = x + (first + r) * s.stride[0] * grid.width * plan.pixel;
      T* to = rows + r * grid.columns * width;
      const int64_t step = s.stride[1] * plan.pixel;
      if (step == 1)
        add_to_row<T, G, true>(from, 1, plan.offsets, k, end, weights, bias, grid.columns, to, width);
      else
        add_to_row<T, G, false>(from, step, plan.offsets, k, end, weights, bias, grid.columns, to, width);
    }
  }
}

// Rows [first, last) of y of one image and group.
template <class T>
void direct_rows(const ForwardPlan<T>& plan, int64_t index, int64_t group, int64_t first, int64_t last) {
  const ConvShape& s = plan.f.shape;
  const Grid& grid = plan.grid;
  const int64_t set = index / s.batch * s.groups + group, window = s.window[0];
  Scratch<T> copy(plan.padded ? grid.inputs * grid.plane() : 0);
  const T* x = plan.image(index, group);
  if (plan.padded) {
    const int64_t end = (last * window - 1) * s.stride[0] + (s.kernel[0] - 1) * s.dilation[0] + 1;
    pad_rows(s, grid, x, first * window * s.stride[0], end, copy.get());
    x = copy;
  }
  const int64_t row_bytes = window * grid.columns * 3 * lanes<T> * static_cast<int64_t>(sizeof(T));
  const int64_t band = most(1, least(last - first, rows_bytes / row_bytes));  // rows of y
  const int64_t size = band * window * grid.columns * 3 * lanes<T>;
  Scratch<T> rows(size), places(plan.f.places == nullptr ? 0 : size);
  for (int64_t block = 0; block < plan.blocks.count; ++block)
    plan.blocks.with_width(block, [&]<int G>() {
      const int64_t output = plan.blocks.first(block) * lanes<T>;
      const T *weights = plan.weights_of(set, block), *bias = plan.biases_of(set, block);
      for (int64_t row = first; row < last; row += band) {
        const int64_t count = least(band, last - row);
        convolve_rows<T, G>(plan, x, weights, bias, row * window, count * window, rows.get());
        const int64_t at = s.y_layout().at(index, group * grid.outputs + output, row * s.pooled(1));
        finish_rows<T, G>(s, rows, grid.columns, count, grid.outputs - output, plan.f.y + at,
                          plan.f.places == nullptr ? nullptr : plan.f.places + at, places);
      }
    });
}

template <class T>
void direct_forward(const ForwardPlan<T>& plan, const Parallel& parallel) {
  const ConvShape& s = plan.f.shape;
  const int64_t tasks = s.models * s.batch * s.groups, parts = parts_for(parallel, tasks, s.pooled(0));
  const int64_t rows = divide_up(s.pooled(0), parts);
  parallel_for(parallel, tasks * parts, [&](int64_t task) {
    const int64_t first = task % parts * rows, last = least(s.pooled(0), first + rows), image = task / parts;
    if (first < last) direct_rows(plan, image / s.groups, image % s.groups, first, last);
  });
}

}  // namespace
}  // namespace recurve
