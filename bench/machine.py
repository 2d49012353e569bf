"""Where something was measured, and with what."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import torch

import recurve
from bench.workers import PROCESSORS, Conditions
from recurve import _extension


def about(conditions: Conditions) -> dict[str, str]:
    """Machine, versions and conditions, as text by name."""
    module = _extension.module()
    return {
        "recurve": recurve.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": device(conditions),
        "kernels": module.instruction_set() if module is not None else "none: torch's native ops",
        "threads": str(conditions.threads),
        "device": conditions.device,
        "dtype": "float32" + (" with TF32" if conditions.tf32 else ""),
    }


def file_name(conditions: Conditions) -> str:
    """`cpu-amd-epyc-2-cores-1-thread`: what a result of this machine is called."""
    processor = re.sub(r"\W+", "-", device(conditions).replace("(R)", "")).strip("-").lower()
    return f"{conditions.device}-{processor}-{threads(conditions.threads)}".replace(" ", "-")


def threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"


def device(conditions: Conditions) -> str:
    if conditions.device == "cuda":
        return torch.cuda.get_device_name()
    return f"{_processor()}, {len(PROCESSORS)} core{'s' if len(PROCESSORS) > 1 else ''}"


def _processor() -> str:
    """`AMD EPYC (family 26, model 2)`: a virtual machine's model name alone says little."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = fields.get("model name", platform.machine())
    return f"{name} (family {fields['cpu family']}, model {fields['model']})" if "cpu family" in fields else name
