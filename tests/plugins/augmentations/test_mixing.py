"""Mixed samples and targets: what a target says is what the pixels are."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.plugins.augmentations.trying import COUNT, images, one_hot, params, shapes

NAMES = ("cutmix", "mixup", "mixup_or_cutmix")


def of_one_value(shape, count):
    """Images whose only value says which one it is."""
    values = torch.arange(count, dtype=torch.float64) * 255 / max(1, count - 1)
    return values.round().to(torch.uint8).view(-1, 1, 1, 1).expand(count, *shape).clone()


def mixed(name, samples, targets, seed=0, **chosen):
    torch.manual_seed(seed)
    mix = params(name, **chosen).build(tuple(samples.shape[1:]))
    return mix(samples, targets, torch.arange(len(samples)), 1)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(NAMES), shapes, st.integers(1, 9), st.integers(0, 2**31), st.floats(0.05, 20)
)
def test_targets_sum_to_1_and_say_what_the_pixels_are(name, shape, count, seed, alpha):
    samples, targets = of_one_value(shape, count), torch.eye(count)
    chosen = {f"{each}_alpha": alpha for each in ("mixup", "cutmix")}
    chosen = chosen if name == "mixup_or_cutmix" else {"alpha": alpha}
    result, shares = mixed(name, samples, targets, seed, **chosen)
    assert (shares.dtype, shares.shape) == (torch.float32, (count, count))
    assert torch.equal(targets, torch.eye(count))
    assert (shares >= 0).all()
    assert shares.sum(1).numpy() == pytest.approx(1)
    # Of the pictures' own mean: mixup rounds each pixel, CutMix has whole pixels of either.
    expected = shares.double() @ samples.double().mean((1, 2, 3))
    assert (result.double().mean((1, 2, 3)) - expected).abs().max() <= 0.51


@pytest.mark.parametrize("name", NAMES)
def test_soft_targets_are_mixed_as_one_hot_ones(name):
    samples, soft = images((3, 9, 9), 8), torch.rand(8, 4).softmax(1)
    result, shares = mixed(name, samples, torch.eye(8))
    again, other = mixed(name, samples, soft)
    assert torch.equal(result, again)
    assert torch.allclose(other, shares @ soft)


@pytest.mark.parametrize("name", NAMES)
def test_no_chance_leaves_targets_as_they_are(name):
    samples, targets = images((3, 9, 9)), one_hot(COUNT)
    result, shares = mixed(name, samples, targets, p=0)
    assert torch.equal(result, samples)
    assert torch.equal(shares, targets)


@pytest.mark.parametrize("name", NAMES)
def test_every_sample_has_a_share_of_its_own_and_a_partner(name):
    _, shares = mixed(name, images((1, 40, 40)), torch.eye(COUNT))
    own = shares.diagonal()
    assert len(own.unique()) > COUNT // 2
    assert torch.allclose(own + shares.roll(1, 1).diagonal(), torch.ones(COUNT))


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_one_is_its_own_partner(name):
    samples, targets = images((3, 9, 9), 1), one_hot(1)
    result, shares = mixed(name, samples, targets)
    assert torch.equal(result, samples)
    assert torch.allclose(shares, targets)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_mixups_share_is_beta_distributed(alpha):
    samples, count = torch.zeros(20_000, 2), 20_000
    targets = torch.stack([torch.arange(count) % 2, 1 - torch.arange(count) % 2], 1).float()
    _, shares = mixed("mixup", samples, targets, alpha=alpha)
    own = (shares * targets).sum(1).double()
    assert own.mean() == pytest.approx(0.5, abs=0.02)
    variance = 1 / (4 * (2 * alpha + 1))
    assert own.var() == pytest.approx(variance, rel=0.05)


def test_a_tiny_alpha_mixes_nothing_and_gives_no_nan():
    samples, targets = images((1, 9, 9), 500), torch.eye(500)
    for name in ("cutmix", "mixup"):
        _, shares = mixed(name, samples, targets, alpha=1e-4)
        assert shares.isfinite().all()
    assert shares.amax(1).min() > 0.9  # of mixup; CutMix's rectangles are cut off by the border


def test_mixup_takes_vectors_and_signals_and_refuses_token_ids():
    for shape in ((7,), (2, 9)):
        samples = torch.randn(6, *shape)
        result, shares = mixed("mixup", samples, torch.eye(6))
        expected = (shares @ samples.flatten(1)).view_as(samples)
        assert torch.allclose(result, expected, atol=1e-6)
        assert not torch.equal(result, samples)
    with pytest.raises(ValueError, match="mixes images, vectors and signals, not token ids"):
        mixed("mixup", torch.zeros(6, 7, dtype=torch.int64), torch.eye(6))


def test_cutmix_puts_one_rectangle_of_the_partner_in_the_same_place():
    samples, count = images((3, 20, 31), 200), 200
    result, shares = mixed("cutmix", samples, torch.eye(count))
    partners = samples.roll(1, 0)
    for number in range(count):
        cut = (result[number] != samples[number]).any(0)
        assert torch.equal(result[number][:, cut], partners[number][:, cut])
        share = 1 - float(shares[number, number])
        if share == 0:
            continue
        rows, columns = cut.any(1).nonzero(), cut.any(0).nonzero()
        area = int(rows[-1] - rows[0] + 1) * int(columns[-1] - columns[0] + 1)
        assert area / (20 * 31) == pytest.approx(share)


def test_either_is_drawn_for_each_image():
    samples, targets = of_one_value((1, 30, 30), 200), torch.eye(200)
    result, shares = mixed("mixup_or_cutmix", samples, targets, p=0.8, switch_prob=0.25)
    values = torch.tensor([len(image.unique()) for image in result])
    own = shares.diagonal()
    cut, blended = (values == 2).sum(), ((values == 1) & (own < 1)).sum()
    assert cut / 200 == pytest.approx(0.2, abs=0.1)
    assert blended / 200 == pytest.approx(0.6, abs=0.12)


@pytest.mark.parametrize(("switch", "name"), [(0, "mixup"), (1, "cutmix")])
def test_the_switch_at_its_ends_is_one_of_the_two(switch, name):
    samples, targets = of_one_value((1, 30, 30), 50), torch.eye(50)
    result, _ = mixed("mixup_or_cutmix", samples, targets, switch_prob=switch)
    values = max(len(image.unique()) for image in result)
    assert values == (1 if name == "mixup" else 2)


def test_the_area_of_cutmix_has_the_share_that_is_drawn():
    samples, targets = of_one_value((1, 100, 100), 4000), torch.eye(4000)
    _, shares = mixed("cutmix", samples, targets, alpha=50)
    # Half of the area is drawn, a side of 0.71; where the border cuts it off more remains.
    own = shares.diagonal()
    assert own.min() == pytest.approx(0.5, abs=0.2)
    mean = 1 - (math.sqrt(0.5) * (1 - math.sqrt(0.5) / 4)) ** 2
    assert own.mean() == pytest.approx(mean, abs=0.01)
