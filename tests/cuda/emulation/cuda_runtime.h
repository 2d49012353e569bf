// Stands in for NVIDIA's header of this name, so that kernels run under a host compiler: a fiber per CUDA thread, one
// block after the other, or all blocks of a cooperative launch in turn. See emulation.cpp for what it finds.
#pragma once

#include <cstddef>
#include <cstdint>
#include <source_location>

#define __host__
#define __device__
#define __global__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

enum cudaError_t { cudaSuccess, cudaErrorInvalidValue, cudaErrorLaunchFailure, cudaErrorCooperativeLaunchTooLarge };
enum cudaLaunchAttributeID { cudaLaunchAttributeCooperative };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount, cudaDevAttrMaxSharedMemoryPerBlockOptin };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
using cudaStream_t = void*;

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    int cooperative;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

extern dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

using Where = std::source_location;

unsigned char* shared_memory();
void synchronize(const Where& where);
// What the warp's thread `lane` holds replaces the value, if there is one.
void shuffle(void* value, size_t bytes, int lane, const Where& where);
// By a whole warp: d += a b as mma.sync has it; `product` is that of two words.
void multiply(float* d, const uint32_t* a, const uint32_t* b, float (*product)(float, uint32_t, uint32_t),
              const Where& where);
void expect_aligned(const void* memory, size_t bytes);
// A barrier among blocks.
void arrive(unsigned* counter);
void wait_until(const unsigned* counter, unsigned expected);
cudaError_t launch(const cudaLaunchConfig_t& launch, void (*body)(void*), void* arguments);

inline float number(uint32_t word) { return __builtin_bit_cast(float, word); }

// mma.sync with float sums, m16n8k16 of 16-bit types or m16n8k8 of TF32.
template <class T>
void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const Where& where = Where::current()) {
  multiply(
      d, a, b,
      [](float sum, uint32_t from_a, uint32_t from_b) {
        if constexpr (sizeof(T) == 4) {
          sum += number(from_a) * number(from_b);
        } else {
          for (int half = 0; half < 32; half += 16)
            sum += widen(T{static_cast<uint16_t>(from_a >> half)}) * widen(T{static_cast<uint16_t>(from_b >> half)});
        }
        return sum;
      },
      where);
}

}  // namespace emulation

inline void __syncthreads(const emulation::Where& where = emulation::Where::current()) {
  emulation::synchronize(where);
}

template <class A>
A __shfl_down_sync(unsigned, A value, int offset, const emulation::Where& where = emulation::Where::current()) {
  emulation::shuffle(&value, sizeof value, static_cast<int>(threadIdx.x % 32) + offset, where);
  return value;
}
template <class A>
A __shfl_xor_sync(unsigned, A value, int mask, const emulation::Where& where = emulation::Where::current()) {
  emulation::shuffle(&value, sizeof value, static_cast<int>(threadIdx.x % 32) ^ mask, where);
  return value;
}

cudaError_t cudaGetDevice(int* device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int bytes);
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream);

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* launch, void (*kernel)(Parameters...),
                               const Arguments&... arguments) {
  auto call = [&] { kernel(arguments...); };
  return emulation::launch(*launch, [](void* call_) { (*static_cast<decltype(call)*>(call_))(); }, &call);
}
