// The recurrent ops: schemas, CPU implementations over the kernels, and autograd.
#include <ATen/EmptyTensor.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "../cpu/memory.h"
#include "parallel.h"
#include "sequence.h"

namespace recurve {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// at::empty without torch's dispatcher.
Tensor empty(at::IntArrayRef sizes, const at::TensorOptions& options) { return at::detail::empty_cpu(sizes, options); }

// The same in memory that the next call takes over.
Tensor workspace(at::IntArrayRef sizes, const at::TensorOptions& options) {
  const size_t bytes = c10::multiply_integers(sizes) * options.dtype().itemsize();
  void* block = take_block(bytes);
  return at::from_blob(block, sizes, [block, bytes](void*) { give_block(block, bytes); }, options);
}

// The biases that do not pass the reset gate, (E, gates H).
template <class T>
void sum_biases(const Inputs& in, Cell cell, T* sum) {
  const int64_t width = in.b_ih.size(1), apart = cell == Cell::gru ? 2 * in.hidden : width;
  const T *b_ih = data<T>(in.b_ih), *b_hh = data<T>(in.b_hh);
  for (int64_t i = 0; i < in.models * width; ++i) sum[i] = i % width < apart ? b_ih[i] + b_hh[i] : b_ih[i];
}

Kept run_forward(const Inputs& in, const Options& options, bool keep) {
  const int64_t E = in.models, T_ = in.steps, B = in.batch, I = in.inputs, H = in.hidden;
  const int64_t width = gate_count(options.cell) * H;
  const auto like = in.x.options();
  const bool fused = fuses_input(B, I, H, width * I * in.x.element_size());
  Kept out{empty({E, T_, B, H}, like), empty({E, B, H}, like), Tensor(), Tensor(), Tensor()};
  if (options.cell == Cell::lstm) out.c_n = empty({E, B, H}, like);
  if (keep || !fused || options.cell == Cell::gru_before) out.gates = workspace({E, T_, B, width}, like);
  const bool runs_aux = options.cell == Cell::lstm || options.cell == Cell::gru_before;
  if (keep && options.cell != Cell::rnn)
    out.aux = workspace({E, T_, B, H}, like);
  else if (runs_aux)
    out.aux = workspace({E, B, H}, like);
  const Parallel parallel = torch_parallel();
  AT_DISPATCH_FLOATING_TYPES(in.x.scalar_type(), "recurve", [&] {
    using T = scalar_t;
    const Kernels<T>& cpu = kernels<T>();
    auto writable = [](const Tensor& t) { return t.defined() ? t.mutable_data_ptr<T>() : nullptr; };
    const Scratch<T> sums(in.b_ih.defined() ? E * width : 0);
    if (in.b_ih.defined()) sum_biases<T>(in, options.cell, sums);
    const T* bias = in.b_ih.defined() ? sums.get() : nullptr;
    const T* bias_n = in.b_ih.defined() && options.cell == Cell::gru ? data<T>(in.b_hh) + 2 * H : nullptr;
    if (!fused)
      cpu.gemm({E, T_ * B, width, I, data<T>(in.x), in.shared ? 0 : T_ * B * I, I, 1, data<T>(in.w_ih), width * I, 1, I,
                writable(out.gates), T_ * B * width, width, bias, width, false},
               parallel);
    cpu.sequence_forward({in.shape(options), fused ? data<T>(in.x) : nullptr, I, in.shared, data<T>(in.w_ih), bias,
                          writable(out.gates), writable(out.aux), keep, data<T>(in.w_hh), bias_n, data<T>(in.h0),
                          data<T>(in.c0), writable(out.y), writable(out.h_n), writable(out.c_n)},
                         parallel);
  });
  return out;
}

// What the backward pass reads beside the inputs; contiguous, with a leading E unless there is one model.
struct Left {
  Tensor y, gates, aux, dy, dh_n, dc_n;
  Tensor before;  // the hidden state before each step, where it is not `y` shifted by a step
};

struct Squares {
  Tensor dh, dc;  // (E, T, B) where a probe asks
};

// Models [first, first + models): the gradients of the gates, then what follows from them.
template <class T>
struct BackwardOfModels {
  const Inputs& in;
  const Options& options;
  const Left& left;
  const Squares& squares;
  const Gradients& d;
  int64_t first, models;
  const Parallel& parallel;

  const int64_t H = in.hidden, I = in.inputs, rows = in.steps * in.batch;
  const int64_t width = gate_count(options.cell) * H, all = gradient_count(options.cell) * H;
  const Kernels<T>& cpu = kernels<T>();

  const T* read(const Tensor& t) const { return t.numel() ? t.const_data_ptr<T>() + first * t.stride(0) : nullptr; }
  T* write(const Tensor& t) const { return t.defined() ? t.mutable_data_ptr<T>() + first * t.stride(0) : nullptr; }

  void operator()() const {
    const Scratch<T> dgates(models * rows * all);
    SequenceShape shape = in.shape(options);
    shape.models = models;
    cpu.sequence_backward(
        {shape, read(left.gates), read(left.aux), read(left.y), read(in.w_hh), read(in.h0), read(in.c0), read(left.dy),
         read(left.dh_n), read(left.dc_n), dgates, write(d.h0), write(d.c0), write(squares.dh), write(squares.dc)},
        parallel);
    if (d.x.defined()) gradient_of_input(dgates);
    if (d.w_ih.defined()) gradients_of_weights(dgates);
    if (d.b_ih.defined()) gradients_of_biases(dgates);
  }

  // A GRU's gradients lie as n from the input, r, z, n from the state; its weights as r, z, n.
  bool is_gru() const { return options.cell == Cell::gru; }

  void gradient_of_input(const T* dgates) const {
    auto add = [&](int64_t column, int64_t first_gate, int64_t K, bool accumulate) {
      cpu.gemm({models, rows, I, K, dgates + column, rows * all, all, 1, read(in.w_ih) + first_gate * I, width * I, I,
                1, write(d.x), rows * I, I, nullptr, 0, accumulate},
               parallel);
    };
    add(is_gru() ? H : 0, 0, is_gru() ? 2 * H : width, false);
    if (is_gru()) add(0, 2 * H, H, true);
  }

  void gradients_of_biases(const T* dgates) const {
    const Scratch<T> sums(models * all);
    cpu.column_sums(dgates, models, rows, all, sums, parallel);
    T *b_ih = write(d.b_ih), *b_hh = write(d.b_hh);
    for (int64_t i = 0; i < models * width; ++i) {
      const T* of_model = sums + i / width * all;
      const int64_t gate = i % width;
      b_hh[i] = of_model[all - width + gate];
      b_ih[i] = is_gru() && gate >= 2 * H ? of_model[gate - 2 * H] : b_hh[i];
    }
  }

  void gradients_of_weights(const T* dgates) const {
    // Sums over K rows from `row` on: columns [column, column + count) of dgates transposed times `states`.
    auto sum = [&](int64_t column, int64_t count, int64_t row, int64_t K, const T* states, int64_t states_batch,
                   int64_t columns, T* out, bool accumulate) {
      cpu.gemm({models, count, columns, K, dgates + row * all + column, rows * all, 1, all, states, states_batch,
                columns, 1, out, width * columns, columns, nullptr, 0, accumulate},
               parallel);
    };
    const T* x = in.shared ? data<T>(in.x) : read(in.x);
    const int64_t x_batch = in.shared ? 0 : rows * I;
    T *w_ih = write(d.w_ih), *w_hh = write(d.w_hh);
    sum(is_gru() ? H : 0, is_gru() ? 2 * H : width, 0, rows, x, x_batch, I, w_ih, false);
    if (is_gru()) sum(0, H, 0, rows, x, x_batch, I, w_ih + 2 * H * I, false);
    const int64_t column = all - width;  // of the gradients that pass w_hh; n of gru_before sees r h' instead of h'
    const int64_t from_state = options.cell == Cell::gru_before ? 2 * H : width;
    if (left.before.defined()) {
      sum(column, from_state, 0, rows, read(left.before), rows * H, H, w_hh, false);
    } else {
      const int64_t B = in.batch, start = options.reverse ? rows - B : 0, rest = options.reverse ? 0 : B;
      sum(column, from_state, start, B, read(in.h0), B * H, H, w_hh, false);
      if (rows > B)
        sum(column, from_state, rest, rows - B, read(left.y) + (options.reverse ? B * H : 0), rows * H, H, w_hh, true);
    }
    if (from_state < width)
      sum(from_state, width - from_state, 0, rows, read(left.aux), rows * H, H, w_hh + from_state * H, false);
  }
};

Gradients run_backward(const Inputs& in, const Options& options, const OptionalTensor& dy, const OptionalTensor& dh_n,
                       const OptionalTensor& dc_n, const Tensor& y, const Tensor& gates, const Tensor& aux, bool need_x,
                       bool need_weights, bool probe) {
  const int64_t E = in.models, T_ = in.steps, B = in.batch, H = in.hidden, I = in.inputs;
  const int64_t width = gate_count(options.cell) * H;
  const bool is_lstm = options.cell == Cell::lstm;
  const auto like = in.x.options();
  auto whole = [&](const OptionalTensor& t, int64_t count) {
    if (!t.has_value() || !t->defined()) return Tensor();
    TORCH_CHECK(t->numel() == count, "sequence_backward: a gradient or y has ", t->numel(), " elements, not ", count);
    return t->contiguous();
  };
  const int64_t state = E * B * H, all = T_ * state;
  Left left{whole(y, all), gates, aux, whole(dy, all), whole(dh_n, state), whole(dc_n, state), {}};
  if (need_weights && (in.lengths.defined() || in.resets.defined()))
    left.before = states_before(in, options, y.reshape({E, T_, B, H})).contiguous();
  const Squares squares{probe ? at::zeros({E, T_, B}, like) : Tensor(),
                        probe && is_lstm ? at::zeros({E, T_, B}, like) : Tensor()};
  Gradients d;
  d.h0 = empty({E, B, H}, like);
  if (is_lstm) d.c0 = empty({E, B, H}, like);
  if (need_x) d.x = empty({E, T_, B, I}, like);
  if (need_weights) {
    d.w_ih = empty({E, width, I}, like);
    d.w_hh = empty({E, width, H}, like);
  }
  if (need_weights && in.b_ih.defined()) {
    d.b_ih = empty({E, width}, like);
    d.b_hh = empty({E, width}, like);
  }
  const Parallel parallel = torch_parallel(), one{1, parallel.run};
  AT_DISPATCH_FLOATING_TYPES(in.x.scalar_type(), "recurve", [&] {
    auto run = [&](int64_t first, int64_t models, const Parallel& threads) {
      BackwardOfModels<scalar_t>{in, options, left, squares, d, first, models, threads}();
    };
    // Model by model the gradients of the gates stay in the cache of the thread that reads them again.
    if (E % parallel.threads == 0 || E >= 4 * parallel.threads)
      parallel_for(parallel, E, [&](int64_t model) { run(model, 1, one); });
    else
      run(0, E, parallel);
  });
  if (squares.dh.defined()) d.dh_norms = squares.dh.sum(-1).sqrt();
  if (squares.dc.defined()) d.dc_norms = squares.dc.sum(-1).sqrt();
  return d;
}

ForwardResult call_forward(const Tensor& x, const Tensor& h0, const OptionalTensor& c0, const Tensor& w_ih,
                           const Tensor& w_hh, const OptionalTensor& b_ih, const OptionalTensor& b_hh,
                           const OptionalTensor& lengths, const OptionalTensor& resets, const Options& o, bool keep) {
  static auto op = c10::Dispatcher::singleton()
                       .findSchemaOrThrow("recurve::sequence_forward", "")
                       .typed<decltype(sequence_forward<run_forward>)>();
  return op.call(x, h0, c0, w_ih, w_hh, b_ih, b_hh, lengths, resets, static_cast<int64_t>(o.cell), o.reverse,
                 o.activation, o.leak, keep);
}

OptionalTensor optional(const Tensor& tensor) { return tensor.defined() ? OptionalTensor(tensor) : std::nullopt; }

struct SequenceFunction : torch::autograd::Function<SequenceFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& x, const Tensor& h0, const OptionalTensor& c0,
                               const Tensor& w_ih, const Tensor& w_hh, const OptionalTensor& b_ih,
                               const OptionalTensor& b_hh, const OptionalTensor& lengths, const OptionalTensor& resets,
                               Options options) {
    at::AutoDispatchBelowADInplaceOrView below;
    auto [y, h_n, c_n, gates, aux] =
        call_forward(x, h0, c0, w_ih, w_hh, b_ih, b_hh, lengths, resets, options, /*keep=*/true);
    ctx->save_for_backward({x, h0, c0.value_or(Tensor()), w_ih, w_hh, b_ih.value_or(Tensor()), b_hh.value_or(Tensor()),
                            lengths.value_or(Tensor()), resets.value_or(Tensor()), y, gates, aux});
    ctx->saved_data["cell"] = static_cast<int64_t>(options.cell);
    ctx->saved_data["reverse"] = options.reverse;
    ctx->saved_data["activation"] = options.activation;
    ctx->saved_data["leak"] = options.leak;
    ctx->set_materialize_grads(false);
    if (Probe* probe = Probe::active()) {
      const ProbeEntry entry = probe->record(options, w_ih, h0, lengths, y, gates);
      ctx->saved_data["dh_norms"] = entry.dh_norms;
      ctx->saved_data["dc_norms"] = entry.dc_norms;
    }
    if (options.cell == Cell::lstm) return {y, h_n, c_n};
    return {y, h_n};
  }

  static variable_list backward(AutogradContext* ctx, variable_list d) {
    const variable_list s = ctx->get_saved_variables();
    const bool need_x = ctx->needs_input_grad(0);
    // Only tensors that were given count as inputs: x, h0, c0, w_ih, w_hh, b_ih, b_hh.
    const size_t first_weight = s[2].defined() ? 3 : 2, weights = s[5].defined() ? 4 : 2;
    bool need_weights = false;
    for (size_t i = 0; i < weights; ++i) need_weights = need_weights || ctx->needs_input_grad(first_weight + i);
    static auto op = c10::Dispatcher::singleton()
                         .findSchemaOrThrow("recurve::sequence_backward", "")
                         .typed<decltype(sequence_backward<run_backward>)>();
    const bool probe = ctx->saved_data.count("dh_norms") > 0;
    auto run = [&] {
      return op.call(optional(d[0]), optional(d[1]), d.size() > 2 ? optional(d[2]) : std::nullopt, s[0], s[1],
                     optional(s[2]), s[3], s[4], optional(s[5]), optional(s[6]), optional(s[7]), optional(s[8]), s[9],
                     s[10], s[11], ctx->saved_data["cell"].toInt(), ctx->saved_data["reverse"].toBool(),
                     ctx->saved_data["activation"].toInt(), ctx->saved_data["leak"].toDouble(), need_x, need_weights,
                     probe);
    };
    BackwardResult r;
    if (at::GradMode::is_enabled()) {
      r = run();  // a gradient of this gradient may be asked for
    } else {
      at::AutoDispatchBelowADInplaceOrView below;
      r = run();
    }
    auto [dx, dh0, dc0, dw_ih, dw_hh, db_ih, db_hh, dh_norms, dc_norms] = r;
    if (probe) {
      const c10::NoGradGuard no_grad;
      auto leave = [&](const char* name, const Tensor& norms) {
        const Tensor record = ctx->saved_data[name].toTensor();
        if (record.defined()) record.copy_(norms.view_as(record));
      };
      leave("dh_norms", dh_norms);
      leave("dc_norms", dc_norms);
    }
    auto given = [&](const Tensor& gradient, const Tensor& input, bool needed) {
      return input.defined() && needed ? gradient : Tensor();
    };
    return {given(dx, s[0], need_x),
            dh0,
            given(dc0, s[2], true),
            given(dw_ih, s[3], need_weights),
            given(dw_hh, s[4], need_weights),
            given(db_ih, s[5], need_weights),
            given(db_hh, s[6], need_weights),
            Tensor(),
            Tensor(),
            Tensor()};
  }
};

bool wants_gradient(const Tensor& t) { return t.requires_grad(); }
bool wants_gradient(const OptionalTensor& t) { return t.has_value() && t->defined() && t->requires_grad(); }

// One public op: with autograd if some input wants a gradient, without it else.
variable_list run_op(const Options& options, const Tensor& x, const Tensor& h0, const OptionalTensor& c0,
                     const Tensor& w_ih, const Tensor& w_hh, const OptionalTensor& b_ih, const OptionalTensor& b_hh,
                     const OptionalTensor& lengths, const OptionalTensor& resets) {
  const bool differentiable = at::GradMode::is_enabled() &&
                              (wants_gradient(x) || wants_gradient(h0) || wants_gradient(c0) || wants_gradient(w_ih) ||
                               wants_gradient(w_hh) || wants_gradient(b_ih) || wants_gradient(b_hh));
  if (differentiable) return SequenceFunction::apply(x, h0, c0, w_ih, w_hh, b_ih, b_hh, lengths, resets, options);
  at::AutoDispatchBelowADInplaceOrView below;
  Probe* probe = Probe::active();
  auto [y, h_n, c_n, gates, aux] =
      call_forward(x, h0, c0, w_ih, w_hh, b_ih, b_hh, lengths, resets, options, /*keep=*/probe != nullptr);
  if (probe != nullptr) probe->record(options, w_ih, h0, lengths, y, gates);
  return {y, h_n, c_n};
}

std::tuple<Tensor, Tensor, Tensor> lstm(const Tensor& x, const Tensor& h0, const Tensor& c0, const Tensor& w_ih,
                                        const Tensor& w_hh, const OptionalTensor& b_ih, const OptionalTensor& b_hh,
                                        const OptionalTensor& lengths, const OptionalTensor& resets, bool reverse) {
  auto out = run_op({Cell::lstm, reverse}, x, h0, c0, w_ih, w_hh, b_ih, b_hh, lengths, resets);
  return {out[0], out[1], out[2]};
}

std::tuple<Tensor, Tensor> gru(const Tensor& x, const Tensor& h0, const Tensor& w_ih, const Tensor& w_hh,
                               const OptionalTensor& b_ih, const OptionalTensor& b_hh, const OptionalTensor& lengths,
                               const OptionalTensor& resets, bool reverse, c10::string_view reset) {
  TORCH_CHECK_VALUE(reset == "after" || reset == "before", "reset '", reset, "' is unknown; allowed: after, before");
  const Cell cell = reset == "before" ? Cell::gru_before : Cell::gru;
  auto out = run_op({cell, reverse}, x, h0, std::nullopt, w_ih, w_hh, b_ih, b_hh, lengths, resets);
  return {out[0], out[1]};
}

std::tuple<Tensor, Tensor> rnn(const Tensor& x, const Tensor& h0, const Tensor& w_ih, const Tensor& w_hh,
                               const OptionalTensor& b_ih, const OptionalTensor& b_hh, const OptionalTensor& lengths,
                               const OptionalTensor& resets, bool reverse, c10::string_view activation, double leak) {
  int64_t code = 0;
  for (const Activation allowed : {Activation::tanh, Activation::relu, Activation::sigmoid})
    if (activation == activation_names[static_cast<int>(allowed)]) code = static_cast<int64_t>(allowed);
  TORCH_CHECK_VALUE(code > 0, "activation '", activation, "' is unknown; allowed: tanh, relu, sigmoid");
  auto out = run_op({Cell::rnn, reverse, code, leak}, x, h0, std::nullopt, w_ih, w_hh, b_ih, b_hh, lengths, resets);
  return {out[0], out[1]};
}

}  // namespace

#define RECURVE_TAIL "Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, Tensor? lengths, Tensor? resets"

TORCH_LIBRARY_FRAGMENT(recurve, m) {
  m.def("lstm(Tensor x, Tensor h0, Tensor c0, " RECURVE_TAIL ", bool reverse) -> (Tensor, Tensor, Tensor)");
  m.def("gru(Tensor x, Tensor h0, " RECURVE_TAIL ", bool reverse, str reset) -> (Tensor, Tensor)");
  m.def("rnn(Tensor x, Tensor h0, " RECURVE_TAIL ", bool reverse, str activation, float leak) -> (Tensor, Tensor)");
  m.def("sequence_forward(Tensor x, Tensor h0, Tensor? c0, " RECURVE_TAIL
        ", int cell, bool reverse, int activation, float leak, bool keep) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("sequence_backward(Tensor? dy, Tensor? dh_n, Tensor? dc_n, Tensor x, Tensor h0, Tensor? c0, " RECURVE_TAIL
        ", Tensor y, Tensor gates, Tensor aux, int cell, bool reverse, int activation, float leak, bool need_x, "
        "bool need_weights, bool probe) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(recurve, CPU, m) {
  m.impl("lstm", lstm);
  m.impl("gru", gru);
  m.impl("rnn", rnn);
  m.impl("sequence_forward", sequence_forward<run_forward>);
  m.impl("sequence_backward", sequence_backward<run_backward>);
}

TORCH_LIBRARY_IMPL(recurve, CUDA, m) {
  m.impl("lstm", lstm);
  m.impl("gru", gru);
  m.impl("rnn", rnn);
}

TORCH_LIBRARY_IMPL(recurve, Autograd, m) {
  m.impl("lstm", lstm);
  m.impl("gru", gru);
  m.impl("rnn", rnn);
}

}  // namespace recurve
