"""Claim: no small bug in the kernels passes the tests of the ops. Each is planted in a copy, built and tested."""

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from torch.utils import cpp_extension

ROOT = Path(__file__).parents[2]
TORCH_SOURCES = (
    *(f"torch/{path.name}" for path in sorted((ROOT / "csrc/torch").glob("*.cpp"))),
    *("cpu/dispatch.cpp", "cpu/memory.cpp"),
)
SUITES = {
    "recurrent": ["test_ops_recurrent.py"],
    "conv": ["test_ops_conv.py", "test_conv_algorithms.py"],
    "probe": ["test_probe.py"],
    "threads": ["test_instruction_sets.py", "-k", "any_number_of_threads"],
}


@dataclass(frozen=True)
class Mutant:
    """In `file` under csrc, the first `before` becomes `after`; the tests of `suite` should notice."""

    suite: str
    name: str
    file: str
    before: str
    after: str


def recurrent(name: str, file: str, before: str, after: str) -> Mutant:
    return Mutant("recurrent", name, file, before, after)


def conv(name: str, file: str, before: str, after: str) -> Mutant:
    return Mutant("conv", name, file, before, after)


MUTANTS = [
    recurrent(
        "lstm gates in another order", "core/cells.h", "sigmoid(pre.f), tanh(pre.g)", "sigmoid(pre.g), tanh(pre.f)"
    ),
    recurrent("lstm output without its gate", "core/cells.h", "return gates.o * tanh(c)", "return tanh(c)"),
    recurrent("lstm forget gradient from the new cell", "core/cells.h", "dc * c_before *", "dc * c *"),
    recurrent(
        "lstm cell gradient not carried", "cpu/recurrent_backward.h", "dc * gates.f, count", "dh * gates.f, count"
    ),
    recurrent("gru update gate reversed", "core/cells.h", "n + z * (h_before - n)", "n + z * (n - h_before)"),
    recurrent("gru reset gradient off", "core/cells.h", "dn * n_hidden *", "dn * gates.n *"),
    recurrent("gru reset gate not on n", "core/cells.h", "tanh(n_input + r * n_hidden)", "tanh(n_input + n_hidden)"),
    recurrent("gru carry misses z", "core/cells.h", "dh * gates.z};", "dh};"),
    recurrent(
        "sigmoid slope of rnn",
        "core/activation.h",
        "return value * (one - value)",
        "return value * (one - value * value)",
    ),
    recurrent("tanh slope of rnn", "core/activation.h", "return one - value * value", "return one - value"),
    recurrent(
        "exponential of low degree",
        "core/math.h",
        "mantissa_bits = 52, degree = 13",
        "mantissa_bits = 52, degree = 9",
    ),
    recurrent(
        "float exponential of low degree",
        "core/math.h",
        "mantissa_bits = 23, degree = 7",
        "mantissa_bits = 23, degree = 4",
    ),
    recurrent("length one too long", "cpu/recurrent.h", "return {t < length,", "return {t <= length,"),
    recurrent(
        "reverse starts one early",
        "cpu/recurrent.h",
        "start = s.reverse ? length - 1 : 0",
        "start = s.reverse ? s.steps - 1 : 0",
    ),
    recurrent("reset of another row", "cpu/recurrent.h", "s.resets[t * s.batch + b]", "s.resets[t * s.batch]"),
    recurrent(
        "reverse reads the wrong neighbour",
        "cpu/recurrent_forward.h",
        "t_before = shape.reverse ? t + 1 : t - 1",
        "t_before = shape.reverse ? t : t - 1",
    ),
    recurrent(
        "forward ignores resets",
        "cpu/recurrent_forward.h",
        "const bool zero = !now.active || now.reset",
        "const bool zero = !now.active",
    ),
    recurrent(
        "hidden bias of n missing",
        "cpu/recurrent_forward.h",
        "if (at.bias_n != nullptr) n_hidden += load(at.bias_n, at.count);",
        "",
    ),
    recurrent(
        "hidden bias of n of the first model",
        "cpu/recurrent_forward.h",
        "part(s.bias_n, model * width)",
        "part(s.bias_n, 0 * width)",
    ),
    recurrent(
        "leak on the wrong side",
        "cpu/recurrent_forward.h",
        "a * leak + load(at.h_before, at.count) * (1 - leak)",
        "a * (1 - leak) + load(at.h_before, at.count) * leak",
    ),
    recurrent(
        "no carry past a leaky unit",
        "cpu/recurrent_backward.h",
        "store(at.dh_carry, dh * (1 - leak), at.count)",
        "store(at.dh_carry, zero_vector<T>(), at.count)",
    ),
    recurrent(
        "carry through a reset", "cpu/recurrent_backward.h", "if (later.active && later.reset) {", "if (false) {"
    ),
    recurrent(
        "cell carry through a reset",
        "cpu/recurrent_backward.h",
        "if (at.dc_carry != nullptr) store(at.dc_carry, zero_vector<T>(), at.count);",
        "",
    ),
    recurrent(
        "final state at the last step whatever the length",
        "cpu/recurrent_forward.h",
        "const int64_t last = s.shape.reverse ? 0 : length - 1;",
        "const int64_t last = s.shape.reverse ? 0 : s.shape.steps - 1;",
    ),
    recurrent(
        "no state from an empty sequence",
        "cpu/recurrent_forward.h",
        "length == 0 ? s.c0 + state",
        "length < 0 ? s.c0 + state",
    ),
    recurrent(
        "outputs past a length not cleared",
        "cpu/recurrent_forward.h",
        "__builtin_memset(s.y + at(t, r) * H, 0, H * sizeof(T));",
        "",
    ),
    recurrent(
        "gradients past a length not cleared",
        "cpu/recurrent_backward.h",
        "if (!now[r].active) __builtin_memset(own",
        "if (false) __builtin_memset(own",
    ),
    recurrent(
        "gradient of the last cell state lost",
        "cpu/recurrent_backward.h",
        "begin(s.dc0, s.dc_n);",
        "begin(s.dc0, static_cast<const T*>(nullptr));",
    ),
    recurrent(
        "sums of weight gradients begin anew with each group of steps",
        "cpu/recurrent_gradients.h",
        "adds = steps.end < s.shape.steps",
        "adds = false",
    ),
    recurrent(
        "every group of steps reads the states of the first",
        "cpu/recurrent_gradients.h",
        "first_row = (of.model * s.shape.steps + time) * B",
        "first_row = of.model * s.shape.steps * B",
    ),
    recurrent(
        "the last gate gradients of a group do not reach the one before",
        "cpu/recurrent_backward.h",
        "step >= steps.begin - 1; --step",
        "step >= steps.begin - (steps.begin == 0 ? 1 : 0); --step",
    ),
    recurrent(
        "bias gradients of one step alone",
        "cpu/recurrent_gradients.h",
        "to[first + i] += static_cast<double>(sum[i])",
        "to[first + i] = static_cast<double>(sum[i])",
    ),
    recurrent(
        "weight gradients of the first part of a batch alone",
        "cpu/recurrent_gradients.h",
        "to[i] = from[i] + from[apart + i]",
        "to[i] = from[i]",
    ),
    recurrent(
        "every part of a batch meets the states of the first",
        "cpu/recurrent_gradients.h",
        "* B + of.row0;\n    const T* x",
        "* B;\n    const T* x",
    ),
    recurrent(
        "elements of K beyond a group read as if they lay evenly",
        "cpu/gemm.h",
        "from = b + group * g.b_group",
        "from = b + group * g.k_group * g.b_row",
    ),
    recurrent(
        "gradient of the first model's input only",
        "cpu/recurrent_gradients.h",
        "s.dx + ((model * s.shape.steps +",
        "s.dx + ((",
    ),
    recurrent("last lane of a tail not stored", "cpu/simd.h", "i < count; ++i) to[i]", "i + 1 < count; ++i) to[i]"),
    recurrent("rows of a tile mixed up", "cpu/simd.h", "acc[r][g] += b[g] * a(r, k)", "acc[r][g] += b[g] * a(0, k)"),
    recurrent(
        "product restarts for each part of K", "cpu/gemm.h", "adds = k0 > 0 || g.accumulate", "adds = g.accumulate"
    ),
    recurrent("product without its bias", "cpu/gemm.h", "else if (bias != nullptr)", "else if (false)"),
    recurrent("transposed packing mixes rows", "cpu/simd.h", "(L & D) == 0 ? L + D : lanes<T> + L", "L + D"),
    recurrent(
        "W x of n passes the reset gate",
        "cpu/recurrent_forward.h",
        "acc[r][(GATES - 1) * U + u];\n              acc[r][(GATES - 1) * U + u] = zero_vector<T>();",
        "zero_vector<T>();",
    ),
    recurrent(
        "shared input read as own beside the state",
        "cpu/recurrent_forward.h",
        "s.shared ? t * shape.batch + row0 + r : at(t, r)",
        "at(0, r) * 0 + row0 + r",
    ),
    recurrent(
        "the state before n forgets the reset",
        "cpu/recurrent_forward.h",
        "store(at.aux, r * load(at.h_before",
        "store(at.aux, load(at.h_before",
    ),
    recurrent(
        "what lies behind the end of a sequence reaches the weights' gradient",
        "torch/sequence.h",
        "masked_fill((t >= in.lengths)",
        "masked_fill((t > in.lengths)",
    ),
    recurrent(
        "no gradient through the reset to the state",
        "cpu/recurrent_backward.h",
        "load(at.dh_carry, at.count) + product * reset",
        "load(at.dh_carry, at.count)",
    ),
    recurrent(
        "weights of n see the state without its reset",
        "cpu/recurrent_gradients.h",
        "from_state = s.shape.cell == Cell::gru_before ? 2 * H : width,",
        "from_state = width,",
    ),
    recurrent(
        "what is left of a row past its length",
        "cpu/recurrent_forward.h",
        "if (s.keep && s.aux != nullptr) __builtin_memset(aux(t, r), 0",
        "if (s.keep && s.aux != nullptr) __builtin_memset(aux(t, r), 255",
    ),
    Mutant(
        "probe",
        "the norm of a gradient misses y's part",
        "cpu/recurrent_backward.h",
        "sum_of_squares<T>(dh)",
        "sum_of_squares<T>(product)",
    ),
    Mutant("probe", "a tanh saturates as a sigmoid does", "torch/probe.cpp", "value.abs() > 0.8", "value.abs() > 0.9"),
    Mutant(
        "threads",
        "every part of a batch starts at its first row",
        "cpu/recurrent.h",
        "const int64_t first = task % parts * rows;",
        "const int64_t first = 0;",
    ),
    recurrent(
        "hidden bias not added",
        "torch/recurrent.cpp",
        "sum[i] = i % width < apart ? b_ih[i] + b_hh[i] : b_ih[i];",
        "sum[i] = b_ih[i];",
    ),
    recurrent(
        "state before the start of a reversed short sequence",
        "torch/sequence.h",
        "(t == in.lengths - 1)",
        "(t == in.lengths)",
    ),
    recurrent(
        "weight gradient sees states through resets",
        "torch/sequence.h",
        "return in.resets.defined() ? before.masked_fill(in.resets.unsqueeze(-1), 0) : before;",
        "return before;",
    ),
    recurrent(
        "weight gradient misses the initial state",
        "cpu/recurrent_gradients.h",
        "n - starts, adds || starts)",
        "n - starts, adds)",
    ),
    recurrent(
        "gradients of every model meet the weights of the first",
        "cpu/recurrent_backward.h",
        "weights.panel(rows.model, unit0)",
        "weights.panel(0, unit0)",
    ),
    recurrent(
        "a group of rows beyond the first repeats the first's products",
        "cpu/recurrent_forward.h",
        "states + group + r0",
        "states + r0",
    ),
    recurrent(
        "shared gradient of the first model only",
        "torch/sequence.h",
        "without_models(gradient) : gradient.sum(0)",
        "without_models(gradient) : gradient.select(0, 0)",
    ),
    conv("later of equals wins", "cpu/conv_pool.h", "larger = next > value", "larger = next >= value"),
    conv("not a number loses", "cpu/conv_pool.h", "unknown = next != next", "unknown = next > next"),
    conv(
        "y is let go although its slopes are needed",
        "torch/conv.cpp",
        'needs_y = o.activation != "none"',
        'needs_y = o.activation == "relu"',
    ),
    conv(
        "pairs of pixels in another order", "cpu/simd.h", "lane / all * half + lane % all / half * 2 * half +", "lane +"
    ),
    conv("few channels without their last rows", "cpu/conv_planes.h", "2 * last + (s.kernel[0] - 1)", "2 * last + 0"),
    conv("gradient of a pair at its first pixel", "cpu/conv_pool.h", "best == r * WIDTH + c ?", "r + c == 0 ?"),
    conv("sliding kernel flipped", "cpu/conv_depthwise.h", "k.weight + (r * C + c)", "k.weight + (r * C + C - 1 - c)"),
    conv("last pixel of a sliding gradient", "cpu/conv_depthwise.h", "; d < end; d +=", "; d < end - lanes<T>; d +="),
    conv(
        "mean is a sum",
        "cpu/conv_pool.h",
        "value * (T(1) / static_cast<T>(height * width))",
        "value",
    ),
    conv("place of a window's first row", "cpu/conv_pool.h", "static_cast<int32_t>(r * width + c)", "int32_t(c)"),
    conv(
        "gradient at the first pixel",
        "cpu/conv_pool.h",
        "best == static_cast<int32_t>(r * width + c) ?",
        "r + c == 0 ?",
    ),
    conv("last pixels of a plane left out", "cpu/conv_pool.h", "i = count - lanes<T>;", "break;"),
    conv(
        "padding of the other axis",
        "cpu/conv_grid.h",
        "width(s.width + 2 * s.padding[1])",
        "width(s.width + 2 * s.padding[0])",
    ),
    conv(
        "dilation of the other axis",
        "cpu/conv_grid.h",
        "tap % s.kernel[1] * s.dilation[1]",
        "tap % s.kernel[1] * s.dilation[0]",
    ),
    conv("image one row too low", "cpu/conv_forward.h", "row = y - s.padding[0];", "row = y - s.padding[0] / 2;"),
    conv("bias of the first output", "cpu/conv_forward.h", "f.bias[set * grid.outputs + o]", "f.bias[o * 0]"),
    conv(
        "shared input read as own",
        "cpu/conv_forward.h",
        "source = s.shared ? index % s.batch : index",
        "source = s.shared ? 0 : index",
    ),
    conv(
        "bands overlap", "cpu/conv_forward.h", "(first + r) * s.stride[0] * grid.width", "r * s.stride[0] * grid.width"
    ),
    conv("deep sums start anew", "cpu/conv_forward.h", "load((k == 0 ? bias : pixel)", "load((k >= 0 ? bias : pixel)"),
    conv("winograd input transform", "cpu/conv_winograd.h", "e = (d[3] - d[1]) * T(2)", "e = (d[3] - d[1]) * T(4)"),
    conv("winograd kernel transform", "cpu/conv_winograd.h", "u[2] = even - odd", "u[2] = odd - even"),
    conv("winograd output transform", "cpu/conv_winograd.h", "y[3] = d + v * T(8) + m[5]", "y[3] = d + v * T(8)"),
    conv("winograd strips keep no rows", "cpu/conv_winograd.h", "(rows, rows + M * tiles.row(),", "(rows, rows,"),
    conv("winograd input adjoint", "cpu/conv_winograd.h", "- a * T(4) - c;", "- a * T(4) + c;"),
    conv("winograd kernel adjoint", "cpu/conv_winograd.h", "c * T(1. / 6) - a + u[5]", "c * T(1. / 6) - a"),
    conv("winograd output adjoint", "cpu/conv_winograd.h", "m[4] = a - b, m[5] = y[3]", "m[4] = b - a, m[5] = y[3]"),
    conv(
        "gradients of strips do not meet",
        "cpu/conv_winograd_backward.h",
        "__builtin_memcpy(to, to + whole * row, width * sizeof(T));",
        "__builtin_memset(to, 0, width * sizeof(T));",
    ),
    conv(
        "pixels that no tile reads keep what was there",
        "cpu/conv_winograd_backward.h",
        "if (ends) write_rows<T, M, G>(tiles, nullptr, first + side, plan.grid.height, c, dx);",
        "",
    ),
    conv("winograd gradient of infinity", "cpu/conv.h", "if (!moderate[i]) return false;", ""),
    conv("winograd spreads infinity", "cpu/conv_winograd.h", "if (t.moderate[i]) continue;", "continue;"),
    conv("phases of a stride mixed up", "cpu/conv_dense.h", "remainder(down - s.padding[0]", "remainder(s.padding[0]"),
    conv("a tap reaches forward", "cpu/conv_dense.h", "phase % s.stride[1] - tap", "phase % s.stride[1] + tap"),
    conv("gradient of the first group's weights", "cpu/conv_dense.h", "((set * grid.outputs + o)", "((o)"),
    conv(
        "leaky slope on the wrong side",
        "core/activation.h",
        "return pre > static_cast<T>(0) ? V{} + one : V{} + static_cast<T>(leaky_relu_slope)",
        "return pre < static_cast<T>(0) ? V{} + one : V{} + static_cast<T>(leaky_relu_slope)",
    ),
    conv(
        "relu lets the gradient pass",
        "core/activation.h",
        "return pre <= static_cast<T>(0) ? V{} : V{} + one",
        "return V{} + one",
    ),
    conv("gradient in the next row", "cpu/conv_windows.h", "(at[j] >> 1) *", "(at[j] >> 1 ^ 1) *"),
    conv(
        "place of a general window in a list",
        "cpu/conv_windows.h",
        "i % s.window[1] * across;",
        "i % s.window[0] * across;",
    ),
    conv(
        "second sums lost",
        "cpu/conv_windows.h",
        "s < S; ++s) sum += sums[s][r][v]",
        "s < S; ++s) sum += sums[0][r][v] * 0",
    ),
    conv("a quarter of the gradients scattered", "cpu/conv_windows.h", "j < g.count; j += part", "j < part; j += part"),
    conv(
        "infinity beside a depthwise kernel",
        "cpu/conv_windows.h",
        "if (w.pitch == 1 && sum - sum != 0) finite = false;",
        "",
    ),
    conv(
        "kernels of the group before",
        "cpu/conv_winograd_backward.h",
        "if (d.dweight != nullptr) __builtin_memset(t.kernels",
        "if (d.dweight != nullptr && group == 0) __builtin_memset(t.kernels",
    ),
    conv(
        "places of pixels turned over",
        "cpu/conv_layout.h",
        "to[c * rows + r] = from[r * columns + c];",
        "to[r * columns + c] = from[r * columns + c];",
    ),
    conv(
        "slopes left out where channels come last",
        "cpu/conv_pool.h",
        "gradient = gradient * activation_slope(y, y, s.activation);",
        "",
    ),
    conv("zeros skipped beside infinity", "cpu/conv_windows.h", "if (sum[k] != 0) return false;", ""),
    conv(
        "images of a list not told apart",
        "cpu/conv_windows.h",
        "least(s.pooled(0), first + rows), b * w.image",
        "least(s.pooled(0), first + rows), 0 * w.image",
    ),
    conv("depthwise kernel not turned over", "cpu/conv_depthwise.h", "taps + taps - 1 - k) *", "taps + k) *"),
    conv("streaming kernel on its side", "cpu/conv_planes.h", "weight[(i - r) * K + c]", "weight[c * K + i - r]"),
    conv("depthwise stride left out", "cpu/conv_depthwise.h", "x.at(i * s.stride[0], 0), s", "x.at(i, 0), s"),
    conv("depthwise weights of one column", "cpu/conv_depthwise.h", "c * s.dilation[1]), row_step", "0 * c), row_step"),
    conv("silu slope without its second term", "core/activation.h", "return s * (one + pre * (one - s))", "return s"),
]


class Builder:
    """Builds the extension for one instruction set without optimisation, reusing what a mutant leaves alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.csrc = folder / "csrc"
        shutil.copytree(ROOT / "csrc", self.csrc)
        shutil.copytree(ROOT / "recurve", folder / "recurve", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        shutil.copytree(ROOT / "tests/recurve", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
        includes = [*cpp_extension.include_paths(), sysconfig.get_path("include")]
        self.flags = [
            *("-std=c++20", "-O0", "-fPIC", "-fopenmp", "-fvisibility=hidden", "-w"),
            *("-DTORCH_API_INCLUDE_EXTENSION_H", "-DTORCH_EXTENSION_NAME=_C"),
            *('-DRECURVE_DEVICES="cpu"', '-DRECURVE_WITHOUT_CUDA="these tests need none"'),
            *(f"-I{path}" for path in includes),
        ]
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(self.compile, (*TORCH_SOURCES, "cpu/kernels.cpp")))
        self.link()

    def compile(self, source: str) -> None:
        flags = [*self.flags, "-DRECURVE_ISA=baseline"] if source == "cpu/kernels.cpp" else self.flags
        self.run(["g++", *flags, "-c", f"csrc/{source}", "-o", f"{source.replace('/', '_')}.o"])

    def link(self) -> None:
        """The other instruction sets become names of the one that is built."""
        table = "_ZN7recurve{}instruction_set_{}E"
        baseline = table.format(24, "baseline")
        others = [table.format(20, "avx2"), table.format(22, "avx512")] if platform.machine() == "x86_64" else []
        objects = [f"{source.replace('/', '_')}.o" for source in (*TORCH_SOURCES, "cpu/kernels.cpp")]
        libraries = [f"-L{path}" for path in cpp_extension.library_paths()]
        libraries += ["-lc10", "-ltorch", "-ltorch_cpu", "-ltorch_python"]
        aliases = [f"-Wl,--defsym={other}={baseline}" for other in others]
        target = f"recurve/_C{sysconfig.get_config_var('EXT_SUFFIX')}"
        self.run(["g++", "-shared", "-fopenmp", *objects, *aliases, *libraries, "-o", target])

    def run(self, command: list[str]) -> None:
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr[-3000:]}"

    def test(self, suite: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PYTHONPATH": str(self.folder), "RECURVE_ISA": "baseline", "OMP_NUM_THREADS": "1"}
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "-p",
            "no:cacheprovider",
            "--rootdir=.",
            "-m",
            "not slow",
        ]
        command += [f"tests/{part}" if part.endswith(".py") else part for part in SUITES[suite]]
        return subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=600)

    def build(self, file: str) -> None:
        for source in self.sources_of(file):
            self.compile(source)
        self.link()

    def sources_of(self, file: str) -> list[str]:
        if file.endswith(".cpp"):
            return [file]
        if not file.startswith("torch/"):
            return ["cpu/kernels.cpp"]
        return [
            source for source in TORCH_SOURCES if f'#include "{Path(file).name}"' in (self.csrc / source).read_text()
        ]


@pytest.fixture(scope="module")
def builder(tmp_path_factory):
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    return Builder(tmp_path_factory.mktemp("mutants"))


def test_the_sources_have_what_every_bug_replaces():
    lacking = [m.name for m in MUTANTS if m.before not in (ROOT / "csrc" / m.file).read_text()]
    assert not lacking, f"plant these bugs anew: {lacking}"


@pytest.mark.slow
@pytest.mark.parametrize("suite", SUITES)
def test_without_a_bug_the_tests_pass(builder, suite):
    done = builder.test(suite)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.suite}-{mutant.name}".replace(" ", "_"))
def test_a_planted_bug_is_noticed(builder, mutant):
    file = builder.csrc / mutant.file
    original = file.read_text()
    file.write_text(original.replace(mutant.before, mutant.after, 1))
    try:
        builder.build(mutant.file)
        done = builder.test(mutant.suite)
    finally:
        file.write_text(original)
        if builder.sources_of(mutant.file) != ["cpu/kernels.cpp"]:
            builder.build(mutant.file)
    assert done.returncode != 0, f"the tests do not notice: {mutant.name}"
    assert " failed" in done.stdout or done.returncode < 0, done.stdout[-2000:] + done.stderr[-2000:]
