"""Samples divided at random: by class, and with the samples of a group kept together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

# Every command imports this module through the public names, so numpy waits until it is needed.
if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Indices = npt.NDArray[np.int64]


def stratified_split(
    labels: npt.NDArray[np.integer[Any]],
    fraction: float,
    seed: int,
    groups: npt.NDArray[Any] | None = None,
) -> tuple[Indices, Indices]:
    """Divide samples at random into two parts, each class in the same proportion.

    Args:
        labels: N class indices.
        fraction: of each class that goes to the second part, between 0 and 1.
        seed: of the random generator; the same seed yields the same parts.
        groups: the group of each sample, N numbers or texts. Those of one group go to the same
            part, and the proportions hold as nearly as that allows.

    Returns:
        (rest, part): sorted indices. A class of two or more samples has at least one in each, of
        groups there is one in each.

    Raises:
        ValueError: there is only one group.
    """
    import numpy as np

    if groups is not None:
        divided = _allocated(labels, groups, (1 - fraction, fraction), seed)
        return np.flatnonzero(divided == 0), np.flatnonzero(divided)
    generator = np.random.default_rng(seed)
    part = []
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        count = round(len(members) * fraction)
        if len(members) > 1:
            count = min(max(count, 1), len(members) - 1)
        part.append(members[:count])
    chosen = np.sort(np.concatenate(part)) if part else np.empty(0, dtype=np.int64)
    return np.setdiff1d(np.arange(len(labels)), chosen), chosen


def stratified_fold(
    labels: npt.NDArray[np.integer[Any]],
    folds: int,
    fold: int,
    seed: int,
    groups: npt.NDArray[Any] | None = None,
) -> tuple[Indices, Indices]:
    """One of `folds` divisions for cross-validation: every sample is in one part alone of all.

    Args:
        labels: N class indices.
        folds: number of parts, 2 or more.
        fold: which of them is returned as the part, counted from 0.
        seed: of the random generator; the same seed yields the same parts.
        groups: as in `stratified_split`.

    Returns:
        (rest, part): sorted indices. The parts' samples of a class differ by one at most, unless
        there are groups.

    Raises:
        ValueError: there are fewer samples or groups than folds.
    """
    import numpy as np

    if groups is not None:
        divided = _allocated(labels, groups, (1 / folds,) * folds, seed)
    elif len(labels) < folds:
        raise ValueError(f"{len(labels)} samples cannot be divided into {folds} folds")
    else:
        # Dealt like cards, one class after another.
        order = np.random.default_rng(seed).permutation(len(labels))
        order = order[np.argsort(labels[order], kind="stable")]
        divided = np.empty(len(labels), dtype=np.int64)
        divided[order] = np.arange(len(labels)) % folds
    return np.flatnonzero(divided != fold), np.flatnonzero(divided == fold)


def _allocated(
    labels: npt.NDArray[np.integer[Any]],
    groups: npt.NDArray[Any],
    shares: Sequence[float],
    seed: int,
) -> Indices:
    """The part that each sample goes to with its group.

    From the largest group on, each goes where it leaves the least squared deviation from the
    parts' shares of the classes, the classes weighing alike: the greedy way of scikit-learn's
    `StratifiedGroupKFold`, for shares of any size.
    """
    import numpy as np

    _, codes = np.unique(groups, return_inverse=True)
    _, classes, totals = np.unique(labels, return_inverse=True, return_counts=True)
    sizes = np.bincount(codes)
    if len(sizes) < len(shares):
        number = f"{len(sizes)} groups" if len(sizes) > 1 else "one group"
        raise ValueError(f"{number} cannot be divided into {len(shares)} parts")
    # Of each group the classes that it has, and how many samples of each: (class, count) pairs.
    pairs, counts = np.unique(codes * len(totals) + classes, return_counts=True)
    starts = np.searchsorted(pairs // len(totals), np.arange(len(sizes) + 1))
    missing = np.outer(shares, totals)  # what each part still lacks of each class
    shuffled = np.random.default_rng(seed).permutation(len(sizes))
    order = shuffled[np.argsort(-sizes[shuffled], kind="stable")]
    part_of = np.empty(len(sizes), dtype=np.int64)
    empty = set(range(len(shares)))
    for left, group in zip(range(len(order), 0, -1), order.tolist(), strict=True):
        chosen = slice(starts[group], starts[group + 1])
        has, count = pairs[chosen] % len(totals), counts[chosen]
        cost = ((count**2 - 2 * count * missing[:, has]) / totals[has]).sum(axis=1)
        if left <= len(empty):  # no part stays empty
            cost[[part for part in range(len(shares)) if part not in empty]] = np.inf
        part = int(cost.argmin())
        part_of[group] = part
        missing[part, has] -= count
        empty.discard(part)
    return part_of[codes]
