// What the convolution kernels share: how results meet inputs along an axis, and the work of a launch.
#pragma once

#include "device.h"
#include "kernels.h"

namespace recurve::cuda {

constexpr int conv_threads = 128;
template <class T>
constexpr int resident_blocks = sizeof(Accumulate<T>) == 4 ? 3 : 2;  // of a processor: leaves 168 or 255 registers
constexpr int most_size = 1 << 30;  // of an image's axis with its padding, and of the places of a model

// Along an axis, result i and element t of the kernel meet input (i step + start + t dilation) / spread, where whole.
struct Axis {
  int inputs, results, taps;
  int step, start, dilation, spread;

  __device__ __forceinline__ int input_of(int result, int tap) const {  // outside [0, inputs): none
    const int at = result * step + start + tap * dilation;
    if (spread == 1) return at;
    return at % spread == 0 ? at / spread : -1;
  }
  // Whether the next result meets what this one meets one element further.
  __device__ __forceinline__ bool rolls() const { return step == 1 && dilation == 1 && spread == 1; }
};

// A convolution from x to y: that of the forward pass, or its transpose from the gradient of the pixels to that of x.
template <class T>
struct Convolution {
  int64_t models, batch;
  int groups, inputs, outputs;  // channels of a group
  Axis rows, columns;
  bool shared;                          // all models read the same x
  bool flipped;                         // the kernel's elements in reverse order
  int64_t weight_output, weight_input;  // strides
  Activation activation;
  Pool pool;
  int window[2];
  const T *x, *weight, *bias;
  T* y;
  uint8_t* places;
  int output_tiles, regions[2], parts;  // of the launch
  int64_t tiles;
};

// Of an image, zero outside it.
template <class T>
__device__ __forceinline__ T stored_pixel(const T* plane, int rows, int columns, int row, int column) {
  const bool inside = static_cast<unsigned>(row) < static_cast<unsigned>(rows) &&
                      static_cast<unsigned>(column) < static_cast<unsigned>(columns);
  return inside ? plane[int64_t{1} * row * columns + column] : T{};
}
template <class T>
__device__ __forceinline__ Accumulate<T> pixel(const T* plane, int rows, int columns, int row, int column) {
  return widen(stored_pixel(plane, rows, columns, row, column));
}

// A block's outputs, of one group of one model, and its tile of places.
struct Work {
  int64_t tile, model;
  int group, first, outputs;
};

// A block's number taken apart: each call gives its place among `count`, those side by side first.
struct BlockNumber {
  unsigned rest = blockIdx.x;

  __device__ __forceinline__ int digit(int64_t count) {
    if (count == 1) return 0;  // saves the division
    const auto by = static_cast<unsigned>(count);
    const unsigned place = rest % by;
    rest /= by;
    return static_cast<int>(place);
  }
};

template <class T>
__device__ __forceinline__ Work work_of_block(const Convolution<T>& c, int outputs) {
  BlockNumber block;
  const int64_t tile = block.digit(c.tiles);
  const int first = block.digit(c.output_tiles) * outputs, group = block.digit(c.groups);
  return {tile, block.rest, group, first, least(outputs, c.outputs - first)};
}

template <class T>
__device__ __forceinline__ const T* input_of_work(const Convolution<T>& c, const Work& work, int64_t image) {
  return c.x + (((c.shared ? 0 : work.model * c.batch) + image) * c.groups + work.group) * c.inputs * c.rows.inputs *
                   c.columns.inputs;
}
template <class T>
__device__ __forceinline__ const T* weight_of_work(const Convolution<T>& c, const Work& work) {
  return c.weight + (work.model * c.groups + work.group) * c.inputs * c.outputs * c.rows.taps * c.columns.taps +
         work.first * c.weight_output;
}
template <class T>
__device__ __forceinline__ Accumulate<T> bias_of_work(const Convolution<T>& c, const Work& work, int o) {
  if (c.bias == nullptr || o >= work.outputs) return 0;
  return widen(c.bias[(work.model * c.groups + work.group) * c.outputs + work.first + o]);
}
// The plane of an image's output `o` in y.
template <class T>
__device__ __forceinline__ int64_t plane_of_work(const Convolution<T>& c, const Work& work, int64_t image, int o) {
  return ((work.model * c.batch + image) * c.groups + work.group) * c.outputs + work.first + o;
}

// A pooling window, seen pixel by pixel.
template <class A>
struct Pooled {
  A value{};
  int largest = 0;

  __device__ __forceinline__ void see(A next, int at, Pool pool) {
    if (at == 0) {
      value = next;
    } else if (pool == Pool::average) {
      value += next;
    } else if (next > value || next != next) {  // NaN wins, and of equals the first
      value = next, largest = at;
    }
  }
};

// -------------------------------------------------------------------------------- the gradient of the weights

constexpr int strip_rows = 4;

// Sums over pixels of their gradients times the inputs that they met. A block owns some outputs, one column of the
// kernel for one channel, and one part of the strips of 4 pixels down a column of an image; the bias rides along.
template <class T>
struct Correlation {
  int64_t models, batch;
  int groups, inputs, outputs;  // channels of a group
  Axis rows, columns;
  bool shared;
  const T *x, *pixels;
  Accumulate<T>*weights, *biases;   // (parts, E, O, C / groups, kH, kW), (parts, E, O)
  int strips, places, part_places;  // strips down an image; places of a model, and of a part
  int parts, output_tiles, tap_tiles;
  int next[3];  // images, strips and columns from a thread's place to its next one
};

}  // namespace recurve::cuda
