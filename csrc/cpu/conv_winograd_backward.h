// The backward pass by Winograd's algorithm: each step of the forward pass has its adjoint.
//
// Gradients of the outputs are transformed; for each place, a product with the transformed inputs gives the gradient of
// the transformed kernels, and one with these kernels that of the transformed inputs. Transformed back, they are those
// of the weights, and of pixels, which add up where tiles overlap.
#pragma once

#include "conv_winograd.h"

namespace recurve {
namespace {

constexpr int64_t winograd_back_bytes = 1024 * 1024;  // of what one task has transformed

// Whether the gradients of all pixels follow from what was kept, and multiplying them all was measured to be no slower
// than multiplying those that max pooling kept: with many channels, whose kernels' gradient the cache still holds.
template <class T>
bool winograd_back_serves(const ConvShape& s, const Grid& grid) {
  if (!s.keeps_places()) return s.keeps_enough();
  const int64_t kernels = 36 * grid.inputs * grid.outputs * static_cast<int64_t>(sizeof(T));
  return winograd_tile(s, grid) == 4 && least(grid.inputs, grid.outputs) >= 32 && kernels <= winograd_back_bytes;
}

// Weights with input channels side by side: (sets, blocks, outputs, 9, width of the block), or nothing.
template <class T>
struct WeightsByInput {
  Scratch<T> data;

  WeightsByInput(const ConvBackward<T>& d, const Grid& grid, const OutputBlocks& blocks)
      : data(d.dx == nullptr ? 0 : d.shape.models * d.shape.outputs * blocks.vectors * lanes<T> * 9) {
    if (d.dx == nullptr) return;
    T* to = data;
    for (int64_t set = 0; set < d.shape.models * d.shape.groups; ++set)
      for (int64_t block = 0; block < blocks.count; ++block) {
        const int64_t width = blocks.width(block) * lanes<T>, first = blocks.first(block) * lanes<T>;
        for (int64_t o = 0; o < grid.outputs; ++o, to += 9 * width)
          for (int64_t c = 0; c < width; c += lanes<T>)
            transpose_rows(d.weight + ((set * grid.outputs + o) * grid.inputs + first + c) * 9, 9,
                           least(lanes<T>, grid.inputs - first - c), 9, to + c, width);
      }
  }
};

template <class T, int M>
struct WinogradBackPlan {
  static constexpr int places = (M + 2) * (M + 2);
  const ConvBackward<T>& d;
  const Grid& grid;
  WinogradTiles<T, M> tiles;
  OutputBlocks inputs, outputs;   // blocks of channels
  int64_t pitch;                  // of output channels, in whole vectors
  WinogradKernels<T, M> kernels;  // if dx is wanted
  int64_t strips;                 // that a task works on at once

  WinogradBackPlan(const ConvBackward<T>& d_, const Grid& grid_, const Parallel& parallel)
      : d(d_),
        grid(grid_),
        tiles(d_.shape, grid_),
        inputs(divide_up(grid_.inputs, lanes<T>)),
        outputs(divide_up(grid_.outputs, lanes<T>)),
        pitch(whole_vectors<T>(grid_.outputs)),
        kernels(WeightsByInput<T>(d_, grid_, inputs).data, d_.dx == nullptr ? 0 : tiles.sets(), inputs, grid_.outputs,
                parallel),
        strips(winograd_back_bytes /
               (tiles.across * places * (tiles.channels + pitch) * static_cast<int64_t>(sizeof(T)))) {
    strips = most(1, least(strips, divide_up(d.shape.batch, 16) * tiles.down));
  }
};

// What one task works in.
template <class T, int M>
struct WinogradBackScratch {
  using Tiles = WinogradTiles<T, M>;
  int64_t input_place, place;  // elements from a place's inputs to the next one's, and from its gradients
  int64_t kernel_place;        // and from its kernels
  Scratch<T> rows;             // (side, width, channels): the pixels that a strip reads
  Scratch<T> input;            // (places, tiles, channels), transformed
  Scratch<T> loaded, largest;  // gradients of a strip of y, and which pixels they belong to
  Scratch<T> pixels;           // (M, across M, pitch): gradients of a strip of the convolution
  Scratch<T> gradients;        // (places, tiles, pitch), transformed
  Scratch<T> kernels;          // (places, channels, pitch): gradient of the transformed kernels
  Scratch<T> products;         // (places, tiles, up to 3 vectors)
  Scratch<T> sums;             // (side, width, channels): gradients of the pixels that a strip reads

  explicit WinogradBackScratch(const WinogradBackPlan<T, M>& p)
      : input_place(p.strips * p.tiles.across * p.tiles.channels + winograd_gap),
        place(p.strips * p.tiles.across * p.pitch + winograd_gap),
        kernel_place(p.tiles.channels * p.pitch + winograd_gap),
        rows(Tiles::side * p.tiles.row()),
        input(p.d.dweight == nullptr ? 0 : Tiles::places * input_place),
        loaded(M * p.tiles.across * M * lanes<T>),
        largest(M * p.tiles.across * M * lanes<T>),
        pixels(M * p.tiles.across * M * p.pitch),
        gradients(Tiles::places * place),
        kernels(p.d.dweight == nullptr ? 0 : Tiles::places * kernel_place),
        products(Tiles::places * (p.strips * p.tiles.across * 3 * lanes<T> + winograd_gap)),
        sums(Tiles::side * p.tiles.row()) {
    __builtin_memset(sums, 0, Tiles::side * p.tiles.row() * sizeof(T));
  }
};

// Gradients of a strip of the convolution, transformed: to (places, tiles, pitch). Adds their sums to dbias; returns
// whether they are moderate.
template <class T, int M>
bool transform_gradients(const WinogradBackPlan<T, M>& plan, const WinogradBackScratch<T, M>& t, int64_t image,
                         int64_t group, int64_t strip, T* to, T* dbias) {
  constexpr int side = M + 2;
  const ConvShape& s = plan.d.shape;
  const int64_t columns = s.pooled(1), pitch = plan.pitch;
  const int64_t first = strip * (M / s.window[0]), count = least(M / s.window[0], s.pooled(0) - first);
  const int64_t row = plan.tiles.across * M * pitch;
  Vector<T> squares = zero_vector<T>();
  __builtin_memset(t.pixels, 0, M * row * sizeof(T));
  for (int64_t o = 0; o < plan.grid.outputs; o += lanes<T>) {
    load_gradients(plan.d, s.y_layout().at(image, group * plan.grid.outputs + o, first * columns),
                   least(lanes<T>, plan.grid.outputs - o), count * columns, t.loaded.get(), t.largest.get());
    Vector<T> sum = load(dbias + o);
    for (int64_t i = 0; i < count; ++i)
      sum += spread_row<T>(s, i, nullptr, 0, 0, t.loaded, t.largest, t.pixels + i * s.window[0] * row + o, pitch, row);
    store(dbias + o, sum);
    for (int64_t i = 0; i < count * columns; ++i) {
      const Vector<T> gradient = load(t.loaded + i * lanes<T>);
      squares += gradient * gradient;
    }
    for (int64_t tile = 0; tile < plan.tiles.across; ++tile) {
      Vector<T> from[M][M], result[side][side];
      RECURVE_UNROLL
      for (int r = 0; r < M; ++r) {
        RECURVE_UNROLL
        for (int k = 0; k < M; ++k) from[r][k] = load(t.pixels + r * row + (tile * M + k) * pitch + o);
      }
      transform_both<M, side>(from, result, [](const auto& y, auto& m) { Winograd<M>::output_back(y, m); });
      RECURVE_UNROLL
      for (int r = 0; r < side; ++r) {
        RECURVE_UNROLL
        for (int k = 0; k < side; ++k) store(to + (r * side + k) * t.place + tile * pitch + o, result[r][k]);
      }
    }
  }
  return is_moderate<T>(squares);
}

// Adds the products of the task's first `count` tiles of inputs and gradients to the gradient of the kernels.
template <class T, int M>
void add_kernel_gradients(const WinogradBackPlan<T, M>& plan, const WinogradBackScratch<T, M>& t, int64_t count) {
  const int64_t channels = plan.tiles.channels, pitch = plan.pitch;
  for (int64_t p = 0; p < plan.places; ++p)
    for (int64_t block = 0; block < plan.outputs.count; ++block)
      plan.outputs.with_width(block, [&]<int G>() {
        const int64_t o = plan.outputs.first(block) * lanes<T>;
        for_row_tiles<tile_pixels<G>>(channels, [&]<int R>(int64_t c) {
          Vector<T> sums[R][G] = {};
          product_by_column<T, R, G>(sums, t.input + p * t.input_place + c, channels, t.gradients + p * t.place + o,
                                     pitch, count);
          RECURVE_UNROLL
          for (int r = 0; r < R; ++r) {
            RECURVE_UNROLL
            for (int g = 0; g < G; ++g) {
              T* to = t.kernels + p * t.kernel_place + (c + r) * pitch + o + g * lanes<T>;
              store(to, load(to) + sums[r][g]);
            }
          }
        });
      });
}

// dweight (inputs, 9, pitch) += the gradient of the kernels, transformed back.
template <class T, int M>
void transform_kernel_gradients(const WinogradBackPlan<T, M>& plan, const WinogradBackScratch<T, M>& t, T* dweight) {
  constexpr int side = M + 2;
  const int64_t pitch = plan.pitch;
  for (int64_t c = 0; c < plan.grid.inputs; ++c)
    for (int64_t o = 0; o < pitch; o += lanes<T>) {
      Vector<T> from[side][side], result[3][3];
      RECURVE_UNROLL
      for (int r = 0; r < side; ++r) {
        RECURVE_UNROLL
        for (int k = 0; k < side; ++k) from[r][k] = load(t.kernels + (r * side + k) * t.kernel_place + c * pitch + o);
      }
      transform_both<side, 3>(from, result, [](const auto& u, auto& g) { Winograd<M>::kernel_back(u, g); });
      for (int k = 0; k < 9; ++k) {
        T* to = dweight + (c * 9 + k) * pitch + o;
        store(to, load(to) + result[k / 3][k % 3]);
      }
    }
}

// Rows [first, last) of the padded image, which begin at `rows`, into dx's channels [c, c + G vectors).
template <class T, int M, int G>
void write_rows(const WinogradTiles<T, M>& tiles, const T* rows, int64_t first, int64_t last, int64_t c, T* dx) {
  const ConvShape& s = tiles.s;
  const ImageLayout layout = s.x_layout();
  const int64_t read = most(0, least(s.width, tiles.width - s.padding[1]));  // columns that tiles read
  for (int64_t y = most(first, s.padding[0]); y < least(last, s.height + s.padding[0]); ++y)
    for (int64_t g = c; g < least(tiles.inputs, c + G * lanes<T>); g += lanes<T>) {
      const int64_t count = least(lanes<T>, tiles.inputs - g);
      T* to = dx + layout.at(0, g, (y - s.padding[0]) * s.width);
      if (rows != nullptr)
        write_pixels(rows + (y - first) * tiles.row() + s.padding[1] * tiles.channels + g, tiles.channels, read, count,
                     to, layout);
      for (int64_t k = 0; k < count; ++k)
        for (int64_t x = rows != nullptr ? read : 0; x < s.width; ++x) to[layout.at(0, k, x)] = 0;
    }
}

// The gradients of a strip's pixels from products (places, tiles, G vectors), for one block of channels: added to what
// the strip above gave, and written to dx once they are whole.
template <class T, int M, int G>
void add_strip(const WinogradBackPlan<T, M>& plan, const WinogradBackScratch<T, M>& t, const T* products, int64_t place,
               int64_t c, int64_t strip, T* dx) {
  constexpr int side = M + 2;
  constexpr int64_t width = G * lanes<T>;
  const WinogradTiles<T, M>& tiles = plan.tiles;
  const int64_t channels = tiles.channels, row = tiles.row();
  for (int64_t tile = 0; tile < tiles.across; ++tile)
    for (int64_t g = 0; g < width; g += lanes<T>) {
      Vector<T> from[side][side], result[side][side];
      RECURVE_UNROLL
      for (int r = 0; r < side; ++r) {
        RECURVE_UNROLL
        for (int k = 0; k < side; ++k) from[r][k] = load(products + (r * side + k) * place + tile * width + g);
      }
      transform_both<side, side>(from, result, [](const auto& m, auto& d) { Winograd<M>::input_back(m, d); });
      T* to = t.sums + tile * M * channels + c + g;
      RECURVE_UNROLL
      for (int r = 0; r < side; ++r) {
        RECURVE_UNROLL
        for (int k = 0; k < side; ++k) {
          T* pixel = to + r * row + k * channels;
          store(pixel, load(pixel) + result[r][k]);
        }
      }
    }
  const bool ends = strip == tiles.down - 1;
  const int64_t first = strip * M, whole = ends ? side : M;
  write_rows<T, M, G>(tiles, t.sums, first, first + whole, c, dx);
  if (ends) write_rows<T, M, G>(tiles, nullptr, first + side, plan.grid.height, c, dx);
  for (int64_t r = 0; r < side; ++r)
    for (int64_t x = 0; x < tiles.width; ++x) {
      T* to = t.sums + r * row + x * channels + c;
      if (r + whole < side)
        __builtin_memcpy(to, to + whole * row, width * sizeof(T));
      else
        __builtin_memset(to, 0, width * sizeof(T));
    }
}

// Images [first, last) of a model and group: adds to dweight (inputs, 9, pitch) and dbias (pitch), fills dx. Says of
// each image whether its values are moderate.
template <class T, int M>
void winograd_images(const WinogradBackPlan<T, M>& plan, const WinogradBackScratch<T, M>& t, int64_t model,
                     int64_t group, int64_t first, int64_t last, T* dweight, T* dbias, bool* moderate) {
  const ConvBackward<T>& d = plan.d;
  const ConvShape& s = d.shape;
  const WinogradTiles<T, M>& tiles = plan.tiles;
  const int64_t all = (last - first) * tiles.down;
  bool rows_moderate[M + 2] = {};
  if (d.dweight != nullptr) __builtin_memset(t.kernels, 0, WinogradTiles<T, M>::places * t.kernel_place * sizeof(T));
  for (int64_t b = first; b < last; ++b) moderate[b] = true;
  for (int64_t start = 0, count; start < all; start += count) {
    count = least(plan.strips, all - start);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t strip = (start + i) % tiles.down, b = first + (start + i) / tiles.down;
      const int64_t image = model * s.batch + b, source = s.shared ? b : image;
      const bool gradients =
          transform_gradients(plan, t, image, group, strip, t.gradients + i * tiles.across * plan.pitch, dbias);
      moderate[b] = moderate[b] && gradients;
      if (d.dweight == nullptr) continue;
      const T* x = d.x + s.x_layout().at(source, group * tiles.inputs, 0);
      const bool pixels = pack_strip(tiles, x, strip, strip > 0, t.rows.get(), rows_moderate);
      moderate[b] = moderate[b] && pixels;
      transform_inputs<T, M>(tiles, t.rows, t.input + i * tiles.across * tiles.channels, t.input_place);
    }
    if (d.dweight != nullptr) add_kernel_gradients(plan, t, count * tiles.across);
    for (int64_t block = 0; d.dx != nullptr && block < plan.inputs.count; ++block)
      plan.inputs.with_width(block, [&]<int G>() {
        constexpr int64_t width = G * lanes<T>;
        const int64_t c = plan.inputs.first(block) * lanes<T>, place = count * tiles.across * width + winograd_gap;
        multiply_places<T, M, G>(t.gradients, t.place, plan.pitch, count * tiles.across,
                                 plan.kernels.of(model * s.groups + group, block), plan.grid.outputs, t.products);
        for (int64_t i = 0; i < count; ++i) {
          const int64_t strip = (start + i) % tiles.down, image = model * s.batch + first + (start + i) / tiles.down;
          add_strip<T, M, G>(plan, t, t.products + i * tiles.across * width, place, c, strip,
                             d.dx + s.x_layout().at(image, group * tiles.inputs, 0));
        }
      });
  }
  if (d.dweight != nullptr) transform_kernel_gradients(plan, t, dweight);
}

}  // namespace
}  // namespace recurve
