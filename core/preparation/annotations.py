"""What is known of samples beside their labels: groups and weights, checked, as arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from torchyard.core.data.raw import RawData

NAMED = 10  # groups that a message names; the rest are counted


def annotation_arrays(
    raw: RawData, counts: Mapping[str, int]
) -> tuple[dict[tuple[str, str], npt.NDArray[Any]], list[str]]:
    """The annotations of a raw data set.

    Args:
        raw: the data set.
        counts: number of samples in each split.

    Returns:
        The arrays by split and kind, int64 "groups" and float64 "weights"; and what is wrong with
        them: a length that is not the split's, a group in two splits, weights that cannot be.
    """
    problems = [
        f"there are groups of a split '{part}', which the data set does not have"
        for part in raw.groups
        if part not in counts
    ]
    found: dict[tuple[str, str], npt.NDArray[Any]] = {}
    parts = [part for part in counts if part in raw.groups]
    groups = [np.asarray(raw.groups[part]) for part in parts]
    if parts:
        every, codes = np.unique(np.concatenate(groups), return_inverse=True)
        bounds = np.cumsum([len(each) for each in groups])[:-1]
        for part, each in zip(parts, np.split(codes, bounds), strict=True):
            found[part, "groups"] = each.astype(np.int64)
        problems += _in_two_splits(every, {part: found[part, "groups"] for part in parts})
    if raw.weights is not None:
        weights = found["train", "weights"] = np.asarray(raw.weights, dtype=np.float64)
        wrong = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
        if len(wrong):
            problems.append(
                f"{len(wrong):,} weights are below 0 or not finite "
                f"(the first is that of training sample {wrong[0]}: {weights[wrong[0]]:g})"
            )
        elif not weights.any():
            problems.append("all weights are 0")
    problems += [
        f"the {part} split has {counts[part]:,} samples and {len(array):,} {kind}"
        for (part, kind), array in found.items()
        if array.shape != (counts[part],)
    ]
    return found, problems


def listed(names: Iterable[object]) -> str:
    """The first names, and how many more there are."""
    every = [str(name) for name in names]
    more = f" … and {len(every) - NAMED:,} more" if len(every) > NAMED else ""
    return ", ".join(every[:NAMED]) + more


def _in_two_splits(
    every: npt.NDArray[Any], codes: Mapping[str, npt.NDArray[np.int64]]
) -> list[str]:
    places = np.zeros((len(every), len(codes)), dtype=bool)
    for column, part in enumerate(codes.values()):
        places[part, column] = True
    shared = np.flatnonzero(places.sum(axis=1) > 1)
    if not len(shared):
        return []
    named = (
        f"{every[group]} ({', '.join(np.array(list(codes))[places[group]])})" for group in shared
    )
    many = "groups are" if len(shared) > 1 else "group is"
    return [f"{len(shared):,} {many} in more than one split: {listed(named)}"]
