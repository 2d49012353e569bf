// The forward pass of few input channels, or of channels by themselves, under pooling of 2 x 2 pixels, at stride 1:
// with pixels side by side.
//
// Channels are planes from the input to y, and nothing is transposed. In a padded image an element of a kernel is an
// offset, the same for every pixel. Two rows of the convolution, two vectors wide, are activated and pooled in the
// registers that they were summed in.
#pragma once

#include "conv_grid.h"
#include "conv_pool.h"

namespace recurve {
namespace {

constexpr int64_t planes_depth = 32;  // most elements of a kernel: with more, pooling takes little of the time
constexpr int planes_channels = RECURVE_VECTOR_REGISTERS == 32 ? 6 : 2;  // whose sums are in registers together

// Whether channels are convolved by themselves with kernels whose rows stream: a pixel, loaded once, meets a column.
inline bool kernels_stream(const ConvShape& s) {
  const int64_t k = s.kernel[0];
  return s.depthwise() && s.kernel[1] == k && (k == 3 || k == 5 || k == 7) && s.dilation[0] == 1 && s.pooled(0) > 1;
}

// Whether it does, and leaves few lanes idle at the end of rows.
template <class T>
bool planes_serve(const ConvShape& s, const Grid& grid) {
  if (s.stride[0] != 1 || s.stride[1] != 1 || s.window[0] != 2 || s.window[1] != 2) return false;
  const bool few = s.depthwise() ? kernels_stream(s) : grid.depth <= planes_depth;
  return few && 4 * s.pooled(1) >= 3 * whole_vectors<T>(s.pooled(1));
}

// What all images of a call share.
template <class T>
struct PlanesPlan {
  const ConvForward<T>& f;
  const Grid& grid;
  int64_t offsets[planes_depth];  // unless kernels stream

  PlanesPlan(const ConvForward<T>& f_, const Grid& grid_) : f(f_), grid(grid_) {
    if (!kernels_stream(f.shape)) patch_offsets(f.shape, grid, grid.plane(), 1, offsets);
  }

  int64_t image_size() const { return grid.inputs * grid.plane() + 2 * lanes<T>; }  // a vector may reach over its end
};

// Rows [first, last) of the padded image, whose margins are there already.
template <class T>
void fill_planes(const ConvShape& s, const Grid& grid, const T* image, int64_t first, int64_t last, T* padded) {
  const int64_t begin = most(0, first - s.padding[0]), end = least(s.height, last - s.padding[0]);
  for (int64_t c = 0; c < grid.inputs; ++c)
    for (int64_t y = begin; y < end; ++y)
      copy_row(image + (c * s.height + y) * s.width, s.width,
               padded + c * grid.plane() + (y + s.padding[0]) * grid.width + s.padding[1]);
}

// A vector of y from two vectors of pixels in each of two rows: the largest of each window and its place, or the mean.
template <class T, bool LARGEST>
RECURVE_INLINE Vector<T> pool_pairs(const Vector<T> (&pixels)[4], Places<T>& place) {
  Vector<T> corners[4];
  split_pairs<T>(pixels[0], pixels[1], corners[0], corners[1]);
  split_pairs<T>(pixels[2], pixels[3], corners[2], corners[3]);
  Vector<T> value = corners[0];
  if constexpr (!LARGEST) return in_order<T>((value + corners[1] + corners[2] + corners[3]) * T(0.25));
  place = Places<T>{};
  RECURVE_UNROLL
  for (int i = 1; i < 4; ++i) take_larger<T>(corners[i], i, value, place);
  place = __builtin_bit_cast(Places<T>, in_order<T>(__builtin_bit_cast(Vector<T>, place)));
  return in_order<T>(value);
}

// A vector of y for each of R output channels, `plane` elements apart, of which `count` pixels are wanted.
template <class T, int R, bool LARGEST, class F, class G>
RECURVE_INLINE void convolve_pairs(const PlanesPlan<T>& plan, const T* x, const T* weight, const T* bias,
                                   const F& before, const G& after, int64_t count, int64_t plane, T* y,
                                   uint8_t* places) {
  const int64_t depth = plan.grid.depth, width = plan.grid.width;
  Vector<T> sums[R][4];
  RECURVE_UNROLL
  for (int r = 0; r < R; ++r) {
    RECURVE_UNROLL
    for (int v = 0; v < 4; ++v) sums[r][v] = zero_vector<T>() + (bias == nullptr ? T(0) : bias[r]);
  }
#pragma GCC unroll 3
  for (int64_t k = 0; k < depth; ++k) {
    const T* at = x + plan.offsets[k];
    const Vector<T> pixels[4] = {load(at), load(at + lanes<T>), load(at + width), load(at + width + lanes<T>)};
    RECURVE_UNROLL
    for (int r = 0; r < R; ++r) {
      RECURVE_UNROLL
      for (int v = 0; v < 4; ++v) sums[r][v] += pixels[v] * weight[r * depth + k];
    }
  }
  RECURVE_UNROLL
  for (int r = 0; r < R; ++r) {
    RECURVE_UNROLL
    for (int v = 0; v < 4; ++v) sums[r][v] = before(sums[r][v]);
    Places<T> place;
    const Vector<T> value = pool_pairs<T, LARGEST>(sums[r], place);
    store(y + r * plane, after(value), count);
    if (LARGEST && places != nullptr) store_bytes<T>(places + r * plane, place, count);
  }
}

// Rows [first, last) of y of one image and group from its padded channels.
template <class T, bool LARGEST, class F, class G>
void planes_rows(const PlanesPlan<T>& plan, const T* padded, int64_t index, int64_t group, int64_t first, int64_t last,
                 const F& before, const G& after) {
  const ConvForward<T>& f = plan.f;
  const ConvShape& s = f.shape;
  const Grid& grid = plan.grid;
  const int64_t plane = s.pooled(0) * s.pooled(1), columns = s.pooled(1);
  for_row_tiles<planes_channels>(grid.outputs, [&]<int R>(int64_t o) {
    const int64_t output = index / s.batch * s.outputs + group * grid.outputs + o;
    const int64_t at = (index * s.outputs + group * grid.outputs + o) * plane;
    const T* bias = f.bias == nullptr ? nullptr : f.bias + output;
    for (int64_t i = first; i < last; ++i)
      for (int64_t j = 0; j < columns; j += lanes<T>) {
        if (j + lanes<T> > columns && columns >= lanes<T>) j = columns - lanes<T>;  // whole vectors, some pixels again
        const int64_t pixel = at + i * columns + j;
        convolve_pairs<T, R, LARGEST>(plan, padded + 2 * (i * grid.width + j), f.weight + output * grid.depth, bias,
                                      before, after, columns - j, plane, f.y + pixel,
                                      f.places == nullptr ? nullptr : f.places + pixel);
      }
  });
}

// Two vectors of y below each other, of one channel by itself, from where their first pixel stands.
template <class T, int K, bool LARGEST, class F, class G>
RECURVE_INLINE void stream_pairs(const PlanesPlan<T>& plan, const T* x, const T* weight, Vector<T> bias,
                                 const F& before, const G& after, int64_t count, int64_t row, T* y, uint8_t* places) {
  const int64_t width = plan.grid.width, step = plan.f.shape.dilation[1];
  Vector<T> sums[4][2];
  RECURVE_UNROLL
  for (int r = 0; r < 4; ++r) sums[r][0] = sums[r][1] = bias;
  for (int64_t c = 0; c < K; ++c) {
    RECURVE_UNROLL
    for (int i = 0; i < K + 3; ++i) {
      const T* at = x + i * width + c * step;
      const Vector<T> pixels[2] = {load(at), load(at + lanes<T>)};
      RECURVE_UNROLL
      for (int r = 0; r < 4; ++r) {
        if (i < r || i - r >= K) continue;
        const T w = weight[(i - r) * K + c];
        sums[r][0] += pixels[0] * w;
        sums[r][1] += pixels[1] * w;
      }
    }
  }
  RECURVE_UNROLL
  for (int i = 0; i < 2; ++i) {
    const Vector<T> pixels[4] = {before(sums[2 * i][0]), before(sums[2 * i][1]), before(sums[2 * i + 1][0]),
                                 before(sums[2 * i + 1][1])};
    Places<T> place;
    const Vector<T> value = pool_pairs<T, LARGEST>(pixels, place);
    store(y + i * row, after(value), count);
    if (LARGEST && places != nullptr) store_bytes<T>(places + i * row, place, count);
  }
}

// All rows of y of one image and channel.
template <class T, int K, bool LARGEST, class F, class G>
void stream_rows(const PlanesPlan<T>& plan, const T* padded, int64_t index, int64_t channel, const F& before,
                 const G& after) {
  const ConvForward<T>& f = plan.f;
  const ConvShape& s = f.shape;
  const int64_t rows = s.pooled(0), columns = s.pooled(1), own = index / s.batch * s.channels + channel;
  const T* weight = f.weight + own * plan.grid.depth;
  const Vector<T> bias = zero_vector<T>() + (f.bias == nullptr ? T(0) : f.bias[own]);
  const int64_t at = s.y_layout().at(index, channel, 0);
  for (int64_t i = 0; i < rows; i += 2) {
    if (i + 2 > rows) i = rows - 2;  // whole pairs, a row again
    for (int64_t j = 0; j < columns; j += lanes<T>) {
      if (j + lanes<T> > columns && columns >= lanes<T>) j = columns - lanes<T>;  // whole vectors, some pixels again
      const int64_t pixel = at + i * columns + j;
      stream_pairs<T, K, LARGEST>(plan, padded + 2 * (i * plan.grid.width + j), weight, bias, before, after,
                                  columns - j, columns, f.y + pixel, f.places == nullptr ? nullptr : f.places + pixel);
    }
  }
}

// Rows [first, last) of y of one image and group; where kernels stream, all of them.
template <class T, bool LARGEST, class F, class G>
void planes_or_stream(const PlanesPlan<T>& plan, const T* padded, int64_t index, int64_t group, int64_t first,
                      int64_t last, const F& before, const G& after) {
  if (!kernels_stream(plan.f.shape))
    return planes_rows<T, LARGEST>(plan, padded, index, group, first, last, before, after);
  switch (plan.f.shape.kernel[0]) {
    case 3:
      return stream_rows<T, 3, LARGEST>(plan, padded, index, group, before, after);
    case 5:
      return stream_rows<T, 5, LARGEST>(plan, padded, index, group, before, after);
    default:
      return stream_rows<T, 7, LARGEST>(plan, padded, index, group, before, after);
  }
}

template <class T>
void planes_forward(const ConvForward<T>& f, const Grid& grid, const Parallel& parallel) {
  const ConvShape& s = f.shape;
  const PlanesPlan<T> plan(f, grid);
  const int64_t images = s.models * s.batch * s.groups,
                parts = kernels_stream(s) ? 1 : parts_for(parallel, images, s.pooled(0));
  const int64_t rows = divide_up(s.pooled(0), most(1, parts)), all = images * parts;
  const int64_t step = most(1, all / (8 * parallel.threads)), plane = s.height * s.width;
  parallel_for(parallel, divide_up(all, step), [&](int64_t task) {
    Scratch<T> padded(plan.image_size());
    __builtin_memset(padded.get(), 0, plan.image_size() * sizeof(T));
    for (int64_t i = task * step; i < least(all, (task + 1) * step); ++i) {
      const int64_t first = i % parts * rows, last = least(s.pooled(0), first + rows);
      const int64_t image = i / parts / s.groups, group = i / parts % s.groups;
      if (first >= last) continue;
      fill_planes(s, grid, f.x + ((s.shared ? image % s.batch : image) * s.channels + group * grid.inputs) * plane,
                  2 * first, 2 * last + (s.kernel[0] - 1) * s.dilation[0], padded.get());
      const auto same = [](Vector<T> v) { return v; };
      const auto activation = [&](Vector<T> v) { return activate(v, s.activation); };
      if (s.pool == Pool::average)
        planes_or_stream<T, false>(plan, padded.get(), image, group, first, last, activation, same);
      else if (s.activation == Activation::relu)  // of the largest: where it is zero, no gradient asks which it was
        planes_or_stream<T, true>(plan, padded.get(), image, group, first, last, same,
                                  [](Vector<T> v) { return activate(v, Activation::relu); });
      else
        planes_or_stream<T, true>(plan, padded.get(), image, group, first, last, activation, same);
    }
  });
}

}  // namespace
}  // namespace recurve
