// Launches: the machine as it is, and a kernel with its grid, block and shared memory.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace recurve::cuda {

constexpr int reserved_bytes = 1024;  // of shared memory, for each block

struct Device {
  int processors = 0, shared_bytes = 0;
  cudaError_t error = cudaSuccess;
};

inline Device this_device() {
  Device found;
  int device = 0;
  found.error = cudaGetDevice(&device);
  if (found.error == cudaSuccess)
    found.error = cudaDeviceGetAttribute(&found.processors, cudaDevAttrMultiProcessorCount, device);
  if (found.error == cudaSuccess)
    found.error = cudaDeviceGetAttribute(&found.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return found;
}

constexpr int64_t most_blocks = (int64_t{1} << 31) - 1;

// Leave to use more than 48 KB of shared memory: all there is, so that threads that launch the same kernel with other
// sizes do not take it from each other.
inline cudaError_t allow_shared(const void* kernel, int64_t bytes) {
  if (bytes <= 48 << 10) return cudaSuccess;
  const Device device = this_device();
  if (device.error != cudaSuccess) return device.error;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, device.shared_bytes);
}

// `together`: all blocks are resident at once, or the launch is refused.
template <class... Parameters>
cudaError_t launch(bool together, void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t bytes,
                   cudaStream_t stream, const Parameters&... arguments) {
  if (blocks == 0) return cudaSuccess;
  if (blocks > most_blocks) return cudaErrorInvalidValue;
  cudaLaunchAttribute cooperative{};
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  cudaLaunchConfig_t configuration{};
  configuration.gridDim = dim3(static_cast<unsigned>(blocks));
  configuration.blockDim = dim3(static_cast<unsigned>(threads));
  configuration.dynamicSmemBytes = bytes;
  configuration.stream = stream;
  configuration.attrs = &cooperative;
  configuration.numAttrs = together ? 1 : 0;
  const cudaError_t error = allow_shared(reinterpret_cast<const void*>(kernel), bytes);
  return error != cudaSuccess ? error : cudaLaunchKernelEx(&configuration, kernel, arguments...);
}

template <class... Parameters>
cudaError_t launch(void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t bytes, cudaStream_t stream,
                   const Parameters&... arguments) {
  return launch(false, kernel, blocks, threads, bytes, stream, arguments...);
}

}  // namespace recurve::cuda
