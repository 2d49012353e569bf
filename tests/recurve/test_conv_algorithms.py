"""Claims on the algorithms of conv_block: one answer, whichever computes it, and Winograd's error within its bound."""

import pytest
import torch
from cases import Block, assert_close, needs_kernels, normal, results

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
    if algorithm == "direct" and name == "strided":
        pytest.skip("there is no kernel for strides")
    tensors = Block(**sizes, options=options).tensors(generator)
    found = results(ops.conv_block, tensors, options | {"algorithm": algorithm})
    assert_close(found, results(ops.conv_block, tensors, options | {"algorithm": "native"}), 1e-10)


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
def test_direct_says_why_it_cannot_serve(generator):
    with pytest.raises(RuntimeError, match="there is no kernel for stride 2"):
        ops.conv_block(**Block().tensors(generator), stride=2, algorithm="direct")


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
