"""Everything that is checked and measured on a GPU: `make gpu`."""

PARTS = ("block", "grid", "steps", "convolution")  # of the kernels: designs of the recurrent ops, and the convolution
SECONDS = "STAGE_SECONDS"  # the environment's name for the time that a stage has
