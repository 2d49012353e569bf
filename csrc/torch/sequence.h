// What the recurrent ops are on any device: their tensors, checked, and their results, in the caller's shapes.
#pragma once

#include <ATen/ATen.h>
#include <ATen/ops/as_strided_native.h>

#include "probe.h"

namespace recurve {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// The tensor with a leading axis over models that all see it. Like the next, a view made without torch's dispatcher:
// the views of a call would take as long as a short sequence.
inline Tensor with_models(const Tensor& tensor, int64_t models) {
  at::DimVector sizes(tensor.sizes()), strides(tensor.strides());
  strides.insert(strides.begin(), models == 1 ? sizes[0] * strides[0] : 0);
  sizes.insert(sizes.begin(), models);
  return at::native::as_strided_tensorimpl(tensor, sizes, strides);
}

// The first model's part.
inline Tensor without_models(const Tensor& tensor) {
  return at::native::as_strided_tensorimpl(tensor, tensor.sizes().slice(1), tensor.strides().slice(1));
}

// The tensors of a call, contiguous, the weights and states with a leading ensemble axis.
struct Inputs {
  Tensor x;  // (T, B, I) shared by all models, or (E, T, B, I)
  Tensor h0, c0, w_ih, w_hh, b_ih, b_hh, lengths, resets;
  bool ensemble, shared;
  int64_t models, steps, batch, inputs, hidden;

  Inputs(const Options& options, const Tensor& x_, const Tensor& h0_, const OptionalTensor& c0_, const Tensor& w_ih_,
         const Tensor& w_hh_, const OptionalTensor& b_ih_, const OptionalTensor& b_hh_, const OptionalTensor& lengths_,
         const OptionalTensor& resets_) {
    const char* op = name_of(options.cell);
    const int64_t gates = gate_count(options.cell);
    ensemble = w_ih_.dim() == 3;
    shared = x_.dim() == 3;
    TORCH_CHECK(w_ih_.dim() == 2 || ensemble, op, ": w_ih must be (gates H, I) or (E, gates H, I), got ",
                w_ih_.sizes());
    TORCH_CHECK(shared || (x_.dim() == 4 && ensemble), op, ": x must be (T, B, I), or (E, T, B, I) beside weights ",
                "with a leading E, got ", x_.sizes());
    models = ensemble ? w_ih_.size(0) : 1;
    steps = x_.size(-3), batch = x_.size(-2), inputs = x_.size(-1), hidden = h0_.size(-1);
    TORCH_CHECK(steps > 0, op, ": Expected sequence length to be larger than 0 in RNN");
    x = x_.contiguous();
    if (!shared) TORCH_CHECK(x.size(0) == models, op, ": x has ", x.size(0), " models, the weights have ", models);
    w_ih = whole(op, "w_ih", w_ih_, {gates * hidden, inputs});
    w_hh = whole(op, "w_hh", w_hh_, {gates * hidden, hidden});
    TORCH_CHECK(b_ih_.has_value() == b_hh_.has_value(), op, ": give both biases or neither");
    if (b_ih_.has_value()) {
      b_ih = whole(op, "b_ih", *b_ih_, {gates * hidden});
      b_hh = whole(op, "b_hh", *b_hh_, {gates * hidden});
    }
    h0 = whole(op, "h0", h0_, {batch, hidden});
    if (c0_.has_value()) c0 = whole(op, "c0", *c0_, {batch, hidden});
    if (lengths_.has_value()) {
      TORCH_CHECK(
          lengths_->dim() == 1 && lengths_->size(0) == batch && at::isIntegralType(lengths_->scalar_type(), false), op,
          ": lengths must be (B,) = (", batch, ",) of an integer type, got ", lengths_->sizes(), " of ",
          lengths_->scalar_type());
      // On a GPU their values are not looked at, which would wait for it: the kernels bound them.
      if (batch > 0 && !(x.is_cuda() && lengths_->is_cuda()))
        TORCH_CHECK(lengths_->min().item<int64_t>() >= 0 && lengths_->max().item<int64_t>() <= steps, op,
                    ": lengths must lie in [0, ", steps, "], got ", lengths_->min().item<int64_t>(), " to ",
                    lengths_->max().item<int64_t>());
      lengths = lengths_->to(x.device(), at::kLong).contiguous();
    }
    if (resets_.has_value()) {
      TORCH_CHECK(resets_->dim() == 2 && resets_->size(0) == steps && resets_->size(1) == batch &&
                      resets_->scalar_type() == at::kBool,
                  op, ": resets must be (T, B) = (", steps, ", ", batch, ") of bool, got ", resets_->sizes(), " of ",
                  resets_->scalar_type());
      resets = resets_->to(x.device()).contiguous();
    }
  }

  SequenceShape shape(const Options& options) const {
    return {options.cell,
            models,
            steps,
            batch,
            hidden,
            options.reverse,
            lengths.defined() ? lengths.const_data_ptr<int64_t>() : nullptr,
            resets.defined() ? resets.const_data_ptr<bool>() : nullptr,
            static_cast<Activation>(options.activation),
            options.leak};
  }

 private:
  // The tensor as (E, ...), contiguous, after a check of its shape, dtype and device.
  Tensor whole(const char* op, const char* what, const Tensor& tensor, at::IntArrayRef shape) const {
    const auto own = static_cast<int64_t>(shape.size());
    const bool leads = tensor.dim() == own + 1;
    TORCH_CHECK((tensor.dim() == own || leads) && tensor.sizes().slice(leads ? 1 : 0) == shape, op, ": ", what,
                " must be ", shape, ensemble ? ", with a leading E or not" : "", ", got ", tensor.sizes());
    TORCH_CHECK(!leads || (ensemble && tensor.size(0) == models), op, ": ", what, " has ", tensor.size(0),
                " models, w_ih has ", models, ensemble ? "" : " and no ensemble axis");
    TORCH_CHECK(tensor.scalar_type() == x.scalar_type(), op, ": ", what, " is ", tensor.scalar_type(), ", x is ",
                x.scalar_type(), "; convert one of them");
    TORCH_CHECK(tensor.device() == x.device(), op, ": ", what, " is on ", tensor.device(), ", x on ", x.device());
    return (leads ? tensor : with_models(tensor, models)).contiguous();
  }
};

template <class T>
const T* data(const Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr<T>() : nullptr;
}

// The hidden state before each step (E, T, B, H).
inline Tensor states_before(const Inputs& in, const Options& options, const Tensor& y) {
  const Tensor h0 = in.h0.unsqueeze(1);
  Tensor before =
      options.reverse ? at::cat({y.narrow(1, 1, in.steps - 1), h0}, 1) : at::cat({h0, y.narrow(1, 0, in.steps - 1)}, 1);
  if (in.lengths.defined() && options.reverse) {
    const Tensor t = at::arange(in.steps, in.lengths.options()).unsqueeze(1);
    before = at::where((t == in.lengths - 1).unsqueeze(-1), h0, before);
  }
  return in.resets.defined() ? before.masked_fill(in.resets.unsqueeze(-1), 0) : before;
}

struct Kept {
  Tensor y, h_n, c_n, gates, aux;
};

struct Gradients {
  Tensor x, h0, c0, w_ih, w_hh, b_ih, b_hh;
  Tensor dh_norms, dc_norms;  // (E, T), if asked for: of the gradients of each step's states
};

// Sums a gradient over the models that shared a tensor, and drops an ensemble axis that the caller did not give.
inline Tensor like_input(const Tensor& gradient, const Tensor& input) {
  return gradient.dim() == input.dim() ? gradient : gradient.size(0) == 1 ? without_models(gradient) : gradient.sum(0);
}

inline Tensor nothing(const Tensor& like) { return at::empty({0}, like.options()); }

using ForwardResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;
using BackwardResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// The op sequence_forward of a device: y, h_n, c_n in the caller's shapes; gates and aux for the backward pass, with a
// leading E; empty where there is none.
template <Kept (*RUN)(const Inputs&, const Options&, bool keep)>
ForwardResult sequence_forward(const Tensor& x, const Tensor& h0, const OptionalTensor& c0, const Tensor& w_ih,
                               const Tensor& w_hh, const OptionalTensor& b_ih, const OptionalTensor& b_hh,
                               const OptionalTensor& lengths, const OptionalTensor& resets, int64_t cell, bool reverse,
                               int64_t activation, double leak, bool keep) {
  const Options options{static_cast<Cell>(cell), reverse, activation, leak};
  const Inputs in(options, x, h0, c0, w_ih, w_hh, b_ih, b_hh, lengths, resets);
  const Kept out = RUN(in, options, keep);
  auto shaped = [&](const Tensor& t) { return !t.defined() ? nothing(x) : in.ensemble ? t : without_models(t); };
  return {shaped(out.y), shaped(out.h_n), shaped(out.c_n), keep ? out.gates : nothing(x),
          keep && out.aux.defined() ? out.aux : nothing(x)};
}

using RunBackward = Gradients (*)(const Inputs&, const Options&, const OptionalTensor& dy, const OptionalTensor& dh_n,
                                  const OptionalTensor& dc_n, const Tensor& y, const Tensor& gates, const Tensor& aux,
                                  bool need_x, bool need_weights, bool probe);

// The op sequence_backward of a device.
template <RunBackward RUN>
BackwardResult sequence_backward(const OptionalTensor& dy, const OptionalTensor& dh_n, const OptionalTensor& dc_n,
                                 const Tensor& x, const Tensor& h0, const OptionalTensor& c0, const Tensor& w_ih,
                                 const Tensor& w_hh, const OptionalTensor& b_ih, const OptionalTensor& b_hh,
                                 const OptionalTensor& lengths, const OptionalTensor& resets, const Tensor& y,
                                 const Tensor& gates, const Tensor& aux, int64_t cell, bool reverse, int64_t activation,
                                 double leak, bool need_x, bool need_weights, bool probe) {
  const Options options{static_cast<Cell>(cell), reverse, activation, leak};
  Inputs in(options, x, h0, c0, w_ih, w_hh, b_ih, b_hh, lengths, resets);
  if (need_weights && in.lengths.defined()) {  // what lies behind a sequence's end may be anything, also not a number
    const Tensor t = at::arange(in.steps, in.lengths.options()).unsqueeze(1);
    in.x = in.x.masked_fill((t >= in.lengths).unsqueeze(-1), 0);
  }
  const Gradients d = RUN(in, options, dy, dh_n, dc_n, y, gates, aux, need_x, need_weights, probe);
  auto shaped = [&](const Tensor& gradient, const OptionalTensor& input) {
    return gradient.defined() && input.has_value() ? like_input(gradient, *input) : nothing(x);
  };
  auto norms = [&](const Tensor& t) { return t.defined() ? t : nothing(x); };
  return {shaped(d.x, x),       shaped(d.h0, h0),     shaped(d.c0, c0),  shaped(d.w_ih, w_ih), shaped(d.w_hh, w_hh),
          shaped(d.b_ih, b_ih), shaped(d.b_hh, b_hh), norms(d.dh_norms), norms(d.dc_norms)};
}

}  // namespace recurve
