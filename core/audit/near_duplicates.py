"""Images that are nearly the same: shifted, cropped, mirrored, brighter, compressed again.

Three sieves, each finer and slower than the one before:

1. the cosine of embeddings of 32 numbers, of all pairs, the mirror images with them;
2. the correlation of grey 16 x 16 pictures without their broad light and shade, over shifts of
   one pixel, of some hundred pairs for each image at most;
3. the same of 32 x 32, near the best of those shifts.

Broad light and shade is taken away, because two pictures of a car on a road agree in it; what is
left, edges and texture, agrees in duplicates alone (`docs/audit.md` has the figures).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from torchyard.core.audit.fingerprints import (
    COARSE,
    EVEN,
    FINE,
    SHIFTS,
    WINDOW,
    Fingerprints,
    Floats,
)
from torchyard.core.data.photos import decoding_threads

CANDIDATES = 80  # for each image, in the mean: what the second sieve sees at most
LEAST_COSINE = 0.5
COARSE_CORRELATION = 0.8
CORRELATION = 0.85  # chosen on images of even numbers of CIFAR-10: docs/audit.md
PARTNERS = 5  # from which on an image is no duplicate of what resembles it, but of a common kind
ROWS = 1024  # images whose pairs with all later ones are compared by one thread
TILE = 256  # rows of the table of all pairs, and twice as many columns: they stay in the cache
CHUNK = 2048  # pairs that are compared at once
FINE_WINDOW = FINE - 6


@dataclass(frozen=True)
class Pairs:
    """Pairs of images.

    Attributes:
        first, second: int64 P, indices; the first is the smaller.
        correlation: float32 P, of their detail at the best shift; 1 is the same picture.
        mirrored: bool P, whether one is the mirror image of the other.
    """

    first: npt.NDArray[np.int64]
    second: npt.NDArray[np.int64]
    correlation: Floats
    mirrored: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.first)

    def __getitem__(self, chosen: npt.NDArray[np.bool_]) -> Pairs:
        """Those that are chosen."""
        return Pairs(
            self.first[chosen],
            self.second[chosen],
            self.correlation[chosen],
            self.mirrored[chosen],
        )


def near_duplicates(
    prints: Fingerprints,
    chosen: npt.NDArray[np.int64],
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Pairs:
    """Find all pairs of near duplicates. Memory does not grow with the number of pairs compared.

    Args:
        prints: of the images.
        chosen: indices of those to compare, ascending; images of the same pixels need one only.
        on_progress: called with images done and all images.
    """
    embedding = prints.embedding[chosen]
    detailed = embedding.any(axis=1)
    chosen, embedding = chosen[detailed], embedding[detailed]
    even = np.ascontiguousarray(embedding[:, :EVEN])
    odd = np.ascontiguousarray(embedding[:, EVEN:])
    found: list[Pairs] = []
    # Threads of our own, a block each: comparing and counting take as long as multiplying.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(decoding_threads()) as threads:
        least = _least_cosine(even, odd)

        def search(start: int) -> Pairs:
            return _compared(prints, chosen, start, *_candidates(even, odd, start, least))

        starts = range(0, len(chosen), ROWS)
        for start, pairs in zip(starts, threads.map(search, starts), strict=True):
            found.append(pairs)
            on_progress(min(start + ROWS, len(chosen)), len(chosen))
    if not found:
        none = np.empty(0, np.int64)
        return Pairs(none, none, none.astype(np.float32), none.astype(bool))
    columns = zip(*((p.first, p.second, p.correlation, p.mirrored) for p in found), strict=True)
    pairs = Pairs(*(np.concatenate(column) for column in columns))
    return pairs[pairs.correlation >= _least_correlation(pairs, len(chosen))]


def _least_correlation(pairs: Pairs, count: int) -> float:
    """From which correlation on images are near duplicates, in this data set.

    Where most images resemble several others, as handwritten digits do, likeness says little:
    there a pair has to stand out from what the images' fifth-best partners have, by six robust
    standard deviations of the logarithm of 1 - correlation.
    """
    both = np.concatenate([pairs.first, pairs.second])
    order = np.lexsort((-np.tile(pairs.correlation, 2), both))
    images, starts, partners = np.unique(both[order], return_index=True, return_counts=True)
    many = partners >= PARTNERS
    if 2 * many.sum() < count or not len(images):
        return CORRELATION
    fifth = np.tile(pairs.correlation, 2)[order][starts[many] + PARTNERS - 1]
    distance = np.log(np.maximum(1 - fifth, 1e-4))
    middle = np.median(distance)
    spread = 1.4826 * np.median(np.abs(distance - middle))
    return float(1 - np.exp(middle - 6 * spread))


def _cosines(even: Floats, odd: Floats, rows: slice, columns: slice) -> Floats:
    """The greater of the cosines to an image and to its mirror image."""
    found: Floats = odd[rows] @ odd[columns].T
    np.abs(found, out=found)
    found += even[rows] @ even[columns].T
    return found


def _least_cosine(even: Floats, odd: Floats) -> float:
    """From which cosine on a pair is looked at: so that there are not too many, found by sample."""
    count = len(even)
    sample = np.linspace(0, count - 1, min(count, 256)).astype(np.int64)
    if count <= CANDIDATES:
        return LEAST_COSINE
    cosines = np.abs(odd[sample] @ odd.T) + even[sample] @ even.T
    rank = len(sample) * (CANDIDATES + 1)  # each is its own neighbour, too
    return max(LEAST_COSINE, float(-np.partition(-cosines.ravel(), rank)[rank]))


def _candidates(
    even: Floats, odd: Floats, start: int, least: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The pairs of a block of rows with later images that may be alike, sorted by the row."""
    firsts, seconds = [], []
    for top in range(start, min(start + ROWS, len(even)), TILE):
        rows = slice(top, min(top + TILE, start + ROWS))
        for left in range(top, len(even), 2 * TILE):
            cosines = _cosines(even, odd, rows, slice(left, left + 2 * TILE))
            first, second = np.divmod(np.flatnonzero(cosines > least), cosines.shape[1])
            firsts.append(first + (top - start))
            seconds.append(second + left)
    first, second = np.concatenate(firsts), np.concatenate(seconds)
    later = second > start + first
    first, second = first[later], second[later]
    order = np.argsort(first, kind="stable")
    return first[order], second[order]


def _compared(
    prints: Fingerprints,
    chosen: npt.NDArray[np.int64],
    start: int,
    first: npt.NDArray[np.int64],
    second: npt.NDArray[np.int64],
) -> Pairs:
    """The second and the third sieve, for the pairs of a block of rows, sorted by the first."""
    templates = _templates(prints.coarse[chosen[start : start + ROWS]].astype(np.float32))
    one, other = chosen[start + first], chosen[second]
    best, places = np.empty(len(first), np.float32), np.empty(len(first), np.int64)
    for low in range(0, len(first), CHUNK):
        part = slice(low, low + CHUNK)
        rows = first[part]
        pictures = prints.coarse[other[part]].reshape(len(rows), -1).astype(np.float32)
        products = np.empty((len(rows), templates.shape[1]), np.float32)
        bounds = np.flatnonzero(np.diff(rows, prepend=-1, append=-1))
        for begin, end in pairwise(bounds):
            np.matmul(pictures[begin:end], templates[rows[begin]].T, out=products[begin:end])
        by_mirror = products.reshape(len(rows), 2, -1)
        by_mirror /= prints.lengths[other[part], None]
        places[part] = products.argmax(axis=1)
        best[part] = np.take_along_axis(products, places[part, None], axis=1)[:, 0]
    alike = np.flatnonzero(best >= COARSE_CORRELATION)
    one, other, places = one[alike], other[alike], places[alike]
    correlation = np.empty(len(one), np.float32)
    for low in range(0, len(one), CHUNK):
        part = slice(low, low + CHUNK)
        fine = prints.fine[one[part]], prints.fine[other[part]]
        correlation[part] = _fine_correlation(*fine, places[part])
    return Pairs(one, other, correlation, places >= len(SHIFTS))[correlation >= CORRELATION]


def _templates(pictures: Floats) -> Floats:
    """The middle of each picture and its mirror image, at every shift: N x 18 x 256, unit length.

    Their products with other pictures are the correlations, but for the others' lengths.
    """
    middle = pictures[:, 1:-1, 1:-1]
    middle = middle - middle.mean(axis=(1, 2), keepdims=True)
    length = np.sqrt(np.square(middle).sum(axis=(1, 2), keepdims=True))
    middle = middle / np.maximum(length, 1e-6)
    found = np.zeros((len(pictures), 2, len(SHIFTS), COARSE, COARSE), np.float32)
    for place, (down, right) in enumerate(SHIFTS):
        window = np.s_[down : down + WINDOW, right : right + WINDOW]
        found[(slice(None), 0, place, *window)] = middle
        found[(slice(None), 1, place, *window)] = middle[..., ::-1]
    return found.reshape(len(pictures), -1, COARSE * COARSE)


def _fine_correlation(
    first: npt.NDArray[np.int8], second: npt.NDArray[np.int8], places: npt.NDArray[np.int64]
) -> Floats:
    """The greatest correlation of N pairs of 32 x 32, near the shift that was best for 16 x 16."""
    one, other = first.astype(np.float32), second.astype(np.float32)
    mirrored, shift = np.divmod(places, len(SHIFTS))
    one[mirrored > 0] = one[mirrored > 0][..., ::-1]
    middle = one[:, 3:-3, 3:-3]
    length = np.sqrt(np.einsum("nij,nij->n", middle, middle))
    best = np.full(len(one), -1, np.float32)
    for place, (down, right) in enumerate(SHIFTS):
        here = shift == place
        if not here.any():
            continue
        part, pictures = middle[here], other[here]
        for top, left in product(_near(down), _near(right)):
            window = pictures[:, top : top + FINE_WINDOW, left : left + FINE_WINDOW]
            products = np.einsum("nij,nij->n", part, window)
            lengths = length[here] * np.sqrt(np.einsum("nij,nij->n", window, window))
            best[here] = np.maximum(best[here], products / np.maximum(lengths, 1e-6))
    return best


def _near(shift: int) -> range:
    """Where a fine window may begin, for a shift of the coarse one: within two pixels of it."""
    middle = 2 * shift + 1  # of 0 to 6, where 3 is no shift
    return range(middle - 1, middle + 2)
