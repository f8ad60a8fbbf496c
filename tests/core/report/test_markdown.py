"""The report as Markdown, also with hostile names of classes."""

from __future__ import annotations

import numpy as np
import pytest
from markdown_it import MarkdownIt

from tests.core.evaluation.test_metrics import HOSTILE
from tests.core.report.figures import ODD, guesses
from torchyard.core.evaluation.metrics import evaluate
from torchyard.core.report.markdown import markdown_report, per_class_markdown


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
    assert "66.7 % (2 of 3 test samples)" in text
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
    assert "Without a test sample, so nothing is known of them: owl\\|s." in text
    assert "| cat | dog | 2 | 66.7 % |" in text
    assert text.index("| cat | dog |") < text.index("| fox | cat |")
    order = [
        text.index(f"\n| {name} | {count}")
        for name, count in (("cat", 3), ("fox", 2), ("dog", 1), ("owl\\|s", 0))
    ]
    assert order == sorted(order)


def test_markdown_without_a_mistake_or_links_says_so() -> None:
    text = markdown([0, 1], [0, 1], ["a", "b"])
    assert "No test sample was taken for another class." in text
    assert "Look closer" not in text
    assert "Without a test sample" not in text


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


# The per-class table


@pytest.fixture
def hostile():
    width = len(HOSTILE)
    return evaluate(guesses([0, 1, 1], [0, 0, 0], width), HOSTILE)


def test_markdown_renders_every_name_as_it_is(hostile) -> None:
    tokens = (
        MarkdownIt("commonmark")
        .enable(["table", "strikethrough"])
        .parse(per_class_markdown(hostile))
    )
    cells = [token for token in tokens if token.type == "inline"]
    header, body = cells[:6], cells[6:]
    assert [cell.content for cell in header[:2]] == ["class", "images"]
    assert len(body) == 6 * len(HOSTILE)
    shown = body[::6]
    assert ["".join(c.content for c in cell.children) for cell in shown] == [
        " ".join(name.split()) for name in HOSTILE
    ]
    assert {c.type for cell in shown for c in cell.children} <= {"text", "text_special"}
    assert body[3].content == "33.3 %"
    assert body[2 * 6 + 3].content == "–"


def test_markdown_weakest_first_puts_unknown_classes_last() -> None:
    found = evaluate(guesses([0, 1, 0], [0, 1, 1], 3), ["good", "weak", "unknown"])
    names = [
        line.split("|")[1].strip() for line in per_class_markdown(found, True).splitlines()[2:]
    ]
    assert names == ["weak", "good", "unknown"]
