// Keeps the records of active probes, per thread.
#include "probe.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <limits>
#include <stdexcept>

namespace recurve {
namespace {

thread_local std::vector<Probe> probes;

enum class Kind { sigmoid, tanh, relu };

std::vector<Kind> kinds_of(const Options& options) {
  switch (options.cell) {
    case Cell::lstm:
      return {Kind::sigmoid, Kind::sigmoid, Kind::tanh, Kind::sigmoid};
    case Cell::rnn:
      return {static_cast<Activation>(options.activation) == Activation::tanh   ? Kind::tanh
              : static_cast<Activation>(options.activation) == Activation::relu ? Kind::relu
                                                                                : Kind::sigmoid};
    default:
      return {Kind::sigmoid, Kind::sigmoid, Kind::tanh};
  }
}

// Where the activation's slope is below 0.36 of its largest: a sigmoid outside (0.1, 0.9), a tanh outside (-0.8, 0.8),
// a relu at zero.
at::Tensor is_saturated(const at::Tensor& value, Kind kind) {
  if (kind == Kind::sigmoid) return (value < 0.1).logical_or(value > 0.9);
  return kind == Kind::tanh ? value.abs() > 0.8 : value <= 0;
}

}  // namespace

Probe& Probe::innermost() {
  if (probes.empty()) throw std::runtime_error("no probe is active in this thread");
  return probes.back();
}

Probe* Probe::active() { return probes.empty() ? nullptr : &probes.back(); }

void Probe::begin() { probes.emplace_back(); }

std::vector<ProbeEntry> Probe::entries() { return innermost().entries_; }

void Probe::end() {
  innermost();
  probes.pop_back();
}

ProbeEntry Probe::record(const Options& options, const at::Tensor& w_ih, const at::Tensor& h0,
                         const std::optional<at::Tensor>& lengths, const at::Tensor& y, const at::Tensor& gates) {
  const c10::NoGradGuard no_grad;
  const int64_t E = gates.size(0), steps = gates.size(1), batch = gates.size(2), hidden = h0.size(-1);
  const std::vector<Kind> kinds = kinds_of(options);
  const auto like = gates.options();
  at::Tensor active = at::ones({steps, batch}, like.dtype(at::kBool));
  if (lengths.has_value() && lengths->defined())
    active = (at::arange(steps, lengths->options()).unsqueeze(1) < lengths->unsqueeze(0)).to(gates.device());
  const at::Tensor count = active.sum(1) * hidden;  // (T)
  std::vector<at::Tensor> shares;
  for (size_t gate = 0; gate < kinds.size(); ++gate) {
    const at::Tensor value = gates.narrow(3, static_cast<int64_t>(gate) * hidden, hidden);
    shares.push_back(is_saturated(value, kinds[gate]).logical_and(active.unsqueeze(-1)).sum({2, 3}) / count);
  }
  const bool ensemble = w_ih.dim() == 3;
  const at::Tensor saturated = at::stack(shares, -1);
  const auto unknown = at::full({E, steps}, std::numeric_limits<double>::quiet_NaN(), like);
  auto shaped = [&](const at::Tensor& t) { return ensemble ? t : t.squeeze(0); };
  entries_.push_back({name_of(options.cell), shaped(saturated).to(y.scalar_type()), shaped(unknown),
                      options.cell == Cell::lstm ? shaped(unknown.clone()) : at::Tensor()});
  return entries_.back();
}

}  // namespace recurve
