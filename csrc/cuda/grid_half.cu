// The recurrent kernels whose blocks share a model, for half, on tensor cores, with sums in float.
#include "grid.h"

namespace recurve::cuda {

RECURVE_GRID_KERNELS(Half);

}  // namespace recurve::cuda
