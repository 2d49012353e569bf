// Free blocks by size class: a few of each thread's own, the others for the whole process.
#include "memory.h"

#include <pthread.h>
#include <sys/mman.h>

#include <cstdlib>
#include <map>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

namespace recurve {
namespace {

constexpr size_t most_kept = size_t{1} << 28;    // of the process's free blocks together
constexpr size_t most_of_own = size_t{1} << 19;  // of one of a thread's own
constexpr int own_blocks = 16;                   // of a thread
constexpr size_t huge_page = size_t{1} << 21;

// Up to the next eighth of a power of two: blocks of about the same size serve each other.
size_t rounded(size_t bytes) {
  size_t step = 64;
  while (bytes > 16 * step) step *= 2;
  return (bytes + step - 1) / step * step;
}

void* allocate(size_t bytes) {
  const bool huge = bytes >= huge_page;
  const size_t alignment = huge ? huge_page : 64;
  void* block = std::aligned_alloc(alignment, (bytes / alignment + 1) * alignment);
  if (block == nullptr) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
  if (huge) madvise(block, bytes, MADV_HUGEPAGE);  // a hint: where it is refused, small pages serve
#endif
  return block;
}

#if defined(__SANITIZE_ADDRESS__)
constexpr bool keeps = false;  // reuse would hide what a sanitizer looks for
#else
constexpr bool keeps = true;
#endif

class Pool {
 public:
  void* take(size_t bytes) {
    const std::lock_guard lock(mutex_);
    const auto found = free_.find(bytes);
    if (found == free_.end() || found->second.empty()) return nullptr;
    void* block = found->second.back();
    found->second.pop_back();
    kept_ -= bytes;
    return block;
  }

  bool give(void* block, size_t bytes) {
    const std::lock_guard lock(mutex_);
    if (kept_ + bytes > most_kept) return false;
    free_[bytes].push_back(block);
    kept_ += bytes;
    return true;
  }

  std::mutex& mutex() { return mutex_; }

 private:
  std::mutex mutex_;
  std::map<size_t, std::vector<void*>> free_;
  size_t kept_ = 0;
};

// Never destroyed: tensors may be freed after static objects are. A forked child finds it unlocked.
Pool& pool() {
  static Pool* one = [] {
    pthread_atfork([] { pool().mutex().lock(); }, [] { pool().mutex().unlock(); }, [] { pool().mutex().unlock(); });
    return new Pool;
  }();
  return *one;
}

void give_to_pool(void* block, size_t bytes) {
  if (!pool().give(block, bytes)) std::free(block);
}

// What a thread takes and gives again and again costs it no lock, for which threads would wait.
struct OwnBlocks {
  struct Block {
    void* start;
    size_t bytes;
  };
  Block blocks[own_blocks];
  int oldest;
  bool closed;  // the thread ends

  void* take(size_t bytes) {
    for (Block& own : blocks)
      if (own.bytes == bytes && own.start != nullptr) return std::exchange(own.start, nullptr);
    return nullptr;
  }

  void give(void* start, size_t bytes) {
    if (closed || bytes > most_of_own) return give_to_pool(start, bytes);
    for (Block& own : blocks)
      if (own.start == nullptr) {
        own = {start, bytes};
        return;
      }
    const Block gone = std::exchange(blocks[oldest], {start, bytes});
    oldest = (oldest + 1) % own_blocks;
    give_to_pool(gone.start, gone.bytes);
  }

  void close() {
    closed = true;
    for (Block& own : blocks)
      if (own.start != nullptr) give_to_pool(std::exchange(own.start, nullptr), own.bytes);
  }
};

// Without a destructor, since tensors of a thread may be freed after its objects are.
OwnBlocks& own_blocks_of_thread() {
  thread_local OwnBlocks own{};
  struct Closing {
    OwnBlocks& of;
    ~Closing() { of.close(); }
  };
  thread_local const Closing closing{own};
  return own;
}

}  // namespace

void* take_block(size_t bytes) {
  if (!keeps) return allocate(bytes);
  bytes = rounded(bytes);
  void* block = own_blocks_of_thread().take(bytes);
  if (block == nullptr) block = pool().take(bytes);
  return block != nullptr ? block : allocate(bytes);
}

void give_block(void* block, size_t bytes) {
  if (!keeps) return std::free(block);
  own_blocks_of_thread().give(block, rounded(bytes));
}

}  // namespace recurve
