// What a function needs to be compiled for the host, any instruction set of it, and for a GPU.
#pragma once

#if defined(__CUDACC__)
#define RECURVE_INLINE __host__ __device__ __forceinline__
#else
// Internal linkage: the same function is compiled once per instruction set and must not be merged by the linker.
#define RECURVE_INLINE static inline __attribute__((always_inline))
#define RECURVE_INLINE_MEMBER inline __attribute__((always_inline))
#define RECURVE_INLINE_LAMBDA __attribute__((always_inline))  // after its parameters
#endif
