"""What is wrong between whole splits and classes: shares, groups, classes that share images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

import numpy as np

from torchyard.core.audit.findings import Finding
from torchyard.core.data.dataset import Split

SIGNIFICANCE = 1e-4  # of one class in a pair of splits, before the correction for their number
RATIO = 1.5  # by which shares differ at least: in large splits every difference is significant
LEAST_ALIKE = 3  # images that two classes share


def class_shares(splits: Mapping[str, Split], classes: Sequence[str]) -> Iterator[Finding]:
    """Classes whose share of two splits differs by half or more, and by more than chance.

    The test is Fisher's exact one, at a level divided by the number of comparisons (Bonferroni).
    """
    from scipy.stats import fisher_exact

    counts = {name: np.array(split.class_counts(len(classes))) for name, split in splits.items()}
    pairs = list(combinations(counts, 2))
    level = SIGNIFICANCE / max(1, len(pairs) * len(classes))
    for one, other in pairs:
        first, second = counts[one], counts[other]
        totals = first.sum(), second.sum()
        if 0 in totals:
            continue
        for number, name in enumerate(classes):
            share = first[number] / totals[0], second[number] / totals[1]
            if max(share) < RATIO * min(share) or share == (0, 0):
                continue
            table = [[count[number], total - count[number]] for count, total in
                     ((first, totals[0]), (second, totals[1]))]  # fmt: skip
            if fisher_exact(table).pvalue <= level:
                note = f"{share[0]:.2%} of {one}, {share[1]:.2%} of {other}"
                difference = abs(share[0] - share[1])
                yield Finding(
                    "class shares", one, other_split=other, label=name, score=difference, note=note
                )


def shared_groups(splits: Mapping[str, Split]) -> Iterator[Finding]:
    """Groups with samples in two splits."""
    groups = {name: split.groups for name, split in splits.items() if split.groups is not None}
    for (one, first), (other, second) in combinations(groups.items(), 2):
        for group in np.intersect1d(first, second).tolist():
            samples = int((first == group).sum()), int((second == group).sum())
            note = f"group {group}: {samples[0]:,} samples in {one}, {samples[1]:,} in {other}"
            yield Finding("groups", one, other_split=other, note=note)


def classes_alike(conflicts: Sequence[Finding], counts: Mapping[str, int]) -> Iterator[Finding]:
    """Classes that share several images, such as two folders of one kind.

    Args:
        conflicts: images under two labels.
        counts: of each class, all splits together.
    """
    shared = Counter(frozenset((each.label, each.other)) for each in conflicts)
    for names, count in shared.most_common():
        if count >= LEAST_ALIKE and len(names) == 2:
            one, other = sorted(names)
            share = count / max(1, min(counts[one], counts[other]))
            note = f"{count:,} pairs of images in both"
            yield Finding(
                "classes alike", "", label=one, other=other, score=min(1.0, share), note=note
            )
