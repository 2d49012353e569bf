// The padded image that a direct convolution reads in place, and the product that does it.
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
  int64_t reach;            // the largest offset within a channel

  explicit Grid(const ConvShape& s)
      : inputs(s.channels / s.groups),
        outputs(s.outputs / s.groups),
        taps(s.kernel[0] * s.kernel[1]),
        depth(inputs * taps),
        height(s.height + 2 * s.padding[0]),
        width(s.width + 2 * s.padding[1]),
        rows(s.pooled(0) * s.window[0]),
        columns(s.pooled(1) * s.window[1]),
        reach(tap_offset(s, taps - 1)) {}

  int64_t plane() const { return height * width; }

  // Elements of a padded image, with what the last vectors of pixels read past its end.
  template <class T>
  int64_t padded_size(const ConvShape& s) const {
    return inputs * plane() + (s.kernel[1] - 1) * s.dilation[1] + 4 * lanes<T>;
  }

  // Where kernel element `tap` reads, from where the output pixel stands.
  int64_t tap_offset(const ConvShape& s, int64_t tap) const {
    return tap / s.kernel[1] * s.dilation[0] * width + tap % s.kernel[1] * s.dilation[1];
  }
};

template <class T>
int64_t whole_vectors(int64_t count) {
  return divide_up(count, lanes<T>) * lanes<T>;
}

// The group's channels with their padding, and room behind for the last vectors to be read.
template <class T>
void pad_image(const ConvShape& s, const Grid& grid, const T* image, T* padded) {
  __builtin_memset(padded, 0, grid.inputs * grid.plane() * sizeof(T));
  for (int64_t c = 0; c < grid.inputs; ++c)
    for (int64_t y = 0; y < s.height; ++y)
      __builtin_memcpy(padded + c * grid.plane() + (y + s.padding[0]) * grid.width + s.padding[1],
                       image + (c * s.height + y) * s.width, s.width * sizeof(T));
}

template <class T, int G>
void multiply_pixels(const T* matrix, int64_t rows, int64_t depth, const T* base, const int64_t* offsets, const T* bias,
                     T* out, int64_t out_stride) {
  for_row_tiles<most_rows<G>>(rows, [&]<int R>(int64_t first) {
    Vector<T> acc[R][G];
    const T* a[R];
    RECURVE_UNROLL
    for (int r = 0; r < R; ++r) {
      a[r] = matrix + (first + r) * depth;
      const Vector<T> start = zero_vector<T>() + (bias == nullptr ? T(0) : bias[first + r]);
      RECURVE_UNROLL
      for (int g = 0; g < G; ++g) acc[r][g] = start;
    }
    product_at_offsets<T, R, G>(acc, a, base, offsets, depth);
    RECURVE_UNROLL
    for (int r = 0; r < R; ++r) {
      RECURVE_UNROLL
      for (int g = 0; g < G; ++g) store(out + (first + r) * out_stride + g * lanes<T>, acc[r][g]);
    }
  });
}

// out[row][p] = bias[row] + sum over k of matrix[row][k] base[p + offsets[k]], for `pixels` rounded up to vectors.
template <class T>
void multiply(const T* matrix, int64_t rows, int64_t depth, const T* base, const int64_t* offsets, int64_t pixels,
              const T* bias, T* out, int64_t out_stride) {
  int64_t left = divide_up(pixels, lanes<T>);
  for (; left > 0; base += 4 * lanes<T>, out += 4 * lanes<T>, left -= 4) {
    if (left >= 4)
      multiply_pixels<T, 4>(matrix, rows, depth, base, offsets, bias, out, out_stride);
    else if (left == 3)
      multiply_pixels<T, 3>(matrix, rows, depth, base, offsets, bias, out, out_stride);
    else if (left == 2)
      multiply_pixels<T, 2>(matrix, rows, depth, base, offsets, bias, out, out_stride);
    else
      multiply_pixels<T, 1>(matrix, rows, depth, base, offsets, bias, out, out_stride);
  }
}
// Where the elements of a patch lie in the padded image: offsets[depth].
inline void patch_offsets(const ConvShape& s, const Grid& grid, int64_t* offsets) {
  for (int64_t k = 0; k < grid.depth; ++k)
    offsets[k] = k / grid.taps * grid.plane() + grid.tap_offset(s, k % grid.taps);
}

}  // namespace
}  // namespace recurve
