"""Claims on the convolution block's CUDA kernels beyond the CPU's: every stride and 16-bit types. See tests/cuda."""

import itertools

import pytest
import torch
from cases import Block, assert_close, reference, results

STRIDED = [
    Block(channels=channels, outputs=outputs, size=(13, 17), kernel=kernel, models=models, options=options)
    for (channels, outputs, groups, kernel, models), stride, (pool, padding, dilation) in itertools.product(
        ((3, 5, 1, (3, 3), None), (6, 6, 6, (5, 4), 2), (4, 10, 2, (2, 1), None)),
        (2, (3, 1), (1, 2)),
        (("none", 0, 1), ("max", (1, 2), 1), ("average", 1, (1, 2))),
    )
    for options in [
        {
            "stride": stride,
            "padding": padding,
            "dilation": dilation,
            "groups": groups,
            "pool": pool,
            "activation": "tanh",
        }
    ]
]
NARROW = [
    Block(channels=3, outputs=9, options={"padding": 1}),
    Block(channels=7, outputs=7, kernel=(7, 7), options={"padding": 3, "groups": 7, "pool": "none"}),
    Block(channels=2, outputs=3, models=3, options={"pool": "average", "activation": "silu"}),
    Block(channels=2, outputs=3, options={"pool": "max", "pool_size": (3, 2), "activation": "leaky_relu"}),
]

WIDE = [  # enough channels for tensor cores, in each pass
    Block(channels=8, outputs=19, options={"padding": 1, "pool": "none", "activation": "tanh"}),
    Block(batch=5, channels=41, outputs=70, kernel=(1, 1), options={"pool": "none"}),
    Block(channels=9, outputs=37, models=3, shared=True, options={"pool": "average", "activation": "none"}),
    Block(
        channels=22,
        outputs=18,
        size=(17, 21),
        models=2,
        no_bias=True,
        options={
            "groups": 2,
            "stride": (2, 1),
            "dilation": (1, 2),
            "padding": 2,
            "pool": "average",
            "pool_size": (3, 2),
            "activation": "silu",
        },
    ),
]
WIDE_POOLED = [
    Block(channels=9, outputs=10, models=2, options={"activation": "leaky_relu"}),
    Block(channels=16, outputs=33, kernel=(5, 2), options={"pool_size": (1, 4), "padding": (2, 1)}),
]

TILED = [  # square kernels of 3, 5 or 7 with same padding: several tiles, sites, slices and pieces of channels
    Block(batch=2, channels=3, outputs=7, size=(38, 70), options={"padding": 1}),
    Block(batch=5, channels=1, outputs=4, size=(12, 12), options={"padding": 1, "activation": "leaky_relu"}),
    Block(batch=17, channels=35, outputs=2, size=(10, 9), options={"padding": 1, "pool": "average"}),
    Block(batch=2, channels=19, outputs=9, size=(13, 15), models=2, options={"padding": 1, "activation": "sigmoid"}),
    Block(batch=3, channels=9, outputs=9, kernel=(5, 5), size=(21, 36), options={"padding": 2, "groups": 9}),
    Block(batch=2, channels=4, outputs=3, kernel=(5, 5), options={"padding": 2, "pool": "none", "activation": "none"}),
    Block(
        channels=6,
        outputs=6,
        kernel=(7, 7),
        size=(34, 32),
        models=2,
        shared=True,
        options={"padding": 3, "groups": 6, "pool": "none", "activation": "tanh"},
    ),
    Block(channels=4, outputs=6, kernel=(7, 7), no_bias=True, options={"padding": 3, "groups": 2, "pool_size": (3, 2)}),
    Block(channels=3, outputs=3, options={"padding": 1, "activation": "silu"}),
]


def compiled(x, weight, bias=None, **options):
    """The op itself, whatever the selector says."""
    names = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "activation": "relu", "pool": "max", "pool_size": 2}
    values = [options.get(name, default) for name, default in names.items()]
    pairs = [[v, v] if isinstance(v, int) and i != 3 else v for i, v in enumerate(values)]
    if options.get("pool") == "none":
        pairs[-1] = [1, 1]
    return torch.ops.recurve.conv_block(x, weight, bias, *pairs)


@pytest.mark.parametrize("case", STRIDED + TILED, ids=str)
def test_strided_and_tiled_blocks_equal_torch(case, generator):
    tensors = case.tensors(generator)
    assert_close(results(compiled, tensors, case.options), results(reference(case), tensors, case.options), 1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", NARROW + WIDE + WIDE_POOLED + TILED, ids=str)
def test_16_bit_blocks_round_what_they_store_and_nothing_else(case, dtype, generator):
    tensors = {name: t.to(dtype) for name, t in case.tensors(generator).items()}
    found = results(compiled, tensors, case.options)
    exact = results(reference(case), {name: t.double() for name, t in tensors.items()}, case.options)
    for name, value in exact.items():
        assert found[name].dtype == dtype, name
        assert (found[name].double() - value).norm() <= 2 * torch.finfo(dtype).eps * value.norm(), name


def test_float32_sums_over_many_pixels_stay_accurate(generator):
    case = Block(batch=8, channels=2, outputs=3, size=(40, 44), options={"padding": 1, "pool": "none"})
    tensors = {name: t.float() for name, t in case.tensors(generator).items()}
    found = results(compiled, tensors, case.options)
    exact = results(reference(case), {name: t.double() for name, t in tensors.items()}, case.options)
    for name, value in exact.items():
        assert (found[name].double() - value).norm() <= 4 * torch.finfo(torch.float32).eps * value.norm(), name
