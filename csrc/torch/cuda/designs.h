// Which of the CUDA kernels serves a recurrent call.
#pragma once

#include <cstdlib>
#include <string_view>

#include "../../cuda/kernels.h"

namespace recurve::cuda {

// block: a block owns some sequences of a model from first to last step. grid: blocks share a model's units and meet at
// every step. steps: one product and one gate kernel a step.
enum class Design { block, grid, steps };

// RECURVE_CUDA_DESIGN=block|grid|steps forces a design, for tests and measurements.
inline std::optional<Design> forced_design() {
  const char* const text = std::getenv("RECURVE_CUDA_DESIGN");
  if (text == nullptr) return std::nullopt;
  const std::string_view name = text;
  if (name == "block") return Design::block;
  if (name == "grid") return Design::grid;
  if (name == "steps") return Design::steps;
  TORCH_CHECK(false, "RECURVE_CUDA_DESIGN=", text, " is unknown; allowed: block, grid, steps");
}

// As measured on an H200:
// - a block for few units, wherever its shared memory holds the model's recurrent weights in both passes;
// - else a grid wherever the processors' memory holds those of all models, up to so many products a step that its
//   blocks wait for those rather than for each other;
// - else, for ensembles, a block for up to 128 units: those weights that it does not hold come from the second-level
//   cache, and it is one launch instead of several a step;
// - else step by step, where products fill all processors.
// Whether torch's own op should serve instead is decided before, in recurve/ops/_cuda.py.
template <class T>
Design design_of(const SequenceShape& shape, Math math) {
  constexpr int64_t few_units = 64, most_block_units = 128, most_products = 100'000'000;
  const Fit forward = fits<T>(shape, math, false), backward = fits<T>(shape, math, true);
  const bool by_block = forward != Fit::none && backward != Fit::none;
  const bool by_grid = fits_grid<T>(shape, math, false) && fits_grid<T>(shape, math, true);
  if (const std::optional<Design> forced = forced_design()) {
    const bool serves = *forced == Design::steps || (*forced == Design::grid ? by_grid : by_block);
    TORCH_CHECK(serves || shape.batch == 0,
                "RECURVE_CUDA_DESIGN: the forced design does not fit this GPU's memory with ", shape.models,
                " models, ", shape.batch, " sequences and ", shape.hidden, " hidden units");
    return *forced;
  }
  const int64_t units = shape.hidden, products = shape.models * shape.batch * gate_count(shape.cell) * units * units;
  if (units <= few_units && forward == Fit::resident && backward == Fit::resident) return Design::block;
  if (by_grid && products <= most_products) return Design::grid;
  return by_block && shape.models > 1 && units <= most_block_units ? Design::block : Design::steps;
}

}  // namespace recurve::cuda
