// The ops on CUDA compiled for the host: the kernels run on the emulation, the rest on CPU tensors, whose kernels they
// replace when this library is loaded.
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "../../csrc/torch/convolution.h"
#include "../../csrc/torch/sequence.h"

#define CUDA CPU  // the dispatch key
#include "../../csrc/torch/cuda/conv.cpp"
#include "../../csrc/torch/cuda/recurrent.cpp"
#undef CUDA

extern "C" __attribute__((visibility("default"))) void configure(int processors, int shared_bytes, bool descending) {
  emulation::processors = processors;
  emulation::shared_limit = shared_bytes;
  emulation::descending = descending;
}
