"""Colours, fonts and labels that the figures share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any
from unicodedata import east_asian_width

from torchyard.core.formatting import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure


INK, MUTED, LINE = "#1f2328", "#59636e", "#d0d7de"
EMPTY = (0.5, 0.5, 0.5, 0.21)  # #e4e4e4 on white
# Okabe and Ito's vermilion, which every kind of colour vision tells from grey; darker for text.
WRONG, WRONG_INK = "#d55e00", "#a33f00"
RIGHT = "#0072b2"  # their blue
DPI = 150
# matplotlib's own font has no Chinese, Japanese or Korean; these are used where installed.
FALLBACK_FONTS = (
    *("Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Micro Hei"),
    *("WenQuanYi Zen Hei", "Droid Sans Fallback", "Microsoft YaHei", "PingFang SC"),
    *("Hiragino Sans GB", "Malgun Gothic", "Arial Unicode MS", "Unifont"),
)


def add_title(figure: Figure, title: str, note: str) -> None:
    """Put a title and a line of explanation at the top left of a figure."""
    left, height = 0.2 / figure.get_figwidth(), figure.get_figheight()
    bold = {"fontsize": 12, "weight": "bold", **text_style()}
    figure.text(left, 1 - 0.13 / height, title, va="top", **bold)
    figure.text(left, 1 - 0.38 / height, note, va="top", fontsize=8, **text_style(MUTED))


def text_style(colour: str = INK) -> dict[str, Any]:
    """How text is drawn, as keyword arguments of matplotlib's `text`."""
    # No TeX: a class may be called "$x$".
    return {"color": colour, "parse_math": False, "fontfamily": list(_fonts()[0])}


@cache
def _fonts() -> tuple[tuple[str, ...], frozenset[int]]:
    """The font families to draw with, and every character they can draw."""
    from matplotlib import font_manager

    installed = {font.name for font in font_manager.fontManager.ttflist}
    families = ("DejaVu Sans", *(name for name in FALLBACK_FONTS if name in installed))
    drawable: set[int] = set()
    for family in families:
        drawable.update(font_manager.get_font(font_manager.findfont(family)).get_charmap())
    return families, frozenset(drawable)


def is_wide(text: str) -> bool:
    """Whether a text has characters as wide as Chinese ones."""
    return any(east_asian_width(letter) in "WF" for letter in text)


def short_labels(classes: Sequence[str], limit: int) -> list[str]:
    """Names on one line, shortened to `limit`, and different from one another.

    A name with characters that no font has loses them and gets its number: matplotlib would
    warn of each such character whenever a figure is saved.
    """
    drawable, labels = _fonts()[1], []
    for number, name in enumerate(classes):
        line = printable(" ".join(name.split()))
        kept = "".join(letter for letter in line if ord(letter) in drawable).strip()
        label = kept if kept == line and kept else f"#{number} {kept}".strip()
        most = limit // 2 if is_wide(label) else limit
        if len(label) > most:
            label = f"{label[: most - 4]}…{label[-3:]}"
        labels.append(label)
    occurrences = Counter(labels)
    return [f"#{i} {t[: limit - 5]}" if occurrences[t] > 1 else t for i, t in enumerate(labels)]
