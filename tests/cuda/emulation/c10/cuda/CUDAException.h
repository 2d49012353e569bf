// Stands in for torch's header: an error of the emulation as an exception.
#pragma once

#include <c10/util/Exception.h>
#include <cuda_runtime.h>
#include <emulation.h>

#define C10_CUDA_CHECK(EXPRESSION)                                                                   \
  do {                                                                                               \
    const cudaError_t error = EXPRESSION;                                                            \
    TORCH_CHECK(error == cudaSuccess, "the emulation returned ", error, ": ", emulation::complaint); \
  } while (false)
