// Memory that outlives a call, so that the next one need not ask the system for pages again.
#pragma once

#include <cstddef>
#include <cstdint>

namespace recurve {

// A block of at least `bytes`, aligned for vectors; blocks of a page table's reach ask for huge pages.
// Throws std::bad_alloc.
void* take_block(size_t bytes);

// Gives back what take_block gave for the same number of bytes. Kept for later up to a bound, freed beyond it.
void give_block(void* block, size_t bytes);

// Memory of one call.
template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t count) : bytes_(count * sizeof(T)), data_(static_cast<T*>(take_block(bytes_))) {}
  ~Scratch() { give_block(data_, bytes_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  operator T*() const { return data_; }
  T* get() const { return data_; }

 private:
  size_t bytes_;
  T* data_;
};

}  // namespace recurve
