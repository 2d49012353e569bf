// The convolution block, forward and backward, for any geometry by direct convolution; by tiles in shared memory where
// these serve; or, where products dominate and may be computed there, on tensor cores. Compiled for one element type
// per source file.
//
// In the kernels below lanes lie along the rows of an image and a thread owns a few rows of them, so that loads are
// coalesced and a value that was loaded serves several rows of the kernel. Images come through the first-level cache,
// weights through shared memory. Forward, and for the gradient of x, a thread sums several outputs; for that of the
// weights it sums one column of the kernel over pixels, and fixed parts of the pixels are added in their order.
#pragma once

#include "convolution_tensor.h"
#include "convolution_tiles.h"
#include "convolution_work.h"
#include "launch.h"

namespace recurve::cuda {

// ----------------------------------------------------------------------------------------- images from images

// Adds elements [tap, tap + count) of a column of the kernel, whose weights lie side by side for all outputs.
template <class T, int OUTPUTS, int ROWS, int COLUMNS, class A = Accumulate<T>>
__device__ __forceinline__ void add_column(A (&sums)[OUTPUTS][ROWS][COLUMNS], const Convolution<T>& c, const T* plane,
                                           const A* weights, int row, int column, int kernel_column, int tap,
                                           int count) {
  int at[COLUMNS];
#pragma unroll
  for (int s = 0; s < COLUMNS; ++s) at[s] = c.columns.input_of(column + s, kernel_column);
  auto load = [&](int input_row, int s) { return pixel(plane, c.rows.inputs, c.columns.inputs, input_row, at[s]); };
  auto multiply = [&](const A(&values)[ROWS][COLUMNS]) {
#pragma unroll
    for (int o = 0; o < OUTPUTS; ++o)
#pragma unroll
      for (int r = 0; r < ROWS; ++r)
#pragma unroll
        for (int s = 0; s < COLUMNS; ++s) sums[o][r][s] += weights[o] * values[r][s];
    weights += OUTPUTS;
  };
  A values[ROWS][COLUMNS];
  if (c.rows.rolls()) {
    const int first = c.rows.input_of(row, tap);
#pragma unroll
    for (int r = 1; r < ROWS; ++r)
#pragma unroll
      for (int s = 0; s < COLUMNS; ++s) values[r][s] = load(first + r - 1, s);
#pragma unroll 4
    for (int t = 0; t < count; ++t) {
#pragma unroll
      for (int s = 0; s < COLUMNS; ++s) {
#pragma unroll
        for (int r = 0; r + 1 < ROWS; ++r) values[r][s] = values[r + 1][s];
        values[ROWS - 1][s] = load(first + ROWS - 1 + t, s);
      }
      multiply(values);
    }
  } else {
    for (int t = tap; t < tap + count; ++t) {
#pragma unroll
      for (int r = 0; r < ROWS; ++r)
#pragma unroll
        for (int s = 0; s < COLUMNS; ++s) values[r][s] = load(c.rows.input_of(row + r, t), s);
      multiply(values);
    }
  }
}

constexpr int staged_weights = 512;  // elements of the kernel, over channels, in shared memory at a time

// Sums of OUTPUTS outputs over ROWS x COLUMNS pixels; all threads of the block take part.
template <class T, int OUTPUTS, int ROWS, int COLUMNS, class A = Accumulate<T>>
__device__ __forceinline__ void convolve(A (&sums)[OUTPUTS][ROWS][COLUMNS], const Convolution<T>& c, const T* image,
                                         const T* weight, int outputs, int row, int column) {
  A* staged = reinterpret_cast<A*>(shared_memory());
  const int height = c.rows.taps, taps = height * c.columns.taps, depth = c.inputs * taps;
  const int64_t plane = int64_t{1} * c.rows.inputs * c.columns.inputs;
  for (int begin = 0; begin < depth; begin += staged_weights) {
    const int end = least(depth, begin + staged_weights);
    __syncthreads();
    for (int i = threadIdx.x; i < (end - begin) * OUTPUTS; i += conv_threads) {
      const int k = begin + i / OUTPUTS, o = i % OUTPUTS;  // k by channel, column, row
      const int channel = k / taps, tap = k % height * c.columns.taps + k / height % c.columns.taps;
      staged[i] =
          o < outputs
              ? widen(weight[o * c.weight_output + channel * c.weight_input + (c.flipped ? taps - 1 - tap : tap)])
              : A{};
    }
    __syncthreads();
    for (int k = begin; k < end;) {
      const int tap = k % height, count = least(height - tap, end - k);
      add_column<T>(sums, c, image + k / taps * plane, staged + (k - begin) * OUTPUTS, row, column,
                    k / height % c.columns.taps, tap, count);
      k += count;
    }
  }
}

// Without pooling a thread owns ROWS x 1 pixels; with it a window, ROWS x COLUMNS pixels at a time.
template <class T, int OUTPUTS, bool POOLED, int ROWS, int COLUMNS>
__global__ void __launch_bounds__(conv_threads, resident_blocks<T>) convolve_images(const Convolution<T> c) {
  using A = Accumulate<T>;
  const Work work = work_of_block(c, OUTPUTS);
  const int place = static_cast<int>(work.tile) * conv_threads + threadIdx.x;
  const int region_column = place % c.regions[1], region_row = place / c.regions[1] % c.regions[0];
  const int64_t at = place / c.regions[1] / c.regions[0];
  const bool is_mine = at < c.batch;
  const int64_t image = is_mine ? at : 0;  // others keep step with the barriers
  const T *x = input_of_work(c, work, image), *weight = weight_of_work(c, work);

  if constexpr (!POOLED) {
    static_assert(COLUMNS == 1);
    const int row = region_row * ROWS;
    A sums[OUTPUTS][ROWS][COLUMNS] = {};
    convolve<T>(sums, c, x, weight, work.outputs, row, region_column);
#pragma unroll
    for (int o = 0; o < OUTPUTS; ++o)
#pragma unroll
      for (int r = 0; r < ROWS; ++r)
        if (is_mine && o < work.outputs && row + r < c.rows.results)
          c.y[(plane_of_work(c, work, image, o) * c.rows.results + row + r) * c.columns.results + region_column] =
              narrow<T>(activate(sums[o][r][0] + bias_of_work(c, work, o), c.activation));
  } else {
    Pooled<A> windows[OUTPUTS];
    for (int part = 0; part < c.parts; ++part) {
      A sums[OUTPUTS][ROWS][COLUMNS] = {};
      convolve<T>(sums, c, x, weight, work.outputs, region_row * c.window[0] + part / c.window[1],
                  region_column * c.window[1] + part % c.window[1]);
#pragma unroll
      for (int o = 0; o < OUTPUTS; ++o)
#pragma unroll
        for (int p = 0; p < ROWS * COLUMNS; ++p)
          windows[o].see(activate(sums[o][p / COLUMNS][p % COLUMNS] + bias_of_work(c, work, o), c.activation), part + p,
                         c.pool);
    }
    const A scale = c.pool == Pool::average ? A{1} / static_cast<A>(c.window[0] * c.window[1]) : A{1};
#pragma unroll
    for (int o = 0; o < OUTPUTS; ++o)
      if (is_mine && o < work.outputs) {
        const int64_t to =
            (plane_of_work(c, work, image, o) * c.regions[0] + region_row) * c.regions[1] + region_column;
        c.y[to] = narrow<T>(windows[o].value * scale);
        if (c.places != nullptr) c.places[to] = static_cast<uint8_t>(windows[o].largest);
      }
  }
}

// ------------------------------------------------------------------------------- the gradient of the pixels

// From dy to the gradient of the convolution's pixels before the activation. `pixels` holds the pixels themselves where
// the shape does not keep enough, and then their gradients. A thread owns a window; behind the last ones it leaves
// zeros.
template <class T>
struct PixelGradient {
  ConvShape shape;
  const T *y, *dy;
  const uint8_t* places;
  T* pixels;
  int64_t windows;
};

template <class T>
__global__ void __launch_bounds__(conv_threads) differentiate_pixels(const PixelGradient<T> d) {
  using A = Accumulate<T>;
  const ConvShape& s = d.shape;
  const int rows = static_cast<int>(s.convolved(0)), columns = static_cast<int>(s.convolved(1));
  const int window[2] = {static_cast<int>(s.window[0]), static_cast<int>(s.window[1])};
  const int down = divide_up(rows, window[0]), across = divide_up(columns, window[1]);
  const int whole[2] = {rows / window[0], columns / window[1]};
  const bool recomputed = !s.keeps_enough();
  for (int64_t i = int64_t{1} * blockIdx.x * conv_threads + threadIdx.x; i < d.windows;
       i += int64_t{1} * gridDim.x * conv_threads) {
    const int column = static_cast<int>(i % across), row = static_cast<int>(i / across % down);
    const int64_t plane = i / across / down, at = (plane * whole[0] + row) * whole[1] + column;
    T* corner = d.pixels + (plane * rows + int64_t{1} * row * window[0]) * columns + column * window[1];
    const bool pooled = row < whole[0] && column < whole[1];
    const int height = least(window[0], rows - row * window[0]), width = least(window[1], columns - column * window[1]);
    A of_y = pooled ? widen(d.dy[at]) : A{};
    int largest = 0;
    if (!pooled) {
    } else if (recomputed && s.pool == Pool::max) {
      A best{};
      for (int p = 0; p < height * width; ++p) {
        const A value = activate(static_cast<A>(widen(corner[p / width * columns + p % width])), s.activation);
        if (p == 0 || value > best || value != value) best = value, largest = p;
      }
    } else if (s.keeps_places()) {
      largest = d.places[at];
    }
    if (s.pool == Pool::average) of_y *= A{1} / static_cast<A>(window[0] * window[1]);
    if (pooled && !recomputed && s.pool != Pool::average) {
      const A value = widen(d.y[at]);
      of_y *= activation_slope(value, value, s.activation);
    }
    for (int p = 0; p < height * width; ++p) {
      T& to = corner[int64_t{1} * (p / width) * columns + p % width];
      A gradient = s.pool == Pool::max && p != largest ? A{} : of_y;
      if (pooled && recomputed) {
        const A pre = widen(to);
        gradient *= activation_slope(pre, activate(pre, s.activation), s.activation);
      }
      to = narrow<T>(gradient);
    }
  }
}

// -------------------------------------------------------------------------------- the gradient of the weights

template <class T, int OUTPUTS, int TAPS>
__global__ void __launch_bounds__(conv_threads, resident_blocks<T>) correlate_images(const Correlation<T> c) {
  using A = Accumulate<T>;
  BlockNumber block;
  const int tap = block.digit(c.tap_tiles) * TAPS, kernel_column = block.digit(c.columns.taps),
            channel = block.digit(c.inputs);
  const int first = block.digit(c.output_tiles) * OUTPUTS, group = block.digit(c.groups), part = block.digit(c.parts);
  const int64_t model = block.rest;
  const int outputs = least(OUTPUTS, c.outputs - first), taps = least(TAPS, c.rows.taps - tap);
  const bool with_bias = c.biases != nullptr && tap == 0 && kernel_column == 0 && channel == 0;
  const int64_t input_plane = int64_t{1} * c.rows.inputs * c.columns.inputs;
  const int64_t pixel_plane = int64_t{1} * c.rows.results * c.columns.results;
  const T* x =
      c.x + ((c.shared ? 0 : model * c.batch) * c.groups + group) * c.inputs * input_plane + channel * input_plane;
  const T* pixels = c.pixels + ((model * c.batch * c.groups + group) * c.outputs + first) * pixel_plane;

  A sums[OUTPUTS][TAPS] = {}, bias[OUTPUTS] = {};
  const int begin = part * c.part_places, end = least(c.places, begin + c.part_places);
  int place = begin + threadIdx.x;
  int column = place % c.columns.results, strip = place / c.columns.results % c.strips;
  int64_t image = place / c.columns.results / c.strips;
  for (; place < end; place += conv_threads) {
    const T* from = x + image * c.groups * c.inputs * input_plane;
    const T* gradients = pixels + image * c.groups * c.outputs * pixel_plane;
    const int row = strip * strip_rows, input_column = c.columns.input_of(column, kernel_column);
    A d[OUTPUTS][strip_rows];
#pragma unroll
    for (int o = 0; o < OUTPUTS; ++o)
#pragma unroll
      for (int r = 0; r < strip_rows; ++r)
        d[o][r] =
            o < outputs ? pixel(gradients + o * pixel_plane, c.rows.results, c.columns.results, row + r, column) : A{};
    auto load = [&](int input_row) { return pixel(from, c.rows.inputs, c.columns.inputs, input_row, input_column); };
    if (c.rows.rolls()) {
      A values[TAPS + strip_rows - 1];
      const int top = c.rows.input_of(row, tap);
#pragma unroll
      for (int i = 0; i < TAPS + strip_rows - 1; ++i) values[i] = load(top + i);
#pragma unroll
      for (int t = 0; t < TAPS; ++t)
#pragma unroll
        for (int o = 0; o < OUTPUTS; ++o)
#pragma unroll
          for (int r = 0; r < strip_rows; ++r) sums[o][t] += d[o][r] * values[t + r];
    } else {
#pragma unroll
      for (int t = 0; t < TAPS; ++t)
#pragma unroll
        for (int r = 0; r < strip_rows; ++r) {
          const A value = load(c.rows.input_of(row + r, tap + t));
#pragma unroll
          for (int o = 0; o < OUTPUTS; ++o) sums[o][t] += d[o][r] * value;
        }
    }
    if (with_bias) {
#pragma unroll
      for (int o = 0; o < OUTPUTS; ++o)
#pragma unroll
        for (int r = 0; r < strip_rows; ++r) bias[o] += d[o][r];
    }
    column += c.next[2], strip += c.next[1], image += c.next[0];
    if (column >= c.columns.results) column -= c.columns.results, ++strip;
    if (strip >= c.strips) strip -= c.strips, ++image;
  }

  // Over the warp, then over the warps in their order.
  constexpr int all = OUTPUTS * (TAPS + 1);
  A* of_warps = reinterpret_cast<A*>(shared_memory());
#pragma unroll
  for (int i = 0; i < all; ++i) {
    A sum = i < OUTPUTS * TAPS ? sums[i / TAPS % OUTPUTS][i % TAPS] : bias[i % OUTPUTS];
#pragma unroll
    for (int offset = warp_size / 2; offset > 0; offset /= 2) sum += from_further(sum, offset);
    if (lane() == 0) of_warps[warp() * all + i] = sum;
  }
  __syncthreads();
  const int i = threadIdx.x;
  if (i >= all) return;
  A sum = of_warps[i];
  for (int w = 1; w < conv_threads / warp_size; ++w) sum += of_warps[w * all + i];
  const int64_t output = ((part * c.models + model) * c.groups + group) * c.outputs + first;
  if (i >= OUTPUTS * TAPS) {
    if (with_bias && i % OUTPUTS < outputs) c.biases[output + i % OUTPUTS] = sum;
  } else if (i / TAPS < outputs && i % TAPS < taps) {
    c.weights[(((output + i / TAPS) * c.inputs + channel) * c.rows.taps + tap + i % TAPS) * c.columns.taps +
              kernel_column] = sum;
  }
}

constexpr int add_threads = 256;

// Sums of weights and of biases over parts. A warp takes every 8th part of 32 of them.
template <class T>
struct PartSums {
  const Accumulate<T>* sums[2];  // (parts, size) each
  int64_t sizes[2];
  int parts;
  T* to[2];  // or null
};

template <class T>
__global__ void __launch_bounds__(add_threads) add_parts(const PartSums<T> p) {
  Accumulate<T>* const of_warps = reinterpret_cast<Accumulate<T>*>(shared_memory());
  int64_t i = int64_t{1} * blockIdx.x * warp_size + lane();
  const int which = i < p.sizes[0] ? 0 : 1;
  if (which == 1) i -= p.sizes[0];
  const bool wanted = i < p.sizes[which] && p.to[which] != nullptr;
  Accumulate<T> sum{};
  if (wanted)
#pragma unroll 4
    for (int part = warp(); part < p.parts; part += add_threads / warp_size)
      sum += p.sums[which][part * p.sizes[which] + i];
  of_warps[threadIdx.x] = sum;
  __syncthreads();
  if (warp() > 0 || !wanted) return;
  for (int other = threadIdx.x + warp_size; other < add_threads; other += warp_size) sum += of_warps[other];
  p.to[which][i] = narrow<T>(sum);
}

// ---------------------------------------------------------------------------------------------------- launches

inline int64_t pieces(int64_t count, int64_t size) { return (count + size - 1) / size; }

// Of the forward pass, from x.
inline Axis axis_of(const ConvShape& s, int axis) {
  return {static_cast<int>(axis == 0 ? s.height : s.width),
          static_cast<int>(s.convolved(axis)),
          static_cast<int>(s.kernel[axis]),
          static_cast<int>(s.stride[axis]),
          static_cast<int>(-s.padding[axis]),
          static_cast<int>(s.dilation[axis]),
          1};
}

// Of its transpose, from the pixels, with the kernel flipped.
inline Axis transposed_axis_of(const ConvShape& s, int axis) {
  const Axis of = axis_of(s, axis);
  return {of.results, of.inputs, of.taps, 1, -of.start - of.dilation * (of.taps - 1), of.dilation, of.step};
}

// Whether all places and sizes can be counted in 32 bits.
inline bool countable(const ConvShape& s) {
  for (int axis = 0; axis < 2; ++axis)
    if ((axis == 0 ? s.height : s.width) + 2 * s.padding[axis] >= most_size) return false;
  const int64_t inputs = s.channels / s.groups, taps = s.kernel[0] * s.kernel[1];
  return s.batch * s.height * s.width < most_size && s.batch * s.convolved(0) * s.convolved(1) < most_size &&
         s.channels < most_size && s.outputs < most_size && (inputs + s.outputs / s.groups) * taps < most_size;
}

template <class T>
Convolution<T> forward_convolution(const ConvForward<T>& f) {
  const ConvShape& s = f.shape;
  const int64_t inputs = s.channels / s.groups, taps = s.kernel[0] * s.kernel[1];
  return {s.models,
          s.batch,
          static_cast<int>(s.groups),
          static_cast<int>(inputs),
          static_cast<int>(s.outputs / s.groups),
          axis_of(s, 0),
          axis_of(s, 1),
          s.shared,
          false,
          inputs * taps,
          taps,
          s.activation,
          s.pool,
          {static_cast<int>(s.window[0]), static_cast<int>(s.window[1])},
          f.x,
          f.weight,
          f.bias,
          f.y,
          f.places,
          0,
          {0, 0},
          1,
          0};
}

template <class T>
Convolution<T> transposed_convolution(const ConvShape& s, const T* pixels, const T* weight, T* dx) {
  Convolution<T> c = forward_convolution<T>({s, pixels, weight, nullptr, dx, nullptr});
  c.rows = transposed_axis_of(s, 0), c.columns = transposed_axis_of(s, 1);
  const int inputs = c.inputs;
  c.inputs = c.outputs, c.outputs = inputs;
  const int64_t stride = c.weight_output;
  c.weight_output = c.weight_input, c.weight_input = stride;
  c.shared = false, c.flipped = true;
  c.activation = Activation::none, c.pool = Pool::none;
  return c;
}

template <class T, int OUTPUTS>
cudaError_t launch_convolution(Convolution<T> c, cudaStream_t stream) {
  const bool is_2x2 = c.pool != Pool::none && c.window[0] == 2 && c.window[1] == 2;
  c.output_tiles = divide_up(c.outputs, OUTPUTS);
  c.regions[0] = c.pool == Pool::none ? divide_up(c.rows.results, strip_rows) : c.rows.results / c.window[0];
  c.regions[1] = c.columns.results / (c.pool == Pool::none ? 1 : c.window[1]);
  c.parts = c.pool == Pool::none || is_2x2 ? 1 : c.window[0] * c.window[1];
  c.tiles = pieces(c.batch * c.regions[0] * c.regions[1], conv_threads);
  const int64_t blocks = c.models * c.groups * c.output_tiles * c.tiles;
  const int64_t depth = int64_t{1} * c.inputs * c.rows.taps * c.columns.taps;
  const int64_t bytes = (depth < staged_weights ? depth : staged_weights) * OUTPUTS * sizeof(Accumulate<T>);
  auto kernel = c.pool == Pool::none ? convolve_images<T, OUTPUTS, false, strip_rows, 1>
                : is_2x2             ? convolve_images<T, OUTPUTS, true, 2, 2>
                                     : convolve_images<T, OUTPUTS, true, 1, 1>;
  return launch(kernel, blocks, conv_threads, bytes, stream, c);
}

template <class T>
cudaError_t launch_convolution(const Convolution<T>& c, Math math, cudaStream_t stream) {
  if constexpr (sizeof(T) <= 4)
    if (on_tensor_cores(c, math)) return launch_on_tensor_cores(c, stream);
  return c.outputs == 1   ? launch_convolution<T, 1>(c, stream)
         : c.outputs <= 4 ? launch_convolution<T, 4>(c, stream)
                          : launch_convolution<T, 8>(c, stream);
}

template <class T>
cudaError_t launch_forward(const Convolution<T>& c, const ConvShape& s, Math math, cudaStream_t stream) {
  if (tiles_serve(s) && tiles_hold_windows(c) && !on_tensor_cores(c, math))
    return launch_tiles(c, pixels_of<T>(s, c.x, nullptr, nullptr, 1), stream);
  return launch_convolution(c, math, stream);
}

template <class T>
cudaError_t conv_forward(const ConvForward<T>& f, Math math, cudaStream_t stream) {
  return countable(f.shape) ? launch_forward(forward_convolution(f), f.shape, math, stream) : cudaErrorInvalidValue;
}

// How the sum over pixels is cut, by sizes alone, so that results are the same on every GPU.
struct CorrelationPlan {
  bool tensor;
  int outputs, taps;  // of a block: rows of a column of the kernel, or on tensor cores any of its elements
  int64_t strips, places, parts, blocks;
};

inline CorrelationPlan correlation_plan(const ConvShape& s, Math math) {
  constexpr int64_t wanted_blocks = 1024, least_rounds = 4;
  CorrelationPlan plan;
  const int64_t inputs = s.channels / s.groups, outputs = s.outputs / s.groups, height = s.kernel[0];
  plan.tensor = correlates_on_tensor_cores(s, math);
  if (plan.tensor) {
    plan.outputs = 16 * rows_of_tiles(outputs);
    plan.taps = tile_columns;
    plan.strips = s.convolved(0);
  } else {
    plan.outputs = outputs == 1 ? 1 : 4;
    plan.taps = height == 1 ? 1 : height <= 3 ? 3 : height <= 5 ? 5 : 7;
    plan.strips = pieces(s.convolved(0), strip_rows);
  }
  plan.places = s.batch * plan.strips * s.convolved(1);
  const int64_t elements =
      plan.tensor ? pieces(inputs * height * s.kernel[1], plan.taps) : inputs * s.kernel[1] * pieces(height, plan.taps);
  const int64_t of_a_part = s.models * s.groups * pieces(outputs, plan.outputs) * elements;
  const int64_t useful = pieces(plan.places, least_rounds * conv_threads), wanted = pieces(wanted_blocks, of_a_part);
  plan.parts = wanted < useful ? wanted : useful;
  if (plan.parts < 1) plan.parts = 1;
  plan.blocks = plan.parts * of_a_part;
  return plan;
}

// Whether tiles serve both gradients.
inline bool differentiates_in_tiles(const ConvShape& s, Math math) {
  const int64_t taps = s.kernel[0] * s.kernel[1];
  return tiles_serve(s) && !correlates_on_tensor_cores(s, math) &&
         !(math == Math::tensor && fills_tiles(s.channels / s.groups, s.outputs / s.groups * taps));
}

// Whether these make the gradients of pixels from y, and need no room for them.
inline bool differentiates_while_reading(const ConvShape& s, Math math) {
  return differentiates_in_tiles(s, math) && tiles_hold_windows(s) && s.keeps_enough();
}

template <class T>
int64_t parts_of_sums(const ConvShape& s, Math math) {
  return differentiates_in_tiles(s, math) ? tiled_correlation_plan<T>(s).parts : correlation_plan(s, math).parts;
}

template <class T>
ConvScratch conv_scratch(const ConvShape& s, Math math) {
  const int64_t pixels = s.models * s.batch * s.outputs * s.convolved(0) * s.convolved(1);
  const int64_t weights = s.outputs * (s.channels / s.groups) * s.kernel[0] * s.kernel[1];
  return {differentiates_while_reading(s, math) ? 0 : pixels,
          parts_of_sums<T>(s, math) * s.models * (weights + s.outputs)};
}

template <class T>
cudaError_t launch_direct_correlation(Correlation<T> c, const CorrelationPlan& plan, cudaStream_t stream) {
  c.strips = static_cast<int>(plan.strips), c.places = static_cast<int>(plan.places);
  c.part_places = static_cast<int>(pieces(plan.places, plan.parts));
  c.output_tiles = divide_up(c.outputs, plan.outputs);
  if constexpr (sizeof(T) <= 4)
    if (plan.tensor) return launch_tensor_correlation(c, plan.blocks, stream);
  c.tap_tiles = divide_up(c.rows.taps, plan.taps);
  c.next[2] = conv_threads % c.columns.results;
  c.next[1] = conv_threads / c.columns.results % c.strips;
  c.next[0] = conv_threads / c.columns.results / c.strips;
  auto run = [&](auto kernel) {
    const int64_t bytes = conv_threads / warp_size * plan.outputs * (plan.taps + 1) * sizeof(Accumulate<T>);
    return launch(kernel, plan.blocks, conv_threads, bytes, stream, c);
  };
  auto with_outputs = [&](auto one, auto four) { return run(plan.outputs == 1 ? one : four); };
  return plan.taps == 1   ? with_outputs(correlate_images<T, 1, 1>, correlate_images<T, 4, 1>)
         : plan.taps == 3 ? with_outputs(correlate_images<T, 1, 3>, correlate_images<T, 4, 3>)
         : plan.taps == 5 ? with_outputs(correlate_images<T, 1, 5>, correlate_images<T, 4, 5>)
                          : with_outputs(correlate_images<T, 1, 7>, correlate_images<T, 4, 7>);
}

// `pixels`: their gradients, or null to make them from y.
template <class T>
cudaError_t launch_correlation(const ConvBackward<T>& d, Math math, const T* pixels, Accumulate<T>* sums,
                               cudaStream_t stream) {
  const ConvShape& s = d.shape;
  const int64_t weights = s.models * s.outputs * (s.channels / s.groups) * s.kernel[0] * s.kernel[1];
  const int64_t biases = s.models * s.outputs;
  Correlation<T> c{};
  c.models = s.models, c.batch = s.batch;
  c.groups = static_cast<int>(s.groups);
  c.inputs = static_cast<int>(s.channels / s.groups), c.outputs = static_cast<int>(s.outputs / s.groups);
  c.rows = axis_of(s, 0), c.columns = axis_of(s, 1);
  c.shared = s.shared;
  c.x = d.x, c.pixels = pixels;
  c.parts = static_cast<int>(parts_of_sums<T>(s, math));
  c.weights = sums, c.biases = d.dbias == nullptr ? nullptr : sums + c.parts * weights;
  const cudaError_t error =
      differentiates_in_tiles(s, math)
          ? launch_tiled_correlation(c, s, gradients_of(d, pixels), tiled_correlation_plan<T>(s), stream)
          : launch_direct_correlation(c, correlation_plan(s, math), stream);
  if (error != cudaSuccess) return error;
  return launch(add_parts<T>, pieces(weights + biases, warp_size), add_threads, add_threads * sizeof(Accumulate<T>),
                stream, PartSums<T>{{c.weights, c.biases}, {weights, biases}, c.parts, {d.dweight, d.dbias}});
}

// Leaves the gradients of pixels in `pixels`.
template <class T>
cudaError_t launch_differentiation(const ConvBackward<T>& d, Math math, T* pixels, cudaStream_t stream) {
  const ConvShape& s = d.shape;
  if (!s.keeps_enough()) {  // the pixels before their activation
    Convolution<T> c = forward_convolution<T>({s, d.x, d.weight, d.bias, pixels, nullptr});
    c.activation = Activation::none, c.pool = Pool::none;
    const cudaError_t error = launch_forward(c, s, math, stream);
    if (error != cudaSuccess) return error;
  }
  const int64_t windows =
      s.models * s.batch * s.outputs * pieces(s.convolved(0), s.window[0]) * pieces(s.convolved(1), s.window[1]);
  const int64_t blocks = pieces(windows, conv_threads);
  return launch(differentiate_pixels<T>, blocks < (1 << 20) ? blocks : 1 << 20, conv_threads, 0, stream,
                PixelGradient<T>{s, d.y, d.dy, d.places, pixels, windows});
}

template <class T>
cudaError_t conv_backward(const ConvBackward<T>& d, Math math, T* pixels, Accumulate<T>* sums, cudaStream_t stream) {
  const ConvShape& s = d.shape;
  if (!countable(s)) return cudaErrorInvalidValue;
  cudaError_t error = cudaSuccess;
  const T* gradients = nullptr;  // of pixels; null: made from y where they are read
  if (!differentiates_while_reading(s, math)) {
    gradients = d.dy;  // as they are where the block is a convolution alone
    if (s.pool != Pool::none || s.activation != Activation::none) {
      error = launch_differentiation(d, math, pixels, stream);
      gradients = pixels;
    }
  }
  if (error == cudaSuccess && d.dx != nullptr) {
    const Convolution<T> c = transposed_convolution(s, gradients, d.weight, d.dx);
    error = differentiates_in_tiles(s, math) ? launch_tiles(c, gradients_of(d, gradients), stream)
                                             : launch_convolution(c, math, stream);
  }
  if (error != cudaSuccess || (d.dweight == nullptr && d.dbias == nullptr)) return error;
  return launch_correlation(d, math, gradients, sums, stream);
}

#define RECURVE_CONVOLUTION_KERNELS(T)                                             \
  template cudaError_t conv_forward<T>(const ConvForward<T>&, Math, cudaStream_t); \
  template ConvScratch conv_scratch<T>(const ConvShape&, Math);                    \
  template cudaError_t conv_backward<T>(const ConvBackward<T>&, Math, T*, Accumulate<T>*, cudaStream_t)

}  // namespace recurve::cuda
