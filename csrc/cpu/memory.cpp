// Free blocks by size class, for the whole process.
#include "memory.h"

#include <pthread.h>
#include <sys/mman.h>

#include <cstdlib>
#include <map>
#include <mutex>
#include <new>
#include <vector>

namespace recurve {
namespace {

constexpr size_t smallest_kept = size_t{1} << 10;  // below, malloc does as well
constexpr size_t most_kept = size_t{1} << 28;      // of all free blocks together
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

}  // namespace

void* take_block(size_t bytes) {
  if (!keeps || bytes < smallest_kept) return allocate(bytes);
  bytes = rounded(bytes);
  void* block = pool().take(bytes);
  return block != nullptr ? block : allocate(bytes);
}

void give_block(void* block, size_t bytes) {
  if (!keeps || bytes < smallest_kept || !pool().give(block, rounded(bytes))) std::free(block);
}

}  // namespace recurve
