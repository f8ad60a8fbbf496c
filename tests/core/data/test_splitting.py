"""Samples divided by class and by group: splits and folds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as st

from torchyard import stratified_fold, stratified_split


@settings(max_examples=100, deadline=None)
@for_all(
    st.lists(st.integers(0, 5), min_size=1, max_size=80),
    st.floats(0.01, 0.99),
    st.integers(0, 9),
)
def test_a_stratified_split_keeps_every_class_on_both_sides(
    labels: list[int], fraction: float, seed: int
) -> None:
    array = np.array(labels)
    rest, part = stratified_split(array, fraction, seed)
    assert sorted([*rest, *part]) == list(range(len(labels)))
    for label in set(labels):
        members = labels.count(label)
        share = int((array[part] == label).sum())
        if members > 1:
            assert 1 <= share <= members - 1
            assert abs(share - members * fraction) <= 1
    again = stratified_split(array, fraction, seed)
    assert (rest.tolist(), part.tolist()) == (again[0].tolist(), again[1].tolist())


GROUPED = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12)), min_size=2, max_size=80)


@settings(max_examples=100, deadline=None)
@for_all(GROUPED, st.floats(0.01, 0.99), st.integers(0, 9))
def test_no_group_is_on_both_sides_of_a_split(
    samples: list[tuple[int, int]], fraction: float, seed: int
) -> None:
    labels, groups = np.array(samples).T
    if len(set(groups)) < 2:
        with pytest.raises(ValueError, match="one group cannot be divided into 2 parts"):
            stratified_split(labels, fraction, seed, groups)
        return
    rest, part = stratified_split(labels, fraction, seed, groups)
    assert sorted([*rest, *part]) == list(range(len(labels)))
    assert len(rest) > 0
    assert len(part) > 0
    assert not {*groups[rest]} & {*groups[part]}
    again = stratified_split(labels, fraction, seed, np.array([f"g{g}" for g in groups]))
    assert len(again[0]) + len(again[1]) == len(labels)


@settings(max_examples=100, deadline=None)
@for_all(GROUPED, st.integers(2, 6), st.integers(0, 9), st.booleans())
def test_every_sample_is_in_one_fold(
    samples: list[tuple[int, int]], folds: int, seed: int, grouped: bool
) -> None:
    labels, groups = np.array(samples).T
    given = groups if grouped else None
    if len({*groups} if grouped else labels) < folds:
        with pytest.raises(ValueError, match=f"cannot be divided into {folds}|one group"):
            stratified_fold(labels, folds, 0, seed, given)
        return
    divisions = [stratified_fold(labels, folds, fold, seed, given) for fold in range(folds)]
    assert sorted(index for _, part in divisions for index in part) == [*range(len(labels))]
    for rest, part in divisions:
        assert sorted([*rest, *part]) == [*range(len(labels))]
        assert len(part) > 0
        if grouped:
            assert not {*groups[rest]} & {*groups[part]}
        else:
            for label in {*labels}:
                share = (labels[part] == label).sum()
                assert abs(share - (labels == label).sum() / folds) < 1


def test_groups_of_many_sizes_are_divided_in_proportion() -> None:
    generator = np.random.default_rng(0)
    groups = np.repeat(np.arange(300), generator.integers(1, 30, 300))
    labels = (generator.random(len(groups)) < np.array([0.1, 0.6])[groups % 2]).astype(int)
    labels[groups % 7 == 0] = 2  # a class of its own groups
    parts = [stratified_split(labels, 0.2, seed, groups)[1] for seed in range(5)]
    assert {*parts[0]} != {*parts[1]}
    for part in [*parts, stratified_fold(labels, 5, 3, 0, groups)[1]]:
        assert np.abs(np.bincount(labels[part]) / np.bincount(labels) - 0.2).max() < 0.02
