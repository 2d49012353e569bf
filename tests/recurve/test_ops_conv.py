"""Claims on conv_block: equal to conv2d, activation and pooling of torch in a row, outputs and every gradient."""

import itertools
from dataclasses import replace

import pytest
import torch
from cases import (
    Block,
    assert_as_accurate,
    assert_close,
    assert_same,
    needs_kernels,
    normal,
    reference,
    results,
    strided,
)

import recurve
from recurve import _backend, ops

ACTIVATIONS = ("none", "relu", "leaky_relu", "silu", "tanh", "sigmoid")
POOLS = ("none", "max", "average")
PLAIN = Block()


def cases():
    yield PLAIN
    for activation, pool in itertools.product(ACTIVATIONS, POOLS):
        yield replace(PLAIN, options={"activation": activation, "pool": pool})
    for stride, padding, dilation in itertools.product((1, 2, (3, 1)), (0, 1, (0, 2), 4), (1, (2, 1))):
        options = {"stride": stride, "padding": padding, "dilation": dilation, "pool": "none", "activation": "tanh"}
        yield replace(PLAIN, size=(7, 11), options=options)
    for kernel in ((1, 1), (5, 5), (2, 4), (1, 7), (9, 8)):
        yield replace(PLAIN, kernel=kernel, options={"padding": 1})
    # Patches wider than several vectors.
    yield replace(PLAIN, kernel=(1, 25), size=(5, 20), options={"padding": (0, 12), "pool": "none"})
    yield replace(PLAIN, kernel=(2, 7), size=(5, 20), options={"padding": (0, 15), "dilation": (1, 5), "pool": "none"})
    for size in ((3, 3), (4, 4), (5, 19), (17, 17), (33, 40)):
        yield replace(PLAIN, size=size, options={"padding": 1, "pool": "max"})
        yield replace(PLAIN, size=size, options={"padding": 1, "pool": "average", "activation": "silu"})
    for window, pool in itertools.product((1, 3, (2, 3), (3, 1), (5, 4)), ("max", "average")):
        yield replace(PLAIN, size=(16, 15), options={"pool": pool, "pool_size": window, "activation": "leaky_relu"})
    for channels, outputs, groups in ((4, 6, 2), (6, 6, 6), (3, 9, 3), (1, 1, 1), (17, 4, 1), (2, 33, 1), (16, 32, 4)):
        options = {"groups": groups, "padding": 1}
        yield replace(PLAIN, channels=channels, outputs=outputs, options=options)
        yield replace(PLAIN, channels=channels, outputs=outputs, models=2, options=options | {"stride": 2})
    for k in (5, 7):
        options = {"groups": 5, "padding": k // 2, "pool": "average"}
        yield replace(PLAIN, channels=5, outputs=5, kernel=(k, k), size=(16, 16), options=options)
    # Few input channels: rows of y that are a vector, part of one, or some and a part; images that models share.
    for width, (channels, k), pool in itertools.product((12, 31, 33, 64), ((1, 3), (3, 3), (1, 5)), ("max", "average")):
        options = {"padding": k // 2, "pool": pool, "activation": "relu" if width % 2 else "tanh"}
        yield replace(PLAIN, channels=channels, outputs=7, kernel=(k, k), size=(9, width), options=options)
    for shared in (False, True):
        options = {"padding": (2, 1), "dilation": (2, 1), "groups": 2}
        yield replace(PLAIN, channels=2, outputs=10, size=(12, 32), models=2, shared=shared, options=options)
    # Depthwise kernels that slide along rows, over one tile of pixels, a part of one, and several.
    for k, width in itertools.product((3, 5, 7), (5, 8, 21)):
        options = {"groups": 9, "padding": k // 2, "activation": "none"}
        yield replace(PLAIN, channels=9, outputs=9, kernel=(4, k), size=(8, width), options=options)
    # Gradients of windows that meet one, two and four vectors of channels, of more outputs than are taken together.
    for k, channels in ((1, 16), (1, 32), (1, 64), (2, 16), (2, 32), (3, 16), (3, 40), (5, 20)):
        options = {"padding": k // 2, "activation": "leaky_relu"}
        yield replace(PLAIN, channels=channels, outputs=37, kernel=(k, k), size=(11, 13), batch=2, options=options)
    # Depthwise, more channels than a vector has lanes.
    for activation, pool in itertools.product(ACTIVATIONS, POOLS):
        options = {"groups": 20, "padding": 1, "activation": activation, "pool": pool}
        yield replace(PLAIN, channels=20, outputs=20, options=options)
    for kernel, dilation in (((7, 7), 1), ((3, 3), (2, 3)), ((1, 5), 1), ((4, 3), 1), ((1, 11), 1)):
        options = {"groups": 9, "padding": (3, 5), "dilation": dilation, "pool_size": (3, 2)}
        yield replace(PLAIN, channels=9, outputs=9, kernel=kernel, size=(13, 22), options=options)
    # Square ones that stream down columns: rows of y in pairs and one over, that are vectors, a part of one, and more.
    for (k, size), pool in itertools.product(((3, (6, 16)), (5, (10, 34)), (7, (14, 24))), ("max", "average")):
        options = {"groups": 3, "padding": k // 2, "pool": pool, "activation": "tanh" if pool == "max" else "silu"}
        yield replace(PLAIN, channels=3, outputs=3, kernel=(k, k), size=size, options=options)
        options = {"groups": 3, "padding": (k, 1 + k), "dilation": (1, 2), "pool": pool}
        yield replace(PLAIN, channels=3, outputs=3, kernel=(k, k), size=size, models=2, options=options)
    # Kernels that reach far around the largest pixel of a window, of depthwise channels and of one channel a group.
    for kernel, size, outputs in (
        ((7, 7), (16, 16), 20),
        ((9, 9), (33, 40), 20),
        ((11, 3), (16, 9), 20),
        ((5, 5), (8, 8), 40),
    ):
        options = {"groups": 20, "padding": (kernel[0] // 2, kernel[1] // 2)}
        yield replace(PLAIN, channels=20, outputs=outputs, kernel=kernel, size=size, batch=18, options=options)
    yield replace(PLAIN, channels=9, outputs=9, kernel=(10, 10), size=(24, 24), models=2, options={"groups": 9})
    for shared in (False, True):
        options = {"groups": 18, "padding": 1}
        yield replace(PLAIN, channels=18, outputs=18, batch=17, models=2, shared=shared, options=options)
    for batch in (0, 1, 17, 33):
        yield replace(PLAIN, batch=batch)
    yield replace(PLAIN, no_bias=True)
    for shared, no_bias in itertools.product([False, True], repeat=2):
        yield replace(PLAIN, models=3, shared=shared, no_bias=no_bias)
    yield replace(PLAIN, models=1)
    yield replace(PLAIN, models=2, batch=0)
    # Large enough for several bands of rows: columns of a band take at most 192 KB.
    yield replace(PLAIN, channels=32, outputs=9, size=(40, 24), batch=2, options={"padding": 1})
    yield replace(PLAIN, channels=32, outputs=9, size=(41, 23), batch=2, options={"pool": "none", "stride": (1, 2)})
    yield replace(PLAIN, channels=30, outputs=3, size=(37, 31), batch=1, options={"pool_size": 3, "padding": 2})


CASES = list({str(case): case for case in cases()}.values())
every_case = pytest.mark.parametrize("case", CASES, ids=str)


@every_case
def test_float64_equals_torch(case, generator):
    tensors, arguments = case.tensors(generator), case.arguments(generator)
    with recurve.backend("fused"):
        found = results(ops.conv_block, tensors, arguments)
    assert_close(found, results(reference(case), tensors, arguments), 1e-10)


def summed_directly(**arguments):
    """The block whose fused path is the direct sum: the error of Winograd's algorithm has a bound of its own."""
    return ops.conv_block(**arguments, algorithm="native" if _backend._backend == "native" else "direct")


@every_case
def test_float32_is_about_as_accurate_as_torch(case, generator):
    assert_as_accurate(summed_directly, case, generator, draws=3)


def test_float32_is_about_as_accurate_as_torch_with_many_channels(generator):
    case = Block(channels=256, outputs=16, size=(18, 18), options={"padding": 1})
    assert_as_accurate(summed_directly, case, generator, draws=1)


def by_hand(x, weight, bias, stride, padding, dilation, groups):
    """Cross-correlation from its definition, one output at a time."""
    x = torch.nn.functional.pad(x, [padding[1], padding[1], padding[0], padding[0]])
    extent = [dilation[i] * (weight.shape[2 + i] - 1) + 1 for i in range(2)]
    sides = [(x.shape[2 + i] - extent[i]) // stride[i] + 1 for i in range(2)]
    y = x.new_zeros(x.shape[0], weight.shape[0], *sides)
    per_group, depth = weight.shape[0] // groups, weight.shape[1]
    for o, i, j in itertools.product(range(weight.shape[0]), *map(range, sides)):
        first = o // per_group * depth
        rows = slice(i * stride[0], i * stride[0] + extent[0], dilation[0])
        columns = slice(j * stride[1], j * stride[1] + extent[1], dilation[1])
        y[:, o, i, j] = (x[:, first : first + depth, rows, columns] * weight[o]).sum((1, 2, 3)) + bias[o]
    return y


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("stride", [(1, 1), (2, 3)])
@pytest.mark.parametrize("dilation", [(1, 1), (2, 1)])
def test_equals_the_definition(stride, dilation, groups, generator):
    geometry = {"stride": stride, "padding": (2, 1), "dilation": dilation, "groups": groups}
    case = Block(channels=4, outputs=6, options=geometry)
    tensors = case.tensors(generator)
    with recurve.backend("fused"):
        found = ops.conv_block(**tensors, **geometry, activation="none", pool="none")
    torch.testing.assert_close(found, by_hand(**tensors, **geometry), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("window", [2, (3, 2), (1, 4)], ids=str)
@pytest.mark.parametrize("activation", ["none", "relu"])
def test_ties_in_max_pooling_send_the_gradient_where_torch_sends_it(activation, window, dtype, generator):
    """On small integers all arithmetic is exact, and many pixels of a window are equal."""
    options = {"activation": activation, "pool": "max", "pool_size": window, "padding": 1}
    case = Block(channels=2, outputs=18, size=(24, 36), options=options)
    tensors = {
        name: torch.randint(-1, 2, t.shape, generator=generator, device="cpu").to(t.device, dtype)
        for name, t in case.tensors(generator).items()
    }

    with recurve.backend("fused"):
        found = results(ops.conv_block, tensors, options)
    assert_same(found, results(reference(case), tensors, options))


@pytest.mark.parametrize("window", [2, (3, 2), 4], ids=str)
@pytest.mark.parametrize("activation", ["none", "relu", "tanh"])
def test_a_constant_window_sends_its_gradient_to_the_first_pixel(activation, window, generator):
    x = torch.ones(2, 3, 12, 12, dtype=torch.float64)
    weight = torch.eye(3, dtype=torch.float64)[:, :, None, None]
    options = {"activation": activation, "pool": "max", "pool_size": window}
    with recurve.backend("fused"):
        found = results(ops.conv_block, {"x": x, "weight": weight}, options)
    expected = results(ops.conv_block_reference, {"x": x, "weight": weight}, options)
    assert_close(found, expected, 1e-12)
    sides = (window, window) if isinstance(window, int) else window
    nonzero = found["gradient of x"] != 0
    assert nonzero[..., :: sides[0], :: sides[1]].sum() == nonzero.sum() > 0


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_not_a_number_and_infinity_pass_forward_as_in_torch(activation, pool, value, generator):
    options = {"activation": activation, "pool": pool, "padding": 1}
    tensors = Block(size=(12, 20), options=options).tensors(generator)
    tensors["x"][0, 1, 4, 5] = value
    tensors["x"][1, 0, 0, 0] = value
    tensors["x"][2, 1, 11, 19] = -value
    with recurve.backend("fused"):
        found = ops.conv_block(**tensors, **options)
    expected = ops.conv_block_reference(**tensors, **options)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10, equal_nan=True)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("activation", ["none", "relu", "leaky_relu"])
def test_not_a_number_and_infinity_pass_backward_as_in_torch(activation, pool, value, generator):
    """A one-by-one kernel, so that torch's convolution does not itself turn zero times infinity into NaN elsewhere."""
    options = {"activation": activation, "pool": pool}
    tensors = Block(size=(12, 20), kernel=(1, 1), channels=1, options=options).tensors(generator)
    tensors["x"][0, 0, 4, 5] = value
    tensors["x"][1, 0, 0, 0] = value
    tensors["x"][2, 0, 11, 19] = -value
    with recurve.backend("fused"):
        found = results(ops.conv_block, tensors, options)
    for name, expected in results(ops.conv_block_reference, tensors, options).items():
        torch.testing.assert_close(found[name], expected, rtol=0, atol=1e-10, equal_nan=True)


@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=str)
@pytest.mark.parametrize("name", ["x", "weight"])
def test_where_a_gradient_is_zero_a_value_that_is_not_finite_still_counts(name, value, generator):
    """Zero times infinity is not a number, also where the largest of a window was another pixel."""
    options = {"activation": "none", "pool": "max"}
    tensors = Block(size=(12, 20), channels=3, kernel=(1, 1), outputs=4, options=options).tensors(generator)
    tensors[name].view(-1)[5] = value
    with recurve.backend("fused"):
        found = results(ops.conv_block, tensors, options)
    for key, expected in results(ops.conv_block_reference, tensors, options).items():
        torch.testing.assert_close(found[key], expected, rtol=0, atol=1e-10, equal_nan=True)


@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=str)
def test_a_gradient_that_is_not_finite_stays_where_the_kernel_reaches(value):
    """A vector that a row of the kernel does not fill must not carry it further."""
    x, weight = torch.ones(1, 2, 24, 24, dtype=torch.float64), torch.ones(2, 1, 9, 9, dtype=torch.float64)
    x.requires_grad_()
    y = ops.conv_block(x, weight, groups=2, padding=4)
    gradient = torch.zeros_like(y)
    gradient[0, 1, 6, 6] = value
    (found,) = torch.autograd.grad(y, x, gradient)
    assert int((~found.isfinite()).sum()) == 81
    assert not found[0, 1, 8:17, 8:17].isfinite().any()


@pytest.mark.parametrize("models", [None, 2], ids=["single", "ensemble"])
def test_any_subset_of_inputs_may_require_gradients(models, generator):
    case = Block(models=models, options={"padding": 1})
    tensors = case.tensors(generator)
    full = results(reference(case), tensors, case.options)
    for size in range(4):
        for wanted in itertools.combinations(tensors, size):
            with recurve.backend("fused"):
                found = results(ops.conv_block, tensors, case.options, wanted=wanted)
            assert len(found) == 1 + size
            assert_close(found, {name: full[name] for name in found}, 1e-10)


def channels_last(tensor):
    return tensor.to(memory_format=torch.channels_last if tensor.dim() == 4 else torch.contiguous_format)


@pytest.mark.parametrize("layout", [strided, channels_last])
def test_layout_of_inputs_does_not_matter(layout, generator):
    case = Block(channels=4, options={"padding": 1})
    tensors = case.tensors(generator)
    other = {name: layout(t) for name, t in tensors.items()}
    assert not other["x"].is_contiguous()
    with recurve.backend("fused"):
        assert_same(
            results(ops.conv_block, other, case.options),
            results(ops.conv_block, tensors, case.options),
        )


def calls_of_channels_last():
    """Each kind of kernel, with channels that fill whole vectors and that do not, and the algorithm."""
    for channels, kernel, pool in itertools.product((9, 16), ((3, 3), (7, 7), (4, 5)), POOLS):
        options = {"groups": channels, "padding": kernel[0] // 2, "pool": pool}
        yield Block(channels=channels, outputs=channels, kernel=kernel, size=(11, 14), options=options), "direct"
    for channels, outputs, window in itertools.product((8, 11), (9, 16), (1, 2, (4, 3))):
        options = {"padding": 1, "pool_size": window, "pool": "max" if window != 1 else "none"}
        for algorithm in ("direct", "winograd"):
            yield Block(channels=channels, outputs=outputs, size=(13, 17), options=options), algorithm
    for groups, pool, activation in itertools.product((1, 2), POOLS, ("tanh", "silu")):
        options = {"groups": groups, "pool": pool, "activation": activation}
        case = Block(channels=6, outputs=10, size=(12, 17), options=options | {"padding": (1, 2)})
        if activation == "tanh":
            yield case, "winograd"
        yield case, "direct"
        yield replace(case, kernel=(1, 1), options=options), "direct"
        yield replace(case, options=options | {"stride": (2, 1), "dilation": (1, 2)}), "direct"
    yield Block(channels=3, outputs=7, size=(20, 33), options={"padding": 1}), "direct"
    yield Block(channels=3, outputs=7, size=(20, 33), kernel=(2, 2), batch=17, options={"pool": "average"}), "direct"
    yield Block(channels=5, outputs=1, size=(9, 9)), "winograd"


@pytest.mark.parametrize(("case", "algorithm"), list(calls_of_channels_last()), ids=str)
def test_channels_that_come_last_stay_last_and_nothing_changes(case, algorithm, generator):
    tensors = case.tensors(generator)
    layouts = []

    def last(x, **others):
        y = ops.conv_block(channels_last(x), **others, algorithm=algorithm)
        layouts.append(y)
        return y

    assert_close(results(last, tensors, case.options), results(reference(case), tensors, case.options), 1e-10)
    if layouts[0].device.type == "cpu":
        assert layouts[0].is_contiguous(memory_format=torch.channels_last)


def test_where_channels_come_last_a_value_that_is_not_finite_stays_in_its_place(generator):
    """Winograd's algorithm hands what is not finite over, forward and backward."""
    case = Block(channels=8, outputs=8, size=(12, 17), kernel=(3, 3), options={"padding": 1})
    tensors = case.tensors(generator)
    tensors["x"][1, 3, 5, 6] = torch.inf
    tensors["weight"].abs_()
    found = ops.conv_block(channels_last(tensors.pop("x")), **tensors, **case.options, algorithm="winograd")
    assert int((~found.isfinite()).sum()) == 8 * 4


@pytest.mark.parametrize("pool", POOLS)
def test_expanded_inputs_and_output_gradients(pool, generator):
    case = Block(batch=1, models=3, options={"pool": pool, "padding": 1})
    tensors = {name: t[:1] for name, t in case.tensors(generator).items()}

    def spread(function):
        def call(x, weight, bias, **options):
            y = function(x.expand(3, 4, -1, -1, -1), weight.expand(3, -1, -1, -1, -1), bias.expand(3, -1), **options)
            return y.sum() + y.mT[..., ::2].sin().sum()

        return call

    with recurve.backend("fused"):
        found = results(spread(ops.conv_block), tensors, case.options)
    assert_close(found, results(spread(reference(case)), tensors, case.options), 1e-10)


def test_an_ensemble_equals_its_models_one_by_one(generator):
    case = Block(models=3, channels=4, outputs=6, options={"groups": 2, "padding": 1})
    tensors = case.tensors(generator)
    with recurve.backend("fused"):
        together = results(ops.conv_block, tensors, case.options, wanted=())
        alone = [
            results(ops.conv_block, {n: t[e] for n, t in tensors.items()}, case.options, wanted=()) for e in range(3)
        ]
    assert_same(together, {name: torch.stack([a[name] for a in alone]) for name in together})


def test_inputs_are_left_as_they_are(generator):
    tensors = PLAIN.tensors(generator)
    before = {name: t.clone() for name, t in tensors.items()}
    with recurve.backend("fused"):
        results(ops.conv_block, tensors, {})
    assert_same(tensors, before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": (2, 9, 8)}, r"x must be \(B, C, H, W\)"),
        ({"weight": (5, 2, 3)}, r"weight must be \(O, C / groups, kH, kW\)"),
        ({"x": (3, 4, 9, 8)}, "expected input to have 2 channels, but got 4 channels"),
        ({"bias": (4,)}, r"bias must be \(5,\)"),
        ({"bias": (2, 5)}, r"bias must be \(5,\)"),
        ({"x": (3, 2, 2, 8)}, "Kernel size can't be greater than actual input size"),
        ({"x": (3, 2, 9, 3)}, "pooling windows of 2 x 2 are larger than the convolution's 7 x 1"),
        ({"x": (3, 2, 3, 8)}, "pooling windows of 2 x 2 are larger than the convolution's 1 x 6"),
        ({"x": (2, 3, 2, 9, 8)}, "leading E"),
    ],
    ids=str,
)
@needs_kernels
def test_wrong_shapes_are_named(change, message, generator):
    tensors = PLAIN.tensors(generator) | {name: normal(shape, generator) for name, shape in change.items()}
    with recurve.backend("fused"), pytest.raises(RuntimeError, match=message):
        ops.conv_block(**tensors)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 0}, "non-positive stride"),
        ({"padding": -1}, "negative padding"),
        ({"dilation": 0}, "dilation should be greater than zero"),
        ({"pool_size": 0}, "pool_size should be greater than zero"),
        ({"groups": 3}, "Given groups=3"),
        ({"groups": 0}, "Given groups=0"),
    ],
    ids=str,
)
@needs_kernels
def test_wrong_geometry_is_named(options, message, generator):
    with recurve.backend("fused"), pytest.raises(RuntimeError, match=message):
        ops.conv_block(**PLAIN.tensors(generator), **options)


@pytest.mark.parametrize("name", ["weight", "bias"])
@needs_kernels
def test_mixed_dtypes_are_refused(name, generator):
    tensors = PLAIN.tensors(generator)
    tensors[name] = tensors[name].float()
    with recurve.backend("fused"), pytest.raises(RuntimeError, match=r"Double.*Float|Float.*Double"):
        ops.conv_block(**tensors)


@pytest.mark.parametrize("backend", ["fused", "native"])
@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"activation": "elu"}, "'elu' is unknown; allowed: none, relu, leaky_relu, silu, tanh, sigmoid"),
        ({"pool": "min"}, "'min' is unknown; allowed: none, max, average"),
    ],
    ids=["activation", "pool"],
)
def test_unknown_names_list_the_allowed_ones(option, message, backend, generator):
    with recurve.backend(backend), pytest.raises(ValueError, match=message):
        ops.conv_block(**PLAIN.tensors(generator), **option)
