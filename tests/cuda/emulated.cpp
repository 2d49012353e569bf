// The ops on CUDA compiled for the host: the kernels run on the emulation, the rest on CPU tensors, whose kernels they
// replace when this library is loaded.
#include <c10/core/CPUAllocator.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <emulation.h>
#include <torch/library.h>

#include "../../csrc/torch/convolution.h"
#include "../../csrc/torch/sequence.h"

#define CUDA CPU  // the dispatch key
#include "../../csrc/torch/cuda/conv.cpp"
#include "../../csrc/torch/cuda/recurrent.cpp"
#undef CUDA

namespace {

// The memory of tensors is what kernels may reach.
struct Watched final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* const memory = c10::GetDefaultCPUAllocator()->raw_allocate(bytes);
    if (memory != nullptr) emulation::allow(memory, bytes);
    return {memory, memory, raw_deleter(), c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return release; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }

  static void release(void* memory) {
    if (memory != nullptr) emulation::forbid(memory);
    c10::GetDefaultCPUAllocator()->raw_deallocate(memory);
  }
};

}  // namespace

extern "C" __attribute__((visibility("default"))) void configure(int processors, int shared_bytes, bool descending) {
  emulation::processors = processors;
  emulation::shared_limit = shared_bytes;
  emulation::descending = descending;
  static Watched watched;
  c10::SetCPUAllocator(&watched, 1);
}
