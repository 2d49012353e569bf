// The recurrent kernels whose blocks share a model, for double.
#include "grid.h"

namespace recurve::cuda {

RECURVE_GRID_KERNELS(double);

}  // namespace recurve::cuda
