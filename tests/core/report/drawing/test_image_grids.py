"""Grids of images: which are shown, with which captions, and that they draw without a warning."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.text import Text

from tests.core.report.figures import WRONG, captions, drawn, guesses, noise, texts
from torchyard.core.data.predictions import Predictions
from torchyard.core.report.drawing import image_grids

# The test images


def test_wrong_ones_have_a_cross_both_names_and_a_frame_right_ones_none() -> None:
    targets, predicted = [0, 0, 1, 1, 1], [0, 1, 1, 1, 1]
    figure = image_grids.test_images_figure(
        noise(5, 3, 8, 8), guesses(predicted, targets, 2), ["cat", "dog"]
    )
    found = captions(figure)
    assert sorted(text[0] for text in found) == ["✓"] * 4 + ["✗"]
    assert "✗ cat →\ndog  99 %" in found
    assert "✓ dog\n99 %" in found
    assert "5 of 5 test images" in texts(figure)
    assert any("right: 4" in text and "wrong: 1" in text for text in texts(figure))
    assert WRONG in {colour for _, colour in drawn(figure).getcolors(1 << 20)}

    right = image_grids.test_images_figure(
        noise(2, 3, 8, 8), guesses([0, 1], [0, 1], 2), ["a", "b"]
    )
    assert WRONG not in {colour for _, colour in drawn(right).getcolors(1 << 20)}


@pytest.mark.parametrize("width", [2, 10, 100])
def test_a_split_sorted_by_class_still_shows_many_classes_and_always_the_same(width: int) -> None:
    targets = np.repeat(np.arange(width), 50)
    made = guesses(targets, targets, width)
    samples = noise(len(targets), 1, 4, 4)
    names = [f"name{i}" for i in range(width)]
    first, again = (
        captions(image_grids.test_images_figure(samples, made, names)) for _ in range(2)
    )
    assert first == again
    assert len(first) == 36
    assert len(set(first)) == min(width, 36)


def test_each_caption_belongs_to_the_image_above_it() -> None:
    # Image i is plain grey of value 20 i and its class is i.
    targets = np.arange(10)
    samples = np.broadcast_to((20 * targets)[:, None, None, None], (10, 1, 6, 6)).astype(np.uint8)
    figure = image_grids.test_images_figure(
        samples, guesses(targets[::-1], targets, 10), [f"n{i}" for i in targets]
    )
    pixels = np.asarray(drawn(figure))
    marked = [text for text in figure.findobj(Text) if text.get_text().startswith("✗ n")]
    assert len(marked) == 10
    for text in marked:
        x, y = (int(value) for value in text.get_position())
        number = int(text.get_text()[3])
        assert pixels[y - 90, x + 80].tolist() == [20 * number] * 3
        assert pixels[y : y + 40, x : x + 80].min() < 60  # and not hidden behind the picture


@pytest.mark.parametrize(
    "shape", [(1, 8, 8), (3, 32, 32), (3, 300, 200), (1, 3, 90), (3, 90, 3), (3, 1, 1), (3, 500, 9)]
)
def test_images_of_any_form_are_drawn_grey_or_in_colour(shape) -> None:
    figure = image_grids.test_images_figure(
        noise(7, *shape), guesses([0] * 7, [1] * 7, 2), ["a", "b"]
    )
    assert len([text for text in captions(figure) if text[0] == "✗"]) == 7
    assert max(drawn(figure).size) < 2000


def test_small_images_keep_hard_pixels() -> None:
    sample = np.zeros((1, 1, 2, 2), np.uint8)
    sample[0, 0, 0, 0] = sample[0, 0, 1, 1] = 200
    figure = image_grids.test_images_figure(sample, guesses([0], [0], 1), ["only"])
    greys = {r for _, (r, g, b) in drawn(figure).crop((40, 110, 180, 250)).getcolors(9999)}
    assert greys == {0, 200}


def test_what_is_no_image_has_no_figure() -> None:
    made = guesses([0, 1], [0, 1], 2)
    assert image_grids.test_images_figure(np.zeros((2, 5), np.float32), made, ["a", "b"]) is None
    assert image_grids.test_images_figure(noise(2, 2, 4, 4), made, ["a", "b"]) is None


def test_only_the_images_shown_are_read() -> None:
    class Counted(np.ndarray):
        reads = 0

        def __getitem__(self, index):
            Counted.reads += 1
            return super().__getitem__(index)

    samples = noise(500, 1, 4, 4).view(Counted)
    image_grids.test_images_figure(samples, guesses([0] * 500, [0] * 500, 1), ["only"], count=7)
    assert Counted.reads < 30


# The mistakes, and images with their labels


def sure(logit: list[float], predicted, targets, width: int) -> Predictions:
    logits = np.asarray(logit, np.float32)[:, None] * np.eye(width, dtype=np.float32)[predicted]
    return Predictions(logits, np.asarray(targets, np.int64))


def test_mistakes_alone_are_drawn_the_surest_first() -> None:
    made = sure([9, 1, 3, 8, 2], [0, 1, 1, 0, 0], [0, 0, 0, 1, 1], 2)
    names = ["cat", "dog"]
    figure = image_grids.confident_mistakes_figure(noise(5, 3, 8, 8), made, names)
    assert captions(figure) == [
        "✗ dog →\ncat  100 %",
        "✗ cat →\ndog  95 %",
        "✗ dog →\ncat  88 %",
        "✗ cat →\ndog  73 %",
    ]
    assert "4 of 4 mistakes" in texts(figure)
    assert WRONG in {colour for _, colour in drawn(figure).getcolors(1 << 20)}
    two = image_grids.confident_mistakes_figure(noise(5, 3, 8, 8), made, names, count=2)
    assert captions(two) == captions(figure)[:2]
    assert "2 of 4 mistakes" in texts(two)


def test_at_most_sixteen_mistakes_each_with_its_own_image() -> None:
    # Image i is plain grey of value 10 i; its class is i, and the surer the greater i.
    count = 20
    samples = np.broadcast_to(10 * np.arange(count)[:, None, None, None], (count, 1, 6, 6))
    made = sure(list(range(1, count + 1)), np.roll(np.arange(count), 1), np.arange(count), count)
    figure = image_grids.confident_mistakes_figure(
        samples.astype(np.uint8), made, [f"n{i}" for i in range(count)]
    )
    pixels = np.asarray(drawn(figure))
    marked = [text for text in figure.findobj(Text) if text.get_text().startswith("✗ n")]
    numbers = [int(text.get_text()[3:].split()[0]) for text in marked]
    assert numbers == list(range(count - 1, 3, -1))
    for number, text in zip(numbers, marked, strict=True):
        x, y = (int(value) for value in text.get_position())
        assert pixels[y - 90, x + 80].tolist() == [10 * number] * 3


def test_without_a_mistake_or_without_images_there_is_no_figure_of_mistakes() -> None:
    right, wrong = guesses([0, 1], [0, 1], 2), guesses([1, 0], [0, 1], 2)
    names = ["a", "b"]
    assert image_grids.confident_mistakes_figure(noise(2, 1, 4, 4), right, names) is None
    assert image_grids.confident_mistakes_figure(np.zeros((2, 5), np.float32), wrong, names) is None
    assert image_grids.confident_mistakes_figure(noise(2, 1, 4, 4), wrong, names) is not None


def test_labelled_images_have_their_names_and_no_frame() -> None:
    # Image i is plain grey of value 20 i and its class is i.
    labels = np.arange(10)
    samples = np.broadcast_to((20 * labels)[:, None, None, None], (10, 3, 6, 6)).astype(np.uint8)
    names = ["✗ a cross", *(f"n{i}" for i in range(1, 10))]
    figure = image_grids.labelled_images_figure(samples, labels, names, "one batch")
    picture = drawn(figure)
    assert WRONG not in {colour for _, colour in picture.getcolors(1 << 20)}
    assert captions(figure) == [f"{name}\n" for name in names]
    assert {"one batch", "10 of 10 images, of 10 of 10 classes"} <= set(texts(figure))
    pixels = np.asarray(picture)
    for text in figure.findobj(Text):
        if text.get_text() in captions(figure)[1:]:
            x, y = (int(value) for value in text.get_position())
            assert pixels[y - 90, x + 80].tolist() == [20 * int(text.get_text()[1])] * 3


def test_labelled_images_of_a_sorted_split_are_of_many_classes() -> None:
    labels, names = np.repeat(np.arange(100), 5), [f"name{i}" for i in range(100)]
    figure = image_grids.labelled_images_figure(noise(500, 1, 4, 4), labels, names, "sorted")
    assert len(set(captions(figure))) == len(captions(figure)) == 36
    assert "36 of 500 images, of 36 of 100 classes" in texts(figure)


def test_labelled_vectors_and_no_samples_have_no_figure() -> None:
    for samples in (np.zeros((2, 5), np.float32), noise(2, 2, 4, 4), noise(0, 1, 4, 4)):
        labels = np.zeros(len(samples), np.int64)
        assert image_grids.labelled_images_figure(samples, labels, ["a"], "none") is None


# What the parent process must not load


def test_reporting_imports_neither_torch_nor_pyplot_nor_sklearn() -> None:
    code = """
import sys, io, numpy as np
from torchyard.core.data.predictions import Predictions
from torchyard.core.evaluation.metrics import evaluate
from torchyard.core.report import comparison, markdown, run_page
from torchyard.core.report.drawing import image_grids, plots
from torchyard.core.report.drawing.matrix import confusion_matrix_figure
assert "pandas" not in sys.modules and "matplotlib" not in sys.modules
p = Predictions(np.eye(2, dtype=np.float32), np.arange(2))
e = evaluate(p, ["a", "b"])
confusion_matrix_figure(e, ["a", "b"]).savefig(io.BytesIO())
black = np.zeros((2, 1, 4, 4), np.uint8)
image_grids.test_images_figure(black, p, ["a", "b"]).savefig(io.BytesIO())
markdown.markdown_report(e, ["a", "b"], facts={}, command="x")
bad = {"torch", "sklearn", "matplotlib.pyplot"} & set(sys.modules)
assert not bad, bad
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
