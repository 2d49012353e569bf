// Stands in for NVIDIA's header of this name, so that kernels run under a host compiler: a fiber per CUDA thread, one
// block after the other, or all blocks of a cooperative launch in turn.
//
// Shared memory starts as not-a-number and has guards behind it. Fibers run from barrier to barrier in ascending or
// descending order: two threads that race give other results in the other order. A barrier that some threads never
// reach is an error. What it cannot show is how the memory of a GPU orders accesses between barriers.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

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

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

inline int processors = 4, shared_limit = 227 << 10;
inline bool descending = false;
inline const char* complaint = "";

struct Barrier {
  int arrived = 0, generation = 0;
};

// What a thread brings to mma.sync.
struct Fragments {
  float* d;
  const uint32_t *a, *b;
};

// The block that runs, and its fibers.
struct Block {
  static constexpr size_t stack_bytes = 256 << 10, guard_bytes = 4096;
  static constexpr unsigned char poison = 0xff;

  unsigned index = 0;  // in the grid
  int threads, current = 0, left = 0;
  bool moved = false;  // whether some fiber came further in this round
  // A context starts a fiber; jumps, which make no system call, go to and fro.
  jmp_buf scheduler{};
  struct Fiber {
    ucontext_t start{};
    jmp_buf place{};
    bool started = false;
  };
  std::vector<Fiber> fibers;
  std::vector<std::unique_ptr<unsigned char[]>> stacks;
  std::vector<char> done;
  Barrier whole;
  std::vector<Barrier> warps;
  std::vector<Fragments> fragments;
  std::vector<uint64_t> shuffled;  // what a thread holds at a shuffle
  std::vector<unsigned char> shared;
  size_t shared_bytes;
  void (*body)(void*);
  void* arguments;

  Block(int threads, size_t bytes, void (*body)(void*), void* arguments)
      : threads(threads),
        fibers(threads),
        stacks(threads),
        warps((threads + 31) / 32),
        fragments(threads),
        shuffled(threads),
        shared(bytes + guard_bytes),
        shared_bytes(bytes),
        body(body),
        arguments(arguments) {
    for (auto& stack : stacks) stack.reset(new unsigned char[stack_bytes]);
  }

  void yield() {
    if (_setjmp(fibers[current].place) == 0) _longjmp(scheduler, 1);
  }

  // Runs the current fiber until it yields or ends.
  void resume() {
    Fiber& fiber = fibers[current];
    if (_setjmp(scheduler) != 0) return;
    if (fiber.started) _longjmp(fiber.place, 1);
    fiber.started = true;
    setcontext(&fiber.start);
  }

  void wait(Barrier& barrier, int count) {
    const int generation = barrier.generation;
    moved = true;
    if (++barrier.arrived == count) {
      barrier.arrived = 0, ++barrier.generation;
      return;
    }
    while (barrier.generation == generation) yield();
    moved = true;
  }

  static void start();

  void begin(unsigned index_) {
    index = index_;
    std::memset(shared.data(), poison, shared.size());
    done.assign(threads, 0);
    left = threads;
    whole = {};
    warps.assign(warps.size(), {});
    for (int i = 0; i < threads; ++i) {
      getcontext(&fibers[i].start);
      fibers[i].start.uc_stack = {stacks[i].get(), 0, stack_bytes};
      fibers[i].started = false;
      makecontext(&fibers[i].start, start, 0);
    }
  }

  // Every thread as far as it comes; whether any came further.
  bool round();

  bool guarded() const {
    for (size_t i = shared_bytes; i < shared.size(); ++i)
      if (shared[i] != poison) return complaint = "a write past the end of shared memory", false;
    return true;
  }
};

inline Block* block = nullptr;

inline void Block::start() {
  block->body(block->arguments);
  block->done[block->current] = 1;
  _longjmp(block->scheduler, 1);
}

inline bool Block::round() {
  block = this, blockIdx.x = index;
  moved = false;
  for (int i = 0; i < threads; ++i) {
    current = descending ? threads - 1 - i : i;
    if (done[current]) continue;
    threadIdx.x = static_cast<unsigned>(current);
    resume();
    if (done[current]) --left, moved = true;
  }
  return moved;
}

// Runs blocks that are alive together to their end.
inline bool run(std::vector<std::unique_ptr<Block>>& blocks) {
  for (bool left = true; left;) {
    bool moved = left = false;
    for (auto& each : blocks)
      if (each->left > 0) moved |= each->round(), left |= each->left > 0;
    if (left && !moved) return complaint = "a barrier was not reached by all threads", false;
  }
  for (auto& each : blocks)
    if (!each->guarded()) return false;
  return true;
}

// Until other blocks have raised the counter so far.
inline void wait_until(const unsigned* counter, unsigned expected) {
  const volatile unsigned* seen = counter;
  while (*seen < expected) block->yield();
  block->moved = true;
}

inline unsigned char* shared_memory() { return block->shared.data(); }

inline float number(uint32_t word) { return __builtin_bit_cast(float, word); }

// mma.sync with float sums, m16n8k16 of 16-bit types or m16n8k8 of TF32, by the fragment layouts of the PTX manual. The
// last thread of the warp to come multiplies for all.
template <class T>
void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  const int lane = block->current % 32;
  Fragments* warp = block->fragments.data() + (block->current - lane);
  Barrier& barrier = block->warps[block->current / 32];
  warp[lane] = {d, a, b};
  if (barrier.arrived + 1 == 32)
    for (int row = 0; row < 16; ++row)
      for (int column = 0; column < 8; ++column) {
        float& sum = warp[row % 8 * 4 + column / 2].d[row / 8 * 2 + column % 2];
        for (int word = 0; word < 8; ++word) {
          const uint32_t from_a = warp[row % 8 * 4 + word % 4].a[row / 8 + word / 4 * 2];
          const uint32_t from_b = warp[column * 4 + word % 4].b[word / 4];
          if constexpr (sizeof(T) == 4) {
            sum += number(from_a) * number(from_b);
          } else {
            for (int half = 0; half < 32; half += 16)
              sum += widen(T{static_cast<uint16_t>(from_a >> half)}) * widen(T{static_cast<uint16_t>(from_b >> half)});
          }
        }
      }
  block->wait(barrier, 32);
}

}  // namespace emulation

inline void __syncthreads() { emulation::block->wait(emulation::block->whole, emulation::block->threads); }

// By a whole warp: all leave their values, then all take, then all may leave others.
template <class A>
A __shfl_down_sync(unsigned, A value, int offset) {
  using namespace emulation;
  const int me = block->current, lane = me % 32;
  Barrier& barrier = block->warps[me / 32];
  std::memcpy(&block->shuffled[me], &value, sizeof value);
  block->wait(barrier, 32);
  if (lane + offset < 32) std::memcpy(&value, &block->shuffled[me + offset], sizeof value);
  block->wait(barrier, 32);
  return value;
}

inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount ? emulation::processors : emulation::shared_limit;
  return cudaSuccess;
}
inline cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int bytes) {
  return bytes <= emulation::shared_limit ? cudaSuccess : cudaErrorInvalidValue;
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* launch, void (*kernel)(Parameters...),
                               const Arguments&... arguments) {
  if (launch->dynamicSmemBytes > static_cast<size_t>(emulation::shared_limit) || launch->blockDim.x > 1024)
    return cudaErrorInvalidValue;
  auto call = [&] { kernel(arguments...); };
  auto body = [](void* call_) { (*static_cast<decltype(call)*>(call_))(); };
  const unsigned grid = launch->gridDim.x;
  const bool together = launch->numAttrs > 0 && launch->attrs->val.cooperative != 0;
  if (together && grid > static_cast<unsigned>(emulation::processors)) return cudaErrorCooperativeLaunchTooLarge;
  blockDim = launch->blockDim, gridDim = launch->gridDim;
  std::vector<std::unique_ptr<emulation::Block>> alive;
  for (unsigned i = 0; i < (together ? grid : 1); ++i)
    alive.emplace_back(
        new emulation::Block(static_cast<int>(launch->blockDim.x), launch->dynamicSmemBytes, body, &call));
  for (unsigned i = 0; i < grid; i += alive.size()) {
    for (unsigned j = 0; j < alive.size(); ++j) alive[j]->begin(emulation::descending ? grid - 1 - i - j : i + j);
    if (!emulation::run(alive)) return cudaErrorLaunchFailure;
  }
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  return std::memset(to, value, bytes), cudaSuccess;
}
