"""Loads the compiled kernels, or keeps the reason why they are not there."""

from __future__ import annotations

import importlib
from types import ModuleType

import torch

FULL = (torch.float32, torch.float64)
HALF = (torch.bfloat16, torch.float16)  # in and out; sums are those of float32
FUSED_DTYPES = {"lstm": FULL + HALF, "gru": FULL + HALF, "rnn": FULL + HALF, "conv_block": FULL + HALF}


def _load() -> tuple[ModuleType | None, str]:
    try:
        return importlib.import_module("recurve._C"), ""
    except ModuleNotFoundError:
        return None, "it was not built; `RECURVE_BUILD=cpu make build` builds it and shows why it cannot be"
    except (ImportError, OSError) as error:
        if str(error).startswith("RECURVE_ISA="):
            raise
        return None, f"it does not load ({error}); rebuild it against this torch with `RECURVE_BUILD=cpu make build`"


_C, _REASON = _load()
_BUILD: dict[str, str] = {} if _C is None else _C.build_info()
_WITH_CUDA = "cuda" in _BUILD.get("devices", "")
LEAST_CAPABILITY = (8, 0)


def module() -> ModuleType | None:
    """The compiled module, if it is there."""
    return _C


def has(op: str) -> bool:
    """Whether the loaded extension has this op."""
    return _C is not None and hasattr(torch.ops.recurve, op)


def obstacle(op: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the fused kernel of `op` does not serve this device and dtype; None if it does."""
    if _C is None:
        return f"the extension is missing: {_REASON}"
    if not has(op):
        return "this build of the extension lacks it; rebuild with `make build`"
    if device.type == "cuda":
        why = _cuda_obstacle(device)
        if why is not None:
            return why
    elif device.type != "cpu":
        return f"no fused kernel for device {device.type}"
    if dtype not in FUSED_DTYPES[op] and not (device.type == "cuda" and dtype in HALF):
        return f"no fused kernel for {dtype}"
    return None


def _gpu() -> str:
    kernels = "CUDA kernels are built" if _WITH_CUDA else f"no CUDA kernels: {_BUILD.get('without_cuda', _REASON)}"
    if not torch.cuda.is_available():
        return f"none that torch can use; {kernels}"
    return f"{torch.cuda.get_device_name()}; {kernels}"


def _cuda_obstacle(device: torch.device) -> str | None:
    if not _WITH_CUDA:
        return f"no CUDA kernels: {_BUILD.get('without_cuda')}; `RECURVE_BUILD=cuda make build` builds them"
    if not torch.cuda.is_available():
        return "torch can use no GPU here"
    if not torch.compiler.is_compiling() and torch.cuda.get_device_capability(device) < LEAST_CAPABILITY:
        return "the GPU is older than compute capability 8.0 (Ampere)"
    return None


def status() -> str:
    """Version, torch, what the extension was built for, the instruction set in use, and which op runs where and why."""
    from recurve import __version__

    lines = [f"recurve {__version__} on torch {torch.__version__}, {torch.get_num_threads()} threads"]
    if _C is None:
        lines.append(f"extension: missing, everything runs on native ops: {_REASON}")
    else:
        lines.append(
            f"extension: built for {_BUILD['devices']} against torch {_BUILD['torch']} by {_BUILD['compiler']}"
        )
        lines.append(f"instruction set: {_C.instruction_set()} (has {', '.join(_C.instruction_sets())})")
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    lines.append(f"GPU: {_gpu()}")
    for op, dtypes in FUSED_DTYPES.items():
        for device in devices:
            for dtype in dtypes:
                why = obstacle(op, torch.device(device), dtype)
                where = "fused" if why is None else f"native ({why.split(':')[0]})"
                lines.append(f"  {op:<10} {device:<4} {str(dtype).removeprefix('torch.'):<8} {where}")
    return "\n".join(lines)
