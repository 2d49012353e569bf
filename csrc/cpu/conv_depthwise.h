// Depthwise convolution, forward and backward: as many channels at once as a vector has lanes, for kernels of any size.
//
// The planes of these channels are transposed so that a pixel is a vector; a product with the weights is then one
// multiplication for each element of the kernel, and pooling compares whole vectors.
#pragma once

#include "conv_grid.h"
#include "conv_pool.h"

namespace recurve {
namespace {

constexpr int depthwise_pixels = RECURVE_VECTOR_REGISTERS == 32 ? 12 : 6;  // that a weight, once loaded, serves

// to[i] = the i-th pixels of `count` planes, `plane` elements apart.
template <class T>
void interleave(const T* from, int64_t plane, int64_t count, int64_t pixels, T* to) {
  transpose_rows(from, plane, count, pixels, to, lanes<T>);
}

// The other way, `count` planes only.
template <class T>
void deinterleave(const T* from, int64_t pixels, int64_t count, T* to, int64_t plane) {
  for (int64_t i = 0; i < pixels; i += lanes<T>) {
    Vector<T> rows[lanes<T>];
    for (int k = 0; k < lanes<T>; ++k) rows[k] = i + k < pixels ? load(from + (i + k) * lanes<T>) : zero_vector<T>();
    transpose<T>(rows);
    for (int64_t k = 0; k < count; ++k) store(to + k * plane + i, rows[k], pixels - i);
  }
}

// A plane of pixels that are vectors, with a border.
template <class T>
struct VectorPlane {
  int64_t width;
  Scratch<T> data;

  VectorPlane(int64_t height, int64_t width_) : width(width_), data(height * width * lanes<T>) {}
  void clear(int64_t height) const { __builtin_memset(data.get(), 0, height * width * lanes<T> * sizeof(T)); }
  T* at(int64_t row, int64_t column) const { return data + (row * width + column) * lanes<T>; }
};

// The kernel of one block of channels, applied from a pixel on: (rows, columns) vectors, a step apart in the plane.
template <class T>
struct VectorKernel {
  const T* weight;
  int64_t rows, columns, row_step, column_step;
};

// out[p] = start + sum over the kernel of weight x[p + its place], for `count` pixels of a row.
template <class T>
void convolve_row(const VectorKernel<T>& k, const T* x, int64_t count, Vector<T> start, T* out) {
  for_row_tiles<depthwise_pixels>(count, [&]<int P>(int64_t first) {
    Vector<T> sums[P];
    RECURVE_UNROLL
    for (int p = 0; p < P; ++p) sums[p] = start;
    const T* w = k.weight;
    for (int64_t r = 0; r < k.rows; ++r)
      for (int64_t c = 0; c < k.columns; ++c, w += lanes<T>) {
        const Vector<T> weight = load(w);
        const T* at = x + first * lanes<T> + r * k.row_step + c * k.column_step;
        RECURVE_UNROLL
        for (int p = 0; p < P; ++p) sums[p] += load(at + p * lanes<T>) * weight;
      }
    RECURVE_UNROLL
    for (int p = 0; p < P; ++p) store(out + (first + p) * lanes<T>, sums[p]);
  });
}

// sums (R rows, C columns of the kernel) += the sum over rows and pixels of d[pixel] x[pixel + the element's place].
template <class T, int R, int C>
void add_products(const VectorPlane<T>& d, const T* d_first, const VectorPlane<T>& x, const T* x_first, int64_t rows,
                  int64_t pixels, int64_t row_step, int64_t column_step, T* sums, int64_t sums_row) {
  Vector<T> acc[R][C] = {};
  for (int64_t i = 0; i < rows; ++i) {
    const T *d_row = d_first + i * d.width * lanes<T>, *x_row = x_first + i * x.width * lanes<T>;
    for (int64_t p = 0; p < pixels; ++p, d_row += lanes<T>, x_row += lanes<T>) {
      const Vector<T> gradient = load(d_row);
      RECURVE_UNROLL
      for (int r = 0; r < R; ++r) {
        RECURVE_UNROLL
        for (int c = 0; c < C; ++c) acc[r][c] += load(x_row + r * row_step + c * column_step) * gradient;
      }
    }
  }
  RECURVE_UNROLL
  for (int r = 0; r < R; ++r) {
    RECURVE_UNROLL
    for (int c = 0; c < C; ++c) {
      T* to = sums + r * sums_row + c * lanes<T>;
      store(to, load(to) + acc[r][c]);
    }
  }
}

// Blocks of channels, their weights as vectors, and the sizes of a plane.
template <class T>
struct Depthwise {
  const ConvShape& s;
  int64_t blocks, taps, rows, columns;  // rows and columns of the convolution that pooling uses
  int64_t reach[2];                     // of the kernel, from its first element to its last
  Scratch<T> weights, flipped, biases;  // (E, blocks, taps or 1, lanes)

  Depthwise(const ConvShape& s_, const T* weight, const T* bias)
      : s(s_),
        blocks(divide_up(s.channels, lanes<T>)),
        taps(s.kernel[0] * s.kernel[1]),
        rows(s.pooled(0) * s.window[0]),
        columns(s.pooled(1) * s.window[1]),
        reach{(s.kernel[0] - 1) * s.dilation[0], (s.kernel[1] - 1) * s.dilation[1]},
        weights(s.models * blocks * taps * lanes<T>),
        flipped(s.models * blocks * taps * lanes<T>),
        biases(s.models * blocks * lanes<T>) {
    for (int64_t i = 0; i < s.models * blocks; ++i) {
      const int64_t first = i / blocks * s.channels + i % blocks * lanes<T>, count = width(i % blocks);
      for (int64_t lane = 0; lane < lanes<T>; ++lane) {
        biases[i * lanes<T> + lane] = lane < count && bias != nullptr ? bias[first + lane] : 0;
        for (int64_t k = 0; k < taps; ++k) {
          const T value = lane < count ? weight[(first + lane) * taps + k] : 0;
          weights[(i * taps + k) * lanes<T> + lane] = value;
          flipped[(i * taps + taps - 1 - k) * lanes<T> + lane] = value;
        }
      }
    }
  }

  int64_t width(int64_t block) const { return least(lanes<T>, s.channels - block * lanes<T>); }
  int64_t padded_height() const { return s.height + 2 * s.padding[0]; }
  int64_t padded_width() const { return s.width + 2 * s.padding[1]; }

  VectorKernel<T> kernel(const T* of, int64_t model, int64_t block, int64_t row_width) const {
    return {of + (model * blocks + block) * taps * lanes<T>, s.kernel[0], s.kernel[1],
            s.dilation[0] * row_width * lanes<T>, s.dilation[1] * lanes<T>};
  }

  void pack(const T* x, int64_t block, const VectorPlane<T>& to) const {
    const int64_t plane = s.height * s.width;
    for (int64_t y = 0; y < s.height; ++y)
      interleave(x + y * s.width, plane, width(block), s.width, to.at(y + s.padding[0], s.padding[1]));
  }
};

// The largest of a window of activated pixels, the first of equals, and its place; or the mean.
template <class T>
RECURVE_INLINE Vector<T> pool_window(const ConvShape& s, const T* corner, int64_t row, Places<T>& place) {
  Vector<T> value = load(corner);
  place = Places<T>{};
  int32_t index = 0;
  for (int64_t r = 0; r < s.window[0]; ++r)
    for (int64_t c = 0; c < s.window[1]; ++c, ++index) {
      if (index == 0) continue;
      const Vector<T> next = load(corner + r * row + c * lanes<T>);
      if (s.pool == Pool::max) {
        const auto wins = (next > value) | (next != next);
        value = wins ? next : value;
        place = wins ? Places<T>{} + index : place;
      } else {
        value += next;
      }
    }
  return s.pool == Pool::average ? value * (T(1) / static_cast<T>(s.window[0] * s.window[1])) : value;
}

template <class T>
void depthwise_forward(const ConvForward<T>& f, const Parallel& parallel) {
  const ConvShape& s = f.shape;
  const Depthwise<T> plan(s, f.weight, f.bias);
  const int64_t pooled_w = s.pooled(1), pooled = s.pooled(0) * pooled_w, plane = s.height * s.width;
  const int64_t parts = least(s.batch, 16), images = divide_up(s.batch, most(1, parts));
  parallel_for(parallel, s.models * parts * plan.blocks, [&](int64_t task) {
    const int64_t block = task % plan.blocks, part = task / plan.blocks % parts, model = task / plan.blocks / parts;
    const VectorPlane<T> x(plan.padded_height(), plan.padded_width()), band(s.window[0], plan.columns);
    Scratch<T> y(pooled * lanes<T>), places(pooled * lanes<T>);
    x.clear(plan.padded_height());
    const VectorKernel<T> kernel = plan.kernel(plan.weights, model, block, x.width);
    const Vector<T> bias = load(plan.biases + (model * plan.blocks + block) * lanes<T>);
    for (int64_t b = part * images; b < least(s.batch, (part + 1) * images); ++b) {
      const int64_t image = model * s.batch + b, first = image * s.channels + block * lanes<T>;
      plan.pack(f.x + ((s.shared ? b : image) * s.channels + block * lanes<T>)*plane, block, x);
      for (int64_t i = 0; i < s.pooled(0); ++i) {
        for (int64_t r = 0; r < s.window[0]; ++r)
          convolve_row(kernel, x.at(i * s.window[0] + r, 0), plan.columns, bias, band.at(r, 0));
        activate_pixels(band.data.get(), s.window[0] * plan.columns * lanes<T>, s.activation, band.data.get());
        for (int64_t j = 0; j < pooled_w; ++j) {
          Places<T> place;
          const int64_t at = (i * pooled_w + j) * lanes<T>;
          store(y + at, pool_window(s, band.at(0, j * s.window[1]), band.width * lanes<T>, place));
          if (f.places != nullptr) store(places + at, __builtin_bit_cast(Vector<T>, place));
        }
      }
      deinterleave(y.get(), pooled, plan.width(block), f.y + first * pooled, pooled);
      if (f.places == nullptr) continue;
      for (int64_t p = 0; p < pooled; p += lanes<T>) {
        Vector<T> rows[lanes<T>];
        for (int k = 0; k < lanes<T>; ++k)
          rows[k] = p + k < pooled ? load(places + (p + k) * lanes<T>) : zero_vector<T>();
        transpose<T>(rows);
        for (int64_t k = 0; k < plan.width(block); ++k)
          store_bytes<T>(f.places + (first + k) * pooled + p, __builtin_bit_cast(Places<T>, rows[k]), pooled - p);
      }
    }
  });
}

// ----------------------------------------------------------------------------------------------------- backward

// What one task of the backward pass works in. Gradients of the convolution have a border that the kernel reaches over.
template <class T>
struct DepthwiseScratch {
  VectorPlane<T> x, d, pre;
  Scratch<T> gradients, places, row;

  explicit DepthwiseScratch(const Depthwise<T>& p)
      : x(p.padded_height(), p.padded_width()),
        d(p.padded_height() + p.reach[0], p.padded_width() + p.reach[1]),
        pre(p.s.keeps_enough() ? 0 : p.s.window[0], p.columns),
        gradients(p.s.pooled(0) * p.s.pooled(1) * lanes<T>),
        places(p.s.keeps_places() ? p.s.pooled(0) * p.s.pooled(1) * lanes<T> : 0),
        row(p.s.width * lanes<T>) {
    x.clear(p.padded_height());
    d.clear(p.padded_height() + p.reach[0]);
  }
};

// Gradients of y times the slopes that follow from it, pixel by pixel, and the places of the largest.
template <class T>
void load_gradients(const ConvBackward<T>& d, const Depthwise<T>& plan, int64_t first, int64_t count,
                    const DepthwiseScratch<T>& to) {
  const ConvShape& s = d.shape;
  const int64_t pooled = s.pooled(0) * s.pooled(1);
  typename BytesOf<T>::type bytes{};
  for (int64_t p = 0; p < pooled; p += lanes<T>) {
    Vector<T> rows[lanes<T>] = {}, places[lanes<T>] = {};
    for (int64_t k = 0; k < count; ++k) {
      const int64_t at = (first + k) * pooled + p, left = pooled - p;
      rows[k] = load(d.dy + at, left);
      if (!s.keeps_enough()) continue;
      const Vector<T> y = load(d.y + at, left);
      rows[k] = rows[k] * activation_slope(y, y, s.activation);
      if (!s.keeps_places()) continue;
      __builtin_memcpy(&bytes, d.places + at, static_cast<size_t>(least(left, lanes<T>)));
      places[k] = __builtin_bit_cast(Vector<T>, __builtin_convertvector(bytes, Places<T>));
    }
    transpose<T>(rows);
    for (int64_t k = 0; k < least(lanes<T>, pooled - p); ++k) store(to.gradients + (p + k) * lanes<T>, rows[k]);
    if (!s.keeps_places()) continue;
    transpose<T>(places);
    for (int64_t k = 0; k < least(lanes<T>, pooled - p); ++k) store(to.places + (p + k) * lanes<T>, places[k]);
  }
}

// From gradients of row i of y those of the convolution, into the plane d; returns their sum.
template <class T>
Vector<T> spread_row(const Depthwise<T>& plan, int64_t i, const VectorKernel<T>& kernel, Vector<T> bias,
                     const DepthwiseScratch<T>& t) {
  const ConvShape& s = plan.s;
  const T share = s.pool == Pool::average ? T(1) / static_cast<T>(s.window[0] * s.window[1]) : T(1);
  if (!s.keeps_enough())
    for (int64_t r = 0; r < s.window[0]; ++r)
      convolve_row(kernel, t.x.at(i * s.window[0] + r, 0), plan.columns, bias, t.pre.at(r, 0));
  Vector<T> sum = zero_vector<T>();
  for (int64_t j = 0; j < s.pooled(1); ++j) {
    const int64_t at = (i * s.pooled(1) + j) * lanes<T>;
    const Vector<T> gradient = load(t.gradients + at) * share;
    Places<T> best{};
    if (s.keeps_places()) {
      best = __builtin_bit_cast(Places<T>, load(t.places + at));
    } else if (s.pool == Pool::max) {
      Vector<T> largest{};
      for (int32_t k = 0; k < s.window[0] * s.window[1]; ++k) {
        const Vector<T> v = activate(load(t.pre.at(k / s.window[1], j * s.window[1] + k % s.window[1])), s.activation);
        const auto wins = (v > largest) | (v != v);
        best = k == 0 ? Places<T>{} : wins ? Places<T>{} + k : best;
        largest = k == 0 ? v : wins ? v : largest;
      }
    }
    for (int32_t k = 0; k < s.window[0] * s.window[1]; ++k) {
      const int64_t r = k / s.window[1], c = j * s.window[1] + k % s.window[1];
      Vector<T> own = s.pool == Pool::max ? (best == k ? gradient : zero_vector<T>()) : gradient;
      if (!s.keeps_enough()) {
        const Vector<T> pre = load(t.pre.at(r, c));
        own = own * activation_slope(pre, activate(pre, s.activation), s.activation);
      }
      store(t.d.at(plan.reach[0] + i * s.window[0] + r, plan.reach[1] + c), own);
      sum += own;
    }
  }
  return sum;
}

// dweight (taps, lanes) += the products of an image's pixels with the gradients of the convolution.
template <class T>
void add_weight_gradient(const Depthwise<T>& plan, const DepthwiseScratch<T>& t, T* dweight) {
  const ConvShape& s = plan.s;
  const int64_t row_step = s.dilation[0] * t.x.width * lanes<T>, column_step = s.dilation[1] * lanes<T>;
  const int64_t width = s.kernel[1], sums_row = width * lanes<T>;
  const T* d = t.d.at(plan.reach[0], plan.reach[1]);
  auto tile = [&]<int R, int C>(int64_t r, int64_t c) {
    add_products<T, R, C>(t.d, d, t.x, t.x.at(r * s.dilation[0], c * s.dilation[1]), plan.rows, plan.columns, row_step,
                          column_step, dweight + (r * width + c) * lanes<T>, sums_row);
  };
  int64_t r = 0;
  for (; width == 3 && r + 3 <= s.kernel[0]; r += 3) tile.template operator()<3, 3>(r, 0);
  for (; r < s.kernel[0]; ++r) for_row_tiles<8>(width, [&]<int C>(int64_t c) { tile.template operator()<1, C>(r, c); });
}

template <class T>
void depthwise_backward(const ConvBackward<T>& d, const Parallel& parallel) {
  const ConvShape& s = d.shape;
  const Depthwise<T> plan(s, d.weight, d.bias);
  const int64_t plane = s.height * s.width, parts = most(1, least(s.batch, 16)), images = divide_up(s.batch, parts);
  const int64_t size = (plan.taps + 1) * lanes<T>;  // gradients of a block's weights and biases
  Scratch<T> sums(s.models * parts * plan.blocks * size);
  parallel_for(parallel, s.models * parts * plan.blocks, [&](int64_t task) {
    const int64_t block = task % plan.blocks, part = task / plan.blocks % parts, model = task / plan.blocks / parts;
    const int64_t count = plan.width(block);
    const DepthwiseScratch<T> t(plan);
    T *dweight = sums + task * size, *dbias = dweight + plan.taps * lanes<T>;
    __builtin_memset(dweight, 0, size * sizeof(T));
    const VectorKernel<T> kernel = plan.kernel(plan.weights, model, block, t.x.width);
    const VectorKernel<T> back = plan.kernel(plan.flipped, model, block, t.d.width);
    const Vector<T> bias = load(plan.biases + (model * plan.blocks + block) * lanes<T>);
    for (int64_t b = part * images; b < least(s.batch, (part + 1) * images); ++b) {
      const int64_t image = model * s.batch + b, first = image * s.channels + block * lanes<T>;
      plan.pack(d.x + ((s.shared ? b : image) * s.channels + block * lanes<T>)*plane, block, t.x);
      load_gradients(d, plan, first, count, t);
      for (int64_t i = 0; i < s.pooled(0); ++i) store(dbias, load(dbias) + spread_row(plan, i, kernel, bias, t));
      if (d.dweight != nullptr) add_weight_gradient(plan, t, dweight);
      for (int64_t y = 0; d.dx != nullptr && y < s.height; ++y) {
        convolve_row(back, t.d.at(y + s.padding[0], s.padding[1]), s.width, zero_vector<T>(), t.row.get());
        deinterleave(t.row.get(), s.width, count, d.dx + first * plane + y * s.width, plane);
      }
    }
  });
  for (int64_t c = 0; c < s.models * s.channels; ++c) {
    const int64_t model = c / s.channels, block = c % s.channels / lanes<T>, lane = c % s.channels % lanes<T>;
    for (int64_t k = 0; k <= plan.taps; ++k) {
      T sum = 0;
      for (int64_t part = 0; part < parts; ++part)
        sum += sums[((model * parts + part) * plan.blocks + block) * size + k * lanes<T> + lane];
      if (k < plan.taps && d.dweight != nullptr) d.dweight[c * plan.taps + k] = sum;
      if (k == plan.taps && d.dbias != nullptr) d.dbias[c] = sum;
    }
  }
}

}  // namespace
}  // namespace recurve
