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
  const Tensor states = whole(y, all), from_y = whole(dy, all), from_h = whole(dh_n, state),
               from_c = whole(dc_n, state);
  Tensor before, dh_squares, dc_squares;
  if (need_weights && (in.lengths.defined() || in.resets.defined()))
    before = states_before(in, options, states.reshape({E, T_, B, H})).contiguous();
  if (probe) dh_squares = at::zeros({E, T_, B}, like);
  if (probe && is_lstm) dc_squares = at::zeros({E, T_, B}, like);
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
  AT_DISPATCH_FLOATING_TYPES(in.x.scalar_type(), "recurve", [&] {
    using T = scalar_t;
    auto read = [](const Tensor& t) { return t.numel() ? t.const_data_ptr<T>() : nullptr; };
    auto write = [](const Tensor& t) { return t.defined() ? t.mutable_data_ptr<T>() : nullptr; };
    kernels<T>().sequence_backward({.shape = in.shape(options),
                                    .gates = read(gates),
                                    .aux = read(aux),
                                    .y = read(states),
                                    .x = read(in.x),
                                    .inputs = I,
                                    .shared = in.shared,
                                    .w_ih = read(in.w_ih),
                                    .w_hh = read(in.w_hh),
                                    .h0 = read(in.h0),
                                    .c0 = read(in.c0),
                                    .before = read(before),
                                    .dy = read(from_y),
                                    .dh_n = read(from_h),
                                    .dc_n = read(from_c),
                                    .dh0 = write(d.h0),
                                    .dc0 = write(d.c0),
                                    .dx = write(d.x),
                                    .dw_ih = write(d.w_ih),
                                    .dw_hh = write(d.w_hh),
                                    .db_ih = write(d.b_ih),
                                    .db_hh = write(d.b_hh),
                                    .dh_squares = write(dh_squares),
                                    .dc_squares = write(dc_squares)},
                                   torch_parallel());
  });
  if (probe) d.dh_norms = dh_squares.sum(-1).sqrt();
  if (dc_squares.defined()) d.dc_norms = dc_squares.sum(-1).sqrt();
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
