// The convolution block for bfloat16, with sums in float.
#include "convolution.h"

namespace recurve::cuda {

RECURVE_CONVOLUTION_KERNELS(BFloat16);

}  // namespace recurve::cuda
