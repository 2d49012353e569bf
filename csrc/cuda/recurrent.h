// LSTM, GRU and RNN over a whole sequence: in one launch whose blocks own some sequences of a model each, or step by
// step. Compiled for one element type per source file.
//
// A block keeps its sequences' state and, as far as they fit, the model's recurrent weights in shared memory, and meets
// no other block. The arithmetic of a row does not depend on those beside it. Every sum has one order.
#pragma once

#include <type_traits>

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

// How many of a thread's positions have what they need loaded a step before: as registers allow.
template <class P>
constexpr int most_ahead = P::positions < 4 ? P::positions : 4;

template <class P>
__device__ __forceinline__ bool is_ahead(const Position& at) {
  return at.first && at.index < most_ahead<P>;
}

template <class T, class P, Cell CELL>
__global__ void __launch_bounds__(P::most_threads, 1) forward_sequence(const SequenceForward<T> s, const Plan plan) {
  using A = Accumulate<T>;
  constexpr int first_gate = Forward<CELL>::first_gate, gates = Forward<CELL>::gates;
  const SequenceShape& shape = s.shape;
  const int H = static_cast<int>(shape.hidden), row0 = blockIdx.x * plan.rows;
  const int64_t model = blockIdx.y;
  const int rows = least(plan.rows, static_cast<int>(shape.batch) - row0);
  const Memory<T, P> memory{CELL, H, plan.rows, false};
  const int stride = memory.stride(), size = round_up(plan.rows, P::row_tile) * stride;
  T *h = memory.states_at(), *h_after = h + size, *r_h = h + 2 * size;
  A* c = memory.carried_at();
  const Weights<T> weights{
      s.w_hh + model * memory.columns() * H, memory.weights_at(), H, 1, memory.columns(), plan.kept};
  const Tiles<P> tiles(rows, H);
  auto in_states = [&](const Position& at) { return at.row * stride + at.unit; };
  auto in_cells = [&](const Position& at) { return at.row * H + at.unit; };

  for (int i = threadIdx.x; i < memory.states(); i += blockDim.x) h[i] = T{};
  P::keep(weights);
  __syncthreads();
  Step step = step_of(shape, row0, 0);
  SequenceForward<T> now = moved(s, model, step);
  auto place = [&](const Position& at) { return Place{step, at.row, at.unit}; };
  auto load = [&](const Position& at) { return projected<gates>(now, place(at), first_gate); };
  Projected<T, gates> ahead[most_ahead<P>];  // what the thread's first positions need, loaded a step before
  tiles.for_all([&](const Position& at) {
    h[in_states(at)] = first_state(shape, now.h0, place(at));
    if (CELL == Cell::lstm) c[in_cells(at)] = widen(first_state(shape, now.c0, place(at)));
  });
  auto look_ahead = [&] {
    if (step.number >= shape.steps) return;
    tiles.for_first([&](const Position& at) {
      if (is_ahead<P>(at)) ahead[at.index] = load(at);
    });
  };
  look_ahead();
  __syncthreads();
  while (step.number < static_cast<int>(shape.steps)) {
    if constexpr (CELL == Cell::gru_before) {
      for_products<2>(
          weights, tiles, h, stride, 0, 1, 0,
          [&](const Position& at, const A(&product)[2]) {
            if (!at.valid) return Reached<A, 2>{};
            return reach_gates(product, projected<2>(now, place(at), 0), static_cast<A>(widen(h[in_states(at)])));
          },
          [&](const Position& at, const Reached<A, 2>& reached) {
            r_h[in_states(at)] = store_gates(now, place(at), reached);
          });
      __syncthreads();
    }
    for_products<gates>(
        weights, tiles, CELL == Cell::gru_before ? r_h : h, stride, 0, 1, first_gate,
        [&](const Position& at, const A(&product)[gates]) {
          Projected<T, gates> in{};
          A of_h{}, of_c{};
          if (at.valid) {
            in = is_ahead<P>(at) ? ahead[at.index] : load(at);
            of_h = widen(h[in_states(at)]);
            if (CELL == Cell::lstm) of_c = c[in_cells(at)];
          }
          if (CELL == Cell::gru_before && !at.valid) return Reached<A, gates>{};
          return Forward<CELL>::reach(now, place(at), product, in, of_h, of_c);
        },
        [&](const Position& at, const Reached<A, gates>& reached) {
          finish_step<CELL>(now, place(at), reached, h[in_states(at)], h_after + in_states(at), c + in_cells(at));
        });
    step = after(shape, step, 1);
    now = moved(now, rows_of_step(shape));
    look_ahead();
    __syncthreads();
    T* before = h;
    h = h_after, h_after = before;
  }
  now = moved(s, model, step);
  tiles.for_all([&](const Position& at) {
    now.h_n[in_cells(at)] = h[in_states(at)];
    if (CELL == Cell::lstm) now.c_n[in_cells(at)] = narrow<T>(c[in_cells(at)]);
  });
}

template <class T, class P, Cell CELL>
__global__ void __launch_bounds__(P::most_threads, 1) backward_sequence(const SequenceBackward<T> s, const Plan plan) {
  using A = Accumulate<T>;
  constexpr int gates = gate_count(CELL);
  const SequenceShape& shape = s.shape;
  const int H = static_cast<int>(shape.hidden), row0 = blockIdx.x * plan.rows;
  const int64_t model = blockIdx.y;
  const int rows = least(plan.rows, static_cast<int>(shape.batch) - row0);
  const Memory<T, P> memory{CELL, H, plan.rows, true};
  const int stride = memory.stride(), segment = round_up(H, P::depth_step);
  T* d = memory.states_at();
  A *dh = memory.carried_at(), *dc = dh + (CELL == Cell::lstm ? plan.rows * H : 0);
  const Weights<T> weights{s.w_hh + model * gates * H * H, memory.weights_at(), H, gates, H, plan.kept};
  const Tiles<P> tiles(rows, H);
  auto in_states = [&](const Position& at) { return at.row * stride + at.unit; };
  auto in_carried = [&](const Position& at) { return at.row * H + at.unit; };

  for (int i = threadIdx.x; i < memory.states(); i += blockDim.x) d[i] = T{};
  P::keep(weights);
  Step step = step_of(shape, row0, static_cast<int>(shape.steps) - 1);
  SequenceBackward<T> now = moved(s, model, step);
  auto place = [&](const Position& at) { return Place{step, at.row, at.unit}; };
  Saved<T, CELL> ahead[most_ahead<P>];  // what the thread's first positions need, loaded a step before
  tiles.for_all([&](const Position& at) {
    dh[in_carried(at)] = s.dh_n == nullptr ? A{} : widen(now.dh_n[in_carried(at)]);
    if (CELL == Cell::lstm) dc[in_carried(at)] = s.dc_n == nullptr ? A{} : widen(now.dc_n[in_carried(at)]);
  });
  auto look_ahead = [&] {
    if (step.number < 0) return;
    tiles.for_first([&](const Position& at) {
      if (is_ahead<P>(at)) ahead[at.index] = saved<CELL>(now, place(at));
    });
  };
  look_ahead();
  __syncthreads();
  while (step.number >= 0) {
    tiles.for_all(
        [&](const Position& at) {
          Saved<T, CELL> from{};
          A of_h{}, of_c{};
          if (at.valid) {
            from = is_ahead<P>(at) ? ahead[at.index] : saved<CELL>(now, place(at));
            of_h = dh[in_carried(at)];
            if (CELL == Cell::lstm) of_c = dc[in_carried(at)];
          }
          if (step.masked && !at.valid) return Differentiated<A, gates>{};  // there is no such row
          return differentiate<CELL>(shape, place(at), from, of_h, of_c);
        },
        [&](const Position& at, const Differentiated<A, gates>& found) {
          dh[in_carried(at)] = found.dh;
          if (CELL == Cell::lstm) dc[in_carried(at)] = found.dc;
#pragma unroll
          for (int g = 0; g < gates; ++g) d[in_states(at) + g * segment] = narrow<T>(found.passing[g]);
          store_gradients<CELL>(now, place(at), found);
          store_state_gradients<CELL>(s, model, place(at), found);
        });
    now = moved(now, -rows_of_step(shape));
    step = after(shape, step, -1);
    look_ahead();
    __syncthreads();
    auto place_then = [&](const Position& at) { return Place{after(shape, step, 1), at.row, at.unit}; };
    auto product_of = [](const Position&, const A(&product)[1]) { return product[0]; };
    if constexpr (CELL == Cell::gru_before) {
      const SequenceBackward<T> then = moved(now, rows_of_step(shape));
      for_products<1>(weights, tiles, d, stride, 2, 1, 0, product_of, [&](const Position& at, A product) {
        A of_h = dh[in_carried(at)];
        d[in_states(at)] = narrow<T>(differentiate_reset(then, place_then(at), product, of_h));
        dh[in_carried(at)] = of_h;
      });
      __syncthreads();
    }
    for_products<1>(weights, tiles, d, stride, 0, CELL == Cell::gru_before ? 2 : gates, 0, product_of,
                    [&](const Position& at, A product) {
                      const int i = in_carried(at);
                      A of_h = dh[i], of_c = CELL == Cell::lstm ? dc[i] : A{};
                      end_step_back(shape, place_then(at), product, of_h, of_c);
                      dh[i] = of_h;
                      if (CELL == Cell::lstm) dc[i] = of_c;
                    });
    __syncthreads();
  }
  now = moved(s, model, step);
  tiles.for_all([&](const Position& at) {
    now.dh0[in_carried(at)] = narrow<T>(dh[in_carried(at)]);
    if (CELL == Cell::lstm) now.dc0[in_carried(at)] = narrow<T>(dc[in_carried(at)]);
  });
}

// ------------------------------------------------------------------------------------------------ step by step

constexpr int step_threads = 256;

// Calls f(model, b, unit, index in (E, B, H)) for all units of all rows of all models.
template <class F>
__device__ __forceinline__ void for_units(const SequenceShape& s, const F& f) {
  const int64_t all = s.models * s.batch * s.hidden;
  for (int64_t i = int64_t{1} * blockIdx.x * blockDim.x + threadIdx.x; i < all;
       i += int64_t{1} * gridDim.x * blockDim.x) {
    const int64_t row = i / s.hidden;
    f(row / s.batch, static_cast<int>(row % s.batch), static_cast<int>(i % s.hidden), i);
  }
}

template <int GATES, class T>
__device__ __forceinline__ void products_of(const SequenceShape& s, const T* product, int64_t state, int unit,
                                            Accumulate<T> (&sums)[GATES]) {
  const int64_t first = (state - unit) * GATES + unit;
#pragma unroll
  for (int g = 0; g < GATES; ++g) sums[g] = widen(product[first + g * s.hidden]);
}

template <class T>
__global__ void __launch_bounds__(step_threads) begin_forward_step(const StepForward<T> f) {
  const SequenceShape& shape = f.sequence.shape;
  for_units(shape, [&](int64_t model, int b, int unit, int64_t i) {
    const Place at{step_of(shape, b, 0), 0, unit};
    const SequenceForward<T> now = moved(f.sequence, model, at.step);
    f.h[i] = first_state(shape, now.h0, at);
    if (f.c != nullptr) f.c[i] = widen(first_state(shape, now.c0, at));
  });
}

template <class T>
__global__ void __launch_bounds__(step_threads) end_forward_step(const StepForward<T> f) {
  for_units(f.sequence.shape, [&](int64_t, int, int, int64_t i) {
    f.sequence.h_n[i] = f.h[i];
    if (f.c != nullptr) f.sequence.c_n[i] = narrow<T>(f.c[i]);
  });
}

template <class T, Cell CELL, int STAGE>
__global__ void __launch_bounds__(step_threads) forward_step(const StepForward<T> f) {
  const SequenceForward<T>& s = f.sequence;
  for_units(s.shape, [&](int64_t model, int b, int unit, int64_t i) {
    const Place at{step_of(s.shape, b, static_cast<int>(f.step)), 0, unit};
    const SequenceForward<T> now = moved(s, model, at.step);
    using A = Accumulate<T>;
    const A h = widen(f.h[i]);
    if constexpr (CELL == Cell::gru_before && STAGE == 0) {
      A sums[2];
      products_of(s.shape, f.product, i, unit, sums);
      f.r_h[i] = store_gates(now, at, reach_gates(sums, projected<2>(now, at, 0), h));
    } else {
      constexpr int gates = Forward<CELL>::gates;
      A sums[gates];
      products_of(s.shape, f.product, i, unit, sums);
      const Projected<T, gates> in = projected<gates>(now, at, Forward<CELL>::first_gate);
      const Reached<A, gates> reached = Forward<CELL>::reach(now, at, sums, in, h, CELL == Cell::lstm ? f.c[i] : A{});
      finish_step<CELL>(now, at, reached, f.h[i], f.h + i, CELL == Cell::lstm ? f.c + i : nullptr);
    }
  });
}

// Four blocks a processor: for more, the compiler spills on some architectures.
template <class T, Cell CELL, int STAGE>
__global__ void __launch_bounds__(step_threads, 4) backward_step(const StepBackward<T> f) {
  using A = Accumulate<T>;
  const SequenceBackward<T>& s = f.sequence;
  const SequenceShape& shape = s.shape;
  for_units(shape, [&](int64_t model, int b, int unit, int64_t i) {
    const Place at{step_of(shape, b, static_cast<int>(f.step)), 0, unit};
    const SequenceBackward<T> now = moved(s, model, at.step);
    A of_h, of_c{};
    if (STAGE == 0 && f.step == shape.steps - 1) {
      of_h = s.dh_n == nullptr ? A{} : widen(s.dh_n[i]);
      if (CELL == Cell::lstm) of_c = s.dc_n == nullptr ? A{} : widen(s.dc_n[i]);
    } else {
      of_h = f.dh[i];
      if (CELL == Cell::lstm) of_c = f.dc[i];
    }
    if constexpr (STAGE == 1) {
      differentiate_reset(now, at, static_cast<A>(widen(f.product[i])), of_h);
    } else {
      const Place later{after(shape, at.step, 1), 0, unit};
      if (f.step < shape.steps - 1) end_step_back(shape, later, static_cast<A>(widen(f.product[i])), of_h, of_c);
      if (f.step >= 0) {
        const auto found = differentiate<CELL>(shape, at, saved<CELL>(now, at), of_h, of_c);
        store_gradients<CELL>(now, at, found);
        store_state_gradients<CELL>(s, model, at, found);
        of_h = found.dh, of_c = found.dc;
      }
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

// As many blocks as run at once, if there are rows enough: two a processor where both have room for all they want.
template <class T, class P>
Plan plan(const SequenceShape& s, bool backward, const Device& device) {
  const int batch = static_cast<int>(s.batch), units = static_cast<int>(s.hidden);
  const int whole = round_up(units, P::depth_step), most_rows = 32;
  const int64_t half = Memory<T, P>{s.cell, units, most_rows / 2, backward}.bytes(whole) + reserved_bytes;
  const int64_t at_once = int64_t{1} * device.processors * (2 * half <= device.shared_bytes ? 2 : 1);
  const int wanted = static_cast<int>(s.models < at_once ? at_once / s.models : 1);
  int rows = least(most_rows, divide_up(batch, least(batch, wanted)));
  while (rows > 1 && Memory<T, P>{s.cell, units, rows, backward}.bytes(0) > device.shared_bytes) --rows;
  Plan plan{rows, divide_up(batch, rows), 0, 0, 0};
  const Memory<T, P> memory{s.cell, units, rows, backward};
  for (plan.kept = whole; plan.kept > 0 && memory.bytes(plan.kept) > device.shared_bytes;) plan.kept -= P::depth_step;
  plan.bytes = memory.bytes(plan.kept);
  const int tiles = divide_up(rows, P::row_tile) * divide_up(units, P::unit_tile);
  plan.threads = warp_size * least(P::most_threads / warp_size, tiles < 4 ? 4 : tiles);
  return plan;
}

template <class T, Cell CELL, class P>
cudaError_t launch_sequence(const SequenceForward<T>& s, const Plan& cut, cudaStream_t stream) {
  return launch(forward_sequence<T, P, CELL>, {cut.parts, s.shape.models}, cut.threads, cut.bytes, stream, s, cut);
}
template <class T, Cell CELL, class P>
cudaError_t launch_sequence(const SequenceBackward<T>& s, const Plan& cut, cudaStream_t stream) {
  return launch(backward_sequence<T, P, CELL>, {cut.parts, s.shape.models}, cut.threads, cut.bytes, stream, s, cut);
}

// Calls f.operator()<P>(plan) with the products that serve a shape: larger tiles where rows and units fill them.
template <class T, class F>
auto with_products(const SequenceShape& s, Math math, bool backward, const Device& device, const F& f) {
  auto call = [&]<class P>(P*) { return f.template operator()<P>(plan<T, P>(s, backward, device)); };
  if constexpr (sizeof(T) == 8) {
    return call(static_cast<Plain<T, 4>*>(nullptr));
  } else {
    if constexpr (sizeof(T) == 4)
      if (math == Math::plain)
        return s.batch > 16 && s.hidden >= 64 ? call(static_cast<Plain<T, 8>*>(nullptr))
                                              : call(static_cast<Plain<T, 4>*>(nullptr));
    using Small = TensorCores<T, 1>;
    const bool large = s.hidden >= 64 && plan<T, Small>(s, backward, device).rows > Small::row_tile;
    return large ? call(static_cast<TensorCores<T, 2>*>(nullptr)) : call(static_cast<Small*>(nullptr));
  }
}

template <class T, Cell CELL, class Sequence>
cudaError_t launch_cell(const Sequence& s, Math math, const Device& device, cudaStream_t stream) {
  constexpr bool backward = std::is_same_v<Sequence, SequenceBackward<T>>;
  return with_products<T>(s.shape, math, backward, device,
                          [&]<class P>(const Plan& cut) { return launch_sequence<T, CELL, P>(s, cut, stream); });
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

template <class T>
Fit fits(const SequenceShape& s, Math math, bool backward) {
  const Device device = this_device();
  if (device.error != cudaSuccess || s.models > most_beside || s.batch >= 1 << 30 || s.hidden >= 1 << 14 ||
      s.steps >= 1 << 30)
    return Fit::none;
  if (s.models == 0 || s.batch == 0) return Fit::resident;
  return with_products<T>(s, math, backward, device, [&]<class P>(const Plan& cut) {
    if (cut.bytes > device.shared_bytes) return Fit::none;
    return cut.kept >= s.hidden ? Fit::resident : Fit::streamed;
  });
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
