// The Python module recurve._C: what was built, the instruction set in use, and probes.
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/version.h>

#include <map>
#include <string>
#include <vector>

#include "../cpu/kernels.h"
#include "peak.h"
#include "probe.h"

namespace {

std::map<std::string, std::string> build_info() {
  return {
      {"devices", RECURVE_DEVICES},
      {"without_cuda", RECURVE_WITHOUT_CUDA},  // the reason
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
  m.def("peak_flops", recurve::peak_flops, "float32 multiplications and additions per second, on torch's threads.");
  m.def("peak_bandwidth", recurve::peak_bandwidth,
        "Bytes per second that torch's threads read or copy over and over in memory of so many bytes.");
  pybind11::class_<recurve::ProbeEntry>(m, "ProbeEntry")
      .def_readonly("op", &recurve::ProbeEntry::op)
      .def_readonly("saturated", &recurve::ProbeEntry::saturated)
      .def_readonly("dh_norms", &recurve::ProbeEntry::dh_norms)
      .def_readonly("dc_norms", &recurve::ProbeEntry::dc_norms);
  m.def("probe_begin", &recurve::Probe::begin, "Begin to record the recurrent ops that this thread calls.");
  m.def("probe_entries", &recurve::Probe::entries, "What the innermost probe has recorded.");
  m.def("probe_end", &recurve::Probe::end, "End the innermost probe.");
}
