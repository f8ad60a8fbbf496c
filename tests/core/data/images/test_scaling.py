"""How images of any shape become images of the input size."""

import io

import numpy as np
import pytest
from hypothesis import given as for_all
from hypothesis import strategies as st
from PIL import Image

from torchyard.core.data.images.decoding import decode_image
from torchyard.core.data.images.reading import ImageReading


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def stripes(height, width, columns):
    """Black, with the given columns white."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, columns] = 255
    return png(pixels)


def test_crop_takes_the_middle_and_pad_all_of_it():
    wide = stripes(20, 60, np.r_[0:20, 40:60])  # black in the middle
    cropped = decode_image(wide, (3, 20, 20), reading=ImageReading(resize="crop"))
    assert cropped.max() == 0
    squashed = decode_image(wide, (1, 20, 20))
    assert squashed[0, 0, [0, 10, 19]].tolist() == [255, 0, 255]
    reading = ImageReading(resize="pad", background="#ff0000")
    padded = decode_image(wide, (3, 30, 30), reading=reading)
    assert padded[:, 0, 0].tolist() == padded[:, 29, 29].tolist() == [255, 0, 0]
    assert padded[:, 15, [0, 15, 29]].T.tolist() == [[255] * 3, [0] * 3, [255] * 3]
    grey = decode_image(wide, (1, 30, 30), reading=reading)
    assert grey[0, 0, 0] == 76  # red's share of the brightness
    tall = decode_image(stripes(60, 20, []), (3, 30, 30), reading=reading)
    assert tall[0, 0, [0, 9, 10, 19, 20]].tolist() == [255, 255, 0, 0, 255]


def test_the_crop_ratio_leaves_a_margin():
    framed = np.full((40, 40, 3), 255, np.uint8)
    framed[5:35, 5:35] = 0
    at = {ratio: ImageReading(resize="crop", crop_ratio=ratio) for ratio in (1, 0.75)}
    assert decode_image(png(framed), (3, 40, 40), reading=at[1])[0, 0, 0] == 255
    inner = decode_image(png(framed), (3, 40, 40), reading=at[0.75])
    assert inner.shape == (3, 40, 40)
    assert inner[:, 2:-2, 2:-2].max() == 0  # the filter looks a pixel beyond
    file = io.BytesIO()  # a plain JPEG of the input size goes another way
    Image.fromarray(framed).save(file, "JPEG", quality=95)
    assert decode_image(file.getvalue(), (3, 40, 40), reading=at[0.75])[0, 20].max() < 90


@for_all(
    st.tuples(*[st.integers(1, 70)] * 4),
    st.sampled_from(["crop", "pad", "squash"]),
    st.floats(0.05, 1),
)
def test_every_shape_becomes_every_other(sides, resize, ratio):
    height, width, *target = sides
    plain = png(np.full((height, width, 3), (9, 99, 200), np.uint8))
    reading = ImageReading(resize=resize, crop_ratio=ratio, background=(9, 99, 200))
    found = decode_image(plain, (3, *target), reading=reading)
    assert found.shape == (3, *target)
    assert (found == np.array([9, 99, 200])[:, None, None]).all()


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (150, 130)])
def test_a_jpeg_decoded_at_a_reduced_scale_shows_the_same(size):
    ramp = np.linspace(0, 255, size[0] * size[1]).reshape(size[1], size[0]).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(ramp).save(file, "JPEG", quality=95)
    for reading in (ImageReading(resize="crop", crop_ratio=0.8), ImageReading(resize="pad")):
        drafted = decode_image(file.getvalue(), (1, 32, 32), reading=reading)
        whole = decode_image(png(ramp), (1, 32, 32), reading=reading)
        assert np.abs(drafted.astype(int) - whole).mean() < 2
