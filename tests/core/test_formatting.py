"""Numbers as people read them."""

from __future__ import annotations

import pytest

from torchyard.core.formatting import byte_size, dimensions, duration, number, percent, points


def test_numbers_and_times_are_written_for_people() -> None:
    assert [number(each) for each in (61706, 0.11012, float("nan"), 12.0, 1234.5)] == [
        "61,706", "0.1101", "–", "12", "1,234",
    ]  # fmt: skip
    assert [duration(each) for each in (0.44, 12.3, 59.7, 200, 7500)] == [
        "0.4 s", "12 s", "1 min 0 s", "3 min 20 s", "2 h 5 min",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("size", "written"),
    [(0, "0 bytes"), (999, "999 bytes"), (1_234_567, "1.23 MB"), (5 * 10**15, "5e+03 TB")],
)
def test_bytes_have_three_digits_and_a_unit(size, written) -> None:
    assert byte_size(size) == written


def test_shares_and_their_differences_are_in_percent() -> None:
    assert [percent(each) for each in (0.5312, 1, None, float("nan"))] == [
        "53.1 %", "100.0 %", "–", "–",
    ]  # fmt: skip
    assert percent(0.98765, digits=2, space="") == "98.77%"
    assert [points(each) for each in (0.05, -0.123, 0)] == ["+5.0", "-12.3", "+0.0"]


def test_a_shape_is_written_with_crosses() -> None:
    assert dimensions((3, 32, 32)) == "3x32x32"
