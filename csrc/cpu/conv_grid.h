// The padded image that a direct convolution reads in place.
#pragma once

#include "gemm.h"

namespace recurve {
namespace {

// Sizes of one group of channels of one image.
struct Grid {
  int64_t inputs, outputs;  // channels of the group
  int64_t taps, depth;      // elements of a kernel: of one channel, of all
  int64_t height, width;    // of the padded image
  int64_t rows, columns;    // of the convolution that pooling uses

  explicit Grid(const ConvShape& s)
      : inputs(s.channels / s.groups),
        outputs(s.outputs / s.groups),
        taps(s.kernel[0] * s.kernel[1]),
        depth(inputs * taps),
        height(s.height + 2 * s.padding[0]),
        width(s.width + 2 * s.padding[1]),
        rows(s.pooled(0) * s.window[0]),
        columns(s.pooled(1) * s.window[1]) {}

  int64_t plane() const { return height * width; }

  // Where kernel element `tap` reads, from where the output pixel stands.
  int64_t tap_offset(const ConvShape& s, int64_t tap) const {
    return tap / s.kernel[1] * s.dilation[0] * width + tap % s.kernel[1] * s.dilation[1];
  }
};

template <class T>
int64_t whole_vectors(int64_t count) {
  return divide_up(count, lanes<T>) * lanes<T>;
}

template <class T>
RECURVE_INLINE void copy_row(const T* from, int64_t count, T* to) {
  for (int64_t i = 0; i < count; i += lanes<T>) {
    if (i + lanes<T> > count && count >= lanes<T>) i = count - lanes<T>;  // whole vectors, some elements again
    store(to + i, load(from + i, count - i), count - i);
  }
}

// a modulo b, never negative.
inline int64_t remainder(int64_t a, int64_t b) { return (a % b + b) % b; }

// How many parts to split each of `tasks` into, of at most `most_parts`, so that all threads have work.
inline int64_t parts_for(const Parallel& parallel, int64_t tasks, int64_t most_parts) {
  return parallel.threads == 1 || tasks == 0 ? 1 : least(most_parts, divide_up(2 * parallel.threads, tasks));
}

// Where the elements of a patch lie in the padded image, whose channels and pixels are so far apart: offsets[depth].
inline void patch_offsets(const ConvShape& s, const Grid& grid, int64_t channel, int64_t pixel, int64_t* offsets) {
  for (int64_t k = 0; k < grid.depth; ++k)
    offsets[k] = k / grid.taps * channel + grid.tap_offset(s, k % grid.taps) * pixel;
}

// Some channels, at most a vector, of pixels that lie in a layout, side by side: to[i * pitch + channel], zero beyond.
template <class T>
void read_pixels(const T* from, const ImageLayout& layout, int64_t channels, int64_t pixels, T* to, int64_t pitch) {
  if (layout.pixel == 1) return transpose_rows(from, layout.channel, channels, pixels, to, pitch);
  for (int64_t i = 0; i < pixels; ++i) store(to + i * pitch, load(from + i * layout.pixel, channels));
}

}  // namespace
}  // namespace recurve
