// The recurrent ops on CUDA: torch's products around the kernels.
#include <ATen/Context.h>
#include <torch/library.h>

#include "../sequence.h"
#include "designs.h"
#include "tensors.h"

namespace recurve {
namespace {

// The biases that do not pass the reset gate, (E, gates H), and that of n that does, (E, H).
std::pair<Tensor, Tensor> split_biases(const Inputs& in, Cell cell) {
  if (!in.b_ih.defined()) return {};
  if (cell != Cell::gru) return {in.b_ih + in.b_hh, Tensor()};
  Tensor sum = in.b_ih.clone();
  sum.narrow(1, 0, 2 * in.hidden) += in.b_hh.narrow(1, 0, 2 * in.hidden);
  return {sum, in.b_hh.narrow(1, 2 * in.hidden, in.hidden).contiguous()};
}

// The gradients of both biases from those of the gates, summed over steps and sequences: (E, gradients H).
void set_bias_gradients(Gradients& d, const Tensor& sums, Cell cell) {
  const int64_t H = sums.size(1) / gradient_count(cell), width = gate_count(cell) * H;
  d.b_hh = sums.narrow(1, sums.size(1) - width, width).clone();
  d.b_ih = cell == Cell::gru ? at::cat({sums.narrow(1, H, 2 * H), sums.narrow(1, 0, H)}, 1) : d.b_hh.clone();
}

using cuda::Accumulate;
using cuda::Design;
using cuda::Math;

bool allows_tf32() { return at::globalContext().allowTF32CuDNN(at::Float32Op::RNN); }

// What both passes of a call share.
struct Call {
  const Inputs& in;
  SequenceShape shape;
  Math math;
  Design design;
  cudaStream_t stream;

  Call(const Inputs& in_, const Options& options) : in(in_), shape(in_.shape(options)) {
    stream = c10::cuda::getCurrentCUDAStream().stream();
    for_type(in.x.scalar_type(), [&]<class T>(T*) {
      math = cuda::math_of<T>(allows_tf32());
      design = cuda::design_of<T>(shape, math);
    });
  }

  int64_t width() const { return gate_count(shape.cell) * shape.hidden; }
  Tensor state(at::ScalarType type) const {
    return at::empty({shape.models, shape.batch, shape.hidden}, in.x.options().dtype(type));
  }
  // Recurrent weights as the kernels read them.
  Tensor weights(bool backward) const {
    const bool transposed = design == Design::block && cuda::reads_transposed(math, backward);
    return transposed ? in.w_hh.transpose(1, 2).contiguous() : in.w_hh;
  }
  // Those of some gates, (E, gates H, H).
  Tensor weights_of(int64_t first, int64_t gates) const {
    return in.w_hh.narrow(1, first * shape.hidden, gates * shape.hidden);
  }
};

// Through memory that the blocks of a grid exchange.
template <class T, class Sequence>
void run_grid(const Call& call, const Sequence& sequence, bool backward) {
  if (call.shape.models == 0 || call.shape.batch == 0) return;
  const cuda::GridScratch sizes = cuda::grid_scratch<T>(call.shape, call.math, backward);
  const Tensor exchange = at::empty({sizes.exchanged}, call.in.x.options());
  const Tensor counters = at::empty({sizes.counters}, call.in.x.options().dtype(at::kInt));
  T* const of_exchange = pointer<T>(exchange);
  auto* const of_counters = pointer<unsigned>(counters);
  if constexpr (std::is_same_v<Sequence, cuda::SequenceForward<T>>)
    C10_CUDA_CHECK(cuda::grid_forward(sequence, call.math, of_exchange, of_counters, call.stream));
  else
    C10_CUDA_CHECK(cuda::grid_backward(sequence, call.math, of_exchange, of_counters, call.stream));
}

Tensor rows(const Tensor& t) { return t.flatten(1, 2); }  // (E, T, B, ...) as (E, T B, ...)

// x as (E, T B, I), without a copy for each model where they share it.
Tensor input_rows(const Inputs& in) {
  return in.shared ? in.x.reshape({1, in.steps * in.batch, in.inputs}).expand({in.models, -1, -1}) : rows(in.x);
}

// Of an ensemble with biases, the input's products take those along: x has a column of ones behind it, and the weights
// the biases. Columns up to a multiple of 8, which tensor cores ask for, are zero.
bool takes_biases_along(const Inputs& in) { return in.b_ih.defined() && in.models > 1; }

Tensor input_rows_and_ones(const Inputs& in) {
  const Tensor x = in.shared ? in.x.reshape({1, in.steps * in.batch, in.inputs}) : rows(in.x);
  const Tensor tail = at::zeros({1, 1, 8 - in.inputs % 8}, x.options());
  tail.select(2, 0).fill_(1);
  return at::cat({x, tail.expand({x.size(0), x.size(1), -1})}, 2).expand({in.models, -1, -1});
}

// W x + biases (E, T, B, gates H).
Tensor projected(const Inputs& in, const Tensor& bias) {
  Tensor gates;
  if (takes_biases_along(in)) {
    const Tensor zeros = at::zeros({1, 1, 1}, bias.options()).expand({in.models, bias.size(1), 7 - in.inputs % 8});
    const Tensor weights = at::cat({in.w_ih, bias.unsqueeze(2), zeros}, 2);
    gates = at::bmm(input_rows_and_ones(in), weights.transpose(1, 2));
  } else if (bias.defined() && in.models == 1) {
    gates = at::addmm(bias[0], input_rows(in)[0], in.w_ih[0].t());
  } else {
    gates = at::bmm(input_rows(in), in.w_ih.transpose(1, 2));
  }
  return gates.view({in.models, in.steps, in.batch, in.w_ih.size(1)});
}

template <class T>
void forward_by_steps(const Call& call, cuda::StepForward<T> f) {
  const bool before = call.shape.cell == Cell::gru_before;
  const int64_t gates = gate_count(call.shape.cell), H = call.shape.hidden;
  const auto type = call.in.x.scalar_type();
  const Tensor h = call.state(type), r_h = before ? call.state(type) : Tensor();
  const Tensor c = call.shape.cell == Cell::lstm ? call.state(accumulated(type)) : Tensor();
  f.h = pointer<T>(h), f.r_h = pointer<T>(r_h), f.c = pointer<Accumulate<T>>(c);
  auto multiply = [&](const Tensor& state, int64_t first, int64_t count) {
    Tensor product = at::empty({call.shape.models, call.shape.batch, count * H}, call.in.x.options());
    at::bmm_out(product, state, call.weights_of(first, count).transpose(1, 2));
    f.product = constant<T>(product);
    C10_CUDA_CHECK(cuda::step_forward(f, call.stream));
  };
  C10_CUDA_CHECK(cuda::begin_forward(f, call.stream));
  for (f.step = 0; f.step < call.shape.steps; ++f.step) {
    f.stage = 0;
    multiply(h, 0, before ? 2 : gates);
    if (!before) continue;
    f.stage = 1;
    multiply(r_h, 2, 1);
  }
  C10_CUDA_CHECK(cuda::end_forward(f, call.stream));
}

template <class T>
void backward_by_steps(const Call& call, cuda::StepBackward<T> f, const Tensor& dgates) {
  const SequenceShape& s = call.shape;
  const bool before = s.cell == Cell::gru_before;
  const int64_t H = s.hidden, gates = gate_count(s.cell), skipped = gradient_count(s.cell) - gates;
  const auto type = call.in.x.scalar_type();
  const Tensor dh = call.state(accumulated(type)), product = call.state(type);
  const Tensor dc = s.cell == Cell::lstm ? call.state(accumulated(type)) : Tensor();
  f.dh = pointer<Accumulate<T>>(dh), f.dc = pointer<Accumulate<T>>(dc), f.product = constant<T>(product);
  auto multiply = [&](int64_t first, int64_t count) {
    const Tensor d = dgates.select(1, s.reverse ? s.steps - 1 - f.step : f.step);
    Tensor out = product;
    at::bmm_out(out, d.narrow(2, (skipped + first) * H, count * H), call.weights_of(first, count));
  };
  for (f.step = s.steps - 1; f.step >= -1; --f.step) {
    f.stage = 0;
    C10_CUDA_CHECK(cuda::step_backward(f, call.stream));
    if (f.step < 0) break;
    if (before) {
      multiply(2, 1);
      f.stage = 1;
      C10_CUDA_CHECK(cuda::step_backward(f, call.stream));
    }
    multiply(0, before ? 2 : gates);
  }
}

Kept run_forward(const Inputs& in, const Options& options, bool keep) {
  const c10::cuda::CUDAGuard guard(in.x.device());
  const int64_t E = in.models, T_ = in.steps, B = in.batch, H = in.hidden;
  const auto like = in.x.options();
  Kept out{at::empty({E, T_, B, H}, like), at::empty({E, B, H}, like), Tensor(), Tensor(), Tensor()};
  if (options.cell == Cell::lstm) out.c_n = at::empty({E, B, H}, like);
  if (keep && options.cell != Cell::rnn)
    out.aux = at::empty({E, T_, B, H}, like.dtype(accumulated(in.x.scalar_type())));
  const std::pair<Tensor, Tensor> biases = split_biases(in, options.cell);
  out.gates = projected(in, biases.first);
  const Call call(in, options);
  const Tensor weights = call.weights(false);
  for_type(in.x.scalar_type(), [&]<class T>(T*) {
    const cuda::SequenceForward<T> sequence{call.shape,
                                            pointer<T>(out.gates),
                                            pointer<Accumulate<T>>(out.aux),
                                            keep,
                                            constant<T>(weights),
                                            constant<T>(biases.second),
                                            constant<T>(in.h0),
                                            constant<T>(in.c0),
                                            pointer<T>(out.y),
                                            pointer<T>(out.h_n),
                                            pointer<T>(out.c_n)};
    if (call.design == Design::block)
      C10_CUDA_CHECK(cuda::sequence_forward(sequence, call.math, call.stream));
    else if (call.design == Design::grid)
      run_grid<T>(call, sequence, false);
    else
      forward_by_steps<T>(call, {sequence, 0, 0, nullptr, nullptr, nullptr, nullptr});
  });
  return out;
}

// Of rows [first, first + count) the sum of dᵀ states, for some columns of d, into or onto `out`.
void sum_products(Tensor out, const Tensor& d, int64_t first_column, const Tensor& states, bool add) {
  const Tensor columns = d.narrow(2, first_column, out.size(1)).transpose(1, 2);
  if (add)
    out.baddbmm_(columns, states);
  else
    at::bmm_out(out, columns, states);
}

// A GRU's gradients lie as n from the input, r, z, n from the state; its weights as r, z, n.
void gradient_of_input(const Inputs& in, Cell cell, const Tensor& d, Tensor& dx) {
  const int64_t H = in.hidden;
  Tensor out = rows(dx);
  if (cell != Cell::gru) {
    at::bmm_out(out, d, in.w_ih);
  } else {
    at::bmm_out(out, d.narrow(2, H, 2 * H), in.w_ih.narrow(1, 0, 2 * H));
    out.baddbmm_(d.narrow(2, 0, H), in.w_ih.narrow(1, 2 * H, H));
  }
}

// The gradients of w_ih and of the biases, from those of the gates, (E, T B, gradients H).
void gradients_at_input(const Inputs& in, Cell cell, const Tensor& d, Gradients& out) {
  const int64_t H = in.hidden;
  auto of_weights = [&](const Tensor& product) {
    return cell == Cell::gru ? at::cat({product.narrow(1, H, 2 * H), product.narrow(1, 0, H)}, 1)
                             : product.contiguous();
  };
  if (takes_biases_along(in)) {
    const Tensor product = at::bmm(d.transpose(1, 2), input_rows_and_ones(in));
    out.w_ih = of_weights(product.narrow(2, 0, in.inputs));
    set_bias_gradients(out, product.select(2, in.inputs), cell);
    return;
  }
  const int64_t from_input = cell == Cell::gru ? 3 * H : d.size(2);
  out.w_ih = of_weights(at::bmm(d.narrow(2, 0, from_input).transpose(1, 2), input_rows(in)));
  if (in.b_ih.defined()) set_bias_gradients(out, d.sum(1), cell);
}

void gradients_of_recurrent_weights(const Inputs& in, const Options& options, const Tensor& d, const Tensor& y,
                                    const Tensor& aux, Gradients& out) {
  const int64_t B = in.batch, H = in.hidden, width = in.w_hh.size(1), all = d.size(1);
  // Of the gradients that pass w_hh; n of gru_before sees r h' instead of h'.
  const int64_t column = d.size(2) - width, from_state = options.cell == Cell::gru_before ? 2 * H : width;
  const Tensor into = out.w_hh.narrow(1, 0, from_state);
  if (in.lengths.defined() || in.resets.defined()) {
    sum_products(into, d, column, rows(states_before(in, options, y)), false);
  } else {
    const Tensor states = rows(y);
    sum_products(into, d.narrow(1, options.reverse ? all - B : 0, B), column, in.h0, false);
    if (all > B)
      sum_products(into, d.narrow(1, options.reverse ? 0 : B, all - B), column,
                   states.narrow(1, options.reverse ? B : 0, all - B), true);
  }
  if (from_state < width)
    sum_products(out.w_hh.narrow(1, from_state, H), d, from_state, rows(aux).to(d.scalar_type()), false);
}

Gradients run_backward(const Inputs& in, const Options& options, const OptionalTensor& dy, const OptionalTensor& dh_n,
                       const OptionalTensor& dc_n, const Tensor& y, const Tensor& gates, const Tensor& aux, bool need_x,
                       bool need_weights, bool probe) {
  const c10::cuda::CUDAGuard guard(in.x.device());
  const int64_t E = in.models, T_ = in.steps, B = in.batch, H = in.hidden, I = in.inputs;
  const int64_t width = gate_count(options.cell) * H, all = gradient_count(options.cell) * H;
  const bool is_lstm = options.cell == Cell::lstm;
  const auto like = in.x.options(), like_sums = like.dtype(accumulated(in.x.scalar_type()));
  auto whole = [&](const OptionalTensor& t, at::IntArrayRef sizes) {
    return t.has_value() && t->defined() ? t->reshape(sizes).contiguous() : Tensor();
  };
  const Tensor y_ = y.reshape({E, T_, B, H}).contiguous(), dy_ = whole(dy, {E, T_, B, H});
  const Tensor dh_n_ = whole(dh_n, {E, B, H}), dc_n_ = whole(dc_n, {E, B, H});
  const Tensor dh_steps = probe ? at::zeros({E, T_, B, H}, like_sums) : Tensor();
  const Tensor dc_steps = probe && is_lstm ? at::zeros({E, T_, B, H}, like_sums) : Tensor();
  const Tensor dgates = at::empty({E, T_, B, all}, like);
  Gradients d;
  d.h0 = at::empty({E, B, H}, like);
  if (is_lstm) d.c0 = at::empty({E, B, H}, like);
  const Call call(in, options);
  const Tensor weights = call.weights(true);
  for_type(in.x.scalar_type(), [&]<class T>(T*) {
    using A = Accumulate<T>;
    const cuda::SequenceBackward<T> sequence{
        call.shape,         constant<T>(gates), constant<A>(aux), constant<T>(y_),      constant<T>(weights),
        constant<T>(in.h0), constant<T>(in.c0), constant<T>(dy_), constant<T>(dh_n_),   constant<T>(dc_n_),
        pointer<T>(dgates), pointer<T>(d.h0),   pointer<T>(d.c0), pointer<A>(dh_steps), pointer<A>(dc_steps)};
    if (call.design == Design::block)
      C10_CUDA_CHECK(cuda::sequence_backward(sequence, call.math, call.stream));
    else if (call.design == Design::grid)
      run_grid<T>(call, sequence, true);
    else
      backward_by_steps<T>(call, {sequence, 0, 0, nullptr, nullptr, nullptr}, dgates);
  });
  const Tensor of_rows = rows(dgates);
  if (need_x) gradient_of_input(in, options.cell, of_rows, d.x = at::empty({E, T_, B, I}, like));
  if (need_weights) {
    d.w_hh = at::empty({E, width, H}, like);
    gradients_at_input(in, options.cell, of_rows, d);
    gradients_of_recurrent_weights(in, options, of_rows, y_, aux, d);
  }
  auto norms = [&](const Tensor& steps) { return at::linalg_vector_norm(steps, 2, {2, 3}).to(in.x.scalar_type()); };
  if (probe) d.dh_norms = norms(dh_steps);
  if (dc_steps.defined()) d.dc_norms = norms(dc_steps);
  return d;
}

}  // namespace

TORCH_LIBRARY_IMPL(recurve, CUDA, m) {
  m.impl("sequence_forward", sequence_forward<run_forward>);
  m.impl("sequence_backward", sequence_backward<run_backward>);
}

}  // namespace recurve
