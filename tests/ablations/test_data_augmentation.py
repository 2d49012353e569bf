"""Claims on augmentation: it does what its name says, and its draws come from the given generator alone."""

import pytest
import torch

from ablations.data.augmentation import (
    augmentation,
    random_erasure,
    random_flip,
    random_noise,
    random_rotation,
    random_scale,
    random_shift,
    shift,
)

NAMES = ("none", "shift-3", "rotate-15", "scale-0.2", "flip-0.5", "erase-8", "noise-0.2", "shift-1+rotate-5")


def batch(count=8):
    return torch.rand(count, 1, 28, 28, generator=torch.Generator().manual_seed(3))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", NAMES)
def test_draws_depend_on_the_given_generator_only(name):
    augment = augmentation(name)
    torch.manual_seed(1)
    first, state = augment(batch(), generator()), torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(augment(batch(), generator()), first)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", NAMES[1:])
def test_another_seed_and_a_later_batch_are_augmented_otherwise(name):
    augment, one = augmentation(name), generator()
    first = augment(batch(), one)
    assert not torch.equal(augment(batch(), one), first)
    assert not torch.equal(augment(batch(), generator(1)), first)


@pytest.mark.parametrize("name", NAMES)
def test_inputs_are_left_as_they_were(name):
    images = batch()
    augmentation(name)(images, generator())
    assert torch.equal(images, batch())


def test_none_returns_the_images():
    assert torch.equal(augmentation("none")(batch(), generator()), batch())


@pytest.mark.parametrize(("right", "down"), [(0, 0), (2, 0), (-3, 0), (0, 1), (0, -6), (3, -2)])
def test_shift_moves_by_whole_pixels_and_fills_with_zeros(right, down):
    moved = shift(batch(), torch.tensor([[right, down]]).expand(8, 2))
    expected = torch.roll(batch(), (down, right), dims=(2, 3))
    rows, columns = torch.arange(28) - down, torch.arange(28) - right
    expected[:, :, (rows < 0) | (rows > 27), :] = 0
    expected[:, :, :, (columns < 0) | (columns > 27)] = 0
    assert torch.equal(moved, expected)


def test_random_shifts_reach_all_offsets_up_to_the_limit_and_no_further():
    point = torch.zeros(2000, 1, 28, 28)
    point[:, :, 14, 14] = 1
    places = random_shift(point, generator(), pixels=2)[:, 0].nonzero()[:, 1:]
    assert {tuple(place) for place in places.tolist()} == {(r, c) for r in range(12, 17) for c in range(12, 17)}


def test_flipped_images_are_mirror_images_and_about_half_are_flipped():
    images = batch(1000)
    flipped = random_flip(images, generator(), probability=0.5)
    mirrored = (flipped == images[..., torch.arange(27, -1, -1)]).all(dim=(1, 2, 3))
    kept = (flipped == images).all(dim=(1, 2, 3))
    assert torch.equal(mirrored, ~kept)
    assert 450 < mirrored.sum() < 550


def test_rotation_stays_within_its_limit():
    point = torch.zeros(500, 1, 29, 29)
    point[:, :, 14, 26] = 1  # 12 pixels right of the centre
    rotated = random_rotation(point, generator(), degrees=15)[:, 0]
    rows, columns = torch.meshgrid(torch.arange(29) - 14.0, torch.arange(29) - 14.0, indexing="ij")
    mass = rotated.sum(dim=(1, 2))
    angle = torch.rad2deg(
        torch.atan2((rotated * rows).sum(dim=(1, 2)) / mass, (rotated * columns).sum(dim=(1, 2)) / mass)
    )
    assert 14 < angle.abs().max() < 15.5
    assert angle.min() < -13
    assert angle.max() > 13


def test_scaling_stays_within_its_limit():
    square = torch.zeros(300, 1, 41, 41)
    square[:, :, 11:30, 11:30] = 1
    areas = random_scale(square, generator(), share=0.2).sum((1, 2, 3)) / square[0].sum()
    assert 0.75**2 < areas.min() < 0.85**2
    assert 1.15**2 < areas.max() < 1.25**2


def test_an_erased_square_is_whole_and_may_lie_anywhere():
    erased = random_erasure(torch.ones(2000, 1, 12, 10), generator(), pixels=4)[:, 0] == 0
    assert (erased.sum((1, 2)) == 16).all()
    corners = {tuple(mask.nonzero()[0].tolist()) for mask in erased}
    assert corners == {(row, column) for row in range(9) for column in range(7)}


def test_noise_has_the_stated_deviation():
    noisy = random_noise(torch.full((50, 1, 28, 28), 0.5), generator(), deviation=0.2)
    assert noisy.mean().item() == pytest.approx(0.5, abs=0.004)
    assert noisy.std().item() == pytest.approx(0.2, rel=0.02)


def test_parts_are_applied_one_after_the_other():
    stream = generator()
    expected = random_rotation(random_shift(batch(), stream, 1), stream, 5)
    assert torch.equal(augmentation("shift-1+rotate-5")(batch(), generator()), expected)


@pytest.mark.parametrize("name", ["mixup", "shift", "shift-far", "shift-1+mixup-2"])
def test_an_unknown_kind_lists_those_allowed(name):
    with pytest.raises(ValueError, match="is unknown; allowed are none and, with a number behind, shift-, rotate-"):
        augmentation(name)
