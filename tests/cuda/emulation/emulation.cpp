// Runs kernels on the host and finds what is wrong with them.
//
// Always: shared memory starts as not-a-number and has guards behind it; fibers run from barrier to barrier in
// ascending or descending order; a barrier that some threads never reach, or reach in different places, is an error.
//
// Where kernels are compiled with -fsanitize=thread, the compiler calls a function for every access to memory; those
// below take the place of the sanitizer's own. They find accesses outside of the block's shared memory and of the
// memory that the launch may reach, misaligned ones, reads of shared memory that nobody wrote, and two accesses to a
// place, one of them a write, of threads that no barrier orders: in a block, or between blocks through the counters of
// a grid.
#include "emulation.h"

#include <cuda_runtime.h>
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {
namespace {

// The first complaint of a launch says most.
void complain(const std::string& what) {
  if (complaint.empty()) complaint = what;
}

std::string text(const Where& where) {
  const std::string file = where.file_name();
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(where.line());
}

struct Barrier {
  int arrived = 0, generation = 0;
  Where where{};  // of the first thread that came
};

// What a thread brings to mma.sync.
struct Fragments {
  float* d;
  const uint32_t *a, *b;
};

// When a thread of a block touched a place: the block's clock counts its barriers.
struct Moment {
  int block = -1, thread = 0;
  unsigned clock = 0;
};
constexpr int several = -1;  // threads at the same clock

// Of two bytes, or of one byte that is accessed by itself.
struct Place {
  Moment written;
  std::array<Moment, 2> read;
  std::vector<Moment> read_by_others;

  // Of this block's last reads.
  Moment& reads_of(int index) {
    for (Moment& each : read)
      if (each.block == index || each.block < 0) return each;
    for (Moment& each : read_by_others)
      if (each.block == index) return each;
    return read_by_others.emplace_back();
  }
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
  unsigned clock = 1;
  std::vector<Place> places;            // of shared memory, once any was accessed
  std::vector<unsigned> seen, learned;  // by block: its clock up to which its accesses came before; and from a wait

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

  void wait(Barrier& barrier, int count, const Where& where) {
    const int generation = barrier.generation;
    moved = true;
    if (barrier.arrived == 0) barrier.where = where;
    if (barrier.where.line() != where.line())
      complain("threads meet at a barrier from " + text(barrier.where) + " and " + text(where));
    if (++barrier.arrived == count) {
      barrier.arrived = 0, ++barrier.generation;
      if (&barrier == &whole) {
        ++clock;
        for (size_t i = 0; i < learned.size(); ++i) seen[i] = std::max(seen[i], learned[i]);
      }
      return;
    }
    while (barrier.generation == generation) yield();
    moved = true;
  }

  static void start();

  void begin(unsigned index_, unsigned together) {
    index = index_;
    std::memset(shared.data(), poison, shared.size());
    done.assign(threads, 0);
    left = threads;
    whole = {};
    warps.assign(warps.size(), {});
    clock = 1;
    places.clear();
    seen.assign(together, 0), learned.assign(together, 0);
    for (int i = 0; i < threads; ++i) {
      getcontext(&fibers[i].start);
      fibers[i].start.uc_stack = {stacks[i].get(), 0, stack_bytes};
      fibers[i].started = false;
      makecontext(&fibers[i].start, start, 0);
    }
  }

  // Every thread as far as it comes; whether any came further.
  bool round();

  void check_guard() const {
    for (size_t i = shared_bytes; i < shared.size(); ++i)
      if (shared[i] != poison) return complain("a write past the end of shared memory");
  }
};

Block* block = nullptr;

void Block::start() {
  block->body(block->arguments);
  block->done[block->current] = 1;
  _longjmp(block->scheduler, 1);
}

bool Block::round() {
  block = this;
  const unsigned row = index / gridDim.x;
  blockIdx = {index % gridDim.x, row % gridDim.y, row / gridDim.y};
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
void run(std::vector<std::unique_ptr<Block>>& blocks) {
  for (bool left = true; left;) {
    bool moved = left = false;
    for (auto& each : blocks)
      if (each->left > 0) moved |= each->round(), left |= each->left > 0;
    if (left && !moved) return complain("a barrier was not reached by all threads");
  }
  for (auto& each : blocks) each->check_guard();
}

// --------------------------------------------------------------------------------------------- watched accesses

constexpr uintptr_t single = uintptr_t{1} << 63;  // marks places of one byte, which kernels have in global memory only
constexpr size_t page_bytes = 512;
using Page = std::array<Place, page_bytes>;
std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages;
uintptr_t last_page = 0;
Page* last = nullptr;
std::mutex of_allowed;
std::map<uintptr_t, size_t> allowed;                     // by their begin: bytes
std::array<std::pair<uintptr_t, uintptr_t>, 8> found{};  // the allocations that accesses met last
unsigned next_found = 0;
// What a counter of a grid tells those who wait for each of its values: `seen` of a block.
std::map<const unsigned*, std::vector<std::vector<unsigned>>> counters;

Place& place_of(uintptr_t key) {
  const uintptr_t page = key / page_bytes + 1;
  if (page != last_page) {
    auto& kept = pages[page];
    if (kept == nullptr) kept = std::make_unique<Page>();
    last_page = page, last = kept.get();
  }
  return (*last)[key % page_bytes];
}

bool came_before(const Moment& then) {
  if (then.block < 0) return true;
  if (then.block == static_cast<int>(block->index)) return then.thread == block->current || then.clock < block->clock;
  return !block->seen.empty() && then.clock <= block->seen[then.block];
}

std::string text(const Moment& moment) {
  const std::string who = moment.thread == several ? "several threads" : "thread " + std::to_string(moment.thread);
  return who + " of block " + std::to_string(moment.block);
}

std::string place_text(uintptr_t address) {
  const auto begin = reinterpret_cast<uintptr_t>(block->shared.data());
  if (address - begin < block->shared.size()) return "byte " + std::to_string(address - begin) + " of shared memory";
  auto after = allowed.upper_bound(address);
  if (after == allowed.begin()) return "memory of nobody";
  --after;
  return "byte " + std::to_string(address - after->first) + " of " + std::to_string(after->second) + " bytes";
}

void touch(Place& place, uintptr_t address, bool is_write, bool is_shared) {
  const Moment now{static_cast<int>(block->index), block->current, block->clock};
  auto race = [&](const Moment& then, const char* did) {
    complain("a race: " + text(then) + did + place_text(address) + ", which " + text(now) +
             (is_write ? " writes" : " reads") + " with no barrier between");
  };
  if (!came_before(place.written)) race(place.written, " wrote ");
  if (is_shared && !is_write && place.written.block < 0)
    complain("a read of " + place_text(address) + " that nobody wrote, by " + text(now));
  if (is_write) {
    for (const Moment& each : place.read)
      if (!came_before(each)) race(each, " read ");
    for (const Moment& each : place.read_by_others)
      if (!came_before(each)) race(each, " read ");
    place.written = now, place.read = {}, place.read_by_others.clear();
    return;
  }
  // One block after the other: two that read are enough to show that a third must not write.
  if (block->seen.empty() && place.read[1].block >= 0 && place.read[1].block != now.block) return;
  Moment& reads = place.reads_of(now.block);
  const bool same = reads.block == now.block && reads.clock == now.clock && reads.thread != now.thread;
  reads = now;
  if (same) reads.thread = several;
}

bool is_allowed(uintptr_t begin, uintptr_t end) {
  for (const auto& [first, behind] : found)
    if (begin >= first && end <= behind) return true;
  const std::lock_guard lock(of_allowed);
  auto after = allowed.upper_bound(begin);
  if (after == allowed.begin()) return false;
  --after;
  if (end > after->first + after->second) return false;
  found[next_found++ % found.size()] = {after->first, after->first + after->second};
  return true;
}

extern "C" __attribute__((visibility("hidden"))) char __ehdr_start, _end;  // of this library, with its constants
constexpr size_t frames_bytes = 64 << 10;  // of the functions around the launch, which hold its arguments

void access(const void* memory, size_t bytes, bool is_write) {
  if (block == nullptr || !complaint.empty()) return;
  const auto begin = reinterpret_cast<uintptr_t>(memory), end = begin + bytes;
  const auto stack = reinterpret_cast<uintptr_t>(block->stacks[block->current].get());
  if (begin - stack < Block::stack_bytes) return;
  const auto shared = reinterpret_cast<uintptr_t>(block->shared.data());
  const bool is_shared = begin >= shared && end <= shared + block->shared_bytes;
  if (!is_shared && !is_allowed(begin, end)) {
    const bool is_constant =
        begin >= reinterpret_cast<uintptr_t>(&__ehdr_start) && end <= reinterpret_cast<uintptr_t>(&_end);
    const bool is_argument = begin - reinterpret_cast<uintptr_t>(block->arguments) + frames_bytes < 2 * frames_bytes;
    if (!is_write && (is_constant || is_argument)) return;
    return complain((is_write ? "a write to " : "a read of ") + place_text(begin) + ", " + std::to_string(bytes) +
                    " bytes, which the kernel may not reach");
  }
  if (is_shared && block->places.empty()) block->places.resize(block->shared_bytes / 2 + 1);
  if (bytes == 1) return touch(place_of(begin | single), begin, is_write, is_shared);
  for (uintptr_t at = begin; at < end; at += 2)
    touch(is_shared ? block->places[(at - shared) / 2] : place_of(at / 2), at, is_write, is_shared);
}

}  // namespace

void allow(const void* memory, size_t bytes) {
  const std::lock_guard lock(of_allowed);
  allowed[reinterpret_cast<uintptr_t>(memory)] = bytes;
}
void forbid(const void* memory) {
  const std::lock_guard lock(of_allowed);
  allowed.erase(reinterpret_cast<uintptr_t>(memory));
  found = {};
}

unsigned char* shared_memory() { return block->shared.data(); }

void expect_aligned(const void* memory, size_t bytes) {
  const auto begin = reinterpret_cast<uintptr_t>(memory);
  if (begin % bytes != 0)
    complain("a misaligned access to " + place_text(begin) + ", " + std::to_string(bytes) + " bytes");
}

void synchronize(const Where& where) { block->wait(block->whole, block->threads, where); }

// All leave their values, then all take, then all may leave others.
void shuffle(void* value, size_t bytes, int lane, const Where& where) {
  const int me = block->current;
  Barrier& barrier = block->warps[me / 32];
  std::memcpy(&block->shuffled[me], value, bytes);
  block->wait(barrier, 32, where);
  if (lane < 32) std::memcpy(value, &block->shuffled[me - me % 32 + lane], bytes);
  block->wait(barrier, 32, where);
}

// By the fragment layouts of the PTX manual. The last thread of the warp to come multiplies for all.
void multiply(float* d, const uint32_t* a, const uint32_t* b, float (*product)(float, uint32_t, uint32_t),
              const Where& where) {
  const int lane = block->current % 32;
  Fragments* warp = block->fragments.data() + (block->current - lane);
  Barrier& barrier = block->warps[block->current / 32];
  warp[lane] = {d, a, b};
  if (barrier.arrived + 1 == 32)
    for (int row = 0; row < 16; ++row)
      for (int column = 0; column < 8; ++column) {
        float& sum = warp[row % 8 * 4 + column / 2].d[row / 8 * 2 + column % 2];
        for (int word = 0; word < 8; ++word)
          sum = product(sum, warp[row % 8 * 4 + word % 4].a[row / 8 + word / 4 * 2],
                        warp[column * 4 + word % 4].b[word / 4]);
      }
  block->wait(barrier, 32, where);
}

void arrive(unsigned* counter) {
  ++*counter;
  std::vector<std::vector<unsigned>>& values = counters[counter];
  std::vector<unsigned> tells = block->seen;
  if (!values.empty())
    for (size_t i = 0; i < tells.size(); ++i) tells[i] = std::max(tells[i], values.back()[i]);
  tells[block->index] = block->clock - 1;  // what lies before the block's last barrier
  values.push_back(tells);
}

void wait_until(const unsigned* counter, unsigned expected) {
  const volatile unsigned* now = counter;
  while (*now < expected) block->yield();
  block->moved = true;
  block->learned = counters[counter][expected - 1];
}

cudaError_t launch(const cudaLaunchConfig_t& launch, void (*body)(void*), void* arguments) {
  complaint.clear();
  if (launch.dynamicSmemBytes > static_cast<size_t>(shared_limit) || launch.blockDim.x > 1024)
    return cudaErrorInvalidValue;
  const unsigned grid = launch.gridDim.x * launch.gridDim.y * launch.gridDim.z;
  const bool together = launch.numAttrs > 0 && launch.attrs->val.cooperative != 0;
  if (together && grid > static_cast<unsigned>(processors)) return cudaErrorCooperativeLaunchTooLarge;
  blockDim = launch.blockDim, gridDim = launch.gridDim;
  std::vector<std::unique_ptr<Block>> alive;
  for (unsigned i = 0; i < (together ? grid : 1); ++i)
    alive.emplace_back(new Block(static_cast<int>(launch.blockDim.x), launch.dynamicSmemBytes, body, arguments));
  for (unsigned i = 0; i < grid && complaint.empty(); i += alive.size()) {
    for (unsigned j = 0; j < alive.size(); ++j)
      alive[j]->begin(descending ? grid - 1 - i - j : i + j, together ? grid : 0);
    run(alive);
  }
  block = nullptr, last_page = 0;
  pages.clear(), counters.clear();
  return complaint.empty() ? cudaSuccess : cudaErrorLaunchFailure;
}

}  // namespace emulation

cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount ? emulation::processors : emulation::shared_limit;
  return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int bytes) {
  return bytes <= emulation::shared_limit ? cudaSuccess : cudaErrorInvalidValue;
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  return std::memset(to, value, bytes), cudaSuccess;
}

// What the compiler calls under -fsanitize=thread.
extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
#define RECURVE_WATCHED(BYTES)                                                                 \
  void __tsan_read##BYTES(void* memory) { emulation::access(memory, BYTES, false); }           \
  void __tsan_write##BYTES(void* memory) { emulation::access(memory, BYTES, true); }           \
  void __tsan_unaligned_read##BYTES(void* memory) { emulation::access(memory, BYTES, false); } \
  void __tsan_unaligned_write##BYTES(void* memory) { emulation::access(memory, BYTES, true); }
RECURVE_WATCHED(1)
RECURVE_WATCHED(2)
RECURVE_WATCHED(4)
RECURVE_WATCHED(8)
RECURVE_WATCHED(16)
#undef RECURVE_WATCHED
void __tsan_read_range(void* memory, size_t bytes) { emulation::access(memory, bytes, false); }
void __tsan_write_range(void* memory, size_t bytes) { emulation::access(memory, bytes, true); }
}
