// Hands kernels torch's intra-op threads.
#pragma once

#include <ATen/Parallel.h>

#include "../cpu/kernels.h"

namespace recurve {

inline Parallel torch_parallel() {
  auto run = [](int64_t tasks, void (*task)(void*, int64_t), void* context) {
    at::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) task(context, i);
    });
  };
  return {at::in_parallel_region() ? 1 : at::get_num_threads(), run};
}

}  // namespace recurve
