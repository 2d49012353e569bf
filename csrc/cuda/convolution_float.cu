// The convolution block for float.
#include "convolution.h"

namespace recurve::cuda {

RECURVE_CONVOLUTION_KERNELS(float);

}  // namespace recurve::cuda
