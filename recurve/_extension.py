"""Loads the compiled kernels, or keeps the reason why they are not there."""

from __future__ import annotations

import importlib
from types import ModuleType

import torch

FULL = (torch.float32, torch.float64)
HALF = (torch.bfloat16, torch.float16)  # in and out; the arithmetic is that of float32
FUSED_DTYPES = {"lstm": FULL + HALF, "gru": FULL + HALF, "rnn": FULL + HALF, "conv_block": FULL}


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
    if device.type != "cpu":
        return f"no fused kernel for device {device.type}"
    if dtype not in FUSED_DTYPES[op]:
        return f"no fused kernel for {dtype}"
    return None


def status() -> str:
    """Version, torch, what the extension was built for, the instruction set in use, and which op runs where and why."""
    from recurve import __version__

    lines = [f"recurve {__version__} on torch {torch.__version__}, {torch.get_num_threads()} threads"]
    if _C is None:
        lines.append(f"extension: missing, everything runs on native ops: {_REASON}")
    else:
        build = _C.build_info()
        lines.append(f"extension: built for {build['devices']} against torch {build['torch']} by {build['compiler']}")
        lines.append(f"instruction set: {_C.instruction_set()} (has {', '.join(_C.instruction_sets())})")
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    for op, dtypes in FUSED_DTYPES.items():
        for device in devices:
            for dtype in dtypes:
                why = obstacle(op, torch.device(device), dtype)
                where = "fused" if why is None else f"native ({why.split(':')[0]})"
                lines.append(f"  {op:<10} {device:<4} {str(dtype).removeprefix('torch.'):<8} {where}")
    return "\n".join(lines)
