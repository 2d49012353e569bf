// The recurrent kernels for half, on tensor cores, with sums in float.
#include "recurrent.h"

namespace recurve::cuda {

RECURVE_RECURRENT_KERNELS(Half);

}  // namespace recurve::cuda
