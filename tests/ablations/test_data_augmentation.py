"""Claims on augmentation: it does what its name says, and its draws come from the given generator alone."""

import pytest
import torch

from ablations.data.augmentation import augmentation, random_flip, random_rotation, random_shift, shift

KINDS = ("none", "shift", "rotate", "flip")


def batch(count=8):
    return torch.rand(count, 1, 28, 28, generator=torch.Generator().manual_seed(3))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", KINDS)
def test_draws_depend_on_the_given_generator_only(kind):
    augment = augmentation(kind, pixels=3, degrees=15)
    torch.manual_seed(1)
    first, state = augment(batch(), generator()), torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(augment(batch(), generator()), first)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_another_seed_and_a_later_batch_are_augmented_otherwise(kind):
    augment, one = augmentation(kind, pixels=3, degrees=15), generator()
    first = augment(batch(), one)
    assert not torch.equal(augment(batch(), one), first)
    assert not torch.equal(augment(batch(), generator(1)), first)


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_are_left_as_they_were(kind):
    images = batch()
    augmentation(kind, pixels=3, degrees=15)(images, generator())
    assert torch.equal(images, batch())


def test_none_returns_the_images():
    assert torch.equal(augmentation("none", pixels=3, degrees=15)(batch(), generator()), batch())


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
    flipped = random_flip(images, generator())
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


def test_an_unknown_kind_lists_those_allowed():
    with pytest.raises(ValueError, match="'mixup' is unknown; allowed are none, shift, rotate, flip"):
        augmentation("mixup", pixels=3, degrees=15)
