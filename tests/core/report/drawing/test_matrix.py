"""The confusion matrix."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from matplotlib.text import Text

from tests.core.report.figures import drawn, matrix, texts


def test_matrix_has_every_number_name_and_the_accuracy() -> None:
    figure = matrix([0, 1, 1, 1, 1], [0, 0, 1, 1, 1], ["cat", "dog"])
    found = texts(figure)
    assert sorted(text for text in found if text.isdigit()) == ["1", "1", "3"]
    assert found.count("cat") == found.count("dog") == 2
    assert "Accuracy 80.0 % (4 of 5 test samples)" in found
    assert "predicted class" in found
    assert "true class" in found
    drawn(figure)


@pytest.mark.parametrize("width", [1, 2, 10, 20, 21, 250])
def test_matrix_of_any_width_is_a_picture_whose_texts_stay_inside(width: int) -> None:
    targets = np.random.default_rng(0).integers(0, width, 20 * width)
    figure = matrix(targets[::-1], targets, [f"the long name {i}" for i in range(width)])
    picture = drawn(figure)
    assert max(picture.size) < 2000
    assert picture.getpixel((1, 1)) == (255, 255, 255)
    pixels = np.asarray(picture)
    for edge in (pixels[:3], pixels[-3:], pixels[:, :3], pixels[:, -3:]):
        assert edge.min() == 255


def test_names_beside_the_matrix_do_not_overlap_one_another() -> None:
    for width in (2, 20, 100):
        figure = matrix(range(width), range(width), [f"class number {i}" for i in range(width)])
        drawn(figure)
        boxes = [
            text.get_window_extent()
            for text in figure.findobj(Text)
            if text.get_text().startswith("class number") and not text.get_rotation()
        ]
        assert 20 <= len(boxes) <= 100 or len(boxes) == width
        assert all(upper.y0 >= lower.y1 - 1 for upper, lower in pairwise(boxes))


def test_a_wide_matrix_has_no_numbers_and_its_mistakes_are_seen() -> None:
    figure = matrix(np.arange(100) // 2, range(100), [f"c{i}" for i in range(100)])
    drawn(figure)
    found = texts(figure)
    assert not [text for text in found if text.isdigit()]
    assert (213, 94, 0) in {colour for _, colour in drawn(figure).getcolors(1 << 20)}


def test_a_class_without_images_is_grey_and_said_so() -> None:
    full = matrix([0, 1, 1], [0, 1, 1], ["a", "b"])
    assert not any("no test samples" in text for text in texts(full))
    lacking = matrix([0, 2], [0, 0], ["a", "b", "c"])
    assert any("grey: no test samples" in text for text in texts(lacking))
    assert (228, 228, 228) in {colour for _, colour in drawn(lacking).getcolors(1 << 20)}
    assert (228, 228, 228) not in {colour for _, colour in drawn(full).getcolors(1 << 20)}
