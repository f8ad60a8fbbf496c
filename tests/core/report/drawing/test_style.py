"""Names of classes in figures: odd ones, long ones, and those that no font can draw."""

from __future__ import annotations

import numpy as np
from matplotlib.text import Text

from tests.core.report.figures import ODD, drawn, guesses, matrix, noise, texts
from torchyard.core.evaluation.metrics import evaluate
from torchyard.core.report.drawing import image_grids, style
from torchyard.core.report.drawing.matrix import confusion_matrix_figure


def test_names_no_font_can_draw_get_their_number(monkeypatch) -> None:
    monkeypatch.setattr(style, "FALLBACK_FONTS", ())
    style._fonts.cache_clear()
    try:
        found = texts(matrix([0, 1, 2, 3], [0, 1, 2, 3], ["猫", "犬 dog", "dog", "\U000f0000"]))
    finally:
        style._fonts.cache_clear()
    assert {"#0", "#1 dog", "dog", "#3"} <= set(found)


def test_an_installed_fallback_font_is_used(monkeypatch) -> None:
    # No Chinese font comes with matplotlib; a sign that only its STIX has stands for one.
    from matplotlib import font_manager

    stix, dejavu = (
        set(font_manager.get_font(font_manager.findfont(name)).get_charmap())
        for name in ("STIXGeneral", "DejaVu Sans")
    )
    sign = chr(min(code for code in stix - dejavu if chr(code).isprintable()))
    for fonts, expected in (((), "#0"), (("STIXGeneral", "No Such Font"), sign)):
        monkeypatch.setattr(style, "FALLBACK_FONTS", fonts)
        style._fonts.cache_clear()
        try:
            figure = matrix([0, 1], [0, 1], [sign, "b"])
            drawn(figure)
        finally:
            style._fonts.cache_clear()
        assert expected in texts(figure)


def test_long_names_alike_in_their_ends_stay_apart() -> None:
    names = [f"the very same beginning {i} and the same end" for i in range(3)]
    found = [text for text in texts(matrix([0, 1, 2], [0, 1, 2], names)) if "very" in text]
    assert len(found) == 6
    assert len(set(found)) == 3
    assert all(len(text) <= 18 for text in found)


def test_odd_names_are_drawn_as_they_are_and_without_a_warning() -> None:
    width = len(ODD)
    made = guesses(np.roll(np.arange(width), 1), np.arange(width), width)
    figures = [
        confusion_matrix_figure(evaluate(made, ODD), ODD),
        image_grids.test_images_figure(noise(width, 3, 8, 8), made, ODD),
        image_grids.confident_mistakes_figure(noise(width, 3, 8, 8), made, ODD),
        image_grids.labelled_images_figure(noise(width, 3, 8, 8), made.targets, ODD, "$a_b$ of"),
    ]
    for figure in figures:
        drawn(figure)
        assert not any(text.get_parse_math() for text in figure.findobj(Text) if text.get_text())
    found = texts(figures[0])
    assert {"$a_b$", "a_b^c", "x y", "a|b", "$"} <= set(found)
    assert all(len(text) <= 18 for text in found if "script" in text)
