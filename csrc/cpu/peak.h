// What the machine can do at most: multiplications and additions that wait for nothing, memory read or copied straight.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace recurve {
namespace {

// Independent chains x <- a x + b: enough to keep every arithmetic unit busy, few enough to stay in registers.
template <class T>
void run_chains(ArithmeticPeak<T>& peak) {
  constexpr int chains = RECURVE_VECTOR_REGISTERS == 32 ? 16 : 12;
  Vector<T> x[chains];
  RECURVE_UNROLL
  for (int i = 0; i < chains; ++i) x[i] = zero_vector<T>() + static_cast<T>(i);
  const T a = peak.factor, b = peak.summand;
  for (int64_t round = 0; round < peak.rounds; ++round) {
    RECURVE_UNROLL
    for (int i = 0; i < chains; ++i) x[i] = x[i] * a + b;
  }
  Vector<T> sum = zero_vector<T>();
  for (const Vector<T>& each : x) sum += each;
  for (int64_t i = 0; i < lanes<T>; ++i) peak.result += sum[i];
  peak.operations = 2 * chains * lanes<T> * peak.rounds;
}

constexpr int streams = 8;

template <class T>
T read_memory(const T* from, int64_t count) {
  Vector<T> sums[streams] = {};
  for (int64_t i = 0; i + streams * lanes<T> <= count; i += streams * lanes<T>) {
    RECURVE_UNROLL
    for (int s = 0; s < streams; ++s) sums[s] += load(from + i + s * lanes<T>);
  }
  T sum = 0;
  for (const Vector<T>& each : sums)
    for (int64_t i = 0; i < lanes<T>; ++i) sum += each[i];
  return sum;
}

template <class T>
void copy_memory(const T* from, T* to, int64_t count) {
  for (int64_t i = 0; i + streams * lanes<T> <= count; i += streams * lanes<T>) {
    RECURVE_UNROLL
    for (int s = 0; s < streams; ++s) store(to + i + s * lanes<T>, load(from + i + s * lanes<T>));
  }
}

}  // namespace
}  // namespace recurve
