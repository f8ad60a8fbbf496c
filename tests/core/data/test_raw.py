"""The stratified split."""

from __future__ import annotations

import numpy as np
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as st

from torchyard.core.data.raw import stratified_split


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
