// The convolution block: convolution, bias, activation and pooling, band by band.
//
// A band is a few rows of one image's convolution, small enough to stay in cache: its patches are laid out as columns,
// the product with the weights gives the band, and only what pooling keeps leaves it. The backward pass computes the
// band again instead of reading it from memory.
#pragma once

#include "gemm.h"

namespace recurve {
namespace {

constexpr int64_t band_bytes = 192 * 1024;  // of the columns: they and the band fit a second-level cache

// Sizes of one group of channels, and of a band of it.
struct Band {
  int64_t inputs, outputs;  // channels of a group
  int64_t depth;            // elements of a patch
  int64_t columns;          // of the convolution that pooling uses
  int64_t pooled_rows;      // rows of y per band
  int64_t stride;           // pixels of a full band, padded to whole vectors

  template <class T>
  static Band of(const ConvShape& s, T) {
    Band b;
    b.inputs = s.channels / s.groups;
    b.outputs = s.outputs / s.groups;
    b.depth = b.inputs * s.kernel[0] * s.kernel[1];
    b.columns = s.pooled(1) * s.window[1];
    const int64_t row_pixels = s.window[0] * b.columns;
    const int64_t fitting = band_bytes / static_cast<int64_t>(sizeof(T)) / most(1, (b.depth + b.outputs) * row_pixels);
    b.pooled_rows = most(1, least(fitting, s.pooled(0)));
    b.stride = divide_up(b.pooled_rows * row_pixels, 4 * lanes<T>) * 4 * lanes<T>;
    return b;
  }
};

// The patches of convolution rows [row0, row0 + rows) as columns[depth][stride].
template <class T>
void gather_columns(const ConvShape& s, const Band& band, const T* image, int64_t row0, int64_t rows, T* columns) {
  const int64_t pixels = rows * band.columns;
  for (int64_t k = 0; k < band.depth; ++k) {
    const int64_t kx = k % s.kernel[1], ky = k / s.kernel[1] % s.kernel[0], channel = k / s.kernel[1] / s.kernel[0];
    const int64_t shift = kx * s.dilation[1] - s.padding[1];
    // Columns j with 0 <= j stride + shift < width.
    const int64_t begin = shift >= 0 ? 0 : least(band.columns, divide_up(-shift, s.stride[1]));
    const int64_t end =
        s.width <= shift ? begin : most(begin, least(band.columns, divide_up(s.width - shift, s.stride[1])));
    T* to = columns + k * band.stride;
    for (int64_t r = 0; r < rows; ++r, to += band.columns) {
      const int64_t y = (row0 + r) * s.stride[0] + ky * s.dilation[0] - s.padding[0];
      if (y < 0 || y >= s.height) {
        __builtin_memset(to, 0, band.columns * sizeof(T));
        continue;
      }
      const T* from = image + (channel * s.height + y) * s.width + shift;
      for (int64_t j = 0; j < begin; ++j) to[j] = 0;
      if (s.stride[1] == 1)
        __builtin_memcpy(to + begin, from + begin, (end - begin) * sizeof(T));
      else
        for (int64_t j = begin; j < end; ++j) to[j] = from[j * s.stride[1]];
      for (int64_t j = end; j < band.columns; ++j) to[j] = 0;
    }
    __builtin_memset(to, 0, (band.stride - pixels) * sizeof(T));
  }
}

// The reverse: adds columns[depth][stride] onto the image they were gathered from.
template <class T>
void scatter_columns(const ConvShape& s, const Band& band, const T* columns, int64_t row0, int64_t rows, T* image) {
  for (int64_t k = 0; k < band.depth; ++k) {
    const int64_t kx = k % s.kernel[1], ky = k / s.kernel[1] % s.kernel[0], channel = k / s.kernel[1] / s.kernel[0];
    const int64_t shift = kx * s.dilation[1] - s.padding[1];
    const int64_t begin = shift >= 0 ? 0 : least(band.columns, divide_up(-shift, s.stride[1]));
    const int64_t end =
        s.width <= shift ? begin : most(begin, least(band.columns, divide_up(s.width - shift, s.stride[1])));
    const T* from = columns + k * band.stride;
    for (int64_t r = 0; r < rows; ++r, from += band.columns) {
      const int64_t y = (row0 + r) * s.stride[0] + ky * s.dilation[0] - s.padding[0];
      if (y < 0 || y >= s.height) continue;
      T* to = image + (channel * s.height + y) * s.width + shift;
      if (s.stride[1] == 1)
        for (int64_t j = begin; j < end; ++j) to[j] += from[j];
      else
        for (int64_t j = begin; j < end; ++j) to[j * s.stride[1]] += from[j];
    }
  }
}

// out[row][pixel] = sum over k of matrix[row][k] columns[k][pixel], plus bias[row]; `pixels` is a whole number of
// four vectors.
template <class T>
void multiply(const T* matrix, int64_t rows, int64_t depth, const T* columns, int64_t stride, int64_t pixels,
              const T* bias, T* out) {
  constexpr int G = 4;
  for (int64_t p = 0; p < pixels; p += G * lanes<T>) {
    for_row_tiles<most_rows<G>>(0, rows, [&]<int R>(int64_t first) {
      Vector<T> acc[R][G];
      const T* a[R];
      RECURVE_UNROLL
      for (int r = 0; r < R; ++r) {
        a[r] = matrix + (first + r) * depth;
        const Vector<T> start = zero_vector<T>() + (bias == nullptr ? T(0) : bias[first + r]);
        RECURVE_UNROLL
        for (int g = 0; g < G; ++g) acc[r][g] = start;
      }
      product<T, R, G>(acc, a, columns + p, stride, depth);
      RECURVE_UNROLL
      for (int r = 0; r < R; ++r) {
        RECURVE_UNROLL
        for (int g = 0; g < G; ++g) store(out + (first + r) * stride + p + g * lanes<T>, acc[r][g]);
      }
    });
  }
}

// out[row][k] += sum over pixels of matrix[row][pixel] columns[k][pixel], four by four.
template <class T>
void multiply_transposed(const T* matrix, int64_t rows, const T* columns, int64_t depth, int64_t stride, int64_t pixels,
                         T* out) {
  auto total = [](Vector<T> v) {
    T sum = 0;
    for (int64_t i = 0; i < lanes<T>; ++i) sum += v[i];
    return sum;
  };
  for_row_tiles<4>(0, rows, [&]<int R>(int64_t r0) {
    for_row_tiles<4>(0, depth, [&]<int K>(int64_t k0) {
      Vector<T> acc[R][K];
      RECURVE_UNROLL
      for (int r = 0; r < R; ++r) {
        RECURVE_UNROLL
        for (int k = 0; k < K; ++k) acc[r][k] = zero_vector<T>();
      }
      for (int64_t p = 0; p < pixels; p += lanes<T>) {
        Vector<T> b[K];
        RECURVE_UNROLL
        for (int k = 0; k < K; ++k) b[k] = load(columns + (k0 + k) * stride + p);
        RECURVE_UNROLL
        for (int r = 0; r < R; ++r) {
          const Vector<T> a = load(matrix + (r0 + r) * stride + p);
          RECURVE_UNROLL
          for (int k = 0; k < K; ++k) acc[r][k] += a * b[k];
        }
      }
      for (int r = 0; r < R; ++r)
        for (int k = 0; k < K; ++k) out[(r0 + r) * depth + k0 + k] += total(acc[r][k]);
    });
  });
}

template <class V>
RECURVE_INLINE V larger(V a, V b) {
  return (b > a) | (b != b) ? b : a;  // NaN wins, and of equals the first
}

// Even and odd lanes of two vectors.
RECURVE_INLINE void deinterleave(FloatVector a, FloatVector b, FloatVector& even, FloatVector& odd) {
  constexpr int n = lanes<float>;
  Int32Vector first, second;
  for (int i = 0; i < n; ++i) first[i] = 2 * i, second[i] = 2 * i + 1;
  even = __builtin_shuffle(a, b, first);
  odd = __builtin_shuffle(a, b, second);
}
RECURVE_INLINE void deinterleave(DoubleVector a, DoubleVector b, DoubleVector& even, DoubleVector& odd) {
  constexpr int n = lanes<double>;
  Int64Vector first, second;
  for (int i = 0; i < n; ++i) first[i] = 2 * i, second[i] = 2 * i + 1;
  even = __builtin_shuffle(a, b, first);
  odd = __builtin_shuffle(a, b, second);
}

// Pools window rows of `columns` activated pixels, in place, into `to`: first down the window, then along the row.
template <class T>
void pool_row(const ConvShape& s, const Band& band, T* pixels, T* to) {
  const int64_t count = band.columns;
  const bool is_max = s.pool == Pool::max;
  for (int64_t r = 1; r < s.window[0]; ++r) {
    const T* next = pixels + r * count;
    int64_t j = 0;
    for (; j + lanes<T> <= count; j += lanes<T>) {
      const Vector<T> a = load(pixels + j), b = load(next + j);
      store(pixels + j, is_max ? larger(a, b) : a + b);
    }
    for (; j < count; ++j) {
      const T a = pixels[j], b = next[j];
      pixels[j] = is_max ? (b > a || b != b ? b : a) : a + b;
    }
  }
  const T scale = is_max ? T(1) : T(1) / static_cast<T>(s.window[0] * s.window[1]);
  int64_t j = 0;
  if (s.window[1] == 2) {
    for (; 2 * (j + lanes<T>) <= count; j += lanes<T>) {
      Vector<T> even, odd;
      deinterleave(load(pixels + 2 * j), load(pixels + 2 * j + lanes<T>), even, odd);
      store(to + j, (is_max ? larger(even, odd) : even + odd) * scale);
    }
  }
  for (; j < s.pooled(1); ++j) {
    T value = pixels[j * s.window[1]];
    for (int64_t k = 1; k < s.window[1]; ++k) {
      const T next = pixels[j * s.window[1] + k];
      value = is_max ? (next > value || next != next ? next : value) : value + next;
    }
    to[j] = value * scale;
  }
}

template <class T>
void conv_forward(const ConvForward<T>& f, const Parallel& parallel) {
  const ConvShape& s = f.shape;
  const Band band = Band::of(s, T());
  const int64_t image_size = s.channels * s.height * s.width;
  const int64_t pooled_h = s.pooled(0), pooled_w = s.pooled(1), row_pixels = s.window[0] * band.columns;
  if (pooled_h <= 0 || pooled_w <= 0) return;
  parallel_for(parallel, s.models * s.batch * s.groups, [&](int64_t task) {
    const int64_t group = task % s.groups, image = task / s.groups, model = image / s.batch;
    const int64_t output = model * s.outputs + group * band.outputs;
    const T* x = f.x + (s.shared ? image % s.batch : image) * image_size + group * band.inputs * s.height * s.width;
    T* y = f.y + (image * s.outputs + group * band.outputs) * pooled_h * pooled_w;
    Scratch<T> columns(band.depth * band.stride), pixels(band.outputs * band.stride);
    for (int64_t row = 0; row < pooled_h; row += band.pooled_rows) {
      const int64_t rows = least(band.pooled_rows, pooled_h - row);
      const int64_t padded = divide_up(rows * row_pixels, 4 * lanes<T>) * 4 * lanes<T>;
      gather_columns(s, band, x, row * s.window[0], rows * s.window[0], columns.get());
      multiply(f.weight + output * band.depth, band.outputs, band.depth, columns.get(), band.stride, padded,
               f.bias == nullptr ? nullptr : f.bias + output, pixels.get());
      for (int64_t o = 0; o < band.outputs; ++o) {
        T* of_output = pixels + o * band.stride;
        T* to = y + (o * pooled_h + row) * pooled_w;
        for (int64_t p = 0; p < rows * row_pixels; p += lanes<T>)
          store(of_output + p, activate(load(of_output + p), s.activation));
        if (s.pool == Pool::none)
          __builtin_memcpy(to, of_output, rows * row_pixels * sizeof(T));
        else
          for (int64_t r = 0; r < rows; ++r) pool_row(s, band, of_output + r * row_pixels, to + r * pooled_w);
      }
    }
  });
}

// Gradient of the activated pixels of one row of y, from that of the pooled ones: to the largest, or to all alike.
template <class T>
void unpool_row(const ConvShape& s, const Band& band, const T* pixels, const T* dy, T* dpixels) {
  const int64_t count = band.columns, pooled = s.pooled(1);
  if (s.pool == Pool::average) {
    const T scale = T(1) / static_cast<T>(s.window[0] * s.window[1]);
    for (int64_t r = 0; r < s.window[0]; ++r)
      for (int64_t j = 0; j < count; ++j) dpixels[r * count + j] = dy[j / s.window[1]] * scale;
    return;
  }
  __builtin_memset(dpixels, 0, s.window[0] * count * sizeof(T));
  for (int64_t j = 0; j < pooled; ++j) {
    int64_t best = j * s.window[1];
    T value = pixels[best];
    for (int64_t r = 0; r < s.window[0]; ++r)
      for (int64_t k = 0; k < s.window[1]; ++k) {
        const int64_t at = r * count + j * s.window[1] + k;
        const bool wins = pixels[at] > value || pixels[at] != pixels[at];
        best = wins ? at : best;
        value = wins ? pixels[at] : value;
      }
    dpixels[best] = dy[j];
  }
}

// Gradients of one image and group: adds to `dweight` (outputs, depth) and `dbias` (outputs) and fills `dx`.
template <class T>
void conv_backward_image(const ConvBackward<T>& d, const Band& band, int64_t model, int64_t image, int64_t group,
                         const T* weight_transposed, T* dweight, T* dbias) {
  const ConvShape& s = d.shape;
  const int64_t plane = s.height * s.width, pooled_h = s.pooled(0), pooled_w = s.pooled(1);
  const int64_t row_pixels = s.window[0] * band.columns, output = model * s.outputs + group * band.outputs;
  const int64_t source = s.shared ? image % s.batch : image;
  const T* x = d.x + (source * s.channels + group * band.inputs) * plane;
  const T* dy = d.dy + (image * s.outputs + group * band.outputs) * pooled_h * pooled_w;
  T* dx = d.dx == nullptr ? nullptr : d.dx + (image * s.channels + group * band.inputs) * plane;
  if (dx != nullptr) __builtin_memset(dx, 0, band.inputs * plane * sizeof(T));
  Scratch<T> columns(band.depth * band.stride), pixels(band.outputs * band.stride), dpixels(band.outputs * band.stride);
  Scratch<T> activated(band.stride);
  for (int64_t row = 0; row < pooled_h; row += band.pooled_rows) {
    const int64_t rows = least(band.pooled_rows, pooled_h - row), count = rows * row_pixels;
    const int64_t padded = divide_up(count, 4 * lanes<T>) * 4 * lanes<T>;
    gather_columns(s, band, x, row * s.window[0], rows * s.window[0], columns.get());
    multiply(d.weight + output * band.depth, band.outputs, band.depth, columns.get(), band.stride, padded,
             d.bias == nullptr ? nullptr : d.bias + output, pixels.get());
    for (int64_t o = 0; o < band.outputs; ++o) {
      const T* pre = pixels + o * band.stride;
      const T* dpooled = dy + (o * pooled_h + row) * pooled_w;
      T* dpre = dpixels + o * band.stride;
      for (int64_t p = 0; p < padded; p += lanes<T>) store(activated + p, activate(load(pre + p), s.activation));
      if (s.pool == Pool::none)
        __builtin_memcpy(dpre, dpooled, count * sizeof(T));
      else
        for (int64_t r = 0; r < rows; ++r)
          unpool_row(s, band, activated + r * row_pixels, dpooled + r * pooled_w, dpre + r * row_pixels);
      __builtin_memset(dpre + count, 0, (padded - count) * sizeof(T));
      Vector<T> sum = zero_vector<T>();
      for (int64_t p = 0; p < padded; p += lanes<T>) {
        const Vector<T> g = load(dpre + p);
        const Vector<T> slope = activation_slope(load(pre + p), load(activated + p), s.activation);
        // Where no gradient comes in none goes on, even past a pixel that is not finite.
        const Vector<T> through = g == T(0) ? zero_vector<T>() : g * slope;
        store(dpre + p, through);
        sum += through;
      }
      for (int64_t i = 0; i < lanes<T>; ++i) dbias[o] += sum[i];
    }
    if (dweight != nullptr)
      multiply_transposed(dpixels.get(), band.outputs, columns.get(), band.depth, band.stride, padded, dweight);
    if (dx != nullptr) {
      multiply(weight_transposed, band.depth, band.outputs, dpixels.get(), band.stride, padded,
               static_cast<const T*>(nullptr), columns.get());
      scatter_columns(s, band, columns.get(), row * s.window[0], rows * s.window[0], dx);
    }
  }
}

template <class T>
void conv_backward(const ConvBackward<T>& d, const Parallel& parallel) {
  const ConvShape& s = d.shape;
  const Band band = Band::of(s, T());
  const int64_t weights = s.outputs * band.depth;
  if (s.models == 0 || s.groups == 0) return;
  // A fixed number of parts, whatever the number of threads, each summed in order: the result does not depend on them.
  const int64_t parts = most(1, least(s.batch, 16)), images = divide_up(s.batch, parts);
  Scratch<T> dweights(s.models * parts * weights), dbiases(s.models * parts * s.outputs);
  Scratch<T> transposed(s.models * weights);
  __builtin_memset(dweights, 0, s.models * parts * weights * sizeof(T));
  __builtin_memset(dbiases, 0, s.models * parts * s.outputs * sizeof(T));
  for (int64_t i = 0; i < s.models * s.groups; ++i)
    for (int64_t o = 0; o < band.outputs; ++o)
      for (int64_t k = 0; k < band.depth; ++k)
        transposed[(i * band.depth + k) * band.outputs + o] = d.weight[(i * band.outputs + o) * band.depth + k];
  const bool empty = s.pooled(0) <= 0 || s.pooled(1) <= 0;
  parallel_for(parallel, empty ? 0 : s.models * parts * s.groups, [&](int64_t task) {
    const int64_t group = task % s.groups, part = task / s.groups, model = part / parts;
    const int64_t first = part % parts * images, last = least(s.batch, first + images);
    T* dweight = dweights + part * weights + group * band.outputs * band.depth;
    for (int64_t b = first; b < last; ++b)
      conv_backward_image(d, band, model, model * s.batch + b, group,
                          transposed + (model * s.groups + group) * band.outputs * band.depth,
                          d.dweight == nullptr ? nullptr : dweight, dbiases + part * s.outputs + group * band.outputs);
  });
  auto add_parts = [&](const T* of_parts, int64_t size, T* to) {
    if (to == nullptr) return;
    for (int64_t model = 0; model < s.models; ++model)
      for (int64_t i = 0; i < size; ++i) {
        T sum = 0;
        for (int64_t part = 0; part < parts; ++part) sum += of_parts[(model * parts + part) * size + i];
        to[model * size + i] = sum;
      }
  };
  add_parts(dweights, weights, d.dweight);
  add_parts(dbiases, s.outputs, d.dbias);
}

}  // namespace
}  // namespace recurve
