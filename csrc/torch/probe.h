// Records of what happens to gates and gradients inside the recurrent ops while a probe is active.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <vector>

#include "../cpu/kernels.h"

namespace recurve {

// What a call of a recurrent op asks for besides its tensors.
struct Options {
  Cell cell;
  bool reverse = false;
  int64_t activation = 0;
  double leak = 1;
};

inline const char* name_of(Cell cell) { return cell == Cell::lstm ? "lstm" : cell == Cell::rnn ? "rnn" : "gru"; }

// One call: the norms (T) or (E, T) are not-a-number until the backward pass has come by; dc_norms of an LSTM only.
struct ProbeEntry {
  std::string op;
  at::Tensor saturated;  // (T, gates) or (E, T, gates): the share of saturated gates
  at::Tensor dh_norms, dc_norms;
};

class Probe {
 public:
  // The innermost probe of this thread, or null.
  static Probe* active();
  static void begin();
  // What the innermost probe has recorded, and its end. Throw std::runtime_error if there is none.
  static std::vector<ProbeEntry> entries();
  static void end();

  ProbeEntry record(const Options& options, const at::Tensor& w_ih, const at::Tensor& h0,
                    const std::optional<at::Tensor>& lengths, const at::Tensor& y, const at::Tensor& gates);

 private:
  static Probe& innermost();

  std::vector<ProbeEntry> entries_;
};

}  // namespace recurve
