// The convolution block on tensor cores: products of matrices that are never stored whole. Forward, and for the
// gradient of x, rows are outputs, columns pixels, and the depth runs over the elements of the kernel; for the gradient
// of the weights, columns are the elements of the kernel and the depth runs over pixels.
//
// A block brings both factors of a piece of the depth to shared memory and multiplies them tile by tile. Pixels are
// numbered window by window of the pooling, so that a block has its windows whole.
#pragma once

#include "convolution_work.h"
#include "launch.h"

namespace recurve::cuda {

constexpr int tile_columns = 64;                                 // of a block: 16 a warp
constexpr int piece_words = 32, piece_stride = piece_words + 4;  // of the depth; 4 more: rows lie in different banks
template <class T>
constexpr int in_word = 4 / sizeof(T);
template <class T>
constexpr int piece_depth = piece_words * in_word<T>;

static_assert(tile_columns == conv_threads / warp_size * 16);

// Which input an element of the kernel multiplies; none past the last.
struct Element {
  int channel, row, column;
};

__device__ __forceinline__ Element element_of(int k, int inputs, const Axis& rows, const Axis& columns) {
  const int taps = rows.taps * columns.taps, tap = k % taps;
  return {k < inputs * taps ? k / taps : -1, tap / columns.taps, tap % columns.taps};
}

// What a block has in its shared memory.
template <class T, int ROWS>  // tiles of 16 rows
struct Factors {
  static constexpr int rows = 16 * ROWS, stride = piece_stride * in_word<T>;
  static constexpr int sums_stride = tile_columns + 2;
  Element elements[tile_columns];
  union {
    struct {
      T a[rows * stride], b[tile_columns * stride];
    };
    float sums[rows * sums_stride];
  };
  static_assert(piece_depth<T> <= tile_columns);

  static __device__ __forceinline__ Factors& of_block() { return *reinterpret_cast<Factors*>(shared_memory()); }

  // acc += a bᵀ over the piece, for the warp's columns.
  __device__ __forceinline__ void multiply_onto(float (&acc)[ROWS][2][4]) const {
    const int q = lane() / 4, w = lane() % 4;
    auto word = [&](const T* factor, int row, int at) {
      return operand<T>(together<uint32_t>(factor + (row * piece_stride + at + w) * in_word<T>));
    };
#pragma unroll
    for (int k = 0; k < piece_words; k += 8) {
      uint32_t of_b[2][2];
#pragma unroll
      for (int tile = 0; tile < 2; ++tile)
#pragma unroll
        for (int i = 0; i < 2; ++i) of_b[tile][i] = word(b, warp() * 16 + tile * 8 + q, k + i * 4);
#pragma unroll
      for (int row = 0; row < ROWS; ++row) {
        uint32_t of_a[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) of_a[i] = word(a, row * 16 + q + i % 2 * 8, k + i / 2 * 4);
#pragma unroll
        for (int tile = 0; tile < 2; ++tile) multiply<T>(acc[row][tile], of_a, of_b[tile]);
      }
    }
  }
};

// Calls f(row, column, sum) for a thread's sums of the block's tile.
template <int ROWS, class F>
__device__ __forceinline__ void for_sums(const float (&acc)[ROWS][2][4], const F& f) {
#pragma unroll
  for (int row = 0; row < ROWS; ++row)
#pragma unroll
    for (int tile = 0; tile < 2; ++tile)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        f(row * 16 + lane() / 4 + i / 2 * 8, warp() * 16 + tile * 8 + lane() % 4 * 2 + i % 2, acc[row][tile][i]);
}

template <class T, int ROWS>
__global__ void __launch_bounds__(conv_threads, 4) convolve_on_tensor_cores(const Convolution<T> c) {
  constexpr int depth_step = piece_depth<T>;
  auto& factors = Factors<T, ROWS>::of_block();
  const Work work = work_of_block(c, factors.rows);
  const int size = c.window[0] * c.window[1], windows = tile_columns / size;  // of the block
  const int64_t places = c.batch * c.regions[0] * c.regions[1];
  const int taps = c.rows.taps * c.columns.taps, depth = c.inputs * taps;

  // The pixel whose inputs a thread brings, of every second word of the piece.
  const int column = threadIdx.x % tile_columns;
  const int64_t place = work.tile * windows + column / size;
  const bool is_pixel = column < windows * size && place < places;
  const int at = is_pixel ? static_cast<int>(place) : 0, in_window = column % size;
  const int pixel_row = at / c.regions[1] % c.regions[0] * c.window[0] + in_window / c.window[1];
  const int pixel_column = at % c.regions[1] * c.window[1] + in_window % c.window[1];
  const T* image = input_of_work(c, work, at / c.regions[1] / c.regions[0]);
  const T* weight = weight_of_work(c, work);

  float acc[ROWS][2][4] = {};
  for (int begin = 0; begin < depth; begin += depth_step) {
    if (threadIdx.x < depth_step)
      factors.elements[threadIdx.x] = element_of(begin + threadIdx.x, c.inputs, c.rows, c.columns);
    __syncthreads();  // the piece before has been read, too
    for (int i = threadIdx.x; i < factors.rows * depth_step; i += conv_threads) {
      const int o = i / depth_step, k = i % depth_step;
      const Element& element = factors.elements[k];
      const int tap = element.row * c.columns.taps + element.column;
      factors.a[o * factors.stride + k] =
          o < work.outputs && element.channel >= 0
              ? weight[o * c.weight_output + element.channel * c.weight_input + (c.flipped ? taps - 1 - tap : tap)]
              : T{};
    }
    for (int word = threadIdx.x / tile_columns; word < piece_words; word += conv_threads / tile_columns)
#pragma unroll
      for (int i = 0; i < in_word<T>; ++i) {
        const int k = word * in_word<T> + i;
        const Element& element = factors.elements[k];
        factors.b[column * factors.stride + k] =
            is_pixel && element.channel >= 0
                ? stored_pixel(image + int64_t{1} * element.channel * c.rows.inputs * c.columns.inputs, c.rows.inputs,
                               c.columns.inputs, c.rows.input_of(pixel_row, element.row),
                               c.columns.input_of(pixel_column, element.column))
                : T{};
      }
    __syncthreads();
    factors.multiply_onto(acc);
  }

  __syncthreads();
  for_sums(acc, [&](int row, int at_column, float sum) { factors.sums[row * factors.sums_stride + at_column] = sum; });
  __syncthreads();
  const float scale = c.pool == Pool::average ? 1.0f / static_cast<float>(size) : 1.0f;
  for (int i = threadIdx.x; i < work.outputs * windows; i += conv_threads) {
    const int o = i / windows, window = i % windows;
    const int64_t to_place = work.tile * windows + window;
    if (to_place >= places) continue;
    const float *sums = factors.sums + o * factors.sums_stride + window * size, bias = bias_of_work(c, work, o);
    Pooled<float> pooled;
    for (int p = 0; p < size; ++p) pooled.see(activate(sums[p] + bias, c.activation), p, c.pool);
    const int64_t plane = int64_t{1} * c.regions[0] * c.regions[1];
    const int64_t to = plane_of_work(c, work, to_place / plane, o) * plane + to_place % plane;
    c.y[to] = narrow<T>(pooled.value * scale);
    if (c.places != nullptr) c.places[to] = static_cast<uint8_t>(pooled.largest);
  }
}

template <class T, int ROWS>
__global__ void __launch_bounds__(conv_threads, 4) correlate_on_tensor_cores(const Correlation<T> c) {
  constexpr int depth_step = piece_depth<T>, at_once = conv_threads / depth_step;
  auto& factors = Factors<T, ROWS>::of_block();
  BlockNumber block;
  const int first_element = block.digit(c.tap_tiles) * tile_columns, first = block.digit(c.output_tiles) * factors.rows;
  const int group = block.digit(c.groups), part = block.digit(c.parts);
  const int64_t model = block.rest;
  const int outputs = least(factors.rows, c.outputs - first), elements = c.inputs * c.rows.taps * c.columns.taps;
  const int64_t input_plane = int64_t{1} * c.rows.inputs * c.columns.inputs;
  const int64_t pixel_plane = int64_t{1} * c.rows.results * c.columns.results;
  const T* x = c.x + ((c.shared ? 0 : model * c.batch) * c.groups + group) * c.inputs * input_plane;
  const T* pixels = c.pixels + ((model * c.batch * c.groups + group) * c.outputs + first) * pixel_plane;
  const bool sums_bias = c.biases != nullptr && first_element == 0 && static_cast<int>(threadIdx.x) < outputs;

  if (threadIdx.x < tile_columns)
    factors.elements[threadIdx.x] = element_of(first_element + threadIdx.x, c.inputs, c.rows, c.columns);
  float acc[ROWS][2][4] = {}, bias = 0;
  const int end = least(c.places, (part + 1) * c.part_places);
  for (int begin = part * c.part_places; begin < end; begin += depth_step) {
    __syncthreads();  // the piece before has been read
    const int mine = threadIdx.x % depth_step, place = begin + mine;
    const int column = place % c.columns.results, row = place / c.columns.results % c.rows.results;
    const int64_t image = place / c.columns.results / c.rows.results;
    const T* gradients = pixels + image * c.groups * c.outputs * pixel_plane + row * c.columns.results + column;
    for (int o = threadIdx.x / depth_step; o < factors.rows; o += at_once)
      factors.a[o * factors.stride + mine] = place < end && o < outputs ? gradients[o * pixel_plane] : T{};
    const T* from = x + image * c.groups * c.inputs * input_plane;
    for (int k = threadIdx.x / depth_step; k < tile_columns; k += at_once) {
      const Element& element = factors.elements[k];
      factors.b[k * factors.stride + mine] =
          place < end && element.channel >= 0
              ? stored_pixel(from + element.channel * input_plane, c.rows.inputs, c.columns.inputs,
                             c.rows.input_of(row, element.row), c.columns.input_of(column, element.column))
              : T{};
    }
    __syncthreads();
    factors.multiply_onto(acc);
    if (sums_bias)
      for (int k = 0; k < depth_step; ++k) bias += widen(factors.a[threadIdx.x * factors.stride + k]);
  }

  const int64_t output = ((part * c.models + model) * c.groups + group) * c.outputs + first;
  for_sums(acc, [&](int o, int column, float sum) {
    if (o < outputs && first_element + column < elements)
      c.weights[(output + o) * elements + first_element + column] = sum;
  });
  if (sums_bias) c.biases[output + threadIdx.x] = bias;
}

// ---------------------------------------------------------------------------------------------------- launches

// Whether products are deep and wide enough to fill tiles: an estimate, not measured.
inline bool fills_tiles(int64_t outputs, int64_t depth) { return outputs >= 8 && depth >= 32; }

template <class T>
bool on_tensor_cores(const Convolution<T>& c, Math math) {
  return math == Math::tensor && fills_tiles(c.outputs, int64_t{1} * c.inputs * c.rows.taps * c.columns.taps) &&
         (c.pool == Pool::none || c.window[0] * c.window[1] <= tile_columns);
}

inline bool correlates_on_tensor_cores(const ConvShape& s, Math math) {
  return math == Math::tensor && fills_tiles(s.outputs / s.groups, s.channels / s.groups * s.kernel[0] * s.kernel[1]);
}

// Tiles of 16 outputs that a block has.
constexpr int rows_of_tiles(int64_t outputs) { return outputs <= 16 ? 1 : outputs <= 32 ? 2 : 4; }

// Calls f.operator()<ROWS>() with them.
template <class F>
cudaError_t with_rows(int64_t outputs, const F& f) {
  switch (rows_of_tiles(outputs)) {
    case 1:
      return f.template operator()<1>();
    case 2:
      return f.template operator()<2>();
    default:
      return f.template operator()<4>();
  }
}

template <class T>
cudaError_t launch_on_tensor_cores(Convolution<T> c, cudaStream_t stream) {
  if (c.pool == Pool::none) c.window[0] = c.window[1] = 1;
  c.regions[0] = c.rows.results / c.window[0], c.regions[1] = c.columns.results / c.window[1];
  const int64_t windows = tile_columns / (c.window[0] * c.window[1]);
  c.tiles = (c.batch * c.regions[0] * c.regions[1] + windows - 1) / windows;
  return with_rows(c.outputs, [&]<int ROWS>() {
    c.output_tiles = divide_up(c.outputs, 16 * ROWS);
    return launch(convolve_on_tensor_cores<T, ROWS>, c.models * c.groups * c.output_tiles * c.tiles, conv_threads,
                  sizeof(Factors<T, ROWS>), stream, c);
  });
}

template <class T>
cudaError_t launch_tensor_correlation(Correlation<T> c, int64_t blocks, cudaStream_t stream) {
  c.tap_tiles = divide_up(c.inputs * c.rows.taps * c.columns.taps, tile_columns);
  return with_rows(c.outputs, [&]<int ROWS>() {
    return launch(correlate_on_tensor_cores<T, ROWS>, blocks, conv_threads, sizeof(Factors<T, ROWS>), stream, c);
  });
}

}  // namespace recurve::cuda
