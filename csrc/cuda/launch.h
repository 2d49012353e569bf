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

constexpr int64_t most_blocks = (int64_t{1} << 31) - 1, most_beside = (1 << 16) - 1;

// How many blocks a launch has: in x, and beside in y and z. A block that is given its place in several axes need not
// divide for it, which leaves registers to its step loop.
struct Blocks {
  int64_t x, y, z;

  Blocks(int64_t x_, int64_t y_ = 1, int64_t z_ = 1) : x(x_), y(y_), z(z_) {}
};

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
cudaError_t launch(bool together, void (*kernel)(Parameters...), const Blocks& blocks, int threads, int64_t bytes,
                   cudaStream_t stream, const Parameters&... arguments) {
  if (blocks.x == 0 || blocks.y == 0 || blocks.z == 0) return cudaSuccess;
  if (blocks.x > most_blocks || blocks.y > most_beside || blocks.z > most_beside) return cudaErrorInvalidValue;
  cudaLaunchAttribute cooperative{};
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  cudaLaunchConfig_t configuration{};
  configuration.gridDim =
      dim3(static_cast<unsigned>(blocks.x), static_cast<unsigned>(blocks.y), static_cast<unsigned>(blocks.z));
  configuration.blockDim = dim3(static_cast<unsigned>(threads));
  configuration.dynamicSmemBytes = bytes;
  configuration.stream = stream;
  configuration.attrs = &cooperative;
  configuration.numAttrs = together ? 1 : 0;
  const cudaError_t error = allow_shared(reinterpret_cast<const void*>(kernel), bytes);
  return error != cudaSuccess ? error : cudaLaunchKernelEx(&configuration, kernel, arguments...);
}

template <class... Parameters>
cudaError_t launch(void (*kernel)(Parameters...), const Blocks& blocks, int threads, int64_t bytes, cudaStream_t stream,
                   const Parameters&... arguments) {
  return launch(false, kernel, blocks, threads, bytes, stream, arguments...);
}

}  // namespace recurve::cuda
