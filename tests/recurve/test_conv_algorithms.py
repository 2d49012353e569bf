"""Claims on the algorithms of conv_block: one answer, whichever computes it, and Winograd's error within its bound."""

import pytest
import torch
from cases import Block, assert_close, assert_same, needs_kernels, normal, results

import recurve
from recurve import ops
from recurve.ops.conv import ALGORITHMS

GEOMETRIES = {
    "plain": ({}, {}),
    "padded": ({}, {"padding": (2, 1)}),
    "same": ({}, {"padding": "same"}),
    "groups": ({"channels": 6, "outputs": 4}, {"groups": 2, "padding": 1}),
    "depthwise": ({"channels": 5, "outputs": 5}, {"groups": 5, "padding": 1}),
    "ensemble": ({"models": 3, "channels": 4, "outputs": 6}, {"groups": 2}),
    "shared": ({"models": 2, "shared": True}, {}),
    "thin": ({"size": (3, 9)}, {"pool": "none"}),
    "empty": ({"batch": 0}, {}),
    "kernel": ({"kernel": (5, 4)}, {"padding": 3}),
    "strided": ({"size": (14, 15)}, {"stride": (2, 3), "padding": 1}),
    "dilated": ({"kernel": (2, 3)}, {"dilation": (3, 2)}),
}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("name", GEOMETRIES)
@needs_kernels
def test_every_algorithm_gives_the_same_answer(name, algorithm, generator):
    sizes, options = GEOMETRIES[name]
    if algorithm == "winograd" and name in ("kernel", "strided", "dilated"):
        pytest.skip("Winograd's algorithm is for 3 x 3, stride 1")
    tensors = Block(**sizes, options=options).tensors(generator)
    found = results(ops.conv_block, tensors, options | {"algorithm": algorithm})
    assert_close(found, results(ops.conv_block, tensors, options | {"algorithm": "native"}), 1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@needs_kernels
def test_16_bit_types_are_computed_in_float32(algorithm, dtype, generator):
    tensors = Block(channels=1).tensors(generator)
    rounded = {name: t.to(dtype) for name, t in tensors.items()}
    found = ops.conv_block(**rounded, algorithm=algorithm)
    exact = ops.conv_block(**{name: t.double() for name, t in rounded.items()}, algorithm="native")
    assert found.dtype == dtype
    assert (found - exact).abs().max() <= 2 * torch.finfo(dtype).eps * exact.abs().max()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"bias": torch.zeros(1, dtype=torch.float64)},
            r"expected bias to be 1-dimensional with 5 elements|bias must be \(5,\)",
        ),
        ({"bias": torch.zeros(5)}, "Input type .* and bias type .* should be the same|bias is Float, x is Double"),
        ({"weight": torch.zeros(5, 2, 3, 3)}, "Input type .* and weight type .* should be the same"),
    ],
    ids=["one bias", "float bias", "float weight"],
)
@pytest.mark.parametrize("algorithm", ["im2col", "winograd", "fft"])
def test_what_does_not_fit_together_is_refused(algorithm, change, message, generator):
    x, weight = normal((2, 2, 6, 6), generator), normal((5, 2, 3, 3), generator)
    tensors = {"x": x, "weight": weight, "bias": normal((5,), generator)} | change
    with pytest.raises(RuntimeError, match=message):
        ops.conv_block(**tensors, algorithm=algorithm)


@pytest.mark.parametrize("channels", [1, 64])
@pytest.mark.parametrize(("size", "bound"), [((18, 18), 30), ((5, 9), 5)], ids=["4x4", "2x2"])
def test_winograds_error_is_bounded(size, bound, channels, generator):
    """In float32, in units of the direct sum's own error."""
    options = {"activation": "none", "pool": "none"}
    tensors = Block(batch=8, channels=channels, outputs=16, size=size, options=options).tensors(generator)
    single = {name: t.float() for name, t in tensors.items()}
    exact = ops.conv_block(**{name: t.double() for name, t in single.items()}, **options)

    def error(algorithm):
        return (ops.conv_block(**single, **options, algorithm=algorithm) - exact).norm() / exact.norm()

    assert error("winograd") <= bound * max(error("native"), 1e-7)
    assert error("winograd") > 0


@pytest.mark.parametrize("algorithm", ["im2col", "winograd", "fft"])
def test_second_derivatives_pass_the_algorithms(algorithm, generator):
    options = {"activation": "tanh", "pool": "average", "algorithm": algorithm}
    case = Block(batch=1, channels=2, outputs=2, size=(6, 7), options=options)
    inputs = [t.requires_grad_() for t in case.tensors(generator).values()]

    def call(*given):
        return ops.conv_block(*given, **options)

    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)


@pytest.mark.parametrize(
    "change", [{"kernel": (5, 5)}, {"options": {"stride": 2}}, {"options": {"dilation": 2}}], ids=str
)
def test_winograd_says_what_it_serves(change, generator):
    case = Block(**change)
    with pytest.raises(ValueError, match="'winograd' serves kernels of 3 x 3 with stride 1 and dilation 1, got kernel"):
        ops.conv_block(**case.tensors(generator), **case.options, algorithm="winograd")


def test_an_unknown_algorithm_lists_the_allowed_ones(generator):
    with pytest.raises(ValueError, match="'gemm' is unknown; allowed: auto, direct, native, im2col, winograd, fft"):
        ops.conv_block(**Block().tensors(generator), algorithm="gemm")


@needs_kernels
def test_direct_says_why_it_cannot_serve():
    with pytest.raises(RuntimeError, match=r"no fused kernel for torch.int64"):
        ops.conv_block(torch.ones(1, 1, 3, 3).long(), torch.ones(1, 1, 3, 3).long(), algorithm="direct")


WINOGRAD = {
    "plain": Block(),
    "many": Block(channels=19, outputs=37, size=(21, 34), batch=2, options={"padding": 1}),
    "wide": Block(channels=3, outputs=9, size=(5, 61), batch=2, options={"padding": (2, 0)}),
    "drops": Block(channels=4, outputs=8, size=(13, 15), options={"pool_size": (2, 7), "padding": 2}),
    "rows of 4": Block(channels=4, outputs=8, size=(19, 17), options={"pool_size": 4, "padding": 1}),
    "average": Block(channels=9, outputs=8, options={"pool": "average", "activation": "silu", "padding": 1}),
    "no pooling": Block(channels=9, outputs=17, size=(7, 7), options={"pool": "none", "activation": "tanh"}),
    "one row": Block(size=(3, 12), options={"pool": "none"}),
    "padding alone": Block(size=(1, 1), options={"pool": "none", "padding": 3}),
    "groups": Block(channels=6, outputs=34, options={"groups": 2, "padding": 1}),
    "ensemble": Block(models=3, channels=9, outputs=6, batch=5, options={"padding": 1}),
    "shared": Block(models=3, channels=9, outputs=6, shared=True, no_bias=True),
    "strips over images": Block(channels=8, outputs=8, size=(8, 8), batch=41, options={"padding": 1}),
    "empty": Block(batch=0),
    # Whose gradients go by Winograd's algorithm too: those of all pixels, and of many channels.
    "all pixels of many": Block(
        channels=19, outputs=37, size=(21, 34), batch=2, options={"pool": "none", "padding": 1}
    ),
    "all pixels of few": Block(channels=3, outputs=9, size=(5, 61), options={"pool": "none", "padding": (2, 0)}),
    "mean": Block(channels=9, outputs=5, options={"pool": "average", "activation": "none", "padding": 2}),
    "mean of a part": Block(channels=9, size=(19, 13), options={"pool": "average", "activation": "none"}),
    "groups of all": Block(channels=6, outputs=34, options={"groups": 2, "padding": 1, "pool": "none"}),
    "ensemble of all": Block(models=3, channels=9, batch=18, options={"padding": 1, "pool": "none"}),
    "shared by all": Block(models=3, channels=9, shared=True, no_bias=True, options={"pool": "none"}),
    "strips of all": Block(channels=64, size=(30, 30), batch=17, options={"pool": "none", "activation": "leaky_relu"}),
    "largest of many": Block(channels=32, outputs=37, size=(21, 18), batch=2, options={"padding": 1}),
}


@pytest.mark.parametrize("name", WINOGRAD)
@needs_kernels
def test_winograds_kernel_equals_torch(name, generator):
    case = WINOGRAD[name]
    tensors = case.tensors(generator)
    with recurve.backend("fused"):
        found = results(ops.conv_block, tensors, case.options | {"algorithm": "winograd"})
    assert_close(found, results(ops.conv_block_reference, tensors, case.options), 1e-10)


@pytest.mark.parametrize(
    ("batch", "channels", "outputs", "pool", "dtype", "chosen"),
    [
        (64, 16, 32, "max", torch.float32, "winograd"),
        (64, 8, 16, "none", torch.float32, "winograd"),
        (64, 8, 16, "max", torch.float32, "direct"),
        (64, 4, 64, "none", torch.float32, "direct"),
        (1, 16, 16, "max", torch.float32, "direct"),
        (64, 16, 32, "max", torch.float64, "direct"),
    ],
)
@needs_kernels
def test_auto_takes_winograds_algorithm_where_channels_and_work_are_enough(
    batch, channels, outputs, pool, dtype, chosen, generator
):
    x, weight = (
        torch.randn(*shape, generator=generator).to(dtype)
        for shape in ((batch, channels, 14, 14), (outputs, channels, 3, 3))
    )
    by = {a: ops.conv_block(x, weight, pool=pool, algorithm=a) for a in ("auto", "direct", "winograd")}
    other = {"direct": "winograd", "winograd": "direct"}[chosen]
    assert torch.equal(by["auto"], by[chosen])
    assert not torch.equal(by["auto"], by[other])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@needs_kernels
def test_a_few_pixels_of_many_channels_train_on_the_direct_kernel(layout, generator):
    x = torch.randn(2, 96, 4, 4, generator=generator).contiguous(memory_format=layout).requires_grad_()
    weight = torch.randn(24, 96, 3, 3, generator=generator)
    by = {a: ops.conv_block(x, weight, padding=1, pool="none", algorithm=a) for a in ("auto", "direct", "native")}
    assert torch.equal(by["auto"], by["direct"])
    assert by["auto"].grad_fn.name() == by["direct"].grad_fn.name() != by["native"].grad_fn.name()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e300], ids=str)
@pytest.mark.parametrize("where", ["x", "weight"])
@needs_kernels
def test_what_is_not_finite_does_not_spread_over_winograds_tiles(where, value, generator):
    case = Block(channels=9, outputs=8, size=(18, 14), batch=3, options={"padding": 1, "activation": "none"})
    tensors = case.tensors(generator)
    tensors[where][1, 2, 1, 1] = value
    options = case.options | {"pool": "none"}
    with recurve.backend("fused"):
        found = ops.conv_block(**tensors, **options, algorithm="winograd")
    expected = ops.conv_block_reference(**tensors, **options)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-10, equal_nan=True)


@pytest.mark.parametrize("size", [(18, 18), (5, 9)], ids=["4x4", "2x2"])
@pytest.mark.parametrize("channels", [8, 64])
@needs_kernels
def test_the_error_of_winograds_gradients_is_bounded(size, channels, generator):
    """In float32, in units of the direct sums' own error."""
    options = {"activation": "none", "pool": "none", "padding": 1}
    case = Block(batch=8, channels=channels, outputs=16, size=size, options=options)
    single = {name: t.float() for name, t in case.tensors(generator).items()}
    exact = results(ops.conv_block_reference, {name: t.double() for name, t in single.items()}, options)
    by = {a: results(ops.conv_block, single, options | {"algorithm": a}) for a in ("winograd", "native")}
    for name in ("gradient of x", "gradient of weight"):
        error = {a: (found[name] - exact[name]).norm() / exact[name].norm() for a, found in by.items()}
        assert 0 < error["winograd"] <= 30 * max(error["native"], 1e-7)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e300], ids=str)
@pytest.mark.parametrize("where", ["x", "weight", "dy"])
@needs_kernels
def test_gradients_of_what_is_not_finite_are_those_of_the_direct_sum(where, value, generator):
    case = Block(channels=9, outputs=8, size=(18, 14), batch=3, options={"padding": 1, "activation": "none"})
    tensors = case.tensors(generator) | {"dy": normal((3, 8, 18, 14), generator)}
    tensors[where][1, 2, 1, 1] = value

    def gradients(algorithm):
        leaves = [tensors[name].clone().requires_grad_() for name in ("x", "weight", "bias")]
        y = ops.conv_block(*leaves, **case.options | {"pool": "none"}, algorithm=algorithm)
        return torch.autograd.grad(y, leaves, tensors["dy"])

    for found, expected in zip(gradients("winograd"), gradients("direct"), strict=True):
        assert torch.equal(found.nan_to_num(7), expected.nan_to_num(7))


@pytest.mark.parametrize("pool", ["max", "none"])
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("value", [1, 1e30], ids=str)
@needs_kernels
def test_winograds_kernel_gives_the_same_bits_on_any_number_of_threads(value, batch, pool, generator):
    case = Block(channels=32, outputs=32, size=(30, 30), batch=batch, options={"padding": 1, "pool": pool})
    tensors = {name: t.float() for name, t in case.tensors(generator).items()}
    tensors["x"][-1, 2, 7, 5] = value
    found = []
    for threads in (1, 2, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            found.append(results(ops.conv_block, tensors, case.options | {"algorithm": "winograd"}))
        finally:
            torch.set_num_threads(before)
    for other in found[1:]:
        assert_same(other, found[0])


@needs_kernels
def test_auto_takes_winograd_where_both_sides_have_channels(generator):
    case = Block(channels=16, outputs=16, size=(12, 12), options={"padding": 1})
    tensors = {name: t.float() for name, t in case.tensors(generator).items()}
    by = {name: ops.conv_block(**tensors, **case.options, algorithm=name) for name in ("auto", "winograd", "direct")}
    assert torch.equal(by["auto"], by["winograd"])
    assert not torch.equal(by["auto"], by["direct"])
    double = case.tensors(generator)
    assert torch.equal(
        ops.conv_block(**double, **case.options), ops.conv_block(**double, **case.options, algorithm="direct")
    )


@pytest.mark.parametrize("algorithm", ["im2col", "winograd", "fft"])
def test_shapes_that_do_not_fit_are_named(algorithm, generator):
    with pytest.raises(RuntimeError, match="expected input to have 2 channels, but got 3 channels"):
        ops.conv_block(normal((1, 3, 9, 9), generator), normal((4, 2, 3, 3), generator), algorithm=algorithm)
    with pytest.raises(RuntimeError, match="Kernel size can't be greater than actual input size"):
        ops.conv_block(normal((1, 2, 2, 9), generator), normal((4, 2, 3, 3), generator), algorithm=algorithm)


@needs_kernels
def test_an_algorithm_goes_before_the_backend_of_the_process(generator):
    with recurve.backend("fused"):
        assert ops.conv_block(**Block().tensors(generator), stride=2, algorithm="native").shape == (3, 5, 2, 1)
