// Images whose channels come last, turned into planes for the algorithms that want them, and back.
#pragma once

#include "conv_grid.h"

namespace recurve {
namespace {

// to (columns, rows) = from (rows, columns), turned over.
template <class T>
void turn_over(const T* from, int64_t rows, int64_t columns, T* to) {
  for (int64_t r = 0; r < rows; r += lanes<T>)
    for (int64_t c = 0; c < columns; c += lanes<T>) {
      Vector<T> block[lanes<T>];
      for (int64_t k = 0; k < lanes<T>; ++k)
        block[k] = k < rows - r ? load(from + (r + k) * columns + c, columns - c) : zero_vector<T>();
      transpose<T>(block);
      for (int64_t k = 0; k < least(lanes<T>, columns - c); ++k) store(to + (c + k) * rows + r, block[k], rows - r);
    }
}

inline void turn_over(const uint8_t* from, int64_t rows, int64_t columns, uint8_t* to) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c) to[c * rows + r] = from[r * columns + c];
}

// Images (rows, columns) of channels and pixels, or of pixels and channels, turned over.
template <class T>
void turn_images(const T* from, int64_t images, int64_t rows, int64_t columns, T* to, const Parallel& parallel) {
  if (from == nullptr || to == nullptr) return;
  const int64_t size = rows * columns;
  parallel_for(parallel, images, [&](int64_t i) { turn_over(from + i * size, rows, columns, to + i * size); });
}

// Copies of a call's images whose channels are planes, for algorithms that want them.
template <class T>
struct Planes {
  ConvShape shape;
  int64_t pixels, pooled;
  Scratch<T> x, y;
  Scratch<uint8_t> places;

  Planes(const ConvShape& s, const T* x_, bool placed, const Parallel& parallel)
      : shape(s),
        pixels(s.height * s.width),
        pooled(s.pooled(0) * s.pooled(1)),
        x(s.batch * s.channels * pixels),
        y(s.batch * s.outputs * pooled),
        places(placed ? s.batch * s.outputs * pooled : 0) {
    shape.channels_last = false;
    turn_images(x_, s.batch, pixels, s.channels, x.get(), parallel);
  }
};

}  // namespace
}  // namespace recurve
