// Kernels with one fault each, for the emulation to find: prints what it says of the one that is named.
#include <cstdio>
#include <cstdlib>
#include <string_view>
#include <vector>

#include "../../csrc/cuda/device.h"
#include "../../csrc/cuda/launch.h"
#include "emulation/emulation.h"

using namespace recurve::cuda;

enum class Fault {
  none,
  race_in_a_block,
  write_after_read,
  race_between_blocks,
  early_exchange,
  overwritten_exchange,
  unwritten,
  past_the_end,
  before_the_begin,
  past_shared_memory,
  misaligned,
  forked_barrier,
  missed_barrier,
};
constexpr const char* names[] = {
    "none",
    "race in a block",
    "write after read",
    "race between blocks",
    "early exchange",
    "overwritten exchange",
    "unwritten",
    "past the end",
    "before the begin",
    "past shared memory",
    "misaligned",
    "forked barrier",
    "missed barrier",
};

constexpr int threads = 64, blocks = 3;

// Each thread takes its neighbour's number from shared memory, and its block the next block's from global memory.
__global__ void exchange(float* numbers, float* results, unsigned* counter, Fault fault) {
  float* shared = reinterpret_cast<float*>(shared_memory());
  const int me = threadIdx.x, block = blockIdx.x, next = (block + 1) % blocks;
  if (fault != Fault::unwritten || me > 0) shared[me] = numbers[block * threads + me];
  if (fault == Fault::past_shared_memory && me == 0) shared[threads] = 1;
  if (fault != Fault::race_in_a_block) __syncthreads();
  const float neighbour = shared[(me + 1) % threads];
  if (fault != Fault::write_after_read) __syncthreads();
  shared[me] = neighbour;
  results[block * threads + me] = neighbour;
  if (fault == Fault::race_between_blocks) results[me] = 0;
  if (fault == Fault::past_the_end && me == 0) results[blocks * threads] = 0;
  if (fault == Fault::before_the_begin && me == 0) numbers[me] = *(numbers - 1);
  if (fault == Fault::misaligned) together<Words>(numbers + 1);
  if (fault == Fault::forked_barrier && me < 7) {
    __syncthreads();
  } else {
    if (fault != Fault::missed_barrier || me < 7) __syncthreads();
  }
  unsigned expected = 0;
  for (int round = 0; round < 2; ++round) {
    if (me == 0) arrive(counter);
    expected += blocks;
    if (fault != Fault::early_exchange && me == 0) wait_for(counter, expected);
    __syncthreads();
    const float theirs = results[next * threads + me];
    __syncthreads();
    if (fault != Fault::overwritten_exchange) {  // others have read
      if (me == 0) arrive(counter);
      expected += blocks;
      if (me == 0) wait_for(counter, expected);
      __syncthreads();
    }
    results[block * threads + me] = theirs;
    __syncthreads();
  }
}

int main(int, char** arguments) {
  Fault fault{};
  while (std::string_view(names[static_cast<int>(fault)]) != arguments[1])
    fault = static_cast<Fault>(static_cast<int>(fault) + 1);
  std::vector<float> numbers(blocks * threads), results(blocks * threads);
  unsigned counter = 0;
  emulation::processors = blocks;
  emulation::descending = arguments[2][0] == '1';
  emulation::allow(numbers.data(), numbers.size() * sizeof(float));
  emulation::allow(results.data(), results.size() * sizeof(float));
  for (int i = 0; i < blocks * threads; ++i) numbers[i] = static_cast<float>(i);
  const cudaError_t error = launch(true, exchange, blocks, threads, threads * sizeof(float), nullptr, numbers.data(),
                                   results.data(), &counter, fault);
  std::puts(error == cudaSuccess ? "nothing" : emulation::complaint.c_str());
}
