// The machine's peaks on torch's intra-op threads, in float32, measured on the spot.
#pragma once

#include <cstdint>

namespace recurve {

// Multiplications and additions per second: the best of what fits into `seconds`.
double peak_flops(double seconds);

// Bytes per second, read or copied, whichever is more: the best of what fits into `seconds`. The threads share `bytes`
// of memory and go over it again and again, so that it comes from the caches which hold so much.
// Throws std::invalid_argument if a thread's share is less than a kibibyte.
double peak_bandwidth(int64_t bytes, double seconds);

}  // namespace recurve
