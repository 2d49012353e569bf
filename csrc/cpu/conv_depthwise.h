// Depthwise convolution, forward and backward: as many channels at once as a vector has lanes, for kernels of any size.
//
// The planes of these channels are transposed so that a pixel is a vector; a product with the weights is then one
// multiplication for each element of the kernel, and pooling compares whole vectors.
#pragma once

#include "conv_forward.h"

namespace recurve {
namespace {

constexpr int depthwise_pixels = 12;  // that a weight, once loaded, serves

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

// out[p] = start + sum over the kernel of weight x[p step + its place], for `count` pixels of a row.
template <class T>
void step_row(const VectorKernel<T>& k, const T* x, int64_t step, int64_t count, Vector<T> start, T* out) {
  for_row_tiles<depthwise_pixels>(count, [&]<int P>(int64_t first) {
    Vector<T> sums[P];
    RECURVE_UNROLL
    for (int p = 0; p < P; ++p) sums[p] = start;
    const T* w = k.weight;
    for (int64_t r = 0; r < k.rows; ++r)
      for (int64_t c = 0; c < k.columns; ++c, w += lanes<T>) {
        const Vector<T> weight = load(w);
        const T* at = x + first * step + r * k.row_step + c * k.column_step;
        RECURVE_UNROLL
        for (int p = 0; p < P; ++p) sums[p] += load(at + p * step) * weight;
      }
    RECURVE_UNROLL
    for (int p = 0; p < P; ++p) store(out + (first + p) * lanes<T>, sums[p]);
  });
}

// As step_row for a kernel of C columns where all steps are a pixel: a pixel, loaded once, meets all of a row's
// weights.
template <class T, int C>
void slide_row(const VectorKernel<T>& k, const T* x, int64_t count, Vector<T> start, T* out) {
  for_row_tiles<16 - C>(count, [&]<int P>(int64_t first) {
    Vector<T> sums[P];
    RECURVE_UNROLL
    for (int p = 0; p < P; ++p) sums[p] = start;
    for (int64_t r = 0; r < k.rows; ++r) {
      const T* at = x + first * lanes<T> + r * k.row_step;
      Vector<T> weights[C];
      RECURVE_UNROLL
      for (int c = 0; c < C; ++c) weights[c] = load(k.weight + (r * C + c) * lanes<T>);
      RECURVE_UNROLL
      for (int i = 0; i < P + C - 1; ++i) {
        const Vector<T> pixel = load(at + i * lanes<T>);
        RECURVE_UNROLL
        for (int c = 0; c < C; ++c)
          if (i >= c && i - c < P) sums[i - c] += pixel * weights[c];
      }
    }
    RECURVE_UNROLL
    for (int p = 0; p < P; ++p) store(out + (first + p) * lanes<T>, sums[p]);
  });
}

// By slide_row where it serves, else by step_row.
template <class T>
void convolve_row(const VectorKernel<T>& k, const T* x, int64_t step, int64_t count, Vector<T> start, T* out) {
  if (step != lanes<T> || k.column_step != lanes<T>) return step_row(k, x, step, count, start, out);
  switch (k.columns) {
    case 3:
      return slide_row<T, 3>(k, x, count, start, out);
    case 5:
      return slide_row<T, 5>(k, x, count, start, out);
    case 7:
      return slide_row<T, 7>(k, x, count, start, out);
    default:
      return step_row(k, x, step, count, start, out);
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
    const ImageLayout layout = s.x_layout();
    for (int64_t y = 0; y < s.height; ++y)
      read_pixels(x + layout.at(0, 0, y * s.width), layout, width(block), s.width,
                  to.at(y + s.padding[0], s.padding[1]), lanes<T>);
  }
};

template <class T>
void depthwise_forward(const ConvForward<T>& f, const Parallel& parallel) {
  const ConvShape& s = f.shape;
  const Depthwise<T> plan(s, f.weight, f.bias);
  const int64_t pooled = s.pooled(0) * s.pooled(1);
  const int64_t parts = least(s.batch, 16), images = divide_up(s.batch, most(1, parts));
  parallel_for(parallel, s.models * parts * plan.blocks, [&](int64_t task) {
    const int64_t block = task % plan.blocks, part = task / plan.blocks % parts, model = task / plan.blocks / parts;
    const VectorPlane<T> x(plan.padded_height(), plan.padded_width()), rows(plan.rows, plan.columns);
    Scratch<T> places(f.places == nullptr ? 0 : pooled * lanes<T>);
    x.clear(plan.padded_height());
    const VectorKernel<T> kernel = plan.kernel(plan.weights, model, block, x.width);
    const Vector<T> bias = load(plan.biases + (model * plan.blocks + block) * lanes<T>);
    for (int64_t b = part * images; b < least(s.batch, (part + 1) * images); ++b) {
      const int64_t image = model * s.batch + b, y = s.y_layout().at(image, block * lanes<T>, 0);
      plan.pack(f.x + s.x_layout().at(s.shared ? b : image, block * lanes<T>, 0), block, x);
      for (int64_t i = 0; i < plan.rows; ++i)
        convolve_row(kernel, x.at(i * s.stride[0], 0), s.stride[1] * lanes<T>, plan.columns, bias, rows.at(i, 0));
      finish_rows<T, 1>(s, rows.data.get(), plan.columns, s.pooled(0), plan.width(block), f.y + y,
                        f.places == nullptr ? nullptr : f.places + y, places.get());
    }
  });
}

// ----------------------------------------------------------------------------------------------------- backward

// What one task of the backward pass works in. Gradients of the convolution, a stride apart, have a border that the
// kernel reaches over.
template <class T>
struct DepthwiseScratch {
  VectorPlane<T> x, d, pre;
  Scratch<T> gradients, places, dx;

  explicit DepthwiseScratch(const Depthwise<T>& p)
      : x(p.padded_height(), p.padded_width()),
        d(p.padded_height() + p.reach[0], p.padded_width() + p.reach[1]),
        pre(p.s.keeps_enough() ? 0 : p.s.window[0], p.columns),
        gradients(p.s.pooled(0) * p.s.pooled(1) * lanes<T>),
        places(p.s.keeps_places() ? p.s.pooled(0) * p.s.pooled(1) * lanes<T> : 0),
        dx(p.s.height * p.s.width * lanes<T>) {
    x.clear(p.padded_height());
    d.clear(p.padded_height() + p.reach[0]);
  }
};

// sums (R rows, C columns of the kernel) += the sum over pixels of an image's gradients times x at the element's place.
template <class T, int R, int C>
void add_products(const Depthwise<T>& plan, const DepthwiseScratch<T>& t, const T* x, int64_t row_step,
                  int64_t column_step, T* sums, int64_t sums_row) {
  const ConvShape& s = plan.s;
  const T* d = t.d.at(plan.reach[0], plan.reach[1]);
  const int64_t next = s.stride[1] * lanes<T>;
  Vector<T> acc[R][C] = {};
  for (int64_t i = 0; i < plan.rows; ++i) {
    const T *d_row = d + i * s.stride[0] * t.d.width * lanes<T>, *x_row = x + i * s.stride[0] * t.x.width * lanes<T>;
    for (int64_t p = 0; p < plan.columns; ++p, d_row += next, x_row += next) {
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

// One step of slide_products: the next pixel comes in, and a gradient meets those that its kernel's row covers.
template <class T, int C>
RECURVE_INLINE void meet_gradient(const T* d, const T* next, Vector<T> (&pixels)[C], Vector<T> (&sums)[C]) {
  pixels[C - 1] = load(next);
  const Vector<T> gradient = load(d);
  RECURVE_UNROLL
  for (int c = 0; c < C; ++c) sums[c] += pixels[c] * gradient;
  RECURVE_UNROLL
  for (int c = 1; c < C; ++c) pixels[c - 1] = pixels[c];
}

// As add_products for one row of a kernel of C columns where all steps are a pixel: a pixel, loaded once, stays in a
// register.
template <class T, int C>
void slide_products(const Depthwise<T>& plan, const DepthwiseScratch<T>& t, const T* x, T* sums) {
  Vector<T> acc[C] = {};
  for (int64_t i = 0; i < plan.rows; ++i) {
    const T *d = t.d.at(plan.reach[0] + i, plan.reach[1]), *row = x + i * t.x.width * lanes<T>;
    Vector<T> pixels[C];
    RECURVE_UNROLL
    for (int c = 0; c < C - 1; ++c) pixels[c] = load(row + c * lanes<T>);
    const T *next = row + (C - 1) * lanes<T>, *end = d + plan.columns * lanes<T>;
    for (; d + C * lanes<T> <= end; d += C * lanes<T>, next += C * lanes<T>) {
      RECURVE_UNROLL
      for (int p = 0; p < C; ++p) meet_gradient<T, C>(d + p * lanes<T>, next + p * lanes<T>, pixels, acc);
    }
    for (; d < end; d += lanes<T>, next += lanes<T>) meet_gradient<T, C>(d, next, pixels, acc);
  }
  RECURVE_UNROLL
  for (int c = 0; c < C; ++c) store(sums + c * lanes<T>, load(sums + c * lanes<T>) + acc[c]);
}

// dweight (taps, lanes) += the products of an image's pixels with the gradients of the convolution.
template <class T>
void add_weight_gradient(const Depthwise<T>& plan, const DepthwiseScratch<T>& t, T* dweight) {
  const ConvShape& s = plan.s;
  const int64_t row_step = s.dilation[0] * t.x.width * lanes<T>, column_step = s.dilation[1] * lanes<T>;
  const int64_t width = s.kernel[1], sums_row = width * lanes<T>;
  auto tile = [&]<int R, int C>(int64_t r, int64_t c) {
    add_products<T, R, C>(plan, t, t.x.at(r * s.dilation[0], c * s.dilation[1]), row_step, column_step,
                          dweight + (r * width + c) * lanes<T>, sums_row);
  };
  int64_t r = 0;
  if (s.stride[0] == 1 && s.stride[1] == 1 && s.dilation[1] == 1 && (width == 5 || width == 7))
    for (; r < s.kernel[0]; ++r)
      width == 5 ? slide_products<T, 5>(plan, t, t.x.at(r * s.dilation[0], 0), dweight + r * sums_row)
                 : slide_products<T, 7>(plan, t, t.x.at(r * s.dilation[0], 0), dweight + r * sums_row);
  for (; width == 3 && r + 3 <= s.kernel[0]; r += 3) tile.template operator()<3, 3>(r, 0);
  for (; r < s.kernel[0]; ++r) for_row_tiles<8>(width, [&]<int C>(int64_t c) { tile.template operator()<1, C>(r, c); });
}

template <class T>
void depthwise_backward(const ConvBackward<T>& d, const Parallel& parallel) {
  const ConvShape& s = d.shape;
  const Depthwise<T> plan(s, d.weight, d.bias);
  const int64_t plane = s.height * s.width, parts = most(1, least(s.batch, 16)), images = divide_up(s.batch, parts);
  const int64_t pooled = s.pooled(0) * s.pooled(1), step = s.stride[1] * lanes<T>;
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
      const int64_t image = model * s.batch + b;
      plan.pack(d.x + s.x_layout().at(s.shared ? b : image, block * lanes<T>, 0), block, t.x);
      load_gradients(d, s.y_layout().at(image, block * lanes<T>, 0), count, pooled, t.gradients.get(), t.places.get());
      for (int64_t i = 0; i < s.pooled(0); ++i) {
        for (int64_t r = 0; r < s.window[0] && !s.keeps_enough(); ++r)
          convolve_row(kernel, t.x.at((i * s.window[0] + r) * s.stride[0], 0), step, plan.columns, bias,
                       t.pre.at(r, 0));
        const Vector<T> sum =
            spread_row(s, i, t.pre.data.get(), lanes<T>, plan.columns * lanes<T>, t.gradients.get(), t.places.get(),
                       t.d.at(plan.reach[0] + i * s.window[0] * s.stride[0], plan.reach[1]), step,
                       s.stride[0] * t.d.width * lanes<T>);
        store(dbias, load(dbias) + sum);
      }
      if (d.dweight != nullptr) add_weight_gradient(plan, t, dweight);
      if (d.dx == nullptr) continue;
      for (int64_t y = 0; y < s.height; ++y)
        convolve_row(back, t.d.at(y + s.padding[0], s.padding[1]), lanes<T>, s.width, zero_vector<T>(),
                     t.dx + y * s.width * lanes<T>);
      write_pixels(t.dx.get(), lanes<T>, plane, count, d.dx + s.x_layout().at(image, block * lanes<T>, 0),
                   s.x_layout());
    }
  });
  parallel_for(parallel, s.models * plan.blocks, [&](int64_t task) {
    const int64_t model = task / plan.blocks, block = task % plan.blocks;
    const int64_t first = model * s.channels + block * lanes<T>;
    for (int64_t k = 0; k <= plan.taps; ++k) {
      Vector<T> sum = zero_vector<T>();
      for (int64_t part = 0; part < parts; ++part)
        sum += load(sums + ((model * parts + part) * plan.blocks + block) * size + k * lanes<T>);
      for (int64_t lane = 0; lane < plan.width(block); ++lane) {
        if (k < plan.taps && d.dweight != nullptr) d.dweight[(first + lane) * plan.taps + k] = sum[lane];
        if (k == plan.taps && d.dbias != nullptr) d.dbias[first + lane] = sum[lane];
      }
    }
  });
}

}  // namespace
}  // namespace recurve
