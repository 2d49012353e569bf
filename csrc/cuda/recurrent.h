// LSTM, GRU and RNN over a whole sequence: in one launch whose blocks own some sequences of a model each, or step by
// step. Compiled for one element type per source file.
//
// A block keeps its sequences' state and, as far as they fit, the model's recurrent weights in shared memory, and meets
// no other block. The arithmetic of a row does not depend on those beside it. Every sum has one order.
#pragma once

#include "cells.h"
#include "launch.h"
#include "products.h"

namespace recurve::cuda {

// How a launch is cut.
struct Plan {
  int rows;   // sequences of a block
  int parts;  // blocks of a model
  int kept;   // of each segment's depth, in shared memory
  int threads;
  int64_t bytes;  // of shared memory
};

// What a block has in its shared memory, one after the other.
template <class T, class P>
struct Memory {
  Cell cell;
  int units, rows;
  bool backward;

  constexpr int segments() const { return backward ? gate_count(cell) : 1; }
  constexpr int columns() const { return (backward ? 1 : gate_count(cell)) * units; }
  constexpr int stride() const { return states_stride<P>(segments(), units); }
  // Forward the states before and after a step, and r h'; backward the gradients of the gates.
  constexpr int64_t states() const {
    return int64_t{1} * (backward ? 1 : cell == Cell::gru_before ? 3 : 2) * round_up(rows, P::row_tile) * stride();
  }
  // Forward the cell states; backward the gradients of both states.
  constexpr int64_t carried() const { return int64_t{1} * (backward + (cell == Cell::lstm)) * rows * units; }
  constexpr int64_t bytes(int kept) const {
    const int64_t word = 16;
    return (states() * sizeof(T) + word - 1) / word * word +
           (carried() * sizeof(Accumulate<T>) + word - 1) / word * word +
           P::kept_elements(segments(), columns(), kept) * static_cast<int64_t>(sizeof(T));
  }

  __device__ __forceinline__ T* states_at() const { return reinterpret_cast<T*>(shared_memory()); }
  __device__ __forceinline__ Accumulate<T>* carried_at() const {
    return reinterpret_cast<Accumulate<T>*>(shared_memory() + (states() * sizeof(T) + 15) / 16 * 16);
  }
  __device__ __forceinline__ T* weights_at() const {
    return reinterpret_cast<T*>(reinterpret_cast<unsigned char*>(carried_at()) +
                                (carried() * sizeof(Accumulate<T>) + 15) / 16 * 16);
  }
};

// Calls f(row, unit) for all positions of a block.
template <class F>
__device__ __forceinline__ void for_positions(int rows, int units, const F& f) {
  for (int i = threadIdx.x; i < rows * units; i += blockDim.x) f(i / units, i % units);
}

struct Nothing {};

template <class T, class P, Cell CELL>
__global__ void __launch_bounds__(P::most_threads, 1) forward_sequence(const SequenceForward<T> s, const Plan plan) {
  using A = Accumulate<T>;
  const SequenceShape& shape = s.shape;
  const int H = static_cast<int>(shape.hidden), row0 = blockIdx.x % plan.parts * plan.rows;
  const int64_t model = blockIdx.x / plan.parts;
  const int rows = least(plan.rows, static_cast<int>(shape.batch) - row0);
  const Memory<T, P> memory{CELL, H, plan.rows, false};
  const int stride = memory.stride(), size = round_up(plan.rows, P::row_tile) * stride;
  T *h = memory.states_at(), *h_after = h + size, *r_h = h + 2 * size;
  A* c = memory.carried_at();
  const Weights<T> weights{
      s.w_hh + model * memory.columns() * H, memory.weights_at(), H, 1, memory.columns(), plan.kept};
  auto place = [&](int64_t step, int row, int unit) { return Place{model, step, row0 + row, unit}; };

  for (int i = threadIdx.x; i < memory.states(); i += blockDim.x) h[i] = T{};
  P::keep(weights);
  __syncthreads();
  for_positions(rows, H, [&](int row, int unit) {
    h[row * stride + unit] = first_state(shape, s.h0, place(0, row, unit));
    if (CELL == Cell::lstm) c[row * H + unit] = widen(first_state(shape, s.c0, place(0, row, unit)));
  });
  __syncthreads();
  for (int64_t step = 0; step < shape.steps; ++step) {
    if constexpr (CELL == Cell::gru_before) {
      for_products<P, 2, T>(
          weights, rows, h, stride, 0, 1, 0,
          [&](int row, int unit) { return projected<2>(s, place(step, row, unit), 0); },
          [&](int row, int unit, const A(&product)[2], const Projected<T, 2>& in) {
            const int i = row * stride + unit;
            r_h[i] = narrow<T>(gru_before_gates(s, place(step, row, unit), product, in, static_cast<A>(widen(h[i]))));
          });
      __syncthreads();
    }
    constexpr int first_gate = Forward<CELL>::first_gate, gates = Forward<CELL>::gates;
    for_products<P, gates, T>(
        weights, rows, CELL == Cell::gru_before ? r_h : h, stride, 0, 1, first_gate,
        [&](int row, int unit) { return projected<gates>(s, place(step, row, unit), first_gate); },
        [&](int row, int unit, const A(&product)[gates], const Projected<T, gates>& in) {
          const int i = row * stride + unit;
          finish_step<CELL>(s, place(step, row, unit), product, in, static_cast<A>(widen(h[i])), h_after + i,
                            c + row * H + unit);
        });
    __syncthreads();
    T* before = h;
    h = h_after, h_after = before;
  }
  for_positions(rows, H, [&](int row, int unit) {
    const int64_t i = place(0, row, unit).state(shape);
    s.h_n[i] = h[row * stride + unit];
    if (CELL == Cell::lstm) s.c_n[i] = narrow<T>(c[row * H + unit]);
  });
}

template <class T, class P, Cell CELL>
__global__ void __launch_bounds__(P::most_threads, 1) backward_sequence(const SequenceBackward<T> s, const Plan plan) {
  using A = Accumulate<T>;
  constexpr int gates = gate_count(CELL);
  const SequenceShape& shape = s.shape;
  const int H = static_cast<int>(shape.hidden), row0 = blockIdx.x % plan.parts * plan.rows;
  const int64_t model = blockIdx.x / plan.parts;
  const int rows = least(plan.rows, static_cast<int>(shape.batch) - row0);
  const Memory<T, P> memory{CELL, H, plan.rows, true};
  const int stride = memory.stride(), segment = round_up(H, P::depth_step);
  T* d = memory.states_at();
  A *dh = memory.carried_at(), *dc = dh + (CELL == Cell::lstm ? plan.rows * H : 0);
  const Weights<T> weights{s.w_hh + model * gates * H * H, memory.weights_at(), H, gates, H, plan.kept};
  auto place = [&](int64_t step, int row, int unit) { return Place{model, step, row0 + row, unit}; };
  auto nothing = [](int, int) { return Nothing{}; };

  for (int i = threadIdx.x; i < memory.states(); i += blockDim.x) d[i] = T{};
  P::keep(weights);
  for_positions(rows, H, [&](int row, int unit) {
    const int64_t i = place(0, row, unit).state(shape);
    dh[row * H + unit] = s.dh_n == nullptr ? A{} : widen(s.dh_n[i]);
    if (CELL == Cell::lstm) dc[row * H + unit] = s.dc_n == nullptr ? A{} : widen(s.dc_n[i]);
  });
  __syncthreads();
  for (int64_t step = shape.steps - 1; step >= 0; --step) {
    for_positions(rows, H, [&](int row, int unit) {
      A passing[gates];
      const int i = row * H + unit;
      A of_h = dh[i], of_c = CELL == Cell::lstm ? dc[i] : A{};
      begin_step_back<CELL>(s, place(step, row, unit), of_h, of_c, passing);
      dh[i] = of_h;
      if (CELL == Cell::lstm) dc[i] = of_c;
#pragma unroll
      for (int g = 0; g < gates; ++g) d[row * stride + g * segment + unit] = narrow<T>(passing[g]);
      expect_step_back<CELL>(s, place(step - 1, row, unit));
    });
    __syncthreads();
    if constexpr (CELL == Cell::gru_before) {
      for_products<P, 1, T>(weights, rows, d, stride, 2, 1, 0, nothing,
                            [&](int row, int unit, const A(&product)[1], Nothing) {
                              A of_h = dh[row * H + unit];
                              const A of_r = differentiate_reset(s, place(step, row, unit), product[0], of_h);
                              d[row * stride + unit] = narrow<T>(of_r);
                              dh[row * H + unit] = of_h;
                            });
      __syncthreads();
    }
    for_products<P, 1, T>(weights, rows, d, stride, 0, CELL == Cell::gru_before ? 2 : gates, 0, nothing,
                          [&](int row, int unit, const A(&product)[1], Nothing) {
                            const int i = row * H + unit;
                            A of_h = dh[i], of_c = CELL == Cell::lstm ? dc[i] : A{};
                            end_step_back<T>(shape, place(step, row, unit), product[0], of_h, of_c);
                            dh[i] = of_h;
                            if (CELL == Cell::lstm) dc[i] = of_c;
                          });
    __syncthreads();
  }
  for_positions(rows, H, [&](int row, int unit) {
    const int64_t i = place(0, row, unit).state(shape);
    s.dh0[i] = narrow<T>(dh[row * H + unit]);
    if (CELL == Cell::lstm) s.dc0[i] = narrow<T>(dc[row * H + unit]);
  });
}

// ------------------------------------------------------------------------------------------------ step by step

constexpr int step_threads = 256;

// Calls f(place) for all units of all rows of all models.
template <class F>
__device__ __forceinline__ void for_places(const SequenceShape& s, int64_t step, const F& f) {
  const int64_t all = s.models * s.batch * s.hidden;
  for (int64_t i = int64_t{1} * blockIdx.x * blockDim.x + threadIdx.x; i < all;
       i += int64_t{1} * gridDim.x * blockDim.x) {
    const int64_t row = i / s.hidden;
    f(Place{row / s.batch, step, static_cast<int>(row % s.batch), static_cast<int>(i % s.hidden)});
  }
}

template <int GATES, class T>
__device__ __forceinline__ void products_of(const SequenceShape& s, const T* product, const Place& at,
                                            Accumulate<T> (&sums)[GATES]) {
  const int64_t first = (at.model * s.batch + at.b) * GATES * s.hidden + at.unit;
#pragma unroll
  for (int g = 0; g < GATES; ++g) sums[g] = widen(product[first + g * s.hidden]);
}

template <class T>
__global__ void __launch_bounds__(step_threads) begin_forward_step(const StepForward<T> f) {
  const SequenceShape& shape = f.sequence.shape;
  for_places(shape, 0, [&](const Place& at) {
    const int64_t i = at.state(shape);
    f.h[i] = first_state(shape, f.sequence.h0, at);
    if (f.c != nullptr) f.c[i] = widen(first_state(shape, f.sequence.c0, at));
  });
}

template <class T>
__global__ void __launch_bounds__(step_threads) end_forward_step(const StepForward<T> f) {
  const SequenceShape& shape = f.sequence.shape;
  for_places(shape, 0, [&](const Place& at) {
    const int64_t i = at.state(shape);
    f.sequence.h_n[i] = f.h[i];
    if (f.c != nullptr) f.sequence.c_n[i] = narrow<T>(f.c[i]);
  });
}

template <class T, Cell CELL, int STAGE>
__global__ void __launch_bounds__(step_threads) forward_step(const StepForward<T> f) {
  const SequenceForward<T>& s = f.sequence;
  for_places(s.shape, f.step, [&](const Place& at) {
    const int64_t i = at.state(s.shape);
    const Accumulate<T> h = widen(f.h[i]);
    if constexpr (CELL == Cell::gru_before && STAGE == 0) {
      Accumulate<T> sums[2];
      products_of(s.shape, f.product, at, sums);
      f.r_h[i] = narrow<T>(gru_before_gates(s, at, sums, projected<2>(s, at, 0), h));
    } else {
      constexpr int gates = Forward<CELL>::gates;
      Accumulate<T> sums[gates];
      products_of(s.shape, f.product, at, sums);
      finish_step<CELL>(s, at, sums, projected<gates>(s, at, Forward<CELL>::first_gate), h, f.h + i,
                        CELL == Cell::lstm ? f.c + i : nullptr);
    }
  });
}

template <class T, Cell CELL, int STAGE>
__global__ void __launch_bounds__(step_threads) backward_step(const StepBackward<T> f) {
  using A = Accumulate<T>;
  const SequenceBackward<T>& s = f.sequence;
  const SequenceShape& shape = s.shape;
  for_places(shape, f.step, [&](const Place& at) {
    const int64_t i = at.state(shape);
    A of_h, of_c{};
    if (STAGE == 0 && f.step == shape.steps - 1) {
      of_h = s.dh_n == nullptr ? A{} : widen(s.dh_n[i]);
      if (CELL == Cell::lstm) of_c = s.dc_n == nullptr ? A{} : widen(s.dc_n[i]);
    } else {
      of_h = f.dh[i];
      if (CELL == Cell::lstm) of_c = f.dc[i];
    }
    if constexpr (STAGE == 1) {
      differentiate_reset(s, at, static_cast<A>(widen(f.product[i])), of_h);
    } else {
      const Place later{at.model, at.step + 1, at.b, at.unit};
      if (f.step < shape.steps - 1) end_step_back<T>(shape, later, static_cast<A>(widen(f.product[i])), of_h, of_c);
      A passing[gate_count(CELL)];
      if (f.step >= 0) begin_step_back<CELL>(s, at, of_h, of_c, passing);
    }
    f.dh[i] = of_h;
    if (CELL == Cell::lstm) f.dc[i] = of_c;
    if (STAGE == 0 && f.step < 0) {
      s.dh0[i] = narrow<T>(of_h);
      if (CELL == Cell::lstm) s.dc0[i] = narrow<T>(of_c);
    }
  });
}

// ---------------------------------------------------------------------------------------------------- launches

// Enough blocks for all processors if there are rows enough, and no more rows a block than its memory and 32 allow.
template <class T, class P>
Plan plan(const SequenceShape& s, bool backward, const Device& device) {
  const int batch = static_cast<int>(s.batch), units = static_cast<int>(s.hidden);
  const int wanted =
      static_cast<int>(s.models < device.processors ? divide_up(device.processors, static_cast<int>(s.models)) : 1);
  int rows = least(32, divide_up(batch, least(batch, wanted)));
  while (rows > 1 && Memory<T, P>{s.cell, units, rows, backward}.bytes(0) > device.shared_bytes) --rows;
  Plan plan{rows, divide_up(batch, rows), 0, 0, 0};
  const Memory<T, P> memory{s.cell, units, rows, backward};
  const int whole = round_up(units, P::depth_step);
  for (plan.kept = whole; plan.kept > 0 && memory.bytes(plan.kept) > device.shared_bytes;) plan.kept -= P::depth_step;
  plan.bytes = memory.bytes(plan.kept);
  const int tiles = divide_up(rows, P::row_tile) * divide_up(units, P::unit_tile);
  plan.threads = warp_size * least(P::most_threads / warp_size, tiles < 4 ? 4 : tiles);
  return plan;
}

template <class T, Cell CELL, class P>
cudaError_t launch_sequence(const SequenceForward<T>& s, const Device& device, cudaStream_t stream) {
  const Plan cut = plan<T, P>(s.shape, false, device);
  return launch(forward_sequence<T, P, CELL>, s.shape.models * cut.parts, cut.threads, cut.bytes, stream, s, cut);
}
template <class T, Cell CELL, class P>
cudaError_t launch_sequence(const SequenceBackward<T>& s, const Device& device, cudaStream_t stream) {
  const Plan cut = plan<T, P>(s.shape, true, device);
  return launch(backward_sequence<T, P, CELL>, s.shape.models * cut.parts, cut.threads, cut.bytes, stream, s, cut);
}

// Calls f.operator()<P>() with the products that serve a shape: larger tiles where rows and units fill them.
template <class T, class F>
auto with_products(const SequenceShape& s, Math math, const F& f) {
  const bool large = s.batch > 16 && s.hidden >= 64;
  if constexpr (sizeof(T) == 2) {
    return large ? f.template operator()<TensorCores<T, 2>>() : f.template operator()<TensorCores<T, 1>>();
  } else if constexpr (sizeof(T) == 4) {
    if (math == Math::tensor)
      return large ? f.template operator()<TensorCores<T, 2>>() : f.template operator()<TensorCores<T, 1>>();
    return large ? f.template operator()<Plain<T, 8>>() : f.template operator()<Plain<T, 4>>();
  } else {
    return f.template operator()<Plain<T, 4>>();
  }
}

template <class T, Cell CELL, class Sequence>
cudaError_t launch_cell(const Sequence& s, Math math, const Device& device, cudaStream_t stream) {
  return with_products<T>(s.shape, math, [&]<class P>() { return launch_sequence<T, CELL, P>(s, device, stream); });
}

template <class T, class Sequence>
cudaError_t run_sequence(const Sequence& s, Math math, cudaStream_t stream) {
  if (s.shape.models == 0 || s.shape.batch == 0) return cudaSuccess;
  const Device device = this_device();
  if (device.error != cudaSuccess) return device.error;
  switch (s.shape.cell) {
    case Cell::lstm:
      return launch_cell<T, Cell::lstm>(s, math, device, stream);
    case Cell::gru:
      return launch_cell<T, Cell::gru>(s, math, device, stream);
    case Cell::rnn:
      return launch_cell<T, Cell::rnn>(s, math, device, stream);
    case Cell::gru_before:
      return launch_cell<T, Cell::gru_before>(s, math, device, stream);
  }
  return cudaErrorInvalidValue;
}

template <class T, class P>
Fit fit(const SequenceShape& s, bool backward, const Device& device) {
  if (s.batch >= 1 << 30 || s.hidden >= 1 << 14) return Fit::none;
  const int units = static_cast<int>(s.hidden);
  if (Memory<T, P>{s.cell, units, 1, backward}.bytes(0) > device.shared_bytes) return Fit::none;
  const bool all = s.models == 0 || s.batch == 0 || plan<T, P>(s, backward, device).kept >= units;
  return all ? Fit::resident : Fit::streamed;
}

template <class T>
Fit fits(const SequenceShape& s, Math math, bool backward) {
  const Device device = this_device();
  if (device.error != cudaSuccess) return Fit::none;
  return with_products<T>(s, math, [&]<class P>() { return fit<T, P>(s, backward, device); });
}

template <class T>
cudaError_t sequence_forward(const SequenceForward<T>& s, Math math, cudaStream_t stream) {
  return run_sequence<T>(s, math, stream);
}
template <class T>
cudaError_t sequence_backward(const SequenceBackward<T>& s, Math math, cudaStream_t stream) {
  return run_sequence<T>(s, math, stream);
}

template <class Step>
cudaError_t launch_step(void (*kernel)(Step), const SequenceShape& s, const Step& step, cudaStream_t stream) {
  const int64_t places = s.models * s.batch * s.hidden, blocks = (places + step_threads - 1) / step_threads;
  if (places == 0) return cudaSuccess;
  return launch(kernel, blocks < (1 << 20) ? blocks : 1 << 20, step_threads, 0, stream, step);
}

template <class T>
cudaError_t begin_forward(const StepForward<T>& step, cudaStream_t stream) {
  return launch_step(begin_forward_step<T>, step.sequence.shape, step, stream);
}
template <class T>
cudaError_t end_forward(const StepForward<T>& step, cudaStream_t stream) {
  return launch_step(end_forward_step<T>, step.sequence.shape, step, stream);
}

// The kernel of a step, by cell and stage.
#define RECURVE_OF_CELL(KERNEL, T, STEP)                                                                           \
  switch ((STEP).sequence.shape.cell) {                                                                            \
    case Cell::lstm:                                                                                               \
      return launch_step(KERNEL<T, Cell::lstm, 0>, (STEP).sequence.shape, STEP, stream);                           \
    case Cell::gru:                                                                                                \
      return launch_step(KERNEL<T, Cell::gru, 0>, (STEP).sequence.shape, STEP, stream);                            \
    case Cell::rnn:                                                                                                \
      return launch_step(KERNEL<T, Cell::rnn, 0>, (STEP).sequence.shape, STEP, stream);                            \
    case Cell::gru_before:                                                                                         \
      return (STEP).stage == 0 ? launch_step(KERNEL<T, Cell::gru_before, 0>, (STEP).sequence.shape, STEP, stream)  \
                               : launch_step(KERNEL<T, Cell::gru_before, 1>, (STEP).sequence.shape, STEP, stream); \
  }                                                                                                                \
  return cudaErrorInvalidValue

template <class T>
cudaError_t step_forward(const StepForward<T>& step, cudaStream_t stream) {
  RECURVE_OF_CELL(forward_step, T, step);
}
template <class T>
cudaError_t step_backward(const StepBackward<T>& step, cudaStream_t stream) {
  RECURVE_OF_CELL(backward_step, T, step);
}
#undef RECURVE_OF_CELL

#define RECURVE_RECURRENT_KERNELS(T)                                                         \
  template Fit fits<T>(const SequenceShape&, Math, bool);                                    \
  template cudaError_t sequence_forward<T>(const SequenceForward<T>&, Math, cudaStream_t);   \
  template cudaError_t sequence_backward<T>(const SequenceBackward<T>&, Math, cudaStream_t); \
  template cudaError_t begin_forward<T>(const StepForward<T>&, cudaStream_t);                \
  template cudaError_t step_forward<T>(const StepForward<T>&, cudaStream_t);                 \
  template cudaError_t end_forward<T>(const StepForward<T>&, cudaStream_t);                  \
  template cudaError_t step_backward<T>(const StepBackward<T>&, cudaStream_t)

}  // namespace recurve::cuda
