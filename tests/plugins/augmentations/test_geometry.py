"""Rotations and affine maps are torchvision's, image by image."""

import math

import pytest
import torch
from torchvision.transforms import v2

from tests.plugins.augmentations.trying import changed, images, smooth
from torchyard.plugins.augmentations import geometry

SHAPES = [(3, 24, 24), (1, 17, 30), (3, 31, 16)]


@pytest.fixture
def drawn(monkeypatch):
    """What is drawn for each image: tensors of N, in a list."""
    found, change = [], geometry.change

    def recorded(samples, chosen, how, *each):
        found.extend(each)
        return change(samples, chosen, how, *each)

    monkeypatch.setattr(geometry, "change", recorded)
    return found


def assert_like(result, expected, interpolation):
    different = (result.int() - expected.int()).abs()
    if interpolation == "bilinear":
        assert different.max() <= 1
    else:  # a place between two pixels may be rounded either way
        assert (different > 0).float().mean() < 0.01


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_a_rotation_is_torchvisions(shape, interpolation, drawn):
    samples = smooth(shape)
    result = changed("rotate", samples, degrees=180, interpolation=interpolation)
    angles = drawn[0].rad2deg()
    assert angles.min() < -90
    assert angles.max() > 90
    expected = [
        v2.functional.affine(
            image, float(angle), [0, 0], 1.0, [0.0], v2.InterpolationMode(interpolation)
        )
        for image, angle in zip(samples, angles, strict=True)
    ]
    assert_like(result, torch.stack(expected), interpolation)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_an_affine_map_is_torchvisions(shape, interpolation, drawn):
    samples = smooth(shape)
    chosen = {"degrees": 90, "translate": (0.3, 0.2), "scale": (0.5, 1.5), "shear": 40}
    result = changed("affine", samples, interpolation=interpolation, **chosen)
    angle, right, down, scale, shear = drawn
    for values, most in ((right, 0.3 * shape[2]), (down, 0.2 * shape[1])):
        assert values.abs().max() <= round(most)
        assert torch.equal(values, values.round())
    expected = [
        v2.functional.affine(
            samples[number],
            math.degrees(angle[number]),
            [float(right[number]), float(down[number])],
            float(scale[number]),
            [math.degrees(shear[number]), 0.0],
            v2.InterpolationMode(interpolation),
        )
        for number in range(len(samples))
    ]
    assert_like(result, torch.stack(expected), interpolation)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_what_comes_from_outside_is_filled(interpolation):
    white = torch.full((20, 3, 16, 16), 255, dtype=torch.uint8)
    grey = torch.full_like(white, 90)
    for fill, samples in ((0, white), (90, grey)):
        result = changed("rotate", samples, degrees=90, fill=fill, interpolation=interpolation)
        corner = result[:, 0, 0, 0]
        assert (corner == fill).float().mean() > 0.5
        if fill == 90:
            assert torch.equal(result, samples)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_no_rotation_and_no_map_leave_images_as_they_are(interpolation):
    samples = images((3, 33, 20))
    none = {"degrees": 0, "interpolation": interpolation}
    assert torch.equal(changed("rotate", samples, **none), samples)
    none |= {"translate": (0, 0), "scale": (1, 1), "shear": 0}
    assert torch.equal(changed("affine", samples, **none), samples)
