"""Claims on ConvBlock: torch.nn.Conv2d, activation and pooling in a row, and nothing lost of Conv2d."""

import copy
import pickle

import numpy as np
import pytest
import torch
from cases import assert_close, normal
from torch.testing._internal.common_modules import module_db

import recurve

ACTIVATIONS = {
    "none": torch.nn.Identity,
    "relu": torch.nn.ReLU,
    "leaky_relu": torch.nn.LeakyReLU,
    "silu": torch.nn.SiLU,
    "tanh": torch.nn.Tanh,
    "sigmoid": torch.nn.Sigmoid,
}
POOLS = {"none": torch.nn.Identity, "max": torch.nn.MaxPool2d, "average": torch.nn.AvgPool2d}


def twins(*args, activation="relu", pool="max", pool_size=2, **kwargs):
    """Our block, and torch's three modules with the same parameters."""
    block = recurve.nn.ConvBlock(*args, activation=activation, pool=pool, pool_size=pool_size, **kwargs)
    conv = torch.nn.Conv2d(*args, **kwargs)
    block.load_state_dict(conv.state_dict())
    return block, torch.nn.Sequential(conv, ACTIVATIONS[activation](), POOLS[pool](pool_size))


def outcome(module, x):
    """Output and gradients, parameters in order."""
    x = x.detach().requires_grad_()
    module.zero_grad()
    y = module(x)
    (y * torch.linspace(-1, 1.3, y.numel(), dtype=y.dtype).view(y.shape)).sum().backward()
    found = {"output": y.detach(), "gradient of x": x.grad}
    return found | {f"gradient {i}": p.grad.clone() for i, p in enumerate(module.parameters())}


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_equals_the_three_modules_of_torch(activation, pool, generator):
    block, chain = twins(2, 4, 3, padding=1, activation=activation, pool=pool, dtype=torch.float64)
    x = normal((3, 2, 9, 8), generator)
    assert_close(outcome(block, x), outcome(chain, x), 1e-10)


@pytest.mark.parametrize("kernel", [3, 4, (2, 5)], ids=str)
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_padding_by_name(padding, dilation, kernel, generator):
    options = {"padding": padding, "dilation": dilation, "dtype": torch.float64}
    block, chain = twins(2, 4, kernel, **options)
    x = normal((3, 2, 12, 13), generator)
    assert_close(outcome(block, x), outcome(chain, x), 1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_input_of_torchs_own_tests_gives_the_same(dtype):
    info = next(i for i in module_db if i.name == "nn.Conv2d")
    count = 0
    for sample in info.module_inputs_func(
        info, device=torch.get_default_device(), dtype=dtype, requires_grad=True, training=True
    ):
        built, given = sample.constructor_input, sample.forward_input
        block, chain = twins(*built.args, **built.kwargs, activation="none", pool="none")
        conv = recurve.nn.Conv2d(*built.args, **built.kwargs)
        conv.load_state_dict(block.state_dict())
        tolerance = 1e-10 if dtype == torch.float64 else 1e-4
        for ours in (block, conv):
            assert_close(outcome(ours.to(dtype), *given.args), outcome(chain.to(dtype), *given.args), tolerance)
        count += 1
    assert count > 0


@pytest.mark.parametrize("padding", [1, (2, 1), "same"], ids=str)
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("backend", ["fused", "native"])
def test_every_kind_of_padding(backend, mode, padding, generator):
    block, chain = twins(2, 4, (3, 2), padding=padding, padding_mode=mode, dtype=torch.float64)
    conv = recurve.nn.Conv2d(2, 4, (3, 2), padding=padding, padding_mode=mode, dtype=torch.float64)
    conv.load_state_dict(block.state_dict())
    x = normal((3, 2, 9, 8), generator)
    with recurve.backend(backend):
        assert_close(outcome(block, x), outcome(chain, x), 1e-10)
        assert_close(outcome(conv, x), outcome(chain[0], x), 1e-10)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_unbatched_input_and_groups(groups, generator):
    block, chain = twins(4, 8, 3, groups=groups, stride=(2, 1), dtype=torch.float64)
    x = normal((4, 11, 9), generator)
    assert_close(outcome(block, x), outcome(chain, x), 1e-10)


def test_an_empty_batch_equals_torch(generator):
    block, chain = twins(2, 4, 3, dtype=torch.float64)
    x = normal((0, 2, 9, 8), generator)
    assert_close(outcome(block, x), outcome(chain, x), 1e-10)


def test_state_dicts_load_both_ways():
    block, conv = recurve.nn.ConvBlock(2, 4, 3), torch.nn.Conv2d(2, 4, 3)
    assert list(block.state_dict()) == list(conv.state_dict())
    conv.load_state_dict(block.state_dict())
    assert torch.equal(conv.weight, block.weight)
    assert torch.equal(conv.bias, block.bias)


@pytest.mark.parametrize("pool", POOLS)
def test_without_an_activation_the_result_may_be_changed_in_place(pool, generator):
    block, chain = twins(2, 4, 3, activation="none", pool=pool, dtype=torch.float64)
    x = normal((3, 2, 9, 8), generator)
    block, chain = (torch.nn.Sequential(module, torch.nn.ReLU(inplace=True)) for module in (block, chain))
    assert_close(outcome(block, x), outcome(chain, x), 1e-10)


@pytest.mark.parametrize(
    ("pool_size", "pooled"), [((2,), (2, 2)), (np.int64(2), (2, 2)), (np.array([2, 3]), None), ((2, 3, 7), None)]
)
def test_sides_are_given_as_one_whole_number_or_two(pool_size, pooled, generator):
    x, weight = normal((1, 2, 9, 8), generator), normal((4, 2, 3, 3), generator)
    if pooled is None:
        with pytest.raises((RuntimeError, TypeError)):
            recurve.ops.conv_block(x, weight, pool_size=pool_size)
    else:
        found = recurve.ops.conv_block(x, weight, pool_size=pool_size)
        torch.testing.assert_close(found, recurve.ops.conv_block(x, weight, pool_size=pooled), rtol=0, atol=0)


@pytest.mark.parametrize("option", ["stride", "padding", "dilation"])
def test_three_sides_raise_what_conv2d_raises(option, generator):
    x, weight = normal((1, 2, 9, 8), generator), normal((4, 2, 3, 3), generator)
    for convolve in (torch.nn.functional.conv2d, recurve.ops.conv_block):
        with pytest.raises(RuntimeError, match=f"expected {option} to be a single integer value or a list of 2 values"):
            convolve(x, weight, **{option: (1, 1, 1)})


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_give_the_same(copied, generator):
    block = recurve.nn.ConvBlock(2, 4, 3, activation="silu", pool="average", pool_size=(2, 3), dtype=torch.float64)
    x = normal((3, 2, 9, 8), generator)
    assert_close(outcome(copied(block), x), outcome(block, x), 0)


def test_repr_tells_everything():
    block = recurve.nn.ConvBlock(2, 4, 3, padding=1, activation="tanh", pool="average", pool_size=3)
    text = "2, 4, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), activation=tanh, pool=average, pool_size=3"
    assert repr(block) == f"ConvBlock({text})"
    assert repr(recurve.nn.ConvBlock(2, 4, 3, pool="none")).endswith("activation=relu, pool=none)")


def test_unknown_names_list_the_allowed_ones():
    with pytest.raises(ValueError, match="'elu' is unknown; allowed: none, relu, leaky_relu, silu, tanh, sigmoid"):
        recurve.nn.ConvBlock(2, 4, 3, activation="elu")
    with pytest.raises(ValueError, match="'min' is unknown; allowed: none, max, average"):
        recurve.nn.ConvBlock(2, 4, 3, pool="min")


@pytest.mark.parametrize(
    "wrong",
    [{"groups": 3}, {"groups": 0}, {"padding": "most"}, {"padding": "same", "stride": 2}, {"kernel_size": "3"}],
    ids=str,
)
def test_wrong_arguments_raise_what_conv2d_raises(wrong):
    arguments = {"in_channels": 2, "out_channels": 4, "kernel_size": 3} | wrong
    with pytest.raises((ValueError, TypeError)) as expected:
        torch.nn.Conv2d(**arguments)
    with pytest.raises(type(expected.value)) as found:
        recurve.nn.ConvBlock(**arguments)
    assert str(found.value) == str(expected.value)


@pytest.mark.parametrize("shape", [(9, 8), (1, 3, 2, 9, 8), (3, 5, 9, 8), (3, 2, 2, 8), (5, 9, 8)], ids=str)
def test_wrong_inputs_raise_what_conv2d_raises(shape):
    block, chain = twins(2, 4, 3)
    with pytest.raises(RuntimeError) as expected:
        chain(torch.zeros(shape))
    with pytest.raises(type(expected.value)):
        block(torch.zeros(shape))


@pytest.mark.parametrize("dtype", [torch.float64, torch.long, torch.float16], ids=str)
def test_other_dtypes_raise_what_conv2d_raises(dtype):
    block, chain = twins(2, 4, 3)
    x = torch.zeros(3, 2, 9, 8, dtype=dtype)
    with pytest.raises(RuntimeError):
        chain(x)
    with pytest.raises(RuntimeError):
        block(x)


@pytest.mark.parametrize("padding", [0, "same"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_and_autocast_are_as_accurate_as_torch(dtype, padding, generator):
    block, chain = twins(2, 4, 3, padding=padding)
    x = normal((3, 2, 9, 8), generator).float()
    exact = chain(x)

    def check(found, expected):
        assert found.dtype == expected.dtype == dtype
        assert (found - exact).norm() <= 1.5 * (expected - exact).norm()

    with torch.autocast(torch.get_default_device().type, dtype):
        check(block(x), chain(x))
    check(block.to(dtype)(x.to(dtype)), chain.to(dtype)(x.to(dtype)))
    assert all(gradient.dtype == dtype for gradient in outcome(block, x.to(dtype)).values())
