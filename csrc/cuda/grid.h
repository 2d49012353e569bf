// LSTM, GRU and RNN over a whole sequence in one launch whose blocks share each model's units: for models whose
// recurrent weights fill several blocks. Compiled for one element type per source file.
//
// A block keeps the weights of its units in shared memory from the first step to the last. Blocks of the same sequences
// exchange states (forward) or gradients of gates (backward) through global memory, and meet at a barrier once a step,
// twice for a GRU whose reset acts before the product. All blocks must be resident: the launch is cooperative, one
// block a processor. Every sum has one order on a given GPU.
#pragma once

#include "cells.h"
#include "device.h"
#include "launch.h"

namespace recurve::cuda {

constexpr int grid_threads = 512, grid_unit_tile = 8, exchange_bytes = 64;

// Pieces of 64 bytes that a warp loads ahead of its products: as registers allow, of which code for Blackwell needs
// more.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr int most_under_way = 2;
#else
constexpr int most_under_way = 4;
#endif

// How a launch is cut.
struct GridPlan {
  int units;   // of a block
  int slices;  // blocks that share the units of a model
  int rows;    // sequences of a block
  int parts;   // of a model's sequences
  int depth;   // H and zeros behind it, whole pieces of 64 bytes
  int stride;  // of a unit's weights in shared memory
  int splits;  // of the depth, over warps
  int sums;    // products in shared memory
  int threads;
  int64_t bytes;  // of shared memory; 0: the model does not fit
};

template <bool TENSOR>
constexpr int grid_row_tile = TENSOR ? 16 : 4;

// 16 bytes of states, which another block may have written; and of weights.
template <class T>
struct alignas(16) Piece {
  static constexpr int count = 16 / sizeof(T);
  T values[count];
};

// products: sums[split][gate][row][unit] of the block's rows and units over [begin, begin + depth) of their states.
template <class T, bool TENSOR, int GATES>
__device__ __forceinline__ void multiply_rows(Accumulate<T>* sums, const GridPlan& plan, const T* states,
                                              int64_t row_stride, const T* weights, int rows, int begin, int depth) {
  using A = Accumulate<T>;
  constexpr int tile_rows = grid_row_tile<TENSOR>;
  const int row_tiles = divide_up(rows, tile_rows), padded = round_up(plan.rows, tile_rows);
  auto sum_at = [&](int split, int gate, int row, int unit) -> A& {
    return sums[((split * GATES + gate) * padded + row) * plan.units + unit];
  };
  if constexpr (TENSOR) {
    const int tiles = row_tiles * (plan.units / grid_unit_tile), q = lane() / 4, w = lane() % 4;
    const int chunk = exchange_bytes / sizeof(T), each = divide_up(depth / chunk, plan.splits);
    for (int task = warp(); task < tiles * plan.splits; task += warps()) {
      const int tile = task % tiles, split = task / tiles;
      const int row = tile % row_tiles * tile_rows + q, unit = tile / row_tiles * grid_unit_tile + q;
      const int offset = begin + w * Piece<T>::count;
      const T* low = states + least(row, rows - 1) * row_stride + offset;
      const T* high = states + least(row + 8, rows - 1) * row_stride + offset;
      const T* column = weights + unit * plan.stride + offset;
      const int end = least(depth / chunk, (split + 1) * each);
      float acc[GATES][4] = {};
      // The order within 64 bytes is the same for states and weights, so that a lane reads 16 bytes in a row.
#pragma unroll(GATES > 1 ? 2 : most_under_way)
      for (int c = split * each; c < end; ++c) {
        const Words a0 = exchanged(low + c * chunk), a1 = exchanged(high + c * chunk);
#pragma unroll
        for (int g = 0; g < GATES; ++g) {
          const Words b = together<Words>(column + g * plan.units * plan.stride + c * chunk);
#pragma unroll
          for (int half = 0; half < 4; half += 2) {
            const uint32_t a[4] = {operand<T>(a0.of[half]), operand<T>(a1.of[half]), operand<T>(a0.of[half + 1]),
                                   operand<T>(a1.of[half + 1])};
            const uint32_t of_b[2] = {b.of[half], b.of[half + 1]};
            multiply<T>(acc[g], a, of_b);
          }
        }
      }
#pragma unroll
      for (int g = 0; g < GATES; ++g)
#pragma unroll
        for (int i = 0; i < 4; ++i) sum_at(split, g, row + i / 2 * 8, unit - q + w * 2 + i % 2) = acc[g][i];
    }
  } else {
    constexpr int count = Piece<T>::count;
    for (int task = warp(); task < row_tiles * plan.units; task += warps()) {
      const int row = task % row_tiles * tile_rows, unit = task / row_tiles;
      const T* column = weights + unit * plan.stride + begin;
      A acc[GATES][tile_rows] = {};
#pragma unroll 1  // as registers allow
      for (int k = lane() * count; k < depth; k += warp_size * count) {
        Piece<T> state[tile_rows];
#pragma unroll
        for (int r = 0; r < tile_rows; ++r)
          state[r] =
              __builtin_bit_cast(Piece<T>, exchanged(states + least(row + r, rows - 1) * row_stride + begin + k));
#pragma unroll
        for (int g = 0; g < GATES; ++g) {
          const Piece<T> weight = together<Piece<T>>(column + g * plan.units * plan.stride + k);
#pragma unroll
          for (int r = 0; r < tile_rows; ++r)
#pragma unroll
            for (int i = 0; i < count; ++i) acc[g][r] += state[r].values[i] * weight.values[i];
        }
      }
#pragma unroll
      for (int g = 0; g < GATES; ++g)
#pragma unroll
        for (int r = 0; r < tile_rows; ++r) {
#pragma unroll
          for (int offset = warp_size / 2; offset > 0; offset /= 2) acc[g][r] += from_further(acc[g][r], offset);
          if (lane() == 0) sum_at(0, g, row + r, unit) = acc[g][r];
        }
    }
  }
}

// A unit of a sequence, both counted from the block's first; the index is among all of the block.
struct Item {
  int row, unit, index;
};

// A block's part of the work, and where it meets the others of the same sequences.
template <class T, bool TENSOR>
struct GridBlock {
  using A = Accumulate<T>;
  const SequenceShape& shape;
  const GridPlan& plan;
  int64_t model;
  int slice, row0, rows, first;  // sequences from row0, units from first
  int segments;                  // of a row that is exchanged
  T* states;                     // exchanged: (buffers, E, B, segments, depth), at this block's model and row0
  Item own;                      // the thread's first
  int rows_on, units_on;         // from one of the thread's items to the next
  unsigned* counter;
  unsigned expected = 0;

  __device__ __forceinline__ GridBlock(const SequenceShape& s, const GridPlan& plan_, int segments_, T* exchange,
                                       unsigned* counters)
      : shape(s), plan(plan_), segments(segments_) {
    slice = blockIdx.x;
    model = blockIdx.z;
    row0 = blockIdx.y * plan.rows;
    rows = least(plan.rows, static_cast<int>(s.batch) - row0);
    first = slice * plan.units;
    states = exchange + (model * s.batch + row0) * row_stride();
    counter = counters + blockIdx.z * plan.parts + blockIdx.y;
    const int thread = threadIdx.x, threads = blockDim.x;
    own = {thread / plan.units, thread % plan.units, thread};
    rows_on = threads / plan.units, units_on = threads % plan.units;
  }

  __device__ __forceinline__ int64_t row_stride() const { return int64_t{1} * segments * plan.depth; }
  __device__ __forceinline__ T* buffer(int64_t which) const {
    return states + which * shape.models * shape.batch * row_stride();
  }
  __device__ __forceinline__ T& exchanged_at(T* buffer, const Item& item, int segment) const {
    return buffer[item.row * segments * plan.depth + segment * plan.depth + first + item.unit];
  }
  __device__ __forceinline__ A* sums() const { return reinterpret_cast<A*>(shared_memory()); }
  __device__ __forceinline__ A* carried(int which) const { return sums() + plan.sums + which * plan.rows * plan.units; }
  __device__ __forceinline__ T* weights() const {
    return reinterpret_cast<T*>(shared_memory() +
                                round_up((plan.sums + 2 * plan.rows * plan.units) * static_cast<int>(sizeof(A)), 16));
  }
  // Calls f(item) for the block's positions; a position's thread is always the same.
  template <class F>
  __device__ __forceinline__ void for_items(const F& f) const {
    Item item = own;
    for (int i = threadIdx.x; i < rows * plan.units; i += blockDim.x) {
      item.index = i;
      if (first + item.unit < shape.hidden) f(item);
      item.row += rows_on, item.unit += units_on;
      if (item.unit >= plan.units) item.unit -= plan.units, ++item.row;
    }
  }
  __device__ __forceinline__ bool has_own() const { return own.row < rows && first + own.unit < shape.hidden; }
  __device__ __forceinline__ bool is_own(const Item& item) const { return item.index == static_cast<int>(threadIdx.x); }
  __device__ __forceinline__ Place place(const Step& step, const Item& item) const {
    return {step, item.row, first + item.unit};
  }

  template <int GATES>
  __device__ __forceinline__ void multiply(const T* buffer, int first_gate, int first_segment, int count) const {
    multiply_rows<T, TENSOR, GATES>(sums(), plan, buffer, row_stride(),
                                    weights() + first_gate * plan.units * plan.stride, rows, first_segment * plan.depth,
                                    count * plan.depth);
    __syncthreads();
  }
  template <int GATES>
  __device__ __forceinline__ void products(const Item& item, A (&product)[GATES]) const {
    const int padded = round_up(plan.rows, grid_row_tile<TENSOR>);
#pragma unroll
    for (int g = 0; g < GATES; ++g) {
      product[g] = 0;
      for (int split = 0; split < plan.splits; ++split)
        product[g] += sums()[((split * GATES + g) * padded + item.row) * plan.units + item.unit];
    }
  }

  // What the block wrote before `arrive` is there for all others of its sequences after their `wait`.
  __device__ __forceinline__ void arrive() {
    __syncthreads();
    expected += plan.slices;
    if (threadIdx.x == 0) cuda::arrive(counter);
  }
  __device__ __forceinline__ void wait() const {
    if (threadIdx.x == 0) wait_for(counter, expected);
    __syncthreads();
  }
  __device__ __forceinline__ void meet() {
    arrive();
    wait();
  }
};

template <class T, bool TENSOR, Cell CELL>
__global__ void __launch_bounds__(grid_threads, 1)
    forward_grid(const SequenceForward<T> s, const GridPlan plan, T* exchange, unsigned* counters) {
  using A = Accumulate<T>;
  constexpr int first_gate = Forward<CELL>::first_gate, gates = Forward<CELL>::gates, all = gate_count(CELL);
  const SequenceShape& shape = s.shape;
  const int H = static_cast<int>(shape.hidden);
  GridBlock<T, TENSOR> block(shape, plan, 1, exchange, counters);
  A *running = block.carried(0), *c = block.carried(1);

  T* weights = block.weights();
  for (int i = threadIdx.x; i < all * plan.units * plan.stride; i += blockDim.x) {
    const int k = i % plan.stride, unit = block.first + i / plan.stride % plan.units,
              gate = i / plan.stride / plan.units;
    const T weight = k < H && unit < H ? s.w_hh[((block.model * all + gate) * H + unit) * H + k] : T{};
    weights[i] = TENSOR ? kept_operand(weight) : weight;
  }
  Step step = step_of(shape, block.row0, 0);
  SequenceForward<T> now = moved(s, block.model, step);
  block.for_items([&](const Item& item) {
    const Place at = block.place(step, item);
    const T h = first_state(shape, now.h0, at);
    block.exchanged_at(block.buffer(0), item, 0) = h;
    running[item.index] = widen(h);
    if (CELL == Cell::lstm) c[item.index] = widen(first_state(shape, now.c0, at));
  });
  block.arrive();
  auto load = [&](const Item& item) { return projected<gates>(now, block.place(step, item), first_gate); };
  Projected<T, gates> ahead{};  // what the thread's first position needs, loaded while others are waited for
  if (shape.steps > 0 && block.has_own()) ahead = load(block.own);
  block.wait();
  while (step.number < static_cast<int>(shape.steps)) {
    T *from = block.buffer(step.number % 2), *to = block.buffer((step.number + 1) % 2);
    if constexpr (CELL == Cell::gru_before) {
      T* r_h = block.buffer(2);
      block.template multiply<2>(from, 0, 0, 1);
      block.for_items([&](const Item& item) {
        const Place at = block.place(step, item);
        A product[2];
        block.products(item, product);
        const auto reached = reach_gates(product, projected<2>(now, at, 0), running[item.index]);
        block.exchanged_at(r_h, item, 0) = store_gates(now, at, reached);
      });
      block.meet();
      from = r_h;
    }
    block.template multiply<gates>(from, first_gate, 0, 1);
    block.for_items([&](const Item& item) {
      const Place at = block.place(step, item);
      A product[gates];
      block.products(item, product);
      A& h = running[item.index];
      A* const cell = c + item.index;
      const Projected<T, gates> in = block.is_own(item) ? ahead : load(item);
      const auto reached = Forward<CELL>::reach(now, at, product, in, h, CELL == Cell::lstm ? *cell : A{});
      T after;
      finish_step<CELL>(now, at, reached, narrow<T>(h), &after, cell);
      block.exchanged_at(to, item, 0) = after;
      h = widen(after);
    });
    block.arrive();
    step = after(shape, step, 1);
    now = moved(now, rows_of_step(shape));
    if (step.number < shape.steps && block.has_own()) ahead = load(block.own);
    block.wait();
  }
  now = moved(s, block.model, step);
  block.for_items([&](const Item& item) {
    now.h_n[block.place(step, item).of(H)] = narrow<T>(running[item.index]);
    if (CELL == Cell::lstm) now.c_n[block.place(step, item).of(H)] = narrow<T>(c[item.index]);
  });
}

template <class T, bool TENSOR, Cell CELL>
__global__ void __launch_bounds__(grid_threads, 1)
    backward_grid(const SequenceBackward<T> s, const GridPlan plan, T* exchange, unsigned* counters) {
  using A = Accumulate<T>;
  constexpr int gates = gate_count(CELL);
  const SequenceShape& shape = s.shape;
  const int H = static_cast<int>(shape.hidden);
  GridBlock<T, TENSOR> block(shape, plan, gates, exchange, counters);
  A *dh = block.carried(0), *dc = block.carried(1);

  T* weights = block.weights();
  for (int i = threadIdx.x; i < plan.units * plan.stride; i += blockDim.x) {
    const int local = i % plan.units, k = i / plan.units, unit = block.first + local;
    const int gate = k / plan.depth, from = k % plan.depth;
    const T weight =
        gate < gates && from < H && unit < H ? s.w_hh[((block.model * gates + gate) * H + from) * H + unit] : T{};
    weights[local * plan.stride + k] = TENSOR ? kept_operand(weight) : weight;
  }
  Step step = step_of(shape, block.row0, static_cast<int>(shape.steps) - 1);
  SequenceBackward<T> now = moved(s, block.model, step);
  block.for_items([&](const Item& item) {
    dh[item.index] = s.dh_n == nullptr ? A{} : widen(now.dh_n[block.place(step, item).of(H)]);
    if (CELL == Cell::lstm) dc[item.index] = s.dc_n == nullptr ? A{} : widen(now.dc_n[block.place(step, item).of(H)]);
  });
  auto load = [&](const Item& item) { return saved<CELL>(now, block.place(step, item)); };
  constexpr bool looks_ahead = CELL != Cell::gru_before;  // as registers allow
  Saved<T, CELL> ahead{};  // what the thread's first position needs, loaded while others are waited for
  if (looks_ahead && shape.steps > 0 && block.has_own()) ahead = load(block.own);
  while (step.number >= 0) {
    T* exchanged = block.buffer(step.number % 2);
    block.for_items([&](const Item& item) {
      const Place at = block.place(step, item);
      const A of_c = CELL == Cell::lstm ? dc[item.index] : A{};
      const auto found =
          differentiate<CELL>(shape, at, looks_ahead && block.is_own(item) ? ahead : load(item), dh[item.index], of_c);
      dh[item.index] = found.dh;
      if (CELL == Cell::lstm) dc[item.index] = found.dc;
#pragma unroll
      for (int g = 0; g < gates; ++g) block.exchanged_at(exchanged, item, g) = narrow<T>(found.passing[g]);
      store_gradients<CELL>(now, at, found);
      store_state_gradients<CELL>(s, block.model, at, found);
    });
    block.arrive();
    step = after(shape, step, -1);
    now = moved(now, -rows_of_step(shape));
    if (looks_ahead && step.number >= 0 && block.has_own()) ahead = load(block.own);
    block.wait();
    auto place_then = [&](const Item& item) { return block.place(after(shape, step, 1), item); };
    if constexpr (CELL == Cell::gru_before) {
      const SequenceBackward<T> then = moved(now, rows_of_step(shape));
      block.template multiply<1>(exchanged, 0, 2, 1);
      block.for_items([&](const Item& item) {
        A product[1];
        block.products(item, product);
        A of_h = dh[item.index];
        block.exchanged_at(exchanged, item, 0) =
            narrow<T>(differentiate_reset(then, place_then(item), product[0], of_h));
        dh[item.index] = of_h;
      });
      block.meet();
    }
    block.template multiply<1>(exchanged, 0, 0, CELL == Cell::gru_before ? 2 : gates);
    block.for_items([&](const Item& item) {
      A product[1];
      block.products(item, product);
      A of_h = dh[item.index], of_c = CELL == Cell::lstm ? dc[item.index] : A{};
      end_step_back(shape, place_then(item), product[0], of_h, of_c);
      dh[item.index] = of_h;
      if (CELL == Cell::lstm) dc[item.index] = of_c;
    });
  }
  now = moved(s, block.model, step);
  block.for_items([&](const Item& item) {
    now.dh0[block.place(step, item).of(H)] = narrow<T>(dh[item.index]);
    if (CELL == Cell::lstm) now.dc0[block.place(step, item).of(H)] = narrow<T>(dc[item.index]);
  });
}

// ---------------------------------------------------------------------------------------------------- launches

// As many slices as keep all processors busy, then as many parts of the sequences as processors are left for.
template <class T, bool TENSOR>
GridPlan grid_plan(const SequenceShape& s, bool backward, const Device& device) {
  constexpr int tile = grid_row_tile<TENSOR>, chunk = exchange_bytes / sizeof(T), most_splits = 8;
  GridPlan plan{};
  if (s.models == 0 || s.batch == 0 || s.hidden == 0 || s.hidden >= 1 << 14 || s.batch >= 1 << 20 ||
      s.models > device.processors || s.steps >= 1 << 20)
    return plan;
  const int models = static_cast<int>(s.models), units = static_cast<int>(s.hidden), batch = static_cast<int>(s.batch);
  const int gates = gate_count(s.cell), most_slices = device.processors / models;
  plan.units = round_up(divide_up(units, least(most_slices, divide_up(units, grid_unit_tile))), grid_unit_tile);
  plan.slices = divide_up(units, plan.units);
  const int most_parts = device.processors / (models * plan.slices);
  plan.rows = round_up(divide_up(batch, least(most_parts, divide_up(batch, tile))), tile);
  plan.parts = divide_up(batch, plan.rows);
  plan.depth = round_up(units, chunk);
  // An odd number of 64 bytes, so that neighbouring units' weights lie in different banks.
  plan.stride = ((backward ? gates : 1) * plan.depth / chunk | 1) * chunk;
  const int most_warps = grid_threads / warp_size;
  const int tiles = plan.rows / tile * (TENSOR ? plan.units / grid_unit_tile : plan.units);
  plan.splits = TENSOR && tiles < most_warps ? least(most_warps / tiles, least(most_splits, plan.depth / chunk)) : 1;
  const int useful = tiles * plan.splits;
  plan.threads = warp_size * least(most_warps, useful < 4 ? 4 : useful);
  const int64_t sums = int64_t{1} * plan.splits * (backward ? 1 : gates) * plan.rows * plan.units;
  const int64_t weights = int64_t{1} * (backward ? 1 : gates) * plan.units * plan.stride;
  const int64_t bytes =
      ((sums + int64_t{2} * plan.rows * plan.units) * sizeof(Accumulate<T>) + 15) / 16 * 16 + weights * sizeof(T);
  if (bytes > device.shared_bytes) return plan;
  plan.sums = static_cast<int>(sums), plan.bytes = bytes;
  return plan;
}

template <class T, class F>
auto with_tensor(Math math, const F& f) {
  if constexpr (sizeof(T) == 2) return f.template operator()<true>();
  if constexpr (sizeof(T) == 4)
    if (math == Math::tensor) return f.template operator()<true>();
  if constexpr (sizeof(T) >= 4) return f.template operator()<false>();
}

template <class T>
GridPlan grid_plan(const SequenceShape& s, Math math, bool backward) {
  const Device device = this_device();
  if (device.error != cudaSuccess) return {};
  return with_tensor<T>(math, [&]<bool TENSOR>() { return grid_plan<T, TENSOR>(s, backward, device); });
}

template <class T>
bool fits_grid(const SequenceShape& s, Math math, bool backward) {
  return grid_plan<T>(s, math, backward).bytes > 0;
}

template <class T>
GridScratch grid_scratch(const SequenceShape& s, Math math, bool backward) {
  const GridPlan plan = grid_plan<T>(s, math, backward);
  const int64_t buffers = !backward && s.cell == Cell::gru_before ? 3 : 2;
  return {buffers * s.models * s.batch * (backward ? gate_count(s.cell) : 1) * plan.depth, s.models * plan.parts};
}

template <class T, bool TENSOR, Cell CELL>
auto grid_kernel(const SequenceForward<T>&) {
  return forward_grid<T, TENSOR, CELL>;
}
template <class T, bool TENSOR, Cell CELL>
auto grid_kernel(const SequenceBackward<T>&) {
  return backward_grid<T, TENSOR, CELL>;
}

template <class T, class Sequence>
cudaError_t run_grid(const Sequence& s, Math math, bool backward, T* exchange, unsigned* counters,
                     cudaStream_t stream) {
  const GridPlan plan = grid_plan<T>(s.shape, math, backward);
  if (plan.bytes == 0) return cudaErrorInvalidValue;
  const GridScratch scratch = grid_scratch<T>(s.shape, math, backward);
  cudaError_t error = cudaMemsetAsync(exchange, 0, scratch.exchanged * sizeof(T), stream);
  if (error == cudaSuccess) error = cudaMemsetAsync(counters, 0, scratch.counters * sizeof(unsigned), stream);
  if (error != cudaSuccess) return error;
  const Blocks blocks(plan.slices, plan.parts, s.shape.models);
  return with_tensor<T>(math, [&]<bool TENSOR>() {
    auto run = [&](auto kernel) {
      return launch(true, kernel, blocks, plan.threads, plan.bytes, stream, s, plan, exchange, counters);
    };
    switch (s.shape.cell) {
      case Cell::lstm:
        return run(grid_kernel<T, TENSOR, Cell::lstm>(s));
      case Cell::gru:
        return run(grid_kernel<T, TENSOR, Cell::gru>(s));
      case Cell::rnn:
        return run(grid_kernel<T, TENSOR, Cell::rnn>(s));
      case Cell::gru_before:
        return run(grid_kernel<T, TENSOR, Cell::gru_before>(s));
    }
    return cudaErrorInvalidValue;
  });
}

template <class T>
cudaError_t grid_forward(const SequenceForward<T>& s, Math math, T* exchange, unsigned* counters, cudaStream_t stream) {
  return run_grid<T>(s, math, false, exchange, counters, stream);
}
template <class T>
cudaError_t grid_backward(const SequenceBackward<T>& s, Math math, T* exchange, unsigned* counters,
                          cudaStream_t stream) {
  return run_grid<T>(s, math, true, exchange, counters, stream);
}

#define RECURVE_GRID_KERNELS(T)                                                                       \
  template bool fits_grid<T>(const SequenceShape&, Math, bool);                                       \
  template GridScratch grid_scratch<T>(const SequenceShape&, Math, bool);                             \
  template cudaError_t grid_forward<T>(const SequenceForward<T>&, Math, T*, unsigned*, cudaStream_t); \
  template cudaError_t grid_backward<T>(const SequenceBackward<T>&, Math, T*, unsigned*, cudaStream_t)

}  // namespace recurve::cuda
