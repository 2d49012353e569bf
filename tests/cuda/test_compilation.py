"""Claim: every CUDA kernel compiles for every architecture that the toolkit has, and keeps its values in registers."""

import importlib.util
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
ARCHITECTURES = ("80", "86", "89", "90", "100", "120")
FLAGS = ["-std=c++20", "-O3", "--expt-relaxed-constexpr", "-Xptxas", "-v", "-cubin"]


def nvcc() -> str | None:
    """The compiler: of CUDA_HOME, on the PATH, in its usual place, or of the PyPI package nvidia-cuda-nvcc."""
    homes = [os.environ["CUDA_HOME"]] if "CUDA_HOME" in os.environ else []
    package = importlib.util.find_spec("nvidia")
    for folder in package.submodule_search_locations or [] if package else []:
        homes += map(str, Path(folder).glob("cu*"))
    places = [shutil.which("nvcc"), *(f"{home}/bin/nvcc" for home in (*homes, "/usr/local/cuda"))]
    return next((place for place in places if place and Path(place).exists()), None)


@dataclass(frozen=True)
class Kernel:
    name: str
    registers: int
    shared: int  # bytes, beside what a launch asks for
    spilled: int  # bytes stored


def kernels(report: str) -> list[Kernel]:
    """What ptxas says of each kernel."""
    found = []
    for part in report.split("Compiling entry function ")[1:]:
        mangled = re.match(r"'(\S+)'", part)
        used = re.search(r"Used (\d+) registers(?:.*?(\d+) bytes smem)?", part)
        spilled = re.search(r"(\d+) bytes spill stores", part)
        assert mangled is not None
        assert used is not None
        assert spilled is not None
        found.append(Kernel(readable(mangled[1]), int(used[1]), int(used[2] or 0), int(spilled[1])))
    return found


def readable(mangled: str) -> str:
    demangler = shutil.which("c++filt")
    if demangler is None:
        return mangled
    name = subprocess.run([demangler, mangled], capture_output=True, text=True, check=True).stdout.strip()
    name = re.sub(r"recurve::(cuda::)?", "", re.sub(r"^void ", "", name))
    return re.sub(r"\((?:Sequence|Step|Convolution|Correlation|Tiled|PixelGradient|PartSums).*$", "", name)


def compiled(source: Path, architecture: str, folder: Path) -> list[Kernel]:
    compiler = nvcc()
    if compiler is None:
        pytest.skip("nvcc is not found; `pip install nvidia-cuda-nvcc` or a CUDA toolkit has it")
    listed = subprocess.run([compiler, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout
    if f"compute_{architecture}" not in listed.split():
        pytest.skip(f"this nvcc does not know sm_{architecture}")
    command = [compiler, *FLAGS, f"-arch=sm_{architecture}", str(source), "-o", str(folder / "kernels.cubin")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-4000:]
    assert "warning" not in said, said[-4000:]
    return kernels(said)


def assert_compiles_without_spills(source: Path, architecture: str, folder: Path, capsys) -> None:
    found = compiled(source, architecture, folder)
    assert found
    with capsys.disabled():
        print(f"\n{source.name} for sm_{architecture}: registers, bytes of static shared memory, bytes spilled")
        for kernel in sorted(found, key=lambda kernel: kernel.name):
            print(f"  {kernel.registers:>4} {kernel.shared:>6} {kernel.spilled:>6}  {kernel.name}")
    assert not [kernel for kernel in found if kernel.spilled]


@pytest.mark.parametrize("kernels", ["recurrent_bfloat16", "grid_bfloat16", "convolution_float"])
def test_kernels_of_each_kind_compile_for_hopper_without_spills(kernels, tmp_path, capsys):
    assert_compiles_without_spills(ROOT / "csrc" / "cuda" / f"{kernels}.cu", "90", tmp_path, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_every_source_compiles_for_every_architecture_without_spills(source, architecture, tmp_path, capsys):
    assert_compiles_without_spills(source, architecture, tmp_path, capsys)
