"""The report as a page: for many classes, empty ones, vectors, photographs and hostile names."""

from __future__ import annotations

import base64
import io
import json
import re
import warnings
from datetime import datetime
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from torchyard.core.data.predictions import Predictions
from torchyard.core.evaluation.metrics import evaluate
from torchyard.core.evaluation.nearest import Nearest
from torchyard.core.report.drawing.matrix import DRAWN
from torchyard.core.report.run.confusions import MAX_CELLS, MAX_IMAGES
from torchyard.core.report.run.headline import Headline
from torchyard.core.report.run_page import run_page

HOSTILE = ["<script>alert(1)</script>", "a \"quote\" & 'another'", "猫 🐈", "{{ 7 * 7 }}", "x" * 90]


class Page(HTMLParser):
    """What a browser would make of it: texts, elements, and whether each is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.found: list[tuple[str, dict]] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attributes) -> None:
        self.found.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "br"):
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes) -> None:
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data) -> None:
        self.texts.append(data.strip())

    def of(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.found if name == tag]


def made(samples, classes, *, without: tuple[int, ...] = (), curves=True, **more) -> Page:
    """The page of a network that is mostly right about these samples."""
    count, width = len(samples), len(classes)
    rng = np.random.default_rng(0)
    targets = rng.integers(0, width, count)
    for empty in without:
        targets[targets == empty] = (empty + 1) % width
    logits = rng.normal(0, 1.3, (count, width)).astype(np.float32)
    logits[np.arange(count), targets] += more.pop("skill", 3.0)
    predictions = Predictions(logits, targets)
    result = evaluate(predictions, classes)
    keys = ("train/loss", "train/accuracy") if curves else ()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text = run_page(
            samples,
            predictions,
            classes,
            title=more.pop("title", "lenet·sgd·toy #1"),
            headline=Headline("toy", result, datetime(2026, 11, 26, 12, 13), None, None),
            recipe={"model": "lenet <b>", "began with": "random weights"},
            facts={"data digest": "0123"},
            environment={"threads": "2"},
            metrics={"time/train_seconds": 200.0, "system/peak_memory_mib": 700.5},
            curves={key: [(1, 0.5), (2, 0.25)] for key in keys},
            config="model:\n  name: <lenet>\n",
            links={"MLflow run": "http://127.0.0.1:5000/#/x?a=1&b=2"},
            **more,
        )
    assert text.count("\n{{") == 0
    page = Page(text)
    ids = [attributes["id"] for _, attributes in page.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    for attributes in (*page.of("img"), *page.of("image"), *page.of("link")):
        address = attributes.get("src") or attributes.get("xlink:href") or attributes.get("href")
        assert address.startswith("data:")
    assert not any("src" in attributes for attributes in page.of("script"))
    assert "url(http" not in text
    return page


def confusions_of(page: Page) -> dict:
    """What the page's script is given."""
    [text] = [text for text in page.texts if text.startswith('{"box"')]
    return json.loads(text)


def pixels(count: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 255, (count, *shape), dtype=np.uint8)


def test_names_are_shown_as_they_are_and_run_nothing() -> None:
    page = made(pixels(300, 1, 8, 8), HOSTILE, title="<img src=x onerror=alert(1)>")
    for name in HOSTILE:
        assert name in page.texts
    assert confusions_of(page)["classes"] == HOSTILE
    assert any("<img src=x onerror=alert(1)>" in text for text in page.texts)
    assert not [attributes for _, attributes in page.found if "onerror" in attributes]


def test_no_name_turns_or_hides_the_text_of_a_page() -> None:
    page = made(pixels(300, 1, 8, 8), ("cat\u202egpj", "\x1b[8mdog"), title="\u2066run")
    for shown in (r"cat\u202egpj", r"\x1b[8mdog", r"\u2066run"):
        assert any(shown in text for text in page.texts)
    assert not [text for text in page.texts if set(text) & set("\u202e\u2066\x1b")]


def test_a_hundred_classes_have_a_row_each_and_the_matrix_is_small() -> None:
    names = [f"class {number}" for number in range(100)]
    page = made(pixels(3000, 3, 32, 32), names)
    assert set(names) <= set(page.texts)
    assert "80 stronger classes" in page.texts
    assert len(page.of("svg")) == 4
    [picture] = [each for each in page.of("image") if each["xlink:href"].startswith("data:")][:1]
    data = base64.b64decode(picture["xlink:href"].partition(",")[2])
    assert Image.open(io.BytesIO(data)).size == (100, 100)
    found = confusions_of(page)
    assert len(found["images"]) == MAX_IMAGES
    assert sum(len(cell[3]) for cell in found["cells"]) == MAX_IMAGES


def test_a_matrix_of_very_many_classes_is_drawn_in_blocks_and_its_pairs_are_bounded() -> None:
    page = made(pixels(6000, 1, 4, 4), [f"c{number}" for number in range(500)], skill=0.5)
    [picture] = [each for each in page.of("image") if each["xlink:href"].startswith("data:")][:1]
    data = base64.b64decode(picture["xlink:href"].partition(",")[2])
    assert max(Image.open(io.BytesIO(data)).size) <= DRAWN
    assert len(confusions_of(page)["cells"]) == MAX_CELLS


def test_a_class_without_test_samples_says_so() -> None:
    page = made(pixels(200, 3, 8, 8), ["cat", "dog", "nobody"], without=(2,))
    assert "no test samples: nothing is known of it" in page.texts
    assert not any("nan" in text.lower() for text in page.texts)


def test_vectors_are_listed_and_have_no_pictures() -> None:
    page = made(np.zeros((200, 7), np.float32), ["a", "b", "c"])
    assert page.of("img") == []
    assert "test sample" in page.texts
    assert "Most confident mistakes" in page.texts


@pytest.mark.parametrize(
    ("shape", "kind", "size"),
    [
        ((1, 8, 8), "png", (8, 8)),
        ((3, 64, 32), "png", (32, 64)),
        ((3, 400, 200), "webp", (84, 168)),
    ],
)
def test_small_images_are_exact_and_large_ones_scaled(shape, kind, size) -> None:
    samples = pixels(60, *shape)
    page = made(samples, ["a", "b", "c"], skill=0.0)
    first = next(each for each in page.of("img") if each["alt"].startswith("test image "))
    head, _, data = first["src"].partition(",")
    assert head == f"data:image/{kind};base64"
    picture = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")
    assert picture.size == size
    if kind == "png":
        index = int(first["alt"].rpartition(" ")[2])
        expected = np.broadcast_to(samples[index].transpose(1, 2, 0), (*shape[1:], 3))
        np.testing.assert_array_equal(np.asarray(picture), expected)


def test_without_a_mistake_and_without_an_epoch_there_is_still_a_page() -> None:
    page = made(pixels(50, 1, 8, 8), ["a", "b"], skill=90.0, curves=False)
    assert "100.0 %" in page.texts
    assert confusions_of(page)["cells"][0][:3] == [1, 1, 27]
    assert "No test sample was taken for another class." in page.texts
    assert "Most confident mistakes" not in page.texts
    assert "Learning curves" not in page.texts


def test_it_says_how_long_where_and_how_to_have_it_again() -> None:
    page = made(pixels(50, 1, 8, 8), ["a", "b"])
    assert {"3 min 20 s", "peak memory, MiB", "700.5", "torchyard run config.yaml"} <= set(
        page.texts
    )
    [config] = [each["href"] for each in page.of("a") if each.get("download") == "config.yaml"]
    assert base64.b64decode(config.partition(",")[2]) == b"model:\n  name: <lenet>\n"
    assert "http://127.0.0.1:5000/#/x?a=1&b=2" in [each["href"] for each in page.of("a")]


def test_bars_begin_near_the_least_of_the_classes() -> None:
    page = made(pixels(600, 1, 8, 8), ["a", "b", "c"], skill=8.0)
    assert "80 %" in page.texts
    for style in (each["style"] for each in page.of("div") if "left" in each.get("style", "")):
        ends = [float(value) for value in re.findall(r"([\d.]+)%", style)]
        assert all(0 <= value <= 100 for value in ends)
        assert sum(ends) < 100


def test_every_pair_of_classes_has_its_surest_images() -> None:
    samples = pixels(300, 3, 8, 8)
    found = confusions_of(made(samples, ["a", "b", "c"], skill=1.0))
    assert sum(cell[2] for cell in found["cells"]) == sum(found["totals"]) == 300
    assert [cell[0] == cell[1] for cell in found["cells"]] == [False] * 6 + [True] * 3
    assert all(len(cell[3]) == min(6, cell[2]) for cell in found["cells"])
    picture = Image.open(io.BytesIO(base64.b64decode(found["images"][0].partition(",")[2])))
    assert picture.size == (8, 8)


def test_training_images_are_shown_with_their_labels() -> None:
    batch = pixels(20, 1, 8, 8), np.arange(20) % 2
    page = made(pixels(50, 1, 8, 8), ["cat", "dog"], batch=batch)
    assert len([each for each in page.of("img") if each["alt"] == "a training image"]) == 12


def test_beside_a_mistake_stand_the_training_images_that_speak_for_it() -> None:
    training = pixels(9, 3, 8, 8)
    surest = made(pixels(60, 3, 8, 8), ["a", "b", "c"], skill=0.0)
    shown = [each["alt"] for each in surest.of("img") if each["alt"].startswith("test image ")]
    first = int(shown[-24].rpartition(" ")[2])
    found = Nearest("model.fc", 9, 9, {first: [(4, 0.987), (2, 0.5)]})
    page = made(pixels(60, 3, 8, 8), ["a", "b", "c"], skill=0.0, nearest=(found, training))
    beside = [each for each in page.of("img") if each["alt"].startswith("training image")]
    assert [each["alt"] for each in beside] == ["training image 4", "training image 2"]
    assert beside[0]["title"].endswith("similarity 0.987")
    assert "model.fc" in page.texts


def test_plots_take_the_colours_of_the_page() -> None:
    page = made(pixels(200, 3, 8, 8), ["cat", "dog", "nobody"], without=(2,))
    styles = " ".join(each.get("style", "") for _, each in page.found)
    for variable in ("--ink", "--muted", "--line", "--series-0"):
        assert f"var({variable})" in styles
    assert not re.findall(r"font-family|'DejaVu", styles)
