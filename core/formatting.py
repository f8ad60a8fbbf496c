"""Numbers and names as people read them: in a terminal, in tables, in Markdown and on pages."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

UNKNOWN = "–"
MINUS = "\N{MINUS SIGN}"  # as wide as +
BYTE_UNITS = ("bytes", "KB", "MB", "GB", "TB")


# Line breaks and tabs are layout; the joiners are letters' neighbours in Persian, Hindi and emoji.
_HARMLESS = "\n\t\u200c\u200d"
_INVISIBLE = ("Cc", "Cf", "Cs", "Zl", "Zp")  # Unicode categories


def printable(text: str) -> str:
    """Text with an escape for each character that acts on what shows it instead of showing.

    Those are control characters (a terminal obeys them), marks that turn the direction of
    writing, and halves of characters: `cat\x1b[2J` → `cat\\x1b[2J`.
    """
    if text.isprintable():
        return text
    return "".join(
        letter.encode("unicode_escape").decode()
        if unicodedata.category(letter) in _INVISIBLE and letter not in _HARMLESS
        else letter
        for letter in text
    )


def percent(share: float | None, digits: int = 1, space: str = " ") -> str:
    """`0.5312` → `53.1 %`; None and NaN are a dash. The terminal's tables have no space."""
    if share is None or share != share:
        return UNKNOWN
    return f"{100 * share:.{digits}f}{space}%"


def points(difference: float) -> str:
    """A difference of two shares in percentage points: `0.05` → `+5.0`, `-0.008` → `−0.8`."""
    return f"{100 * difference:+.1f}".replace("-", MINUS)


def natural(text: str) -> int | None:
    """The number that a text of digits is; None for another text, and for more than 18 digits.

    Python itself refuses to read a number of some thousand digits, which anybody may have written
    into a tag or a file.
    """
    return int(text) if text.isdecimal() and len(text) <= 18 else None


def number(value: float) -> str:
    """`61,706`, `0.1101`; NaN is a dash."""
    if value != value:
        return UNKNOWN
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.4g}"


def times(count: int) -> str:
    """`once`, `1,200 times`."""
    return "once" if count == 1 else f"{count:,} times"


def duration(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def coarse_duration(seconds: float) -> str:
    """A time to wait, in one unit: `40 s`, `12 min`, `14 h`, `3 days`."""
    for size, unit, limit in ((1, "s", 60), (60, "min", 60), (3600, "h", 48)):
        if (count := round(max(seconds, 0) / size)) < limit:
            return f"{count} {unit}"
    return f"{round(seconds / 86400)} days"


def byte_size(size: int) -> str:
    """`999 bytes`, `1.23 MB`: three digits, in powers of 1000."""
    exponent = min((len(str(size)) - 1) // 3, len(BYTE_UNITS) - 1)
    return f"{size / 1000**exponent:.3g} {BYTE_UNITS[exponent]}"


def dimensions(shape: Iterable[int]) -> str:
    """The shape of an array: `(3, 32, 32)` → `3x32x32`."""
    return "x".join(map(str, shape))
