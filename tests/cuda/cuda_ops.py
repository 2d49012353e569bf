"""A pytest plugin: the tests of the ops run on the GPU. Loaded with `-p cuda_ops`; see bench/gpu."""

import pytest
import torch

if not torch.cuda.is_available():
    raise pytest.UsageError("torch can use no GPU here")
torch.set_default_device("cuda")
# Float products keep their precision; tensor_cores.py turns tensor cores on by itself.
torch.backends.cudnn.allow_tf32 = False
torch.backends.cuda.matmul.allow_tf32 = False
# What a kernel leaves unwritten, or reads too early, is not a number.
torch.utils.deterministic.fill_uninitialized_memory = True
torch.use_deterministic_algorithms(True, warn_only=True)

# Claims on the CPU alone: its threads, instruction sets, algorithms and fallbacks; lengths on a GPU are not looked at.
CPU_ONLY = ("on_the_cpu", "thread", "instruction_set", "wrong_lengths", "autocast_cpu", "conv_block_winograd")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    kept = [item for item in items if not any(word in item.name for word in CPU_ONLY)]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept
