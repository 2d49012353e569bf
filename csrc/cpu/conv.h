// The convolution block: direct convolution at stride 1, bias, activation and pooling, image by image.
//
// An image is copied once with its padding. On the grid of the padded width, the input that kernel element k needs for
// output pixel p lies at p + offset[k]: the convolution is a product with the weights that reads the image in place,
// many pixels at a time, and only what pooling keeps leaves the cache. The few grid columns past the output's width are
// computed and dropped. The backward pass computes the convolution again instead of reading it from memory; its two
// products run on the same grid.
#pragma once

#include "gemm.h"

namespace recurve {
namespace {

constexpr int64_t band_bytes = 128 * 1024;  // of the convolution's rows that are pooled together

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

// ------------------------------------------------------------------------------------------------------ pooling

template <class V>
RECURVE_INLINE V larger(V a, V b) {
  return ((b > a) | (b != b)) ? b : a;  // NaN wins, and of equals the first
}

// Lanes first, first + 2, ... of two vectors in a row.
template <class T, int first, int... L>
RECURVE_INLINE Vector<T> every_second(Vector<T> a, Vector<T> b, std::integer_sequence<int, L...>) {
  return shuffle<T>(a, b, std::integer_sequence<int, 2 * L + first...>{});
}

// The vector whose even lanes are from `even` and odd ones from `odd`, taken from lane `first` on.
template <class T, int first, int... L>
RECURVE_INLINE Vector<T> interleaved(Vector<T> even, Vector<T> odd, std::integer_sequence<int, L...>) {
  return shuffle<T>(even, odd, std::integer_sequence<int, first + L / 2 + L % 2 * static_cast<int>(lanes<T>)...>{});
}

// Stores the lanes of both in turn, `count` at most.
template <class T>
RECURVE_INLINE void store_pair(T* to, Vector<T> even, Vector<T> odd, int64_t count) {
  store(to, interleaved<T, 0>(even, odd, Lanes<T>{}), count);
  if (count > lanes<T>) store(to + lanes<T>, interleaved<T, lanes<T> / 2>(even, odd, Lanes<T>{}), count - lanes<T>);
}

template <class T>
struct Window2x2 {
  Vector<T> upper_left, upper_right, lower_left, lower_right;

  Window2x2(const T* upper, const T* lower) {
    const Vector<T> u0 = load(upper), u1 = load(upper + lanes<T>), l0 = load(lower), l1 = load(lower + lanes<T>);
    upper_left = every_second<T, 0>(u0, u1, Lanes<T>{}), upper_right = every_second<T, 1>(u0, u1, Lanes<T>{});
    lower_left = every_second<T, 0>(l0, l1, Lanes<T>{}), lower_right = every_second<T, 1>(l0, l1, Lanes<T>{});
  }
};

// One row of y from window[0] rows of activated pixels, `pitch` apart. Whole vectors are read, past the rows' ends.
template <class T>
void pool_row(const ConvShape& s, const T* pixels, int64_t pitch, T* to) {
  const int64_t count = s.pooled(1);
  const bool is_max = s.pool == Pool::max;
  const T scale = is_max ? T(1) : T(1) / static_cast<T>(s.window[0] * s.window[1]);
  int64_t j = 0;
  if (s.window[0] == 2 && s.window[1] == 2) {
    for (; j < count; j += lanes<T>) {
      const Window2x2<T> w(pixels + 2 * j, pixels + pitch + 2 * j);
      if (is_max)
        store(to + j, larger(larger(w.upper_left, w.upper_right), larger(w.lower_left, w.lower_right)), count - j);
      else
        store(to + j, (w.upper_left + w.upper_right + w.lower_left + w.lower_right) * scale, count - j);
    }
  }
  for (; j < count; ++j) {
    const T* corner = pixels + j * s.window[1];
    T value = corner[0];
    for (int64_t r = 0; r < s.window[0]; ++r)
      for (int64_t k = r == 0 ? 1 : 0; k < s.window[1]; ++k) {
        const T next = corner[r * pitch + k];
        value = is_max ? (next > value || next != next ? next : value) : value + next;
      }
    to[j] = value * scale;
  }
}

// Gradient of window[0] rows of activated pixels, `pitch` apart, from that of one row of y: to the largest of a window,
// the first of equals, or to all alike. Whole vectors are read, past the rows' ends.
template <class T>
void unpool_row(const ConvShape& s, const T* pixels, const T* dy, int64_t pitch, T* dpixels) {
  const int64_t count = s.pooled(1);
  const bool is_max = s.pool == Pool::max;
  const T scale = is_max ? T(1) : T(1) / static_cast<T>(s.window[0] * s.window[1]);
  int64_t j = 0;
  if (is_max && s.window[0] == 2 && s.window[1] == 2) {
    for (; j < count; j += lanes<T>) {
      const Window2x2<T> w(pixels + 2 * j, pixels + pitch + 2 * j);
      const Vector<T> g = load(dy + j, count - j), zero = zero_vector<T>();
      Vector<T> value = w.upper_left;
      const auto b = (w.upper_right > value) | (w.upper_right != w.upper_right);
      value = b ? w.upper_right : value;
      const auto c = (w.lower_left > value) | (w.lower_left != w.lower_left);
      value = c ? w.lower_left : value;
      const auto d = (w.lower_right > value) | (w.lower_right != w.lower_right);
      const Vector<T> upper_left = (b | c | d) ? zero : g, upper_right = (b & ~c & ~d) ? g : zero;
      const Vector<T> lower_left = (c & ~d) ? g : zero, lower_right = d ? g : zero;
      store_pair(dpixels + 2 * j, upper_left, upper_right, 2 * (count - j));
      store_pair(dpixels + pitch + 2 * j, lower_left, lower_right, 2 * (count - j));
    }
  }
  for (; j < count; ++j) {
    const int64_t corner = j * s.window[1];
    int64_t best = corner;
    for (int64_t r = 0; r < s.window[0]; ++r)
      for (int64_t k = 0; k < s.window[1]; ++k) {
        const int64_t at = corner + r * pitch + k;
        dpixels[at] = is_max ? T(0) : dy[j] * scale;
        best = pixels[at] > pixels[best] || pixels[at] != pixels[at] ? at : best;
      }
    if (is_max) dpixels[best] = dy[j];
  }
}

// ------------------------------------------------------------------------------------------------------ forward

template <class T>
void activate_pixels(const T* pre, int64_t count, Activation activation, T* to) {
  for (int64_t p = 0; p < count; p += lanes<T>) store(to + p, activate(load(pre + p), activation));
}

// Where the elements of a patch lie in the padded image: offsets[depth].
inline void patch_offsets(const ConvShape& s, const Grid& grid, int64_t* offsets) {
  for (int64_t k = 0; k < grid.depth; ++k)
    offsets[k] = k / grid.taps * grid.plane() + grid.tap_offset(s, k % grid.taps);
}

template <class T>
void conv_forward(const ConvForward<T>& f, const Parallel& parallel) {
  const ConvShape& s = f.shape;
  const Grid grid(s);
  const int64_t pooled_h = s.pooled(0), pooled_w = s.pooled(1), plane = s.height * s.width;
  const int64_t row_bytes = grid.outputs * s.window[0] * grid.width * static_cast<int64_t>(sizeof(T));
  const int64_t band = most(1, least(pooled_h, band_bytes / row_bytes));  // rows of y
  const int64_t stride = whole_vectors<T>(band * s.window[0] * grid.width);
  Scratch<int64_t> offsets(grid.depth);
  patch_offsets(s, grid, offsets.get());
  parallel_for(parallel, s.models * s.batch * s.groups, [&](int64_t task) {
    const int64_t group = task % s.groups, image = task / s.groups, model = image / s.batch;
    const int64_t output = model * s.outputs + group * grid.outputs, source = s.shared ? image % s.batch : image;
    T* y = f.y + (image * s.outputs + group * grid.outputs) * pooled_h * pooled_w;
    Scratch<T> padded(grid.padded_size<T>(s)), pixels(grid.outputs * stride + 2 * lanes<T>);
    pad_image(s, grid, f.x + (source * s.channels + group * grid.inputs) * plane, padded.get());
    for (int64_t row = 0; row < pooled_h; row += band) {
      const int64_t rows = least(band, pooled_h - row), count = rows * s.window[0] * grid.width;
      multiply(f.weight + output * grid.depth, grid.outputs, grid.depth, padded + row * s.window[0] * grid.width,
               offsets.get(), count, f.bias == nullptr ? nullptr : f.bias + output, pixels.get(), stride);
      for (int64_t o = 0; o < grid.outputs; ++o) {
        T* of_output = pixels + o * stride;
        activate_pixels(of_output, count, s.activation, of_output);
        for (int64_t r = 0; r < rows; ++r) {
          const T* from = of_output + r * s.window[0] * grid.width;
          T* to = y + (o * pooled_h + row + r) * pooled_w;
          if (s.pool == Pool::none)
            __builtin_memcpy(to, from, pooled_w * sizeof(T));
          else
            pool_row(s, from, grid.width, to);
        }
      }
    }
  });
}

// ----------------------------------------------------------------------------------------------------- backward

// Gradients of the pre-activations of one output channel (rows, width), zero past the columns used, and their sum.
template <class T>
T backward_pixels(const ConvShape& s, const Grid& grid, const T* pre, T* activated, const T* dy, T* dpre) {
  const int64_t count = grid.rows * grid.width;
  activate_pixels(pre, count, s.activation, activated);
  for (int64_t r = 0; r < s.pooled(0); ++r) {
    const int64_t at = r * s.window[0] * grid.width;
    if (s.pool == Pool::none)
      __builtin_memcpy(dpre + at, dy + r * s.pooled(1), grid.columns * sizeof(T));
    else
      unpool_row(s, activated + at, dy + r * s.pooled(1), grid.width, dpre + at);
  }
  Vector<T> sums = zero_vector<T>();
  for (int64_t r = 0; r < grid.rows; ++r) {
    const int64_t row = r * grid.width;
    for (int64_t j = 0; j < grid.columns; j += lanes<T>) {
      const int64_t at = row + j, left = grid.columns - j;
      const Vector<T> slope = activation_slope(load(pre + at), load(activated + at), s.activation);
      store(dpre + at, load(dpre + at, left) * slope, left);
      sums += load(dpre + at, left);
    }
    __builtin_memset(dpre + row + grid.columns, 0, (grid.width - grid.columns) * sizeof(T));
  }
  T sum = 0;
  for (int64_t i = 0; i < lanes<T>; ++i) sum += sums[i];
  return sum;
}

// dweight[k][output] += sum over pixels of image[k's place + pixel] dpre[pixel][output]: few rows by G vectors.
template <class T, int G>
void add_weight_gradient(const Grid& grid, const T* padded, const int64_t* offsets, const T* dpre, int64_t stride,
                         T* dweight) {
  for_row_tiles<most_rows<G>>(grid.depth, [&]<int R>(int64_t k0) {
    Vector<T> acc[R][G];
    RECURVE_UNROLL
    for (int r = 0; r < R; ++r) {
      RECURVE_UNROLL
      for (int g = 0; g < G; ++g) acc[r][g] = zero_vector<T>();
    }
    for (int64_t row = 0; row < grid.rows; ++row) {
      const T* a[R];
      RECURVE_UNROLL
      for (int r = 0; r < R; ++r) a[r] = padded + offsets[k0 + r] + row * grid.width;
      product<T, R, G>(acc, a, dpre + row * grid.columns * stride, stride, grid.columns);
    }
    for (int r = 0; r < R; ++r)
      for (int g = 0; g < G; ++g) {
        T* to = dweight + (k0 + r) * stride + g * lanes<T>;
        store(to, load(to) + acc[r][g]);
      }
  });
}

// The same for few outputs: dweight[k][output] += the dot product over pixels, a vector of them at a time.
template <class T>
void add_weight_gradient_by_dots(const Grid& grid, const T* padded, const int64_t* offsets, const T* dpre,
                                 int64_t dpre_stride, int64_t stride, T* dweight) {
  const int64_t whole = grid.columns / lanes<T> * lanes<T>;
  for (int64_t o = 0; o < grid.outputs; ++o)
    for_row_tiles<8>(grid.depth, [&]<int R>(int64_t k0) {
      Vector<T> acc[R];
      T rest[R];
      for (int r = 0; r < R; ++r) acc[r] = zero_vector<T>(), rest[r] = 0;
      for (int64_t row = 0; row < grid.rows; ++row) {
        const T* d = dpre + o * dpre_stride + row * grid.width;
        const T* a[R];
        for (int r = 0; r < R; ++r) a[r] = padded + offsets[k0 + r] + row * grid.width;
        for (int64_t p = 0; p < whole; p += lanes<T>) {
          const Vector<T> g = load(d + p);
          RECURVE_UNROLL
          for (int r = 0; r < R; ++r) acc[r] += g * load(a[r] + p);
        }
        for (int64_t p = whole; p < grid.columns; ++p)
          for (int r = 0; r < R; ++r) rest[r] += d[p] * a[r][p];
      }
      for (int r = 0; r < R; ++r) {
        for (int64_t i = 0; i < lanes<T>; ++i) rest[r] += acc[r][i];
        dweight[(k0 + r) * stride + o] += rest[r];
      }
    });
}

// What all images of a call share in the backward pass.
template <class T>
struct ConvBackwardPlan {
  const ConvBackward<T>& d;
  Grid grid;
  int64_t pixels;          // of the grid, in whole vectors
  int64_t lead, plane;     // zeros before a gradient plane, and its whole length
  int64_t outputs_padded;  // in whole vectors
  Scratch<int64_t> offsets, transposed_offsets;
  Scratch<T> transposed;  // weights (E, groups, inputs, outputs, taps)

  explicit ConvBackwardPlan(const ConvBackward<T>& d_)
      : d(d_),
        grid(d_.shape),
        pixels(whole_vectors<T>(grid.rows * grid.width)),
        lead(grid.reach),
        plane(lead + grid.plane() + 4 * lanes<T>),
        outputs_padded(whole_vectors<T>(grid.outputs)),
        offsets(grid.depth),
        transposed_offsets(grid.outputs * grid.taps),
        transposed(d_.shape.models * d_.shape.outputs * grid.depth) {
    const ConvShape& s = d.shape;
    patch_offsets(s, grid, offsets.get());
    for (int64_t i = 0; i < grid.outputs * grid.taps; ++i)
      transposed_offsets[i] = i / grid.taps * plane - grid.tap_offset(s, i % grid.taps);
    for (int64_t i = 0; i < s.models * s.groups; ++i)
      for (int64_t o = 0; o < grid.outputs; ++o)
        for (int64_t c = 0; c < grid.inputs; ++c)
          __builtin_memcpy(transposed + ((i * grid.inputs + c) * grid.outputs + o) * grid.taps,
                           d.weight + ((i * grid.outputs + o) * grid.inputs + c) * grid.taps, grid.taps * sizeof(T));
  }
};

// Gradients of one image and group: adds to dweight (depth, outputs_padded) and dbias (outputs), fills dx.
template <class T>
void conv_backward_image(const ConvBackwardPlan<T>& plan, int64_t model, int64_t image, int64_t group, T* dweight,
                         T* dbias) {
  const ConvBackward<T>& d = plan.d;
  const ConvShape& s = d.shape;
  const Grid& grid = plan.grid;
  const int64_t plane = s.height * s.width, pooled = s.pooled(0) * s.pooled(1);
  const int64_t output = model * s.outputs + group * grid.outputs, source = s.shared ? image % s.batch : image;
  const T* dy = d.dy + (image * s.outputs + group * grid.outputs) * pooled;
  Scratch<T> padded(grid.padded_size<T>(s)), activated(plan.pixels + 2 * lanes<T>);
  Scratch<T> pre(most(grid.outputs * plan.pixels, grid.inputs * whole_vectors<T>(s.height * grid.width)));
  Scratch<T> dpre(grid.outputs * plan.plane);
  pad_image(s, grid, d.x + (source * s.channels + group * grid.inputs) * plane, padded.get());
  multiply(d.weight + output * grid.depth, grid.outputs, grid.depth, padded.get(), plan.offsets.get(),
           grid.rows * grid.width, d.bias == nullptr ? nullptr : d.bias + output, pre.get(), plan.pixels);
  for (int64_t o = 0; o < grid.outputs; ++o) {
    T* of_output = dpre + o * plan.plane;
    const int64_t end = plan.lead + grid.rows * grid.width;
    __builtin_memset(of_output, 0, plan.lead * sizeof(T));
    dbias[o] +=
        backward_pixels(s, grid, pre + o * plan.pixels, activated.get(), dy + o * pooled, of_output + plan.lead);
    __builtin_memset(of_output + end, 0, (plan.plane - end) * sizeof(T));
  }
  if (d.dweight != nullptr && 2 * grid.outputs < lanes<T>) {
    add_weight_gradient_by_dots(grid, padded.get(), plan.offsets.get(), dpre + plan.lead, plan.plane,
                                plan.outputs_padded, dweight);
  } else if (d.dweight != nullptr) {
    const int64_t stride = plan.outputs_padded;
    Scratch<T> by_pixel(grid.rows * grid.columns * stride);
    if (grid.outputs < stride) __builtin_memset(by_pixel, 0, grid.rows * grid.columns * stride * sizeof(T));
    for (int64_t row = 0; row < grid.rows; ++row)
      for (int64_t o = 0; o < grid.outputs; ++o) {
        const T* from = dpre + o * plan.plane + plan.lead + row * grid.width;
        T* to = by_pixel + row * grid.columns * stride + o;
        for (int64_t j = 0; j < grid.columns; ++j) to[j * stride] = from[j];
      }
    for (int64_t o = 0; o < stride; o += 4 * lanes<T>) {
      const T* from = by_pixel + o;
      switch (least(4, (stride - o) / lanes<T>)) {
        case 1:
          add_weight_gradient<T, 1>(grid, padded.get(), plan.offsets.get(), from, stride, dweight + o);
          break;
        case 2:
          add_weight_gradient<T, 2>(grid, padded.get(), plan.offsets.get(), from, stride, dweight + o);
          break;
        case 3:
          add_weight_gradient<T, 3>(grid, padded.get(), plan.offsets.get(), from, stride, dweight + o);
          break;
        default:
          add_weight_gradient<T, 4>(grid, padded.get(), plan.offsets.get(), from, stride, dweight + o);
      }
    }
  }
  if (d.dx != nullptr) {
    const int64_t count = s.height * grid.width, stride = whole_vectors<T>(count), depth = grid.outputs * grid.taps;
    T* dx = d.dx + (image * s.channels + group * grid.inputs) * plane;
    multiply(plan.transposed + (model * s.groups + group) * grid.inputs * depth, grid.inputs, depth,
             dpre + plan.lead + s.padding[0] * grid.width, plan.transposed_offsets.get(), count,
             static_cast<const T*>(nullptr), pre.get(), stride);
    for (int64_t c = 0; c < grid.inputs; ++c)
      for (int64_t y = 0; y < s.height; ++y)
        __builtin_memcpy(dx + (c * s.height + y) * s.width, pre + c * stride + y * grid.width + s.padding[1],
                         s.width * sizeof(T));
  }
}

template <class T>
void conv_backward(const ConvBackward<T>& d, const Parallel& parallel) {
  const ConvShape& s = d.shape;
  const ConvBackwardPlan<T> plan(d);
  const Grid& grid = plan.grid;
  // A fixed number of parts, whatever the number of threads, each summed in order: the result does not depend on them.
  const int64_t parts = most(1, least(s.batch, 16)), images = divide_up(s.batch, parts);
  const int64_t weights = s.groups * grid.depth * plan.outputs_padded;
  Scratch<T> dweights(s.models * parts * weights), dbiases(s.models * parts * s.outputs);
  __builtin_memset(dweights, 0, s.models * parts * weights * sizeof(T));
  __builtin_memset(dbiases, 0, s.models * parts * s.outputs * sizeof(T));
  parallel_for(parallel, s.models * parts * s.groups, [&](int64_t task) {
    const int64_t group = task % s.groups, part = task / s.groups, model = part / parts;
    const int64_t first = part % parts * images, last = least(s.batch, first + images);
    for (int64_t b = first; b < last; ++b)
      conv_backward_image(plan, model, model * s.batch + b, group,
                          dweights + part * weights + group * grid.depth * plan.outputs_padded,
                          dbiases + part * s.outputs + group * grid.outputs);
  });
  for (int64_t model = 0; model < s.models; ++model)
    for (int64_t o = 0; o < s.outputs; ++o) {
      const int64_t group = o / grid.outputs, in_group = o % grid.outputs;
      auto sum = [&](const T* of_parts, int64_t size, int64_t at) {
        T total = 0;
        for (int64_t part = 0; part < parts; ++part) total += of_parts[(model * parts + part) * size + at];
        return total;
      };
      if (d.dbias != nullptr) d.dbias[model * s.outputs + o] = sum(dbiases.get(), s.outputs, o);
      for (int64_t k = 0; d.dweight != nullptr && k < grid.depth; ++k)
        d.dweight[(model * s.outputs + o) * grid.depth + k] =
            sum(dweights.get(), weights, (group * grid.depth + k) * plan.outputs_padded + in_group);
    }
}

}  // namespace
}  // namespace recurve
