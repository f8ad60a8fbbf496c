"""Names of images."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, features

from tests.plugins.datasets.image_files import png
from torchyard.core.data.images.decoding import decode_image
from torchyard.plugins.datasets.sources.names import SUFFIXES, is_image


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_counts_as_an_image_can_be_decoded(suffix: str) -> None:
    image = Image.open(io.BytesIO(png(16, 16)))
    format = Image.registered_extensions()[suffix]
    if format == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    buffer = io.BytesIO()
    image.convert("L" if suffix == ".pgm" else "1" if suffix == ".pbm" else "RGB").save(
        buffer, format
    )
    assert decode_image(buffer.getvalue(), (3, 16, 16)).dtype == np.uint8
    assert is_image(f"cat/1{suffix.upper()}")


def test_what_is_hidden_is_no_image() -> None:
    for name in (".1.png", "cat/.1.png", ".git/1.png", "../1.png", "__MACOSX/cat/1.png"):
        assert not is_image(name)
    assert is_image("cat.d/1.2.png")
