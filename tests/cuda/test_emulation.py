"""Claim: the CUDA ops pass the CPU ops' tests on an emulated GPU, whatever its size and the order of its threads.

In every test here the emulation also finds races, reads of what nobody wrote, accesses out of bounds and misaligned
ones, and barriers that threads miss: see emulation/emulation.cpp.
"""

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from torch.utils import cpp_extension

from recurve import _extension

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
KERNELS = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
FLAGS = ["-std=c++20", "-O1", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", "-Wno-unknown-pragmas"]
FLAGS += [f"-I{HERE / 'emulation'}"]
WATCHED = ["-x", "c++", "-fsanitize=thread"]  # for the calls at every access; nothing of that sanitizer is linked
EMULATION = HERE / "emulation" / "emulation.cpp"
TORCH = [f"-I{path}" for path in cpp_extension.include_paths()]

# Processors, bytes of shared memory, and whether threads run in descending order.
LARGE = "132,232448,0"  # weights stay in shared memory
SMALL = "4,45000,1"  # of larger models, many are read from global memory
TINY = "2,100,0"  # no sequence fits: step by step
MANY, FEW = "40,232448,0", "10,232448,1"  # for blocks that share a model


def checked(command: list[str], **environment: str) -> str:
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"[-6000:]
    return done.stdout


def compiled(source: Path, folder: Path, *flags: str) -> str:
    target = str(folder / f"{source.name}.o")
    checked(["g++", *FLAGS, *flags, "-c", str(source), "-o", target])
    return target


@pytest.fixture(scope="session")
def emulation(tmp_path_factory):
    """The emulation, compiled."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not found")
    return compiled(EMULATION, tmp_path_factory.mktemp("emulation"))


@pytest.fixture(scope="session")
def library(emulation):
    """The CUDA ops, compiled for the host."""
    if not _extension.has("lstm"):
        pytest.skip("needs the compiled extension")
    folder = Path(emulation).parent
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        ops = pool.submit(compiled, HERE / "emulated.cpp", folder, *TORCH, "-O0")
        objects = [*pool.map(lambda source: compiled(source, folder, *WATCHED), KERNELS), ops.result(), emulation]
    return linked(objects, folder / "emulated.so")


def linked(objects: list[str], target: Path) -> str:
    libraries = [f"-L{path}" for path in cpp_extension.library_paths()] + ["-ltorch", "-ltorch_cpu", "-lc10"]
    checked(["g++", "-shared", "-o", str(target), *objects, *libraries])
    return str(target)


@pytest.fixture(scope="session")
def planted(emulation, tmp_path_factory):
    """A program of kernels with one fault each."""
    folder = tmp_path_factory.mktemp("planted")
    target = str(folder / "planted")
    checked(["g++", "-o", target, compiled(HERE / "planted.cpp", folder, *WATCHED), emulation])
    return target


@pytest.mark.parametrize("order", ["0", "1"], ids=["ascending", "descending"])
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("none", "nothing"),
        ("race in a block", "that nobody wrote"),
        ("write after read", "a race: .* shared memory, .* with no barrier between"),
        ("race between blocks", "a race: .* wrote .* writes"),
        ("early exchange", "a race: .* wrote .* reads"),
        ("overwritten exchange", "a race: .* with no barrier between"),
        ("unwritten", "a read of byte 0 of shared memory that nobody wrote"),
        ("past the end", "a write to byte 768 of 768 bytes, 4 bytes, which the kernel may not reach"),
        ("before the begin", "a read of memory of nobody, 4 bytes, which the kernel may not reach"),
        ("past shared memory", "a write to byte 256 of shared memory, 4 bytes, which the kernel may not reach"),
        ("misaligned", "a misaligned access to byte 4 of 768 bytes, 16 bytes"),
        ("forked barrier", "threads meet at a barrier from planted.cpp:"),
        ("missed barrier", "threads meet at a barrier from planted.cpp:"),
    ],
)
def test_the_emulation_finds_planted_faults(planted, fault, message, order):
    assert re.fullmatch(f"(?s).*{message}.*", checked([planted, fault, order]))


def passes(library: str, machines: str, tests: str, *, of: int = 1, **environment: str) -> None:
    """Whether every `of`th of the tests passes."""
    files, _, chosen = tests.partition(" -k ")
    said = checked(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-p",
            "emulated_ops",
            *files.split(),
            "-k",
            chosen,
        ],
        PYTHONPATH=os.pathsep.join([str(HERE), str(ROOT / "tests" / "recurve")]),
        OMP_NUM_THREADS="1",
        EMULATED=library,
        EMULATED_MACHINES=machines,
        EMULATED_SHARE=str(of),
        **environment,
    )
    assert " passed" in said


OPS = "tests/recurve/test_ops_recurrent.py"


def test_results_equal_the_references_in_all_types(library):
    passes(library, f"{LARGE} {SMALL}", f"{OPS} -k float64_equals_the_reference or 16_bit", of=16)
    rounded = "tests/recurve/tensor_cores.py -k products_and_nothing_else"
    passes(library, f"{LARGE} {SMALL}", rounded, of=4, RECURVE_CUDA_DESIGN="block")  # else torch multiplies, on SMALL


def test_results_of_blocks_that_share_a_model_equal_the_references(library):
    which = "float64_equals_the_reference or 16_bit or tf32"
    files = f"{OPS} tests/recurve/tensor_cores.py"
    passes(library, f"{MANY} {FEW}", f"{files} -k {which}", of=16, RECURVE_CUDA_DESIGN="grid")


def test_results_step_by_step_equal_the_references(library):
    passes(library, TINY, f"{OPS} -k float64_equals_the_reference", of=16)


def test_convolution_blocks_equal_the_references(library):
    which = "float64_equals or not_a_number or ties or tiled or 16_bit or float32_sums or convolution_blocks"
    files = "tests/recurve/test_ops_conv.py tests/recurve/cuda_convolution.py tests/recurve/tensor_cores.py"
    passes(library, f"{LARGE} {SMALL}", f"{files} -k {which}", of=8)


RECURRENT = ("ops_recurrent", "probe", "derivatives", "transforms", "nn_recurrent")
# In one product over all of many steps it is torch on the CPU that loses digits; the memory of copies is not of torch's
# allocator, whose memory alone the emulation lets kernels reach.
MANY_STEPS = "as_accurate_as_the_native_op_over_many_steps or (float32_is_about_as_accurate and 60)"
# Channels that come last stay last on the CPU alone, whose tensors the emulation takes for those of a GPU.
OTHERS = f"not ({MANY_STEPS}) and not copies_give_the_same and not on_the_cpu and not come_last and not channels_last"


DESIGNS = {  # the machine, and the design that is forced
    "resident": (LARGE, "block"),
    "streamed": (SMALL, "block"),
    "steps": (LARGE, "steps"),
    "many": (MANY, "grid"),
    "few": (FEW, "grid"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DESIGNS)
@pytest.mark.parametrize("file", RECURRENT)
def test_all_tests_of_recurrent_ops_pass_in_each_design(library, name, file):
    machine, design = DESIGNS[name]
    passes(library, machine, f"tests/recurve/test_{file}.py -k {OTHERS}", RECURVE_CUDA_DESIGN=design)


@pytest.mark.slow
def test_all_tests_of_recurrent_ops_pass_as_the_selector_has_it(library):
    files = " ".join(f"tests/recurve/test_{file}.py" for file in RECURRENT)
    passes(library, f"{LARGE} {SMALL} {MANY} {FEW}", f"{files} -k {OTHERS}", of=4)


@pytest.mark.slow
@pytest.mark.parametrize("machine", [LARGE, SMALL], ids=["large", "small"])
@pytest.mark.parametrize("file", ["ops_conv", "nn_conv"])
def test_all_tests_of_the_convolution_block_pass(library, machine, file):
    passes(library, machine, f"tests/recurve/test_{file}.py -k {OTHERS}")


@pytest.mark.slow
@pytest.mark.parametrize("machine", [LARGE, SMALL], ids=["large", "small"])
def test_strides_and_16_bit_types_of_convolution_blocks(library, machine):
    passes(library, machine, "tests/recurve/cuda_convolution.py")


@pytest.mark.slow
@pytest.mark.parametrize("machine", [LARGE, SMALL], ids=["large", "small"])
def test_tensor_cores_round_float32_to_tf32(library, machine):
    """In blocks that own their sequences: step by step, as the selector has it on small machines, torch multiplies."""
    passes(library, machine, "tests/recurve/tensor_cores.py", RECURVE_CUDA_DESIGN="block")


@pytest.mark.slow
@pytest.mark.parametrize("machine", [MANY, FEW], ids=["many", "few"])
def test_tensor_cores_of_blocks_that_share_a_model(library, machine):
    passes(library, machine, "tests/recurve/tensor_cores.py", RECURVE_CUDA_DESIGN="grid")


BARRIERS = {  # of a header: a source that has it; the design, machine and tests that reach its kernels
    "recurrent.h": ("recurrent_double.cu", "block", f"{LARGE} {SMALL}", f"{OPS} -k float64_equals_the_reference", 24),
    "grid.h": ("grid_double.cu", "grid", f"{MANY} {FEW}", f"{OPS} -k float64_equals_the_reference", 24),
    "convolution.h": ("convolution_double.cu", "block", LARGE, "tests/recurve/test_ops_conv.py -k float64_equals", 16),
    "convolution_tiles.h": (
        "convolution_double.cu",
        "block",
        LARGE,
        "tests/recurve/cuda_convolution.py -k tiled_blocks and 35",
        1,
    ),
    "convolution_tensor.h": (
        "convolution_bfloat16.cu",
        "block",
        LARGE,
        "tests/recurve/cuda_convolution.py -k 16_bit and bfloat16",
        1,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("header", BARRIERS)
def test_where_any_one_barrier_is_missing_a_race_is_found(library, header, tmp_path):
    source, design, machines, tests, of = BARRIERS[header]
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    place = tmp_path / "csrc" / "cuda" / header
    whole = place.read_text()
    barriers = [match.span() for match in re.finditer(r"__syncthreads\(\);", whole)]
    assert barriers
    others = [str(path) for path in Path(library).parent.glob("*.o") if path.name != f"{source}.o"]
    for begin, end in barriers:
        place.write_text(whole[:begin] + whole[end:])
        broken = linked(
            [compiled(place.parent / source, tmp_path, *WATCHED), *map(str, others)], tmp_path / "broken.so"
        )
        with pytest.raises(AssertionError, match=r"emulation returned \d: a (race|read of byte \d+ of shared memory)"):
            passes(broken, machines, tests, of=of, RECURVE_CUDA_DESIGN=design)
