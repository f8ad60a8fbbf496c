"""Crops against what they say they do to a batch of images."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import v2

from tests.plugins.augmentations.trying import SHAPES, changed, distinct, images, params, shapes
from torchyard.plugins.augmentations import crops


def shifts_of(result, padded, shape, padding):
    """For each sample, the only window of its padded original that it is."""
    _, height, width = shape
    found = []
    for image, source in zip(result, padded, strict=True):
        windows = [
            (down - padding, right - padding)
            for down in range(2 * padding + 1)
            for right in range(2 * padding + 1)
            if torch.equal(image, source[:, down : down + height, right : right + width])
        ]
        assert len(windows) == 1
        found += windows
    return found


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("padding", [None, 1, 7])
@pytest.mark.parametrize("mode", ["reflect", "constant"])
def test_a_crop_is_a_window_of_the_padded_image(shape, padding, mode):
    samples = images(shape, 200)
    size = 4 if padding is None else padding
    # torch's own padding, which wants float.
    padded = torch.nn.functional.pad(samples.float(), (size,) * 4, mode=mode).to(torch.uint8)
    chosen = {} if padding is None else {"padding": padding}
    if mode == "constant":
        chosen["mode"] = "zeros"
    found = shifts_of(changed("random_crop", samples, **chosen), padded, shape, size)
    # 200 draws reach both ends, each way.
    for way in zip(*found, strict=True):
        assert {min(way), max(way)} == {-size, size}
    assert any(down != right for down, right in found)


def test_every_shift_is_as_likely_as_any_other():
    shape, padding, count = (1, 5, 5), 1, 9000
    samples = distinct(shape, count)
    padded = torch.nn.functional.pad(samples.float(), (padding,) * 4, mode="reflect")
    result = changed("random_crop", samples, padding=padding).float()
    for down in range(3):
        for right in range(3):
            window = padded[:, :, down : down + 5, right : right + 5]
            hits = (result == window).flatten(1).all(1).sum().item()
            assert hits == pytest.approx(count / 9, abs=150)  # 5 standard deviations


@settings(max_examples=30, deadline=None)
@given(shapes, st.integers(1, 8), st.integers(0, 2**31))
def test_a_reflected_crop_shows_its_own_image_alone(shape, padding, seed):
    # Sample n has values of its own: bits above the lowest four.
    own = torch.arange(8, dtype=torch.uint8).view(-1, 1, 1, 1) * 16
    samples = images(shape, 8, seed) % 16 + own
    result = changed("random_crop", samples, seed, padding=padding)
    for image, original in zip(result, samples, strict=True):
        assert set(image.unique().tolist()) <= set(original.unique().tolist())


@pytest.mark.parametrize("mode", ["reflect", "zeros"])
def test_padding_as_wide_as_the_image_is_refused(mode):
    params("random_crop", padding=8, mode=mode).build((3, 9, 30))
    for shape in ((3, 9, 30), (3, 30, 9)):
        with pytest.raises(
            ValueError, match=r"padding=9 must be less than the shorter side, 9 pixels"
        ):
            params("random_crop", padding=9, mode=mode).build(shape)


# ---- random_resized_crop

FULL = {"scale": (1, 1), "ratio": (1, 1)}


def test_the_whole_image_is_left_as_it_is():
    for shape in ((3, 12, 12), (1, 7, 7)):
        samples = images(shape)
        assert torch.equal(changed("random_resized_crop", samples, **FULL), samples)


@pytest.mark.parametrize("shape", [(3, 24, 24), (1, 16, 21), (3, 33, 20)])
def test_a_resized_crop_is_that_of_torchvision(shape, monkeypatch):
    _, height, width = shape
    samples, drawn = images(shape), []

    def recorded(samples, chosen, how, *rectangle):
        drawn.append(torch.stack(rectangle, 1))
        return change(samples, chosen, how, *rectangle)

    change = crops.change
    monkeypatch.setattr(crops, "change", recorded)
    result = changed("random_resized_crop", samples)
    for image, source, (top, left, high, wide) in zip(
        result, samples, drawn[0].int().tolist(), strict=True
    ):
        expected = v2.functional.resized_crop(
            source, top, left, high, wide, [height, width], antialias=True
        )
        assert (image.int() - expected.int()).abs().max() <= 1


def rectangles(scale, ratio, shape, count=4000):
    """Top, left, height and width as they are drawn for a batch, and for single photos."""
    plugin = params("random_resized_crop", scale=scale, ratio=ratio)
    drawn = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crops, "change", lambda *given: drawn.append(given[3:]))
        torch.manual_seed(0)
        samples = torch.empty(count, 1, *shape, dtype=torch.uint8)
        plugin.build((1, *shape))(samples, torch.arange(count), 1)
    generator = np.random.default_rng(0)
    single = [plugin.region(*shape, generator) for _ in range(count)]
    return torch.stack(drawn[0], 1).long(), torch.tensor(single)


@pytest.mark.parametrize("shape", [(32, 32), (40, 25), (10, 200)])
@pytest.mark.parametrize(
    ("scale", "ratio"), [((0.08, 1.0), (3 / 4, 4 / 3)), ((0.3, 0.5), (0.5, 2.0))]
)
def test_regions_and_crops_are_drawn_alike_and_within_the_bounds(scale, ratio, shape):
    height, width = shape
    batch, single = rectangles(scale, ratio, shape)
    for drawn in (batch, single):
        top, left, high, wide = drawn.unbind(1)
        assert torch.stack([top, left]).min() >= 0
        assert torch.stack([high, wide]).min() > 0
        assert torch.stack([height - top - high, width - left - wide]).min() >= 0
    deviation = batch.double().std(0) / len(batch) ** 0.5
    difference = (batch.double().mean(0) - single.double().mean(0)).abs()
    assert (difference <= 7 * deviation + 1e-9).all()
    if max(shape) < 2 * min(shape):
        share = (batch[:, 2] * batch[:, 3]).double() / (height * width)
        assert share.min() >= scale[0] * 0.8
        assert share.max() <= min(1, scale[1] * 1.2)


def test_a_rectangle_that_never_fits_is_the_middle():
    batch, single = rectangles((1, 1), (4, 4), (20, 20), count=3)
    assert batch.tolist() == single.tolist() == [[7, 0, 5, 20]] * 3


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 5000),
    st.integers(1, 5000),
    st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted),
    st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)).map(sorted),
    st.integers(0, 2**32),
)
def test_a_region_is_never_empty_or_outside(height, width, scale, ratio, seed):
    plugin = params("random_resized_crop", scale=scale, ratio=ratio)
    region = plugin.region(height, width, np.random.default_rng(seed))
    top, left, high, wide = region
    assert all(type(each) is int for each in region)
    assert 0 <= top < top + high <= height
    assert 0 <= left < left + wide <= width
    assert plugin.region(height, width, np.random.default_rng(seed)) == region
