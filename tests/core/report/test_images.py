"""The report: figures that draw quietly and say what is true, and its Markdown."""

from __future__ import annotations

import io
import subprocess
import sys
import warnings
from itertools import pairwise

import numpy as np
import pytest
from markdown_it import MarkdownIt
from matplotlib.text import Text
from PIL import Image

from torchyard.core.data.predictions import Predictions
from torchyard.core.evaluation.metrics import evaluate
from torchyard.core.report import images, plots, style
from torchyard.core.report.markdown import markdown_report

ODD = [
    "$a_b$",
    "a_b^c",
    "x\ny",
    "a|b",
    "<script>alert(1)</script>",
    "猫",
    "犬 dog",
    "$",
    "",
    "\x07",
]
WRONG = (213, 94, 0)


def guesses(predicted, targets, width: int) -> Predictions:
    logits = 5 * np.eye(width, dtype=np.float32)[np.asarray(predicted)]
    return Predictions(logits, np.asarray(targets, np.int64))


def noise(count: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 200, (count, *shape), dtype=np.uint8)


def drawn(figure) -> Image.Image:
    """The figure as a picture; a warning on the way is an error."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(file, format="png")
    return Image.open(file).convert("RGB")


def texts(figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def captions(figure) -> list[str]:
    """The texts under the images: all of two lines."""
    return [text for text in texts(figure) if "\n" in text]


def matrix(predicted, targets, classes):
    return plots.confusion_matrix_figure(
        evaluate(guesses(predicted, targets, len(classes)), classes), classes
    )


# The confusion matrix


def test_matrix_has_every_number_name_and_the_accuracy() -> None:
    figure = matrix([0, 1, 1, 1, 1], [0, 0, 1, 1, 1], ["cat", "dog"])
    found = texts(figure)
    assert sorted(text for text in found if text.isdigit()) == ["1", "1", "3"]
    assert found.count("cat") == found.count("dog") == 2
    assert "Accuracy 80.0 % (4 of 5 test images)" in found
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


def test_a_wide_matrix_has_no_numbers_but_a_scale() -> None:
    figure = matrix(np.arange(100) // 2, range(100), [f"c{i}" for i in range(100)])
    drawn(figure)
    found = texts(figure)
    assert not [text for text in found if text.isdigit()]
    assert {"0 %", "100 %"} <= set(found)


def test_a_class_without_images_is_grey_and_said_so() -> None:
    full = matrix([0, 1, 1], [0, 1, 1], ["a", "b"])
    assert not any("no test images" in text for text in texts(full))
    lacking = matrix([0, 2], [0, 0], ["a", "b", "c"])
    assert any("grey: no test images" in text for text in texts(lacking))
    assert (228, 228, 228) in {colour for _, colour in drawn(lacking).getcolors(1 << 20)}
    assert (228, 228, 228) not in {colour for _, colour in drawn(full).getcolors(1 << 20)}


# The test images


def test_wrong_ones_have_a_cross_both_names_and_a_frame_right_ones_none() -> None:
    targets, predicted = [0, 0, 1, 1, 1], [0, 1, 1, 1, 1]
    figure = images.test_images_figure(
        noise(5, 3, 8, 8), guesses(predicted, targets, 2), ["cat", "dog"]
    )
    found = captions(figure)
    assert sorted(text[0] for text in found) == ["✓"] * 4 + ["✗"]
    assert "✗ cat →\ndog  99 %" in found
    assert "✓ dog\n99 %" in found
    assert "5 of 5 test images" in texts(figure)
    assert any("right: 4" in text and "wrong: 1" in text for text in texts(figure))
    assert WRONG in {colour for _, colour in drawn(figure).getcolors(1 << 20)}

    right = images.test_images_figure(noise(2, 3, 8, 8), guesses([0, 1], [0, 1], 2), ["a", "b"])
    assert WRONG not in {colour for _, colour in drawn(right).getcolors(1 << 20)}


@pytest.mark.parametrize("width", [2, 10, 100])
def test_a_split_sorted_by_class_still_shows_many_classes_and_always_the_same(width: int) -> None:
    targets = np.repeat(np.arange(width), 50)
    made = guesses(targets, targets, width)
    samples = noise(len(targets), 1, 4, 4)
    names = [f"name{i}" for i in range(width)]
    first, again = (captions(images.test_images_figure(samples, made, names)) for _ in range(2))
    assert first == again
    assert len(first) == 36
    assert len(set(first)) == min(width, 36)


def test_each_caption_belongs_to_the_image_above_it() -> None:
    # Image i is plain grey of value 20 i and its class is i.
    targets = np.arange(10)
    samples = np.broadcast_to((20 * targets)[:, None, None, None], (10, 1, 6, 6)).astype(np.uint8)
    figure = images.test_images_figure(
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
    figure = images.test_images_figure(noise(7, *shape), guesses([0] * 7, [1] * 7, 2), ["a", "b"])
    assert len([text for text in captions(figure) if text[0] == "✗"]) == 7
    assert max(drawn(figure).size) < 2000


def test_small_images_keep_hard_pixels() -> None:
    sample = np.zeros((1, 1, 2, 2), np.uint8)
    sample[0, 0, 0, 0] = sample[0, 0, 1, 1] = 200
    figure = images.test_images_figure(sample, guesses([0], [0], 1), ["only"])
    greys = {r for _, (r, g, b) in drawn(figure).crop((40, 110, 180, 250)).getcolors(9999)}
    assert greys == {0, 200}


def test_what_is_no_image_has_no_figure() -> None:
    made = guesses([0, 1], [0, 1], 2)
    assert images.test_images_figure(np.zeros((2, 5), np.float32), made, ["a", "b"]) is None
    assert images.test_images_figure(noise(2, 2, 4, 4), made, ["a", "b"]) is None


def test_only_the_images_shown_are_read() -> None:
    class Counted(np.ndarray):
        reads = 0

        def __getitem__(self, index):
            Counted.reads += 1
            return super().__getitem__(index)

    samples = noise(500, 1, 4, 4).view(Counted)
    images.test_images_figure(samples, guesses([0] * 500, [0] * 500, 1), ["only"], count=7)
    assert Counted.reads < 30


# The mistakes, and images with their labels


def sure(logit: list[float], predicted, targets, width: int) -> Predictions:
    logits = np.asarray(logit, np.float32)[:, None] * np.eye(width, dtype=np.float32)[predicted]
    return Predictions(logits, np.asarray(targets, np.int64))


def test_mistakes_alone_are_drawn_the_surest_first() -> None:
    made = sure([9, 1, 3, 8, 2], [0, 1, 1, 0, 0], [0, 0, 0, 1, 1], 2)
    names = ["cat", "dog"]
    figure = images.confident_mistakes_figure(noise(5, 3, 8, 8), made, names)
    assert captions(figure) == [
        "✗ dog →\ncat  100 %",
        "✗ cat →\ndog  95 %",
        "✗ dog →\ncat  88 %",
        "✗ cat →\ndog  73 %",
    ]
    assert "4 of 4 mistakes" in texts(figure)
    assert WRONG in {colour for _, colour in drawn(figure).getcolors(1 << 20)}
    two = images.confident_mistakes_figure(noise(5, 3, 8, 8), made, names, count=2)
    assert captions(two) == captions(figure)[:2]
    assert "2 of 4 mistakes" in texts(two)


def test_at_most_sixteen_mistakes_each_with_its_own_image() -> None:
    # Image i is plain grey of value 10 i; its class is i, and the surer the greater i.
    count = 20
    samples = np.broadcast_to(10 * np.arange(count)[:, None, None, None], (count, 1, 6, 6))
    made = sure(list(range(1, count + 1)), np.roll(np.arange(count), 1), np.arange(count), count)
    figure = images.confident_mistakes_figure(
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
    assert images.confident_mistakes_figure(noise(2, 1, 4, 4), right, names) is None
    assert images.confident_mistakes_figure(np.zeros((2, 5), np.float32), wrong, names) is None
    assert images.confident_mistakes_figure(noise(2, 1, 4, 4), wrong, names) is not None


def test_labelled_images_have_their_names_and_no_frame() -> None:
    # Image i is plain grey of value 20 i and its class is i.
    labels = np.arange(10)
    samples = np.broadcast_to((20 * labels)[:, None, None, None], (10, 3, 6, 6)).astype(np.uint8)
    names = ["✗ a cross", *(f"n{i}" for i in range(1, 10))]
    figure = images.labelled_images_figure(samples, labels, names, "one batch")
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
    figure = images.labelled_images_figure(noise(500, 1, 4, 4), labels, names, "sorted")
    assert len(set(captions(figure))) == len(captions(figure)) == 36
    assert "36 of 500 images, of 36 of 100 classes" in texts(figure)


def test_labelled_vectors_and_no_samples_have_no_figure() -> None:
    for samples in (np.zeros((2, 5), np.float32), noise(2, 2, 4, 4), noise(0, 1, 4, 4)):
        labels = np.zeros(len(samples), np.int64)
        assert images.labelled_images_figure(samples, labels, ["a"], "none") is None


# Names that bite


def test_odd_names_are_drawn_as_they_are_and_without_a_warning() -> None:
    width = len(ODD)
    made = guesses(np.roll(np.arange(width), 1), np.arange(width), width)
    figures = [
        plots.confusion_matrix_figure(evaluate(made, ODD), ODD),
        images.test_images_figure(noise(width, 3, 8, 8), made, ODD),
        images.confident_mistakes_figure(noise(width, 3, 8, 8), made, ODD),
        images.labelled_images_figure(noise(width, 3, 8, 8), made.targets, ODD, "$a_b$ of"),
    ]
    for figure in figures:
        drawn(figure)
        assert not any(text.get_parse_math() for text in figure.findobj(Text) if text.get_text())
    found = texts(figures[0])
    assert {"$a_b$", "a_b^c", "x y", "a|b", "$"} <= set(found)
    assert all(len(text) <= 18 for text in found if "script" in text)


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


# The Markdown


def markdown(predicted, targets, classes, **settings) -> str:
    made = evaluate(guesses(predicted, targets, len(classes)), classes)
    settings = {
        "facts": {"model": "lenet", "data set": "cifar10", "device": "cpu", "images/s": 12345.678},
        "command": "torchyard run cifar10",
        **settings,
    }
    return markdown_report(made, classes, **settings)


def test_markdown_has_headline_facts_command_and_links() -> None:
    text = markdown(
        [0, 1, 1], [0, 0, 1], ["cat", "dog"], links={"MLflow run": "http://localhost/#/a b>(c)"}
    )
    assert text.startswith("# lenet on cifar10: 66.7 %\n")
    assert "| images/s | 12,346 |" in text
    assert "66.7 % (2 of 3 test images)" in text
    assert "```sh\ntorchyard run cifar10\n```" in text
    links = [
        child.attrs["href"]
        for token in MarkdownIt("commonmark").parse(text)
        for child in token.children or []
        if child.type == "link_open"
    ]
    assert links == ["http://localhost/#/a%20b%3E(c)"]
    assert text.endswith("\n")
    assert not text.endswith("\n\n")


def test_markdown_names_the_weakest_the_confused_and_the_untested() -> None:
    text = markdown([0, 1, 1, 1, 2, 0], [0, 0, 0, 1, 2, 2], ["cat", "dog", "fox", "owl|s"])
    summary = text.splitlines()[2]  # what MLflow shows of it unasked
    assert summary.startswith("95 % interval 18.8 % to 81.2 %. ")
    assert summary.endswith("Weakest: cat (33.3 %), fox (50.0 %), dog (100.0 %).")
    assert "Without a test image, so nothing is known of them: owl\\|s." in text
    assert "| cat | dog | 2 | 66.7 % |" in text
    assert text.index("| cat | dog |") < text.index("| fox | cat |")
    order = [
        text.index(f"\n| {name} | {count}")
        for name, count in (("cat", 3), ("fox", 2), ("dog", 1), ("owl\\|s", 0))
    ]
    assert order == sorted(order)


def test_markdown_without_a_mistake_or_links_says_so() -> None:
    text = markdown([0, 1], [0, 1], ["a", "b"])
    assert "No test image was taken for another class." in text
    assert "Look closer" not in text
    assert "Without a test image" not in text


def test_markdown_shows_at_most_five_pairs() -> None:
    text = markdown(np.roll(np.arange(9), 1), range(9), [f"n{i}" for i in range(9)])
    assert text.count("| 1 | 100.0 % |") == 5


def test_odd_names_do_not_break_out_of_the_markdown() -> None:
    width = len(ODD)
    text = markdown(np.roll(np.arange(width), 1), range(width), ODD)
    html = MarkdownIt("commonmark").enable("table").render(text)
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "<em>" not in html
    assert html.count("<td>x y</td>") + html.count('">x y</td>') >= 1


def test_a_command_with_a_fence_in_it_stays_inside() -> None:
    text = markdown([0, 1], [0, 1], ["a", "b"], command="cat <<X\n```\n# not a heading")
    headings = [t.tag for t in MarkdownIt("commonmark").parse(text) if t.type == "heading_open"]
    assert headings.count("h1") == 1


# What the parent must not load


def test_reporting_imports_neither_torch_nor_pyplot_nor_sklearn() -> None:
    code = """
import sys, io, numpy as np
from core import report, evaluation
assert "pandas" not in sys.modules and "matplotlib" not in sys.modules
p = evaluation.Predictions(np.eye(2, dtype=np.float32), np.arange(2))
e = evaluation.evaluate(p, ["a", "b"])
plots.confusion_matrix_figure(e, ["a", "b"]).savefig(io.BytesIO())
images.test_images_figure(np.zeros((2, 1, 4, 4), np.uint8), p, ["a", "b"]).savefig(io.BytesIO())
markdown_report(e, ["a", "b"], facts={}, command="x")
bad = {"torch", "sklearn", "matplotlib.pyplot"} & set(sys.modules)
assert not bad, bad
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
