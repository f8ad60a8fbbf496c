"""Images that are nearly the same: shifted, cropped, mirrored, brighter, compressed again.

Three sieves, each finer and slower than the one before:

1. the cosine of 28 numbers, the same for a mirror image, of all pairs;
2. the correlation of grey 16 x 16 pictures without their broad light and shade, over shifts of
   one pixel, of twenty pairs for each image in the mean;
3. the same of 32 x 32, near the best of those shifts; and where that leaves a doubt, after one of
   the two has been scaled as the other is.

Broad light and shade is taken away, because two pictures of a car on a road agree in it; what is
left, edges and texture, agrees in duplicates alone (`docs/audit.md` has the figures).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from torchyard.core.audit.alignment import rescaled_correlation, shifted_correlation
from torchyard.core.audit.fingerprints import COARSE, SHIFTS, WINDOW, Fingerprints, Floats
from torchyard.core.data.images.photos import decoding_threads

Ints = npt.NDArray[np.int64]

CANDIDATES = 20  # for each image, in the mean: what the second sieve sees at most
LEAST_COSINE = 0.5
COARSE_CORRELATION = 0.82
CORRELATION = 0.85  # chosen on images of even numbers of CIFAR-10: docs/audit.md
RESCALABLE, RESCALED = 0.55, 0.9  # as they are, and after one has the other's scale
PARTNERS = 5  # from which on an image is no duplicate of what resembles it, but of a common kind
ROWS = 1024  # images whose pairs with all later ones are compared by one thread
TILE = 256  # rows of the table of all pairs, and twice as many columns: they stay in the cache
CHUNK, FINE_CHUNK = 1024, 128  # pairs that are compared at once


@dataclass(frozen=True)
class Pairs:
    """Pairs of images.

    Attributes:
        first, second: int64 P, indices; the first is the smaller.
        correlation: float32 P, of their detail at the best shift; 1 is the same picture.
        mirrored: bool P, whether one is the mirror image of the other.
    """

    first: Ints
    second: Ints
    correlation: Floats
    mirrored: npt.NDArray[np.bool_]

    @classmethod
    def joined(cls, parts: Sequence[Pairs]) -> Pairs:
        """Those of all parts, one after another."""
        none = np.empty(0, np.int64)
        empty = cls(none, none, none.astype(np.float32), none.astype(bool))
        columns = zip(*(tuple(vars(each).values()) for each in (empty, *parts)), strict=True)
        return cls(*(np.concatenate(column) for column in columns))

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
    chosen: Ints,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Pairs:
    """Find all pairs of near duplicates. Memory does not grow with the number of pairs compared.

    Args:
        prints: of the images.
        chosen: indices of those to compare, ascending; images of the same pixels need one only.
        on_progress: called with images done and all images.
    """
    chosen = chosen[np.asarray(prints.embedding.any(axis=1))[chosen]]
    embedding = prints.embedding[chosen]
    found: list[Pairs] = []
    # Threads of our own, a block each: comparing and counting take as long as multiplying.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(decoding_threads()) as threads:
        least = _least_cosine(embedding)

        def search(start: int) -> Pairs:
            return _compared(prints, chosen, start, *_candidates(embedding, start, least))

        starts = range(0, len(chosen), ROWS)
        for start, pairs in zip(starts, threads.map(search, starts), strict=True):
            found.append(pairs)
            on_progress(min(start + ROWS, len(chosen)), len(chosen))
    pairs = Pairs.joined(found)
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


def _least_cosine(embedding: Floats) -> float:
    """From which cosine on a pair is looked at: so that there are not too many, found by sample."""
    count = len(embedding)
    sample = np.linspace(0, count - 1, min(count, 256)).astype(np.int64)
    if count <= CANDIDATES:
        return LEAST_COSINE
    rank = len(sample) * (CANDIDATES + 1)  # each is its own neighbour, too
    greatest = np.full(rank + 1, LEAST_COSINE, np.float32)
    for left in range(0, count, ROWS):
        cosines = embedding[sample] @ embedding[left : left + ROWS].T
        more = cosines[cosines > greatest[0]]
        greatest = np.partition(np.concatenate([greatest, more]), len(more))[len(more) :]
    return float(greatest[0])


def _candidates(embedding: Floats, start: int, least: float) -> tuple[Ints, Ints]:
    """The pairs of a block of rows with later images that may be alike, sorted by the row."""
    firsts, seconds = [], []
    for top in range(start, min(start + ROWS, len(embedding)), TILE):
        rows = embedding[top : min(top + TILE, start + ROWS)]
        for left in range(top, len(embedding), 2 * TILE):
            cosines = rows @ embedding[left : left + 2 * TILE].T
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
    chosen: Ints,
    start: int,
    first: Ints,
    second: Ints,
) -> Pairs:
    """The second and the third sieve, for the pairs of a block of rows, sorted by the first."""
    templates = _templates(prints.coarse[chosen[start : start + ROWS]].astype(np.float32))
    columns = first, chosen[start + first], chosen[second]
    alike = [
        _alike(prints, templates, *(column[low : low + CHUNK] for column in columns))
        for low in range(0, max(1, len(first)), CHUNK)
    ]
    one, other, places = (np.concatenate(column) for column in zip(*alike, strict=True))
    order = np.argsort(places % len(SHIFTS), kind="stable")  # those of one shift together
    parts = (order[low : low + FINE_CHUNK] for low in range(0, len(order), FINE_CHUNK))
    return Pairs.joined([_detailed(prints, one[p], other[p], places[p]) for p in parts])


def _alike(
    prints: Fingerprints, templates: Floats, rows: Ints, one: Ints, other: Ints
) -> tuple[Ints, Ints, Ints]:
    """The second sieve: of some pairs those that remain, and the place of the best template."""
    pictures = prints.coarse[other].reshape(-1, COARSE**2).astype(np.float32)
    products = np.empty((templates.shape[1], len(rows)), np.float32)
    for begin, end in pairwise(np.flatnonzero(np.diff(rows, prepend=-1, append=-1))):
        np.matmul(templates[rows[begin]], pictures[begin:end].T, out=products[:, begin:end])
    products.reshape(2, len(SHIFTS), len(rows))[:] /= prints.lengths[other].T
    alike = np.flatnonzero(products.max(axis=0) >= COARSE_CORRELATION)
    return one[alike], other[alike], products[:, alike].argmax(axis=0)


def _detailed(prints: Fingerprints, one: Ints, other: Ints, places: Ints) -> Pairs:
    """The third sieve."""
    mirror, shift = np.divmod(places, len(SHIFTS))
    mirrored = mirror > 0
    pictures = prints.coarse[one], prints.coarse[other], prints.fine[one], prints.fine[other]
    first, second, fine_first, fine_second = (each.astype(np.float32) for each in pictures)
    for each in (first, fine_first):
        each[mirrored] = each[mirrored][..., ::-1]
    correlation = shifted_correlation(fine_first, fine_second, shift)
    doubtful = np.flatnonzero((correlation >= RESCALABLE) & (correlation < RESCALED))
    scaled = rescaled_correlation(
        (first[doubtful], second[doubtful]), (fine_first[doubtful], fine_second[doubtful])
    )
    correlation[doubtful] = np.where(scaled >= RESCALED, scaled, correlation[doubtful])
    return Pairs(one, other, correlation, mirrored)[correlation >= CORRELATION]


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
