// What a kernel asks of the machine: shared memory, the place in its block, and tensor cores. The host emulation of the
// tests stands in for all of it.
#pragma once

#include <cuda_runtime.h>

#include "numbers.h"

namespace recurve::cuda {

constexpr int warp_size = 32;

RECURVE_INLINE constexpr int divide_up(int a, int b) { return (a + b - 1) / b; }
RECURVE_INLINE constexpr int round_up(int a, int b) { return divide_up(a, b) * b; }
RECURVE_INLINE constexpr int least(int a, int b) { return a < b ? a : b; }

// The block's dynamic shared memory, aligned to 16 bytes.
__device__ __forceinline__ unsigned char* shared_memory() {
#if defined(__CUDACC__)
  extern __shared__ __align__(16) unsigned char memory[];
  return memory;
#else
  return emulation::shared_memory();
#endif
}

__device__ __forceinline__ int lane() { return threadIdx.x % warp_size; }
__device__ __forceinline__ int warp() { return threadIdx.x / warp_size; }
__device__ __forceinline__ int warps() { return blockDim.x / warp_size; }

// The value that the thread `offset` lanes further holds; all threads of a warp take part.
template <class A>
__device__ __forceinline__ A from_further(A value, int offset) {
  return __shfl_down_sync(0xffffffffu, value, offset);
}

// The value that the thread holds whose lane differs in the bits of `mask`; all threads of a warp take part.
template <class A>
__device__ __forceinline__ A from_opposite(A value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

// A float with TF32's 10 bits of mantissa, as bits.
__device__ __forceinline__ uint32_t to_tf32(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(__uint_as_float(bits)));
  return rounded;
#else
  return (bits & 0x7f800000) == 0x7f800000 ? bits : (bits + 0x1000) & ~0x1fffu;
#endif
}

template <class T>
__device__ __forceinline__ uint32_t operand(uint32_t bits) {  // of a product on tensor cores
  if constexpr (sizeof(T) == 4) return to_tf32(bits);
  return bits;
}

// A weight as it is kept for products on tensor cores, rounded once for all steps.
template <class T>
__device__ __forceinline__ T kept_operand(T weight) {
  if constexpr (sizeof(T) == 4) return __builtin_bit_cast(T, to_tf32(__builtin_bit_cast(uint32_t, weight)));
  return weight;
}

// 16 bytes.
struct alignas(16) Words {
  uint32_t of[4];
};

// Elements that lie side by side, in one access: `from` is aligned as V is.
template <class V, class T>
__device__ __forceinline__ V together(const T* from) {
#if !defined(__CUDACC__)
  emulation::expect_aligned(from, alignof(V));
#endif
  return *reinterpret_cast<const V*>(from);
}

// What other blocks wrote before a barrier of the grid: not from this processor's own cache.
template <class T>
__device__ __forceinline__ Words exchanged(const T* from) {
#if defined(__CUDA_ARCH__)
  const uint4 words = __ldcg(reinterpret_cast<const uint4*>(from));
  return {{words.x, words.y, words.z, words.w}};
#else
  return together<Words>(from);
#endif
}

// A barrier among blocks that are all resident: by one thread of each, between barriers of its block.
__device__ __forceinline__ void arrive(unsigned* counter) {
#if defined(__CUDA_ARCH__)
  __threadfence();
  asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
#elif !defined(__CUDACC__)
  emulation::arrive(counter);
#endif
}
__device__ __forceinline__ void wait_for(const unsigned* counter, unsigned expected) {
#if defined(__CUDA_ARCH__)
  unsigned arrived;
  do {
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(arrived) : "l"(counter) : "memory");
  } while (arrived < expected);
  __threadfence();
#elif !defined(__CUDACC__)
  emulation::wait_until(counter, expected);
#endif
}

// mma.sync serves every architecture since Ampere alike. The wgmma of sm_90a multiplies 64 rows at least, where a block
// of the recurrent kernels has 16 or 32 sequences and a step waits for latency, not for products.
//
// d += a b on tensor cores, by a whole warp: 16 rows, 8 columns, and 32 bytes of each row of a and column of b. Thread
// `lane` holds, with q = lane / 4 and w = lane % 4: words w and w + 4 of rows q and q + 8 of a, of column q of b, and
// of d the columns 2 w and 2 w + 1 of both rows.
template <class T>
__device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if defined(__CUDA_ARCH__)
#define RECURVE_MMA(SHAPE, TYPE)                                       \
  asm volatile("mma.sync.aligned." SHAPE ".row.col.f32." TYPE "." TYPE \
               ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "          \
               "{%0,%1,%2,%3};"                                        \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])        \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
  if constexpr (__is_same(T, BFloat16))
    RECURVE_MMA("m16n8k16", "bf16");
  else if constexpr (__is_same(T, Half))
    RECURVE_MMA("m16n8k16", "f16");
  else
    RECURVE_MMA("m16n8k8", "tf32");
#undef RECURVE_MMA
#elif !defined(__CUDACC__)
  emulation::multiply<T>(d, a, b);
#endif
}

}  // namespace recurve::cuda
