// The CUDA kernels as launchers over raw pointers and sizes: each queues its work on a stream and returns the error
// code.
//
// Shapes as in cpu/kernels.h: E models, T steps, B sequences, H hidden units, contiguous and in this order. Pointers
// are to memory of the current device, also those in a SequenceShape; a length outside [0, T] counts as the nearer end.
#pragma once

#include <cuda_runtime.h>

#include "../cpu/kernels.h"
#include "numbers.h"

namespace recurve::cuda {

// How products are computed: in T itself, or on tensor cores, which 16-bit types always use and which round float
// operands to TF32 (10 bits of mantissa).
enum class Math : int { plain = 0, tensor = 1 };

template <class T>
constexpr Math math_of(bool allow_tf32) {
  if constexpr (sizeof(T) == 2) return Math::tensor;
  return sizeof(T) == 4 && allow_tf32 ? Math::tensor : Math::plain;
}

// Whether a product over the state reads w_hh (E, gates H, H) as it is, or transposed, (E, H, gates H).
constexpr bool reads_transposed(Math math, bool backward) { return (math == Math::tensor) == backward; }

template <class T>
struct SequenceForward {
  SequenceShape shape;
  T* gates;            // (E, T, B, gates H): in: W x + biases; out, if kept: the activated gates, else scratch
  Accumulate<T>* aux;  // what the backward pass needs beside the gates (E, T, B, H), as on the CPU; or null
  bool keep;           // leave in `gates` and `aux` what the backward pass needs
  const T* w_hh;       // see reads_transposed
  const T* bias_n;     // GRU: hidden bias of n (E, H), or null
  const T *h0, *c0;    // (E, B, H); c0 of an LSTM only
  T* y;                // (E, T, B, H)
  T *h_n, *c_n;        // (E, B, H)
};

template <class T>
struct SequenceBackward {
  SequenceShape shape;
  const T* gates;  // these three as the forward pass left them
  const Accumulate<T>* aux;
  const T* y;
  const T* w_hh;  // see reads_transposed
  const T *h0, *c0;
  const T* dy;           // (E, T, B, H), or null: zero
  const T *dh_n, *dc_n;  // (E, B, H), or null: zero
  T* dgates;             // (E, T, B, gradients H), as the gates; GRU: n from the input, r, z, n from the state
  T *dh0, *dc0;          // (E, B, H)
  Accumulate<T>*dh_steps, *dc_steps;  // (E, T, B, H), zero before, or null: the gradients of each step's state
};

// The whole sequence in one launch: a block owns some sequences of one model from the first step to the last, and keeps
// of the weights what its shared memory holds. `fits` says whether the block's state leaves room for none of them, so
// that the block cannot run, for some, so that the rest are read at every step, or for all.
enum class Fit { none, streamed, resident };
template <class T>
Fit fits(const SequenceShape& shape, Math math, bool backward);
template <class T>
cudaError_t sequence_forward(const SequenceForward<T>& sequence, Math math, cudaStream_t stream);
template <class T>
cudaError_t sequence_backward(const SequenceBackward<T>& sequence, Math math, cudaStream_t stream);

// The whole sequence in one launch whose blocks share each model's units and exchange states at every step, through
// scratch of so many elements of T and counters. `fits_grid` says whether their shared memory holds the weights.
struct GridScratch {
  int64_t exchanged, counters;
};
template <class T>
bool fits_grid(const SequenceShape& shape, Math math, bool backward);
template <class T>
GridScratch grid_scratch(const SequenceShape& shape, Math math, bool backward);
template <class T>  // w_hh (E, gates H, H) in both
cudaError_t grid_forward(const SequenceForward<T>& sequence, Math math, T* exchange, unsigned* counters,
                         cudaStream_t stream);
template <class T>
cudaError_t grid_backward(const SequenceBackward<T>& sequence, Math math, T* exchange, unsigned* counters,
                          cudaStream_t stream);

// One step at a time, between products that the caller computes: for weights that fill many blocks.
template <class T>
struct StepForward {
  SequenceForward<T> sequence;
  int64_t step;      // counted in the direction of the sequence
  int stage;         // gru_before: 0 for r and z, 1 for n; 0 else
  const T* product;  // (E, B, gates of the stage H): the state before the step times the weights
  T *h, *r_h;        // (E, B, H): the running state; gru_before: r h' of this step
  Accumulate<T>* c;  // (E, B, H): the running cell state of an LSTM
};
template <class T>
struct StepBackward {
  SequenceBackward<T> sequence;
  int64_t step;           // `steps`: only the state after the last step; -1: only that before the first
  int stage;              // gru_before: 0 for z and n, 1 for r; 0 else
  const T* product;       // (E, B, H): the later step's gradients of its gates, or those of n, times the weights
  Accumulate<T>*dh, *dc;  // (E, B, H): the running gradients of the state
};
// Fills the running state from h0 and c0, or leaves it in h_n and c_n.
template <class T>
cudaError_t begin_forward(const StepForward<T>& step, cudaStream_t stream);
template <class T>
cudaError_t step_forward(const StepForward<T>& step, cudaStream_t stream);
template <class T>
cudaError_t end_forward(const StepForward<T>& step, cudaStream_t stream);
template <class T>
cudaError_t step_backward(const StepBackward<T>& step, cudaStream_t stream);

// The convolution block; shapes as on the CPU.
template <class T>
struct ConvForward {
  ConvShape shape;
  const T *x, *weight, *bias;  // bias (E, O), or null
  T* y;
  uint8_t* places;  // like y: the pixel of the window that was the largest, row by row; or null
};

template <class T>
struct ConvBackward {
  ConvShape shape;
  const T *x, *weight, *bias;
  const T* y;             // as the forward pass left them; read if the shape keeps enough
  const uint8_t* places;  // if the shape keeps places
  const T* dy;
  T *dx, *dweight, *dbias;  // with a leading E, or null
};

template <class T>
cudaError_t conv_forward(const ConvForward<T>& call, Math math, cudaStream_t stream);

// What the backward pass works in: elements of T, and of Accumulate<T>.
struct ConvScratch {
  int64_t pixels, sums;
};
template <class T>
ConvScratch conv_scratch(const ConvShape& shape, Math math);
template <class T>
cudaError_t conv_backward(const ConvBackward<T>& call, Math math, T* pixels, Accumulate<T>* sums, cudaStream_t stream);

}  // namespace recurve::cuda
