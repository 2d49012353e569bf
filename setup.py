"""Builds the extension `recurve._C` with ninja: CPU sources always, CUDA sources where torch and nvcc allow.

RECURVE_BUILD decides: `auto` (default) builds what can be built and installs without the rest, loudly; `cpu` and
`cuda` fail when they cannot be had; `none` builds nothing. RECURVE_SANITIZE=1 adds the address and
undefined-behaviour sanitizers: see `make sanitize`.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from setuptools import setup

MODES = ("auto", "cpu", "cuda", "none")
WARNINGS = ["-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-psabi"]
FLAGS = ["-std=c++20", "-O3", "-g0", "-fopenmp", "-fvisibility=hidden", *WARNINGS]
LINK_FLAGS = ["-fopenmp"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
if os.environ.get("RECURVE_SANITIZE") == "1":
    FLAGS += ["-O0", "-g1", *SANITIZERS]  # optimised, the instrumented kernels take many minutes to compile
    LINK_FLAGS += SANITIZERS
KERNELS = "csrc/cpu/kernels.cpp"  # compiled once for each of:
INSTRUCTION_SETS = {"baseline": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    INSTRUCTION_SETS |= {
        "avx2": ["-mavx2", "-mfma"],
        "avx512": ["-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mfma"],
    }

CUDA_ARCHITECTURES = ("8.0", "8.6", "8.9", "9.0", "10.0", "12.0")  # Ampere, Ada, Hopper, Blackwell


def shout(*lines: str) -> None:
    """A message that survives a quiet pip."""
    bar = "=" * 100
    text = "\n".join(["", bar, *lines, bar, ""])
    sys.stderr.write(text)
    if not sys.stderr.isatty():
        with contextlib.suppress(OSError):  # no terminal: stderr is all there is
            Path("/dev/tty").write_text(text)


def sources(folder: str, suffix: str) -> list[str]:
    return sorted(str(path) for path in Path("csrc", folder).glob(f"*{suffix}"))


def cuda_obstacle() -> str | None:
    """Why CUDA sources cannot be built here; None if they can."""
    import torch
    from torch.utils import cpp_extension

    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if cpp_extension.CUDA_HOME is None:
        return "nvcc is not found; set CUDA_HOME"
    for needed in ("include/cuda_runtime.h", "bin/nvcc"):
        if not Path(cpp_extension.CUDA_HOME, needed).exists():
            return f"{cpp_extension.CUDA_HOME} lacks {needed}; set CUDA_HOME to a CUDA toolkit"
    release = re.search(r"release (\d+)", nvcc_says(cpp_extension.CUDA_HOME, "--version"))
    if release is None or release[1] != torch.version.cuda.partition(".")[0]:
        found = f"CUDA {release[1]}" if release else "an unknown version"
        return f"nvcc is of {found}, torch of {torch.version.cuda}; set CUDA_HOME to a toolkit like torch's"
    return None


def nvcc_says(cuda_home: str, option: str) -> str:
    return subprocess.run([f"{cuda_home}/bin/nvcc", option], capture_output=True, text=True, check=True).stdout


def known_architectures(cuda_home: str) -> str:
    """Those of CUDA_ARCHITECTURES that this nvcc knows, as TORCH_CUDA_ARCH_LIST; newer GPUs compile from the last."""
    listed = nvcc_says(cuda_home, "--list-gpu-arch").split()
    return ";".join(a for a in CUDA_ARCHITECTURES if f"compute_{a.replace('.', '')}" in listed) + "+PTX"


def extension_arguments(mode: str) -> dict:
    from torch.utils import cpp_extension

    obstacle = cuda_obstacle()
    if mode == "cuda" and obstacle is not None:
        raise SystemExit(f"RECURVE_BUILD=cuda cannot be had: {obstacle}")
    with_cuda = obstacle is None and mode != "cpu"
    reason = "" if with_cuda else obstacle or "RECURVE_BUILD=cpu"
    defines = [("RECURVE_DEVICES", '"cpu, cuda"' if with_cuda else '"cpu"'), ("RECURVE_WITHOUT_CUDA", f'"{reason}"')]
    arguments: dict = {
        "name": "recurve._C",
        "sources": [*sources("torch", ".cpp"), "csrc/cpu/dispatch.cpp", "csrc/cpu/memory.cpp"],
        "define_macros": defines,
        "extra_compile_args": {"cxx": FLAGS},
        "extra_link_args": LINK_FLAGS,
        "depends": [KERNELS, *map(str, Path("csrc").rglob("*.h"))],
    }
    if not with_cuda:
        return {"ext_modules": [cpp_extension.CppExtension(**arguments)]}
    if "TORCH_CUDA_ARCH_LIST" not in os.environ:
        os.environ["TORCH_CUDA_ARCH_LIST"] = known_architectures(cpp_extension.CUDA_HOME)
    arguments["sources"] += sources("cuda", ".cu") + sources("torch/cuda", ".cpp")
    arguments["extra_compile_args"]["nvcc"] = ["-std=c++20", "-O3"]
    return {"ext_modules": [cpp_extension.CUDAExtension(**arguments)]}


def build_command(mode: str) -> type:
    from torch.utils.cpp_extension import BuildExtension

    class Build(BuildExtension):
        """Compiles kernels once per instruction set, beside the rest; in mode `auto` failing leaves a native one."""

        def run(self) -> None:
            try:
                super().run()
            except Exception as error:
                if mode != "auto":
                    raise
                self.extensions = []
                for stale in Path("recurve").glob("_C*.so"):
                    stale.unlink()  # an older build may not fit these sources
                shout(
                    "Recurve: the extension could not be built; everything will run on torch's slower native ops.",
                    f"Reason: {str(error).strip().splitlines()[-1]}",
                    "It needs a C++20 compiler (g++ 11 or clang 15, or newer), ninja and Python's headers.",
                    "To see the whole error: RECURVE_BUILD=cpu python setup.py build_ext --inplace",
                )

        def build_extension(self, extension) -> None:
            compile_rest = self.compiler.compile
            with ThreadPoolExecutor() as pool:
                kernels = pool.map(partial(self.compile_kernels, compile_rest), INSTRUCTION_SETS)
                if not self.use_ninja:
                    kernels = list(kernels)  # only ninja compiles CUDA sources beside others

                def compile_all(*arguments, **options) -> list[str]:
                    return compile_rest(*arguments, **options) + [path for paths in kernels for path in paths]

                self.compiler.compile = compile_all
                super().build_extension(extension)

        def compile_kernels(self, compile_source: Callable, instruction_set: str) -> list[str]:
            flags = [*FLAGS, *INSTRUCTION_SETS[instruction_set]]
            return compile_source(
                [KERNELS],
                output_dir=str(Path(self.build_temp, instruction_set)),
                macros=[("RECURVE_ISA", instruction_set)],
                extra_postargs={"cxx": flags} if self.use_ninja else flags,
            )

    return Build


def extension() -> dict:
    """The arguments of `setup` that concern the extension; none where there is to be none."""
    mode = os.environ.get("RECURVE_BUILD", "auto")
    if mode not in MODES:
        raise SystemExit(f"RECURVE_BUILD={mode} is unknown; allowed: {', '.join(MODES)}")
    if mode == "none":
        return {}
    try:
        return extension_arguments(mode) | {"cmdclass": {"build_ext": build_command(mode)}}
    except ImportError as error:
        if mode != "auto":
            raise SystemExit(
                f"RECURVE_BUILD={mode} needs torch, setuptools and ninja at build time: {error}; install them, then "
                "build with --no-build-isolation"
            ) from error
        shout(
            f"Recurve: {error}; the extension is not built and everything will run on torch's native ops.",
            "Install torch and ninja first, then `pip install --no-build-isolation .`",
        )
        return {}


setup(**extension())
