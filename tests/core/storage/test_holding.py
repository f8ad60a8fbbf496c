"""Choosing what is deleted, by age, number and size."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchyard.core.errors import UserError
from torchyard.core.storage.deletion import delete, finish
from torchyard.core.storage.holding import KINDS, Holding, chosen, read_age, read_size, room

NOW = 1000.0
holdings = st.lists(
    st.builds(
        Holding,
        kind=st.sampled_from(KINDS),
        name=st.just(""),
        key=st.uuids().map(str),
        paths=st.just(()),
        size=st.integers(0, 100),
        used=st.floats(0, NOW),
        kept=st.sampled_from(["", "it runs"]),
    ),
    unique_by=lambda each: each.key,
)
maybe = st.none() | st.integers(0, 300)


@given(holdings, maybe, maybe, maybe)
def test_nothing_goes_that_must_stay_or_is_within_a_condition(found, age, keep, down_to):
    going = chosen(found, NOW, older_than=age, keep=keep, down_to=down_to)
    assert not any(each.kept for each in going)
    assert age is None or all(NOW - each.used >= age for each in going)
    for kind in KINDS:
        own = sorted((each for each in found if each.kind == kind), key=lambda e: (e.used, e.key))
        newest = own[len(own) - (keep or 0) :] if keep and keep < len(own) else own if keep else []
        assert not {each.key for each in newest} & {each.key for each in going}
    if down_to is not None:
        left = sum(each.size for each in found) - sum(each.size for each in going)
        # Whatever else could have gone has gone, or there is room enough; never one too many.
        assert left <= down_to or going == chosen(found, NOW, older_than=age, keep=keep)
        assert not going or left + going[-1].size > down_to


def test_a_file_with_two_names_counts_once_and_a_link_is_not_followed(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one").write_bytes(b"x" * 1000)
    os.link(tmp_path / "a" / "one", tmp_path / "a" / "two")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "link").symlink_to(tmp_path / "a")
    size, newest = room([tmp_path / "a", tmp_path / "missing"])
    assert (size, newest) == (1000, (tmp_path / "a" / "one").stat().st_mtime)
    assert room([tmp_path / "b"])[0] < 1000


@pytest.mark.parametrize(
    ("text", "seconds"), [("30d", 30 * 86400), ("1d12h", 129_600), ("0s", 0), ("90m", 5400)]
)
def test_an_age_is_read(text, seconds):
    assert read_age(text) == seconds


@pytest.mark.parametrize(
    ("text", "size"), [("500MB", 500_000_000), ("1.5 tb", 1.5e12), ("7", 7), ("0KB", 0)]
)
def test_a_size_is_read(text, size):
    assert read_size(text) == size


@pytest.mark.parametrize("text", ["", "3", "3w", "d", "-3d", "1d x", "9" * 5000 + "d"])
def test_what_is_no_age_is_refused(text):
    with pytest.raises(UserError, match=r"--older-than: .*is no age such as 30d"):
        read_age(text)


@pytest.mark.parametrize("text", ["", "GB", "3 XB", "-3GB", "1e9", "9" * 5000 + "GB"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(UserError, match=r"--down-to: .*is no size such as 500MB"):
        read_size(text)


def test_a_deletion_that_was_killed_is_finished(tmp_path):
    for name in ("whole", "begun"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(b"x" * 10)
    (tmp_path / "begun").rename(tmp_path / ".pruned-begun")  # where it was killed
    assert finish([tmp_path, tmp_path / "missing"]) == 10
    assert [each.name for each in tmp_path.iterdir()] == ["whole"]
    delete(tmp_path / "whole")
    delete(tmp_path / "whole")
    assert not [*tmp_path.iterdir()]
