// The CPU kernels as tables of functions, one table per instruction set, over raw pointers and sizes.
//
// Shapes: E models, T steps, B sequences, H hidden units, contiguous and in this order.
#pragma once

#include <cstdint>

#include "../core/activation.h"
#include "../core/cells.h"
#include "../core/convolution.h"

namespace recurve {

// Runs task(context, i) for i in [0, tasks) on up to `threads` threads.
struct Parallel {
  int threads;
  void (*run)(int64_t tasks, void (*task)(void* context, int64_t index), void* context);
};

// Runs f(i) for i in [0, tasks).
template <class F>
static void parallel_for(const Parallel& parallel, int64_t tasks, F&& f) {
  if (tasks == 1 || parallel.threads == 1) {
    for (int64_t i = 0; i < tasks; ++i) f(i);
  } else {
    parallel.run(tasks, [](void* context, int64_t i) { (*static_cast<F*>(context))(i); }, &f);
  }
}

// gru_before: the GRU whose reset gate acts before the product.
enum class Cell : int { lstm = 0, gru = 1, rnn = 2, gru_before = 3 };

// Gates per unit in the weights, and gradients per unit that the backward pass leaves.
constexpr int gate_count(Cell cell) { return cell == Cell::lstm ? 4 : cell == Cell::rnn ? 1 : 3; }
constexpr int gradient_count(Cell cell) { return cell == Cell::gru ? 4 : gate_count(cell); }

// Whether W x is best computed beside U h at each step. Else one product over all steps comes before: it reads the
// weights once, which counts where a step has few sequences or the weights fill a second-level cache. From
// measurements.
constexpr bool fuses_input(int64_t batch, int64_t inputs, int64_t hidden, int64_t weight_bytes) {
  return batch >= 8 && weight_bytes <= (2 * inputs <= hidden ? 1 << 20 : 1 << 18);
}

struct SequenceShape {
  Cell cell;
  int64_t models, steps, batch, hidden;
  bool reverse;
  const int64_t* lengths;  // (B), or null: all of `steps`
  const bool* resets;      // (T, B), or null: none
  Activation activation;   // of an RNN
  double leak;             // of an RNN
};

template <class T>
struct SequenceForward {
  SequenceShape shape;
  const T* x;        // (T, B, I) if shared, else (E, T, B, I); null: `gates` holds W x + biases
  int64_t inputs;    // I
  bool shared;       // all models read the same x
  const T* w_ih;     // (E, gates H, I)
  const T* bias;     // (E, gates H), beside x: what is added to W x + U h; or null
  T* gates;          // (E, T, B, gates H): out, if kept: the activated gates; null if neither in nor kept,
                     // save for gru_before, which always works in it
  T* aux;            // LSTM: cell states; GRU: the recurrent part of n; gru_before: r h'. (E, T, B, H) if kept, else
                     // the running one (E, B, H), null for a GRU; null for an RNN
  bool keep;         // leave in `gates` and `aux` what the backward pass needs
  const T* w_hh;     // (E, gates H, H)
  const T* bias_n;   // GRU: hidden bias of n, the last third of (E, gates H), or null
  const T *h0, *c0;  // (E, B, H); c0 of an LSTM only
  T* y;              // (E, T, B, H)
  T *h_n, *c_n;      // (E, B, H)
};

template <class T>
struct SequenceBackward {
  SequenceShape shape;
  const T *gates, *aux, *y;  // as the forward pass left them
  const T* x;                // (T, B, I) if shared, else (E, T, B, I)
  int64_t inputs;            // I
  bool shared;
  const T *w_ih, *w_hh;
  const T *h0, *c0;
  const T* before;             // (E, T, B, H), the hidden state before each step, or null: y a step earlier, h0 first
  const T* dy;                 // (E, T, B, H), or null: zero
  const T *dh_n, *dc_n;        // (E, B, H), or null: zero
  T *dh0, *dc0;                // (E, B, H); dc0 of an LSTM only
  T* dx;                       // (E, T, B, I), or null
  T *dw_ih, *dw_hh;            // like the weights, or both null
  T *db_ih, *db_hh;            // (E, gates H), or both null
  T *dh_squares, *dc_squares;  // (E, T, B), zero before, or null: squared norms of the gradients of each step's state
};

// c = a b + bias, or c += a b, for each of `batch` products: a (M, K) and b (K, N) by strides, c (M, N) with unit
// column stride. K may come in groups, where a and b have unit strides in M and N: elements of a group lie a_column and
// b_row apart, groups a_group and b_group.
template <class T>
struct Gemm {
  int64_t batch, M, N, K;
  const T* a;
  int64_t a_batch, a_row, a_column;
  const T* b;
  int64_t b_batch, b_row, b_column;
  T* c;
  int64_t c_batch, c_row;
  const T* bias;  // (N), or null
  int64_t bias_batch;
  bool accumulate;
  int64_t k_group = 0;  // elements of K in a group; 0: all
  int64_t a_group = 0, b_group = 0;
};

template <class T>
struct ConvForward {
  ConvShape shape;
  const T* x;       // (B, C, H, W) if shared, else (E, B, C, H, W)
  const T* weight;  // (E, O, C / groups, kH, kW)
  const T* bias;    // (E, O), or null
  T* y;             // (E, B, O, pooled H, pooled W)
  uint8_t* places;  // like y: the pixel of the window that was the largest, row by row; or null
  bool winograd;    // by Winograd's algorithm, else directly
};

template <class T>
struct ConvBackward {
  ConvShape shape;
  const T *x, *weight, *bias;
  const T* y;             // as the forward pass left them; read if the shape keeps enough
  const uint8_t* places;  // if the shape keeps places
  const T* dy;
  T* dx;          // (E, B, C, H, W), or null
  T* dweight;     // like weight, or null
  T* dbias;       // (E, O), or null
  bool winograd;  // by Winograd's algorithm where that pays, else directly
};

// A run of multiplications and additions for their own sake: x <- factor x + summand in independent chains.
template <class T>
struct ArithmeticPeak {
  int64_t rounds;
  T factor, summand;
  T result;            // out: so that no compiler leaves the work out
  int64_t operations;  // out: multiplications and additions done
};

template <class T>
struct Kernels {
  void (*sequence_forward)(const SequenceForward<T>&, const Parallel&);
  void (*sequence_backward)(const SequenceBackward<T>&, const Parallel&);
  void (*gemm)(const Gemm<T>&, const Parallel&);
  void (*conv_forward)(const ConvForward<T>&, const Parallel&);
  void (*conv_backward)(const ConvBackward<T>&, const Parallel&);
  void (*run_chains)(ArithmeticPeak<T>&);
  T (*read_memory)(const T* from, int64_t count);  // the sum, up to a few last elements
  void (*copy_memory)(const T* from, T* to, int64_t count);
};

struct InstructionSet {
  const char* name;
  Kernels<float> float_kernels;
  Kernels<double> double_kernels;
};

// The table in use: the best that the machine has, or the one that RECURVE_ISA names.
// Throws std::runtime_error if that one is unknown or the machine lacks it.
const InstructionSet& instruction_set();

// Names of all tables in this build that the machine can run, best first.
const char* const* instruction_sets(int* count);

template <class T>
const Kernels<T>& kernels();

}  // namespace recurve
