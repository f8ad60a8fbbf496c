"""Mirror images: which samples, how many, in which epoch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.plugins.augmentations.trying import SHAPES, changed, distinct, images, params, shapes


@pytest.mark.parametrize("shape", SHAPES)
def test_a_vertical_flip_of_all_turns_the_rows_around(shape):
    samples = images(shape)
    once = changed("vertical_flip", samples, p=1)
    for row in range(shape[1]):
        assert torch.equal(once[..., row, :], samples[..., shape[1] - 1 - row, :])


@pytest.mark.parametrize("shape", SHAPES)
def test_a_flip_of_all_is_the_mirror_image_and_twice_gives_back(shape):
    samples = images(shape)
    once = changed("horizontal_flip", samples, p=1)
    # Column by column, by hand.
    for column in range(shape[2]):
        assert torch.equal(once[..., column], samples[..., shape[2] - 1 - column])
    assert torch.equal(changed("horizontal_flip", once, p=1), samples)
    assert torch.equal(changed("horizontal_flip", samples, p=0), samples)


@pytest.mark.parametrize("chosen", [{}, {"p": 0.1}])
def test_the_share_of_flips_is_p(chosen):
    samples = distinct((1, 2, 3), 4000)
    result = changed("horizontal_flip", samples, **chosen)
    assert flips(samples, result).float().mean() == pytest.approx(chosen.get("p", 0.5), abs=0.04)


def flips(samples, result):
    """Which samples are mirrored; each must be either that or as it was."""
    mirrored = (result == samples.flip(-1)).flatten(1).all(1)
    kept = (result == samples).flatten(1).all(1)
    assert (mirrored ^ kept).all()
    return mirrored


@settings(max_examples=30, deadline=None)
@given(shapes, st.integers(1, 50), st.integers(0, 2**32 - 1))
def test_any_two_epochs_in_a_row_mirror_each_other(shape, epoch, seed):
    samples, indices = images(shape, 16), torch.arange(100, 116)
    augmentation = params("alternating_flip", seed=seed).build(shape)
    one, other, third = (augmentation(samples, indices, epoch + later) for later in range(3))
    flips(samples, one)
    assert torch.equal(one, other.flip(-1))
    assert torch.equal(one, third)


def first_epoch(seed, indices):
    samples = distinct((1, 1, 2), len(indices))
    augmentation = params("alternating_flip", seed=seed).build((1, 1, 2))
    return flips(samples, augmentation(samples, indices, 1))


def test_an_images_side_depends_on_its_index_and_the_seed_alone():
    everything = torch.arange(10_000)
    whole = first_epoch(0, everything)
    order = torch.randperm(10_000, generator=torch.Generator().manual_seed(1))
    for batch in order.split(3_000):
        assert torch.equal(first_epoch(0, batch), whole[batch])
    assert not torch.equal(first_epoch(1, everything), whole)


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_the_first_epoch_flips_as_coins_fall(seed):
    count = 10_000
    coins = first_epoch(seed, torch.arange(count)).float()
    within = 5 * 0.5 / count**0.5  # five standard deviations
    assert coins.mean() == pytest.approx(0.5, abs=within)
    # Neighbours agree as often as not, at any distance and for any other seed.
    for distance in (1, 2, 3, 10, 64, 100, 1000, 1024):
        agree = (coins[distance:] == coins[:-distance]).float().mean()
        assert agree == pytest.approx(0.5, abs=1.1 * within), distance
    other = first_epoch(seed ^ 4, torch.arange(count)).float()
    assert (coins == other).float().mean() == pytest.approx(0.5, abs=within)


def test_another_seed_is_not_the_same_coins_for_other_images():
    indices = torch.arange(256)
    assert sorted(first_epoch(0, indices).tolist()) != sorted(first_epoch(7, indices).tolist())
