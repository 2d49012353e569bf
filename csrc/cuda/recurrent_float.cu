// The recurrent kernels for float, plain and on tensor cores.
#include "recurrent.h"

namespace recurve::cuda {

RECURVE_RECURRENT_KERNELS(float);

}  // namespace recurve::cuda
