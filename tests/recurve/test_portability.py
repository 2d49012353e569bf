"""Claim: the kernels need no torch, compile without a warning with each compiler, and compute what plain loops do."""

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc"
DRIVER = Path(__file__).with_name("portability.cpp")
SOURCES = [DRIVER, *(CSRC / "cpu" / name for name in ("kernels.cpp", "dispatch.cpp", "memory.cpp"))]
FLAGS = ["-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-psabi", "-DRECURVE_ISA=baseline"]
X86 = platform.machine().lower() in ("x86_64", "amd64")
RUNNERS: dict[str, list[str]] = {
    "g++": [],
    "clang++": [],
    "aarch64-linux-gnu-g++": ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu"],
}


def checked(command: list[str], **environment: str) -> str:
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"[-4000:]
    return done.stdout


def alias_flags(compiler: str) -> list[str]:
    """On x86 the table of the baseline stands for the others, which are not compiled here."""
    if compiler.startswith("aarch64") or not X86:
        return []
    table = "_ZN7recurve{}instruction_set_{}E"
    baseline = table.format(24, "baseline")
    return [f"-Wl,--defsym={table.format(*other)}={baseline}" for other in ((20, "avx2"), (22, "avx512"))]


@pytest.mark.slow
@pytest.mark.parametrize("compiler", RUNNERS)
def test_kernels_compiled_by_each_compiler_match_plain_loops(compiler, tmp_path):
    for program in (compiler, *RUNNERS[compiler][:1]):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not found")
    program = str(tmp_path / "portability")
    checked([compiler, *FLAGS, *map(str, SOURCES), *alias_flags(compiler), "-o", program])
    said = checked([*RUNNERS[compiler], program], RECURVE_ISA="baseline")
    assert said == "baseline: 0 mismatches\n"
