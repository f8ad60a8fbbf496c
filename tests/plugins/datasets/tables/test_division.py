"""Parts by the names in a column, and by time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchyard import UserError
from torchyard.plugins.datasets.tables.division import newest, parts_of

SAMPLES = st.lists(st.tuples(st.integers(0, 9), st.sampled_from("abcdef")), min_size=1, max_size=40)


@given(SAMPLES, st.floats(0.01, 0.99), st.booleans())
def test_nothing_older_is_tested_than_what_is_trained_on(
    samples: list[tuple[int, str]], fraction: float, grouped: bool
) -> None:
    times = np.array([time for time, _ in samples], dtype=np.float64)
    groups = np.array([group for _, group in samples], dtype=object) if grouped else None
    latest = times
    if groups is not None:
        latest = np.array([times[groups == group].max() for group in groups])
    if len({*latest}) == 1:
        with pytest.raises(UserError, match="are of one moment"):
            newest(times, fraction, groups)
        return
    rest, part = newest(times, fraction, groups)
    assert sorted([*rest, *part]) == [*range(len(samples))]
    assert len(rest) > 0
    assert len(part) > 0
    assert latest[rest].max() < latest[part].min()
    if groups is not None:
        assert not {*groups[rest]} & {*groups[part]}
    # No moment less would do.
    later = latest[part] > latest[part].min()
    assert later.sum() < max(1, round(len(samples) * fraction))


@given(st.lists(st.sampled_from(["train", "VAL", "Testing", "eval", "dev"]), min_size=1))
def test_every_row_is_in_one_part(names: list[str]) -> None:
    kinds = {"train": "train", "VAL": "v", "dev": "v", "eval": "e", "Testing": "t"}
    there = {kinds[name] for name in names}
    if "train" not in there or len(there) == 4:
        with pytest.raises(UserError, match=r"^dataset\.split: the column 'c' names"):
            parts_of(names, "c")
        return
    parts, notes = parts_of(names, "c")
    assert sorted(index for part in parts.values() for index in part) == [*range(len(names))]
    assert [names[index] for index in parts["train"]] == [n for n in names if n == "train"]
    assert ("test" in parts) == (len(there) > 1)
    assert bool(notes) == (len(there) > 1 and "t" not in there)
