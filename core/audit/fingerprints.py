"""What an audit keeps of every sample: a digest, and of images small pictures to compare them by.

Samples are read once, block by block, and a second time a few thousand of them, which say what
images of this data set have in common.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from torchyard.core.data.dataset import rows_of
from torchyard.core.data.images.photos import decoding_threads

if TYPE_CHECKING:
    from torchyard.core.data.dataset import Split

Floats = npt.NDArray[np.float32]

COARSE, FINE = 16, 32  # sides of the small pictures
WINDOW = 14  # of a coarse picture, that is compared with another's, at each of SHIFTS
SHIFTS = tuple(product((0, 1, 2), repeat=2))
# Of the pictures whose components are compared, 7 x 7 of 16 x 16 but for the border, which a
# shifted image has from elsewhere. Blurred so much, a shift of a pixel or two changes little.
SPOTS, BLUR = 7, 1.7
COMPONENTS = 28  # principal ones, of what a mirror image keeps
# Of their standard deviations: 0 would compare colours and light alone, 1 mostly noise.
WHITENING = 0.45
FITTED = 8192  # images from which the components are found
NOISE = 1.0  # the least deviation, of 0 to 255, of an image that has something on it
BLOCK, BLOCK_BYTES = 512, 1 << 20  # samples that are read at once, at most
DIGEST = np.dtype("V16")


@dataclass(frozen=True)
class Fingerprints:
    """The samples of all splits, one split after another.

    Attributes:
        digests: N, of the samples' values.
        deviation: float32 N, of each channel from its mean, 0 to 255: of the pixels where that is
            less than `NOISE`, else of 16 x 16; of vectors of their values.
        embedding: float32 N x 28 of unit length; the cosine says which images may be alike. All
            zero for an image without detail, and of no columns where samples are not images.
        coarse, fine: int8 N x 16 x 16 and N x 32 x 32: the grey picture without its broad light
            and shade, each scaled to use the range; in files that only this process sees.
        lengths: float32 N x 9, of the windows of the coarse picture, each without its mean.
    """

    digests: npt.NDArray[np.void]
    deviation: Floats
    embedding: Floats
    coarse: npt.NDArray[np.int8]
    fine: npt.NDArray[np.int8]
    lengths: Floats


def fingerprints(
    splits: Sequence[Split],
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    folder: Path | None = None,
) -> Fingerprints:
    """Read every sample of the splits.

    Args:
        on_progress: called with samples read and all samples.
        folder: of the temporary files; None: the system's, which may be in memory.

    Raises:
        RunError: the prepared data are damaged.
        OSError: they cannot be read.
    """
    total = sum(len(split.samples) for split in splits)
    digests, deviation = np.empty(total, DIGEST), np.empty(total, np.float32)
    with threadpool_limits(1, "blas"):
        basis = Basis.of(splits)
    images = total if basis else 0
    coarse, fine = (_unnamed_array(images, side, folder) for side in (COARSE, FINE))
    lengths = np.empty((images, len(SHIFTS)), np.float32)
    embedding = np.zeros((total, COMPONENTS if basis else 0), np.float32)
    # Small pictures as rows: what is done to them is a few products of large matrices. Of the
    # light that is as broad as this 8 x 8 pixels know enough.
    pooling, detail = _of_pictures(_area_weights(COARSE, 8)), _detail()
    broad = _of_pictures(_blur(FINE, 4.0) @ np.repeat(np.eye(8, dtype=np.float32), 4, axis=0))

    def read(split: Split, rows: slice, place: int) -> int:
        block = rows_of(split.samples)[rows]
        here = slice(place, place + len(block))
        flat = np.ascontiguousarray(block).reshape(len(block), -1)
        digests[here] = _digests(flat)
        if basis is None:
            deviation[here] = np.ptp(flat, axis=1) if flat.shape[1] > 1 else np.inf
            return len(block)
        pixels = _scaled(block[:, :4].astype(np.float32), FINE)
        small = _halved(pixels)
        # At most that of all pixels, which is asked for where it says that there is nothing.
        deviation[here] = _deviation(small)
        empty = np.flatnonzero(deviation[here] < NOISE)
        deviation[place + empty] = _deviation(pixels[empty])
        # What varies less is noise, whose shape says nothing.
        embedding[here] = basis(small) * (deviation[here] >= NOISE)[:, None]
        grey, sharp = (each.mean(axis=1).reshape(len(block), -1) for each in (small, pixels))
        fine[here] = _quantized(sharp - grey @ pooling @ broad)
        coarse[here] = _quantized(grey @ detail)
        lengths[here] = _lengths(coarse[here].reshape(len(block), -1).astype(np.float32))
        return len(block)

    done = 0
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(decoding_threads()) as threads:
        for count in threads.map(read, *zip(*_blocks(splits), strict=True)):
            done += count
            on_progress(done, total)
    return Fingerprints(digests, deviation, embedding, coarse, fine, lengths)


@dataclass(frozen=True)
class Basis:
    """Principal components of small colour pictures, of what is the same in their mirror images.

    Attributes:
        mean: float32 C * 7 * 7.
        vectors: float32 C * 7 * 7 x components, scaled.
    """

    mean: Floats
    vectors: Floats

    @classmethod
    def of(cls, splits: Sequence[Split]) -> Basis | None:
        """The components of some images, evenly spread; None where samples are not images."""
        if splits[0].samples.ndim != 4:
            return None
        share = FITTED / max(1, sum(len(split.samples) for split in splits))
        pictures = []
        for split in splits:
            count = min(len(split.samples), max(1, round(share * len(split.samples))))
            chosen = np.linspace(0, len(split.samples) - 1, count).astype(np.int64)
            pictures.append(small_pictures(rows_of(split.samples)[chosen]))
        spots = _spots(np.concatenate(pictures))
        spots = spots - spots.mean(axis=(1, 2, 3), keepdims=True)
        length = np.sqrt(np.einsum("ncij,ncij->n", spots, spots))
        spots /= np.maximum(length, 1e-6)[:, None, None, None]
        even = ((spots + spots[..., ::-1]) / 2).reshape(len(spots), -1)
        mean = even.mean(axis=0, dtype=np.float32)
        return cls(mean, _components(even - mean, COMPONENTS))

    def __call__(self, pictures: Floats) -> Floats:
        """Unit vectors of N x C x 16 x 16."""
        # A picture's product with a symmetric vector is that of what its mirror image has, too.
        flat = _spots(pictures).reshape(len(pictures), -1)
        light = flat.mean(axis=1, keepdims=True)
        squares = np.einsum("np,np->n", flat, flat)[:, None] - flat.shape[1] * light**2
        found = flat @ self.vectors - light * self.vectors.sum(axis=0)
        found = found / np.sqrt(np.maximum(squares, 1)) - self.mean @ self.vectors
        length = np.linalg.norm(found, axis=1, keepdims=True)
        return np.asarray(found / np.maximum(length, 1e-6), np.float32)


def _blocks(splits: Sequence[Split]) -> Iterator[tuple[Split, slice, int]]:
    """Some hundred samples each: their split, their rows, and the place of the first of all."""
    place = 0
    for split in splits:
        count = len(split.samples)
        size = min(BLOCK, max(1, BLOCK_BYTES * count // max(1, split.samples.nbytes)))
        for start in range(0, count, size):
            yield split, slice(start, min(start + size, count)), place + start
        place += count


def _digests(flat: npt.NDArray[Any]) -> npt.NDArray[np.void]:
    """A digest of each row; of numbers, +0 and -0 are equal."""
    if flat.dtype.kind == "f":
        flat = flat + np.zeros(1, flat.dtype)
    size = DIGEST.itemsize
    joined = b"".join(hashlib.blake2b(row.data, digest_size=size).digest() for row in flat)
    return np.frombuffer(joined, DIGEST)


def small_pictures(block: npt.NDArray[Any]) -> Floats:
    """Images of any size as float32 N x C x 16 x 16; of more than four channels the first four."""
    return _halved(_scaled(block[:, :4].astype(np.float32), FINE))


def _halved(pictures: Floats) -> Floats:
    """N x C x 32 x 32 as 16 x 16."""
    rows = pictures[:, :, ::2] + pictures[:, :, 1::2]
    halved = rows.reshape(-1, FINE) @ (_area_weights(FINE, COARSE).T / 2)
    return np.asarray(halved.reshape(*pictures.shape[:2], COARSE, COARSE), np.float32)


def _deviation(pixels: Floats) -> Floats:
    """The standard deviation of each image: of the channel in which it is greatest."""
    flat = pixels.reshape(*pixels.shape[:2], pixels.shape[2] * pixels.shape[3])
    mean = flat.mean(axis=2)
    variance = np.einsum("ncp,ncp->nc", flat, flat) / flat.shape[2] - np.square(mean)
    return np.asarray(np.sqrt(np.maximum(variance, 0)).max(axis=1), np.float32)


def _lengths(pictures: Floats) -> Floats:
    """N x 9: the length of what each window of a coarse picture has, without its mean."""
    windows = np.zeros((len(SHIFTS), COARSE, COARSE), np.float32)
    for window, (down, right) in zip(windows, SHIFTS, strict=True):
        window[down : down + WINDOW, right : right + WINDOW] = 1
    squares, total = (each @ windows.reshape(len(SHIFTS), -1).T for each in (pictures**2, pictures))
    return np.asarray(np.sqrt(np.maximum(squares - np.square(total) / WINDOW**2, 1e-6)))


def _scaled(images: Floats, side: int) -> Floats:
    """Images of any size as N x C x side x side: each new pixel the mean of what it covers."""
    if images.shape[2:] == (side, side):
        return images
    rows, columns = (_area_weights(length, side) for length in images.shape[2:])
    return np.asarray(np.matmul(np.matmul(rows, images), columns.T), np.float32)


def _area_weights(length: int, side: int) -> Floats:
    """side x length: which share of each new pixel is covered by each old one."""
    edges = np.linspace(0, length, side + 1)
    low = np.maximum(edges[:-1, None], np.arange(length))
    high = np.minimum(edges[1:, None], np.arange(1, length + 1))
    return np.asarray(np.maximum(0, high - low) * side / length, np.float32)


def _blur(side: int, sigma: float) -> Floats:
    """side x side: Gaussian weights; beyond the edges there is nothing."""
    distance = np.subtract.outer(np.arange(side), np.arange(side))
    kernel = np.exp(-0.5 * (distance / sigma) ** 2)
    return np.asarray(kernel / kernel.sum(axis=1, keepdims=True), np.float32)


def _of_pictures(weights: Floats) -> Floats:
    """What is to be done to rows and to columns, as a matrix to multiply rows of pixels by."""
    return np.ascontiguousarray(np.kron(weights, weights).T)


def _detail() -> Floats:
    """256 x 256: 16 x 16 pixels, a little blurred, without broad light and shade."""
    return _of_pictures(_blur(COARSE, 0.6)) - _of_pictures(_blur(COARSE, 3.0))


def _quantized(pictures: Floats) -> npt.NDArray[np.int8]:
    """N x P as N x p x p, each scaled so that its greatest value is 127: correlations stay."""
    most = np.maximum(pictures.max(axis=1), -pictures.min(axis=1))[:, None]
    scaled = np.rint(pictures * (127 / np.maximum(most, 1e-6)))
    side = math.isqrt(pictures.shape[1])
    return np.asarray(scaled, np.int8).reshape(-1, side, side)


def _spots(pictures: Floats) -> Floats:
    """N x C x 16 x 16 as N x C x 7 x 7, blurred and without the border."""
    weights = _area_weights(2 * SPOTS, SPOTS) @ _blur(COARSE, BLUR)[1:-1]
    flat = pictures.reshape(-1, COARSE**2) @ _of_pictures(weights)
    return flat.reshape(*pictures.shape[:2], SPOTS, SPOTS)


def _components(parts: npt.NDArray[np.floating[Any]], count: int) -> Floats:
    """The first principal components, each divided by a power of its standard deviation."""
    values, vectors = np.linalg.eigh(parts.T @ parts / len(parts))
    values, vectors = values[::-1][:count], vectors[:, ::-1][:, :count]
    scale = np.maximum(values, values[0] * 1e-6 + 1e-12) ** -WHITENING
    # A component that these images do not have is not blown up to noise.
    return np.asarray(vectors * np.where(values > values[0] * 1e-6, scale, 0), np.float32)


def _unnamed_array(count: int, side: int, folder: Path | None) -> npt.NDArray[np.int8]:
    """An array N x side x side in a file that is gone when nobody holds it."""
    if count == 0:
        return np.empty((0, side, side), np.int8)
    file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - the map keeps it
    # As a plain array: rows of a `memmap` take twice as long to choose.
    return np.asarray(np.memmap(file, np.int8, "w+", shape=(count, side, side)))
