"""Numbers as people read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchyard.core.formatting import (
    byte_size,
    dimensions,
    duration,
    natural,
    number,
    percent,
    points,
    printable,
)


def test_only_digits_are_a_number_and_not_too_many() -> None:
    assert (natural("0"), natural("0042"), natural("9" * 18)) == (0, 42, 10**18 - 1)
    for text in ("", "-1", "1.5", "²", "1e3", " 1", "9" * 19, "9" * 5000):
        assert natural(text) is None


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
    assert [points(each) for each in (0.05, -0.123, 0)] == ["+5.0", "−12.3", "+0.0"]


def test_a_shape_is_written_with_crosses() -> None:
    assert dimensions((3, 32, 32)) == "3x32x32"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("猫 🐈 é – ½", "猫 🐈 é – ½"),
        ("two\nlines\tof text", "two\nlines\tof text"),
        ("می\u200cخواهم 👩\u200d🔬", "می\u200cخواهم 👩\u200d🔬"),
        ("\x1b[2Jcat", r"\x1b[2Jcat"),
        ("\x9b31m", r"\x9b31m"),
        ("a\rb\x07\x00\x7f", r"a\rb\x07\x00\x7f"),
        ("\u202egpj.exe\u2066", r"\u202egpj.exe\u2066"),
        ("\u2028\ufeff", r"\u2028\ufeff"),
        ("caf\udce9", r"caf\udce9"),
    ],
)
def test_what_would_act_on_a_terminal_or_page_is_written_as_an_escape(name, shown) -> None:
    assert printable(name) == shown


@given(st.text(st.characters()))
def test_no_text_commands_a_terminal(text: str) -> None:
    shown = printable(text)
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in shown if c not in "\n\t")
    assert printable(shown) == shown
    shown.encode()
