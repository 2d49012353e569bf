// The recurrent kernels whose blocks share a model, for float, plain and on tensor cores.
#include "grid.h"

namespace recurve::cuda {

RECURVE_GRID_KERNELS(float);

}  // namespace recurve::cuda
