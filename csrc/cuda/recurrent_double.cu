// The recurrent kernels for double.
#include "recurrent.h"

namespace recurve::cuda {

RECURVE_RECURRENT_KERNELS(double);

}  // namespace recurve::cuda
