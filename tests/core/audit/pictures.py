"""Pictures that look like something, and what becomes of them on their way into a data set."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from tests.core.preparation.raw_data import prepared
from torchyard.core.audit.audit import audit
from torchyard.core.data.raw import ArraySplit, RawData


def pictures(count: int, side: int = 32, seed: int = 0) -> np.ndarray:
    """uint8 N x 3 x side x side with the spectrum of photographs: amplitude as 1 / frequency."""
    generator = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None])
    frequency[0, 0] = 1
    noise = np.fft.fft2(generator.normal(size=(count, 3, side, side)))
    grey = np.fft.fft2(generator.normal(size=(count, 1, side, side)))
    found = np.fft.ifft2((0.4 * noise + grey) / frequency).real
    found -= found.mean(axis=(2, 3), keepdims=True)
    found /= found.std(axis=(1, 2, 3), keepdims=True)
    return np.clip(128 + 45 * found, 0, 255).astype(np.uint8)


def shifted(image, down, right):
    padded = np.pad(image, ((0, 0), (2, 2), (2, 2)), mode="edge")
    side = image.shape[1]
    return padded[:, 2 + down : 2 + down + side, 2 + right : 2 + right + side]


def scaled_back(image, number):
    """Without up to two pixels of each side, but some, and as large as it was."""
    left, top, right, bottom = np.unravel_index(1 + number % 80, (3, 3, 3, 3))
    picture = Image.fromarray(image.transpose(1, 2, 0))
    box = int(left), int(top), 32 - int(right), 32 - int(bottom)
    return np.asarray(picture.crop(box).resize((32, 32))).transpose(2, 0, 1)


def compressed(image, quality):
    file = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(file, "jpeg", quality=quality)
    return np.asarray(Image.open(file)).transpose(2, 0, 1)


def brighter(image, factor):
    return np.clip(image * factor + 0.5, 0, 255).astype(np.uint8)


def changed(image, number):
    """The image after one of four changes, by number."""
    generator = np.random.default_rng(number)
    down, right = [(-2, 1), (2, -2), (0, 2), (1, 0), (-1, -2), (2, 0)][number // 4 % 6]
    return [
        lambda: shifted(image, down, right),
        lambda: compressed(image, int(generator.integers(50, 90))),
        lambda: brighter(image, generator.uniform(0.75, 1.3)),
        lambda: image[:, :, ::-1],
    ][number % 4]()


def audited(train, test, cache, classes=("cat", "dog"), **more):
    """The audit of arrays: (samples, labels) of each split."""
    content = RawData(classes, ArraySplit(*train), ArraySplit(*test), "here", **more)
    data = prepared(content, cache)
    return audit(data, lambda *step: None), data


def found(result, kind):
    """(split, index, other split, other index) of the findings of a kind."""
    return {
        (each.split, each.index, each.other_split, each.other_index)
        for each in result.findings
        if each.kind == kind
    }
