// The convolution block for double.
#include "convolution.h"

namespace recurve::cuda {

RECURVE_CONVOLUTION_KERNELS(double);

}  // namespace recurve::cuda
