// All CPU kernels for one instruction set: compiled once per set, with its flags and RECURVE_ISA as its name.
#include "kernels.h"

#include "conv.h"
#include "gemm.h"
#include "peak.h"
#include "recurrent_backward.h"
#include "recurrent_forward.h"

#define RECURVE_TEXT_(x) #x
#define RECURVE_TEXT(x) RECURVE_TEXT_(x)
#define RECURVE_TABLE_(isa) instruction_set_##isa
#define RECURVE_TABLE(isa) RECURVE_TABLE_(isa)

namespace recurve {

extern const InstructionSet RECURVE_TABLE(RECURVE_ISA);
const InstructionSet RECURVE_TABLE(RECURVE_ISA) = {
    RECURVE_TEXT(RECURVE_ISA),
    {sequence_forward<float>, sequence_backward<float>, gemm<float>, conv_forward<float>, conv_backward<float>,
     run_chains<float>, read_memory<float>, copy_memory<float>},
    {sequence_forward<double>, sequence_backward<double>, gemm<double>, conv_forward<double>, conv_backward<double>,
     run_chains<double>, read_memory<double>, copy_memory<double>},
};

}  // namespace recurve
