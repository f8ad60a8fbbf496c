"""What the pages are filled with: text that stays text, and images that need no other file."""

import base64
import io

import numpy as np
import pytest
from jinja2 import UndefinedError
from PIL import Image

from torchyard.core.report.page import MAX_EXACT_SIDE, MAX_SIDE, image_uri, markdown_text, render


def decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition("base64,")[2])))


def test_text_in_markdown_marks_nothing_up():
    assert markdown_text("a|b\n <i> *c*") == r"a\|b &lt;i&gt; \*c\*"


def test_no_name_turns_or_hides_the_text_of_markdown():
    assert markdown_text("\u202eeman\x1b[8m") == r"\\u202eeman\\x1b\[8m"


def test_a_template_without_its_content_is_refused():
    with pytest.raises(UndefinedError):
        render("run.html")


@pytest.mark.parametrize("channels", [1, 3])
def test_a_small_image_keeps_its_pixels(channels):
    shape = (channels, 8, MAX_EXACT_SIDE)
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    pixels = np.asarray(decoded(image_uri(image)))
    np.testing.assert_array_equal(pixels, np.broadcast_to(image.transpose(1, 2, 0), pixels.shape))


def test_a_large_image_is_scaled_to_its_longer_side():
    picture = decoded(image_uri(np.zeros((3, 4 * MAX_SIDE, 2 * MAX_SIDE), np.uint8)))
    assert (picture.format, picture.size) == ("WEBP", (MAX_SIDE // 2, MAX_SIDE))
