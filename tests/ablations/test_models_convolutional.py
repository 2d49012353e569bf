"""Claims on networks for images: parameters by formula, each part by its equation, and what is blind to shifts."""

import pytest
import torch
import torch.nn.functional as F
from networks import assert_stacked_equal_alone

from ablations.classification import equivariance_errors, roll
from ablations.models import ConvNet, Style
from ablations.models.convolutional import HEADS, NORMALISATIONS, PADDINGS, POOLINGS

GREY = (1, 28, 28)


def count(model):
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize(
    ("stages", "chosen", "style", "expected"),
    [
        ([[8], [16]], {"head": "dense"}, {}, 80 + 1168 + (784 * 128 + 128) + (128 * 10 + 10)),
        ([[8], [16]], {"head": "small"}, {}, 80 + 1168 + (784 * 10 + 10)),
        ([[8], [16]], {"head": "gap"}, {}, 80 + 1168 + (16 * 10 + 10)),
        ([[8]], {"head": "dense"}, {}, 80 + (8 * 14 * 14 * 128 + 128) + (128 * 10 + 10)),
        ([[8], [16], [32]], {"head": "dense"}, {}, 80 + 1168 + 4640 + (32 * 3 * 3 * 128 + 128) + (128 * 10 + 10)),
        ([[8], [16]], {}, {"kernel_size": 5}, 8 * 25 + 8 + 16 * 8 * 25 + 16 + 170),
        ([[8], [16]], {}, {"residual": True}, 80 + 1168 + 170),
        ([[8], [16]], {}, {"separable": True}, 80 + 8 * 9 + 16 * 8 + 16 + 170),
        ([[8], [16]], {}, {"normalisation": "batch"}, 72 + 16 + 1152 + 32 + 170),
        ([[8], [16]], {"first_layer": "gabor"}, {}, 8 + 1168 + 170),
        ([[6], [8], [8]], {"head": "small"}, {"normalisation": "batch"}, 54 + 432 + 576 + 44 + 730),
    ],
)
def test_parameters_follow_the_formula(stages, chosen, style, expected):
    assert count(ConvNet(GREY, 10, stages, style=Style(**style), **chosen)) == expected


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("image", [(1, 28, 28), (3, 32, 32), (1, 17, 23)])
def test_every_pooling_halves_the_maps_but_none(pooling, image):
    maps = ConvNet(image, 7, [[4, 5], [6]], pooling=pooling).features(torch.rand(2, *image))
    assert [m.shape[1] for m in maps] == [4, 5, 6]
    expected = list(image[1:])
    assert list(maps[0].shape[2:]) == expected
    for of_stage in maps[1:]:
        if pooling != "none":
            expected = [-(-side // 2) if pooling == "strided" else side // 2 for side in expected]
        assert list(of_stage.shape[2:]) == expected


def test_a_plain_layer_is_convolution_relu_and_pooling():
    network, images = ConvNet(GREY, 10, [[8], [16]]), torch.rand(3, *GREY)
    maps = images
    for layer in network.layers:
        convolution = layer.convolution
        maps = F.max_pool2d(F.relu(F.conv2d(maps, convolution.weight, convolution.bias, padding=1)), 2)
    torch.testing.assert_close(network(images), network.head(maps.mean((2, 3))))


def test_blurred_pooling_is_a_maximum_then_a_binomial_blur():
    network, images = ConvNet(GREY, 10, [[8]], pooling="blurred"), torch.rand(3, *GREY)
    convolution = network.layers[0].convolution
    maps = F.relu(F.conv2d(images, convolution.weight, convolution.bias, padding=1))
    maps = F.pad(F.max_pool2d(maps, 2, stride=1), [1] * 4, mode="reflect")
    weights = torch.tensor([1.0, 2.0, 1.0])
    blur = (weights[:, None] * weights / 16).expand(8, 1, 3, 3)
    torch.testing.assert_close(network.features(images)[0], F.conv2d(maps, blur, stride=2, groups=8))


def test_a_residual_layer_adds_its_input_before_the_relu():
    network, images = ConvNet(GREY, 10, [[4, 6]], pooling="max", style=Style(residual=True)), torch.rand(3, *GREY)
    first = network.features(images)[0]
    convolution = network.layers[1].convolution
    outputs = F.conv2d(first, convolution.weight, convolution.bias, padding=1)
    outputs = F.relu(outputs + torch.cat([first, torch.zeros(3, 2, 28, 28)], 1))
    torch.testing.assert_close(network.features(images)[1], F.max_pool2d(outputs, 2))


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@pytest.mark.parametrize("residual", [False, True])
def test_a_joined_stride_1_network_with_global_average_pooling_is_blind_to_rolls(residual, normalisation):
    style = Style(padding="circular", residual=residual, normalisation=normalisation)
    network = ConvNet(GREY, 10, [[8], [16]], pooling="none", head="gap", style=style).double().eval()
    images = torch.rand(4, *GREY, dtype=torch.float64)
    rolls = [network(images.roll((down, right), dims=(2, 3))) for down, right in ((0, 1), (5, -3), (14, 9))]
    for logits in rolls:
        torch.testing.assert_close(logits, network(images), rtol=0, atol=1e-12)
    assert equivariance_errors(network.float(), images.float()).max() < 1e-5


@pytest.mark.parametrize(
    ("chosen", "style"), [({"pooling": "max"}, {}), ({"head": "small"}, {}), ({}, {"padding": "zero"})]
)
def test_pooling_a_linear_head_or_zero_padding_each_end_that_blindness(chosen, style):
    chosen = {"pooling": "none", "head": "gap"} | chosen
    network = ConvNet(GREY, 10, [[8], [16]], style=Style(**{"padding": "circular"} | style), **chosen).double()
    images = torch.rand(4, *GREY, dtype=torch.float64)
    assert (network(images.roll((5, -3), dims=(2, 3))) - network(images)).abs().max() > 1e-6


def test_blurring_before_skipping_lowers_the_equivariance_error():
    images, errors = torch.rand(8, 1, 32, 32), {}
    for pooling in ("max", "blurred"):
        torch.manual_seed(0)
        network = ConvNet((1, 32, 32), 10, [[8], [16]], pooling=pooling, style=Style(padding="circular"))
        errors[pooling] = equivariance_errors(network, images)
    assert (errors["blurred"] < errors["max"]).all()


def test_a_roll_by_whole_places_is_torchs_and_two_halves_make_a_whole():
    maps = torch.randn(2, 3, 7, 9, dtype=torch.float64)  # odd sides: no frequency is its own mirror image
    torch.testing.assert_close(roll(maps, 2, -3), maps.roll((2, -3), dims=(2, 3)))
    torch.testing.assert_close(roll(roll(maps, 0.5, 1.5), 0.5, 1.5), maps.roll((1, 3), dims=(2, 3)))


def test_gabor_kernels_stay_as_they_are_and_look_in_all_directions():
    kernels = ConvNet(GREY, 10, [[8]], first_layer="gabor", style=Style(kernel_size=7)).first_kernels()
    assert kernels.shape == (8, 1, 7, 7)
    torch.testing.assert_close(kernels.mean((2, 3)), torch.zeros(8, 1), rtol=0, atol=1e-6)
    torch.testing.assert_close(kernels.flatten(1).norm(dim=1), torch.full((8,), 3**-0.5))
    alike = torch.corrcoef(kernels.flatten(1)).fill_diagonal_(0).abs()
    assert alike.max() < 0.9


STYLES = [
    *[{"padding": padding} for padding in PADDINGS],
    *[{"normalisation": normalisation} for normalisation in NORMALISATIONS[1:]],
    {"residual": True},
    {"separable": True},
]
CASES = [
    *[({"head": head}, {}) for head in HEADS],
    *[({"pooling": pooling}, {}) for pooling in POOLINGS],
    *[({"pooling": "strided"}, {"residual": True}), ({"pooling": "blurred"}, {"padding": "circular"})],
    *[({"first_layer": first}, {}) for first in ("random", "gabor")],
    *[({}, style) for style in STYLES],
]


@pytest.mark.parametrize(("chosen", "style"), CASES, ids=str)
def test_stacked_models_compute_and_learn_what_each_does_alone(chosen, style):
    assert_stacked_equal_alone(
        lambda: ConvNet(GREY, 10, [[4], [6]], style=Style(**style), **chosen), torch.rand(5, *GREY)
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConvNet(GREY, 10, [[4]], head="mlp"), "head 'mlp' is unknown; allowed are dense, small, gap"),
        (
            lambda: ConvNet(GREY, 10, [[4]], pooling="min"),
            "pooling 'min' is unknown; allowed are max, average, strided",
        ),
        (lambda: ConvNet(GREY, 10, [[4]], first_layer="sobel"), "first layer 'sobel' is unknown; allowed are learned"),
        (lambda: ConvNet(GREY, 10, [[4]] * 5), "5 poolings leave nothing of 28 x 28 pixels; use fewer stages"),
        (lambda: Style(padding="same"), "padding 'same' is unknown; allowed are zero, circular"),
        (lambda: Style(normalisation="group"), "normalisation 'group' is unknown; allowed are none, batch, layer"),
        (lambda: Style(kernel_size=4), "kernel size 4 has no centre; allowed are odd numbers"),
    ],
)
def test_an_unknown_part_lists_those_allowed(make, message):
    with pytest.raises(ValueError, match=message):
        make()
