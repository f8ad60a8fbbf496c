"""How alike two pictures are where they fit best: at which shift, and at which scale."""

from __future__ import annotations

from itertools import product

import numpy as np
import numpy.typing as npt

from torchyard.core.audit.fingerprints import COARSE, FINE, SHIFTS, Floats

FINE_WINDOW = FINE - 6
MARGIN = 2  # of coarse pictures: what a crop has elsewhere
RIDGE = 1e-3  # of the mean square of what is fitted
MOST_SHIFT = 3.0  # of 32 pixels
SCALES = 0.84, 1.19  # 28 of 32 pixels enlarged to 32, and the inverse, and a little more
PLAUSIBLE = 0.92  # the multiple correlation from which on the scale is tried


def shifted_correlation(first: Floats, second: Floats, shift: npt.NDArray[np.int64]) -> Floats:
    """The greatest correlation of N pairs of 32 x 32 near a shift.

    Args:
        shift: that was best for 16 x 16, a place in `SHIFTS`.
    """
    middle = first[:, 3:-3, 3:-3]
    length = np.sqrt(np.einsum("nij,nij->n", middle, middle))
    best = np.full(len(first), -1, np.float32)
    for place in np.unique(shift):
        here = shift == place
        part, pictures = middle[here], second[here]
        for top, left in product(*(_near(each) for each in SHIFTS[place])):
            window = pictures[:, top : top + FINE_WINDOW, left : left + FINE_WINDOW]
            products = np.einsum("nij,nij->n", part, window)
            lengths = length[here] * np.sqrt(np.einsum("nij,nij->n", window, window))
            best[here] = np.maximum(best[here], products / np.maximum(lengths, 1e-6))
    return best


def _near(shift: int) -> range:
    """Where a fine window may begin, for a shift of the coarse one: within two pixels of it."""
    middle = 2 * shift + 1  # of 0 to 6, where 3 is no shift
    return range(middle - 1, middle + 2)


def rescaled_correlation(coarse: tuple[Floats, Floats], fine: tuple[Floats, Floats]) -> Floats:
    """The correlation of N pairs after the first is shifted and scaled, rows and columns apart.

    0 where no shift and scale make it plausible that one is a crop of the other.

    Args:
        coarse, fine: of the pairs, N x 16 x 16 and N x 32 x 32.
    """
    scale, shift, fit = _fitted(*coarse)
    chosen = np.flatnonzero(fit >= PLAUSIBLE)
    scale, shift = scale[chosen], shift[chosen]
    nearer = _resampled(coarse[0][chosen], scale, shift)
    rest_scale, rest_shift, _ = _fitted(nearer, coarse[1][chosen])
    scale, shift = np.clip(scale * rest_scale, *SCALES), shift + scale * rest_shift
    window = np.s_[:, 3:-3, 3:-3]
    one, other = _resampled(fine[0][chosen], scale, shift)[window], fine[1][chosen][window]
    products = np.einsum("nij,nij->n", one, other)
    lengths = [np.sqrt(np.einsum("nij,nij->n", each, each)) for each in (one, other)]
    found = np.zeros(len(fit), np.float32)
    found[chosen] = products / np.maximum(lengths[0] * lengths[1], 1e-6)
    return found


def _fitted(first: Floats, second: Floats) -> tuple[Floats, Floats, Floats]:
    """By which scale and shift the first picture becomes the second, by its gradients.

    One step as of Lucas and Kanade, "An Iterative Image Registration Technique with an Application
    to Stereo Vision" (1981): the second is fitted by the first, its gradients, and those times
    the place, with least squares.

    Returns:
        N x 2 scales and N x 2 shifts, of rows and columns, in pixels of 32 x 32; and N multiple
        correlations.
    """
    inner = slice(MARGIN, -MARGIN)
    side = COARSE - 2 * MARGIN
    place = (np.arange(side, dtype=np.float32) - (side - 1) / 2) / side
    terms = np.empty((len(first), 6, side, side), np.float32)
    terms[:, 0], terms[:, 5] = first[:, inner, inner], second[:, inner, inner]
    low, high = slice(MARGIN - 1, -MARGIN - 1), slice(MARGIN + 1, 1 - MARGIN)
    terms[:, 1] = (first[:, high, inner] - first[:, low, inner]) / 2
    terms[:, 2] = terms[:, 1] * place[:, None]
    terms[:, 3] = (first[:, inner, high] - first[:, inner, low]) / 2
    terms[:, 4] = terms[:, 3] * place
    flat = terms.reshape(len(first), 6, side**2)
    products = flat @ flat.swapaxes(1, 2)
    normal, right = products[:, :5, :5], products[:, :5, 5:]
    mean = np.einsum("nii->n", normal) / 5
    normal = normal + (RIDGE * mean + 1e-6)[:, None, None] * np.eye(5, dtype=np.float32)
    weights = np.linalg.solve(normal, right)
    explained = (weights * right).sum(axis=(1, 2)) / np.maximum(products[:, 5, 5], 1e-6)
    moved = weights[:, 1:, 0] / np.maximum(weights[:, :1, 0], 0.2)
    scale = np.clip(1 + moved[:, 1::2] / side, *SCALES)
    shift = np.clip(moved[:, ::2] * (FINE / COARSE), -MOST_SHIFT, MOST_SHIFT)
    fit = np.sqrt(np.maximum(explained, 0))
    return scale.astype(np.float32), shift.astype(np.float32), fit.astype(np.float32)


def _resampled(pictures: Floats, scale: Floats, shift: Floats) -> Floats:
    """Square pictures, interpolated linearly; N x 2 scales, and shifts as of 32 x 32 pixels."""
    side = pictures.shape[-1]
    pixels, middle = np.arange(side, dtype=np.float32), np.float32((side - 1) / 2)
    places = shift[..., None] * (side / FINE) + scale[..., None] * (pixels - middle) + middle
    distance = np.abs(np.clip(places, 0, side - 1)[..., None] - pixels)
    weights = np.maximum(0, 1 - distance).astype(np.float32)
    return np.asarray(weights[:, 0] @ pictures @ weights[:, 1].swapaxes(1, 2))
