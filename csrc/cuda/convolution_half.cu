// The convolution block for half, with sums in float.
#include "convolution.h"

namespace recurve::cuda {

RECURVE_CONVOLUTION_KERNELS(Half);

}  // namespace recurve::cuda
