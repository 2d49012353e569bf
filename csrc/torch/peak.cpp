// Measures the machine's peaks.
#include "peak.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <chrono>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "../cpu/kernels.h"
#include "../cpu/memory.h"

namespace recurve {
namespace {

constexpr int64_t rounds_of_chains = 20000;
constexpr int64_t least_traffic = 1 << 18;  // bytes of one piece of work: reading the clock takes no time beside it

// What torch's threads do in a second, each going through pieces of `amount` with work(thread) for `seconds`. Of each
// thread counts the piece at the upper quartile: other programs interrupt some, and some run while others wait.
template <class F>
double total_rate(double amount, double seconds, const F& work) {
  using Clock = std::chrono::steady_clock;
  const auto since = [](Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
  };
  const int64_t threads = at::get_num_threads();
  std::vector<double> rates(threads);
  at::parallel_for(0, threads, 1, [&](int64_t first, int64_t last) {
    for (int64_t thread = first; thread < last; ++thread) {
      std::vector<double> pieces;
      work(thread);
      const auto begin = Clock::now();
      do {
        const auto start = Clock::now();
        work(thread);
        pieces.push_back(amount / since(start));
      } while (since(begin) < seconds);
      const auto quartile = pieces.begin() + pieces.size() * 3 / 4;
      std::nth_element(pieces.begin(), quartile, pieces.end());
      rates[thread] = *quartile;
    }
  });
  return std::accumulate(rates.begin(), rates.end(), 0.0);
}

}  // namespace

double peak_flops(double seconds) {
  ArithmeticPeak<float> peak{rounds_of_chains, 0.5f, 1.0f, 0.0f, 0};
  kernels<float>().run_chains(peak);
  return total_rate(static_cast<double>(peak.operations), seconds, [](int64_t) {
    ArithmeticPeak<float> own{rounds_of_chains, 0.5f, 1.0f, 0.0f, 0};
    kernels<float>().run_chains(own);
  });
}

double peak_bandwidth(int64_t bytes, double seconds) {
  const int64_t threads = at::get_num_threads(), share = bytes / threads;
  if (share < 1024)
    throw std::invalid_argument("peak_bandwidth: " + std::to_string(bytes) + " bytes are too few for " +
                                std::to_string(threads) + " threads; give each at least 1024");
  const int64_t count = share / 1024 * 256;  // floats: a multiple of what both loops take at a time
  const int64_t passes = 1 + least_traffic / share;
  const double amount = static_cast<double>(count * sizeof(float) * passes);
  Scratch<float> memory(count * threads);
  std::fill_n(memory.get(), count * threads, 1.0f);
  std::vector<float> sums(threads);
  const double reading = total_rate(amount, seconds / 2, [&](int64_t thread) {
    for (int64_t pass = 0; pass < passes; ++pass)
      sums[thread] += kernels<float>().read_memory(memory + thread * count, count);
  });
  const double copying = total_rate(amount, seconds / 2, [&](int64_t thread) {
    float* half = memory + thread * count;
    for (int64_t pass = 0; pass < passes; ++pass) kernels<float>().copy_memory(half, half + count / 2, count / 2);
  });
  return std::max(reading, copying);
}

}  // namespace recurve
