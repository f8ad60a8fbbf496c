"""Colour and blur: torchvision's functions for the factors that are drawn."""

import itertools

import pytest
import torch
from torchvision.transforms import v2

from tests.plugins.augmentations.trying import changed, images, smooth
from torchyard.plugins.augmentations import colour

FACTORS = [0.0, 0.3, 0.95, 1.0, 1.4, 3.0]
FUNCTIONS = {
    "adjust_brightness": colour.brightened,
    "adjust_contrast": colour.contrasted,
    "adjust_saturation": colour.saturated,
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_factor_does_what_it_does_in_torchvision(name, channels):
    samples = images((channels, 20, 21), len(FACTORS))
    result = FUNCTIONS[name](samples, torch.tensor(FACTORS))
    expected = [
        getattr(v2.functional, name)(image, factor)
        for image, factor in zip(samples, FACTORS, strict=True)
    ]
    difference = (result.int() - torch.stack(expected).int()).abs()
    # Where the result is a whole number, float32 may be just below it.
    assert difference.max() <= 1
    assert difference.float().mean() < 0.02


def test_a_turned_hue_is_torchvisions():
    turns = torch.linspace(-0.5, 0.5, 21)
    samples = images((3, 40, 40), len(turns))
    samples[0, :, 0] = 77  # greys have no hue
    samples[1, :2, 0] = 200  # two channels share the greatest value
    result = colour.hue_turned(samples, turns)
    for image, source, turn in zip(result, samples, turns.tolist(), strict=True):
        expected = v2.functional.adjust_hue(source, turn)
        assert (image.int() - expected.int()).abs().max() <= 1
    assert torch.equal(result[10], samples[10])  # it was turned by 0
    assert torch.equal(result[0, :, 0], samples[0, :, 0])
    # Value and saturation stay: so do the greatest and the least of each pixel.
    for extreme in (torch.amax, torch.amin):
        assert torch.equal(extreme(result, 1), extreme(samples, 1))


def test_a_third_of_a_turn_exchanges_the_channels():
    samples = images((3, 9, 9), 8)
    third = torch.full((8,), 1 / 3)
    assert torch.equal(colour.hue_turned(samples, third), samples[:, [2, 0, 1]])


def test_each_jitter_alone_stays_within_its_range():
    samples = torch.full((500, 3, 4, 4), 100, dtype=torch.uint8)
    off = {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0}
    result = changed("color_jitter", samples, **off | {"brightness": 0.4})
    assert result.amin() in range(59, 63)
    assert result.amax() in range(137, 141)
    assert torch.equal(changed("color_jitter", samples, **off), samples)
    result = changed("color_jitter", samples, **off | {"brightness": 3})
    assert result.amin() < 10  # the factor is never negative
    # A grey image has no contrast, saturation or hue to change.
    others = {"contrast": 0.9, "saturation": 0.9, "hue": 0.5}
    result = changed("color_jitter", samples, **off | others)
    assert (result.int() - samples.int()).abs().max() <= 2  # each leaves fractions out


def test_the_order_of_a_jitter_is_drawn_for_each_image(monkeypatch):
    one = images((3, 8, 8), 1)
    half, none = torch.tensor([0.5]), torch.tensor([0.0])
    factors = itertools.cycle([half, none])  # of brightness and saturation

    def fixed(samples, low, high, rows=1):
        if rows > 1:  # the order is drawn
            return torch.rand(rows, len(samples))
        return (next(factors) if low < high else torch.tensor([0.0])).expand(len(samples))

    monkeypatch.setattr(colour, "uniform", fixed)
    samples = one.expand(400, -1, -1, -1)
    result = changed("color_jitter", samples, contrast=0, hue=0)
    first = colour.saturated(colour.brightened(one, half), none)
    second = colour.brightened(colour.saturated(one, none), half)
    assert not torch.equal(first, second)
    ways = {(torch.equal(image, first[0]), torch.equal(image, second[0])) for image in result}
    assert ways == {(True, False), (False, True)}


def test_grey_images_are_torchvisions_and_keep_their_channels():
    samples = images((3, 13, 9))
    result = changed("grayscale", samples, p=1)
    assert torch.equal(result, v2.functional.rgb_to_grayscale(samples, 3))
    grey = images((1, 13, 9))
    assert torch.equal(changed("grayscale", grey, p=1), grey)


@pytest.mark.parametrize("kernel_size", [3, 5, 9])
@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
@pytest.mark.parametrize("shape", [(3, 24, 24), (1, 12, 31)])
def test_a_blur_is_torchvisions(kernel_size, sigma, shape):
    samples = images(shape, 4)
    result = changed("blur", samples, kernel_size=kernel_size, sigma=(sigma, sigma))
    expected = v2.functional.gaussian_blur(samples, kernel_size, [sigma, sigma])
    assert (result.int() - expected.int()).abs().max() <= 1


def test_the_width_of_a_blur_is_drawn_for_each_image():
    samples = images((1, 20, 20), 1).expand(50, -1, -1, -1)
    contrast = changed("blur", samples).float().std((1, 2, 3))
    assert contrast.max() > 1.5 * contrast.min()


def test_a_kernel_wider_than_the_image_is_mirrored_again():
    flat = torch.full((3, 3, 2, 1), 80, dtype=torch.uint8)
    assert torch.equal(changed("blur", flat, kernel_size=23, sigma=(5, 5)), flat)
    assert changed("blur", smooth((3, 3, 5), 2), kernel_size=23).shape == (2, 3, 3, 5)
