// Chooses the instruction set at run time.
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "kernels.h"

namespace recurve {

extern const InstructionSet instruction_set_baseline;
#if defined(__x86_64__)
extern const InstructionSet instruction_set_avx2;
extern const InstructionSet instruction_set_avx512;
#endif

namespace {

struct Available {
  const InstructionSet* sets[3];
  const char* names[3];
  int count = 0;

  Available() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq"))
      add(instruction_set_avx512);
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) add(instruction_set_avx2);
#endif
    add(instruction_set_baseline);
  }

  void add(const InstructionSet& set) {
    names[count] = set.name;
    sets[count++] = &set;
  }
};

const Available& available() {
  static const Available found;
  return found;
}

const InstructionSet& chosen() {
  const Available& found = available();
  const char* wanted = std::getenv("RECURVE_ISA");
  if (wanted == nullptr || *wanted == '\0') return *found.sets[0];
  std::string allowed;
  for (int i = 0; i < found.count; ++i) {
    if (std::string(wanted) == found.names[i]) return *found.sets[i];
    allowed += (i ? ", " : "") + std::string(found.names[i]);
  }
  throw std::runtime_error("RECURVE_ISA=" + std::string(wanted) +
                           " cannot be had; this machine and build allow: " + allowed);
}

}  // namespace

const InstructionSet& instruction_set() {
  static const InstructionSet& set = chosen();
  return set;
}

const char* const* instruction_sets(int* count) {
  *count = available().count;
  return available().names;
}

template <>
const Kernels<float>& kernels<float>() {
  return instruction_set().float_kernels;
}
template <>
const Kernels<double>& kernels<double>() {
  return instruction_set().double_kernels;
}

}  // namespace recurve
