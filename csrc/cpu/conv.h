// The convolution block: direct convolution at stride 1, bias, activation and pooling, image by image.
//
// An image is copied once with its padding. On the grid of the padded width, the input that kernel element k needs for
// output pixel p lies at p + offset[k]: the convolution is a product with the weights that reads the image in place,
// many pixels at a time, and only what pooling keeps leaves the cache. The few grid columns past the output's width are
// computed and dropped. The two products of the backward pass run on the same grid. Where the slopes of the activation
// do not follow from what pooling has kept, the convolution is computed again: that is cheaper than to keep it in
// memory.
#pragma once

#include "conv_depthwise.h"
#include "conv_forward.h"
#include "conv_grid.h"
#include "conv_pool.h"
#include "conv_windows.h"
#include "conv_winograd.h"

namespace recurve {
namespace {

template <class T>
void conv_forward(const ConvForward<T>& f, const Parallel& parallel) {
  if (f.shape.depthwise()) return depthwise_forward(f, parallel);
  if (f.winograd) return winograd_forward(f, parallel);
  direct_forward(f, parallel);
}

// ----------------------------------------------------------------------------------------------------- backward

// Gradients of activated pixels of one output channel (rows, width) from those of y; zero past the columns used.
template <class T>
void spread_gradients(const ConvShape& s, const Grid& grid, const T* activated, const T* dy, T* dpixels) {
  for (int64_t r = 0; r < s.pooled(0); ++r) {
    const int64_t at = r * s.window[0] * grid.width;
    if (s.pool == Pool::none)
      __builtin_memcpy(dpixels + at, dy + r * s.pooled(1), grid.columns * sizeof(T));
    else
      unpool_row(s, activated + at, dy + r * s.pooled(1), grid.width, dpixels + at);
  }
  for (int64_t r = 0; r < grid.rows; ++r)
    __builtin_memset(dpixels + r * grid.width + grid.columns, 0, (grid.width - grid.columns) * sizeof(T));
}

// From gradients of activated pixels (rows, width) those of pre-activations.
template <class T>
void multiply_slopes(const ConvShape& s, const Grid& grid, const T* pre, const T* activated, T* dpixels) {
  for (int64_t r = 0; r < grid.rows; ++r)
    for (int64_t j = 0; j < grid.columns; j += lanes<T>) {
      const int64_t at = r * grid.width + j, left = grid.columns - j;
      const Vector<T> slope = activation_slope(load(pre + at, left), load(activated + at, left), s.activation);
      store(dpixels + at, load(dpixels + at, left) * slope, left);
    }
}

// The same from what the forward pass kept: y, and of max pooling the places of the largest.
template <class T>
void gradients_of_kept(const ConvShape& s, const Grid& grid, const T* y, const uint8_t* places, const T* dy,
                       T* dpixels) {
  if (s.pool == Pool::max) __builtin_memset(dpixels, 0, grid.rows * grid.width * sizeof(T));
  for (int64_t i = 0; i < s.pooled(0); ++i)
    for (int64_t j = 0; j < s.pooled(1); ++j, ++y, ++dy) {
      const T gradient = *dy * activation_slope(*y, *y, s.activation);
      const int64_t place = s.pool == Pool::max ? *places++ : 0;
      const int64_t row = i * s.window[0] + place / s.window[1];
      dpixels[row * grid.width + j * s.window[1] + place % s.window[1]] = gradient;
    }
  if (s.pool == Pool::none)
    for (int64_t r = 0; r < grid.rows; ++r)
      __builtin_memset(dpixels + r * grid.width + grid.columns, 0, (grid.width - grid.columns) * sizeof(T));
}

template <class T>
T sum_of(const T* values, int64_t count) {
  Vector<T> sums = zero_vector<T>();
  for (int64_t i = 0; i < count; i += lanes<T>) sums += load(values + i, count - i);
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
  const int64_t first = (image * s.outputs + group * grid.outputs) * pooled;
  Scratch<T> padded(grid.padded_size<T>(s)), activated(plan.pixels + 2 * lanes<T>);
  Scratch<T> pre(most(grid.outputs * plan.pixels, grid.inputs * whole_vectors<T>(s.height * grid.width)));
  Scratch<T> dpre(grid.outputs * plan.plane);
  pad_image(s, grid, d.x + (source * s.channels + group * grid.inputs) * plane, padded.get());
  if (!s.keeps_enough())
    multiply(d.weight + output * grid.depth, grid.outputs, grid.depth, padded.get(), plan.offsets.get(),
             grid.rows * grid.width, d.bias == nullptr ? nullptr : d.bias + output, pre.get(), plan.pixels);
  for (int64_t o = 0; o < grid.outputs; ++o) {
    T* of_output = dpre + o * plan.plane;
    T* pixels = of_output + plan.lead;
    const int64_t count = grid.rows * grid.width, at = first + o * pooled;
    __builtin_memset(of_output, 0, plan.lead * sizeof(T));
    if (s.keeps_enough() && s.pool != Pool::average) {
      gradients_of_kept(s, grid, d.y + at, s.pool == Pool::max ? d.places + at : nullptr, d.dy + at, pixels);
    } else {
      const T* of_pre = pre + o * plan.pixels;
      if (!s.keeps_enough()) activate_pixels(of_pre, count, s.activation, activated.get());
      spread_gradients(s, grid, activated.get(), d.dy + at, pixels);
      if (!s.keeps_enough()) multiply_slopes(s, grid, of_pre, activated.get(), pixels);
    }
    dbias[o] += sum_of(pixels, count);
    __builtin_memset(pixels + count, 0, (plan.plane - plan.lead - count) * sizeof(T));
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

// Whether zero gradients may be left out: what they are multiplied with is finite.
template <class T>
bool may_skip_zeros(const ConvBackward<T>& d, const Parallel& parallel) {
  const ConvShape& s = d.shape;
  const int64_t image = s.channels * s.height * s.width, images = (s.shared ? 1 : s.models) * s.batch;
  const int64_t chunks = least(images, 16), step = divide_up(images, most(1, chunks));
  bool finite[16] = {};
  if (d.dweight == nullptr) return true;
  parallel_for(parallel, chunks, [&](int64_t i) {
    const int64_t first = least(images, i * step);
    finite[i] = all_finite(d.x + first * image, (least(images, first + step) - first) * image);
  });
  for (int64_t i = 0; i < chunks; ++i)
    if (!finite[i]) return false;
  return true;
}

// Of sums (E, parts, size), adds all parts to the first, in their order.
template <class T>
void add_parts(const Parallel& parallel, int64_t models, int64_t parts, int64_t size, T* sums) {
  const int64_t step = 64 * lanes<T>, chunks = divide_up(size, step);
  parallel_for(parallel, models * chunks, [&](int64_t task) {
    T* first = sums + task / chunks * parts * size + task % chunks * step;
    const int64_t count = least(step, size - task % chunks * step);
    for (int64_t part = 1; part < parts; ++part)
      for (int64_t i = 0; i < count; ++i) first[i] += first[part * size + i];
  });
}

template <class T>
void conv_backward(const ConvBackward<T>& d, const Parallel& parallel) {
  const ConvShape& s = d.shape;
  if (s.depthwise()) return depthwise_backward(d, parallel);
  const ConvBackwardPlan<T> plan(d);
  const Grid& grid = plan.grid;
  const Windows<T> windows(d, grid);
  const bool sparse = windows.serves() && windows.finite && may_skip_zeros(d, parallel);
  // A fixed number of parts, whatever the number of threads, each summed in order: the result does not depend on them.
  const int64_t parts = most(1, least(s.batch, 16)), images = divide_up(s.batch, parts);
  const int64_t weights = sparse ? grid.outputs * windows.weight_size : grid.depth * plan.outputs_padded;  // of a group
  Scratch<T> dweights(s.models * parts * s.groups * weights), dbiases(s.models * parts * s.outputs);
  parallel_for(parallel, s.models * parts * s.groups, [&](int64_t task) {
    const int64_t group = task % s.groups, part = task / s.groups, model = part / parts;
    const int64_t first = part % parts * images, last = least(s.batch, first + images);
    T* dweight = dweights + task * weights;
    T* dbias = dbiases + part * s.outputs + group * grid.outputs;
    __builtin_memset(dweight, 0, weights * sizeof(T));
    __builtin_memset(dbias, 0, grid.outputs * sizeof(T));
    if (!sparse) {
      for (int64_t b = first; b < last; ++b)
        conv_backward_image(plan, model, model * s.batch + b, group, dweight, dbias);
      return;
    }
    const WindowsScratch<T> scratch(windows);
    for (int64_t b = first; b < last; b += scratch.images)
      backward_windows(windows, scratch, model, model * s.batch + b, least(scratch.images, last - b), group, dweight,
                       dbias);
  });
  add_parts(parallel, s.models, parts, s.outputs, dbiases.get());
  if (d.dbias != nullptr)
    for (int64_t model = 0; model < s.models; ++model)
      __builtin_memcpy(d.dbias + model * s.outputs, dbiases + model * parts * s.outputs, s.outputs * sizeof(T));
  if (d.dweight == nullptr) return;
  add_parts(parallel, s.models, parts, s.groups * weights, dweights.get());
  parallel_for(parallel, s.models * s.groups, [&](int64_t task) {
    const int64_t model = task / s.groups, group = task % s.groups;
    const T* from = dweights + (model * parts * s.groups + group) * weights;
    T* to = d.dweight + task * grid.outputs * grid.depth;
    for (int64_t o = 0; o < grid.outputs; ++o)
      for (int64_t k = 0; k < grid.depth; ++k, ++to)
        *to = from[sparse ? windows.weight_place(o, k) : k * plan.outputs_padded + o];
  });
}

}  // namespace
}  // namespace recurve
