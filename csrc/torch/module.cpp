// The Python module recurve._C: what was built, and the instruction set in use.
#include <torch/extension.h>

#include <map>
#include <string>
#include <vector>

#include "../cpu/kernels.h"

namespace {

std::map<std::string, std::string> build_info() {
  return {
      {"devices", RECURVE_DEVICES},
      {"torch", TORCH_VERSION},
      {"compiler", __VERSION__},
  };
}

std::vector<std::string> instruction_sets() {
  int count = 0;
  const char* const* names = recurve::instruction_sets(&count);
  return {names, names + count};
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  recurve::instruction_set();  // an unusable RECURVE_ISA is an error at import, not at the first call
  m.def("build_info", build_info, "Devices, torch version and compiler of this build.");
  m.def("instruction_set", [] { return std::string(recurve::instruction_set().name); }, "The one in use.");
  m.def("instruction_sets", instruction_sets, "All that this build and machine have, best first.");
}
