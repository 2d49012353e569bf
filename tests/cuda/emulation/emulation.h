// What the host side of the tests sets and asks of the emulation.
#pragma once

#include <cstddef>
#include <string>

namespace emulation {

inline int processors = 4, shared_limit = 227 << 10;
inline bool descending = false;  // the order of threads between barriers
inline std::string complaint;    // what was wrong in the last launch that failed

// Memory that kernels may reach; only such counts where accesses are watched.
void allow(const void* memory, size_t bytes);
void forbid(const void* memory);

}  // namespace emulation
