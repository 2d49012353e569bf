// The recurrent kernels whose blocks share a model, for bfloat16, on tensor cores, with sums in float.
#include "grid.h"

namespace recurve::cuda {

RECURVE_GRID_KERNELS(BFloat16);

}  // namespace recurve::cuda
