// The recurrent kernels for bfloat16, on tensor cores, with sums in float.
#include "recurrent.h"

namespace recurve::cuda {

RECURVE_RECURRENT_KERNELS(BFloat16);

}  // namespace recurve::cuda
