// Hands kernels torch's intra-op threads.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>

#include "../cpu/kernels.h"

namespace recurve {

// Each thread takes the next task when it is done with one: tasks differ in size, and threads in what disturbs them.
inline Parallel torch_parallel() {
  auto run = [](int64_t tasks, void (*task)(void*, int64_t), void* context) {
    std::atomic<int64_t> next{0};
    at::parallel_for(0, std::min<int64_t>(tasks, at::get_num_threads()), 1, [&](int64_t begin, int64_t end) {
      for (int64_t worker = begin; worker < end; ++worker)
        for (int64_t i = next++; i < tasks; i = next++) task(context, i);
    });
  };
  return {at::in_parallel_region() ? 1 : at::get_num_threads(), run};
}

}  // namespace recurve
