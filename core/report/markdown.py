"""The per-class report as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torchyard.core.formatting import number, percent

if TYPE_CHECKING:
    from torchyard.core.evaluation.metrics import Evaluation

_ESCAPES = str.maketrans(
    {"&": "&amp;", "<": "&lt;", ">": "&gt;", **{sign: f"\\{sign}" for sign in "\\`*_[]|~$!#"}}
)


def markdown_report(
    evaluation: Evaluation,
    classes: Sequence[str],
    *,
    facts: Mapping[str, str | float],
    command: str,
    links: Mapping[str, str] | None = None,
) -> str:
    """Write the report as GitHub Markdown.

    Args:
        evaluation: of the test split.
        classes: the names, in the order of the class indices.
        facts: of the run, in the order they are shown; "model" and "data set" make the
            headline. Floats are written with four digits; the name holds their unit.
        command: runs the same training again.
        links: addresses by their names.
    """
    names = [_escape(name) for name in classes]
    title = " on ".join(str(facts[key]) for key in ("model", "data set") if key in facts)
    heading = f"# {_escape(title or 'Test')}: {percent(evaluation.accuracy)}"
    table = evaluation.per_class
    tested = table[table["images"] > 0].sort_values("accuracy", kind="stable")
    weakest = [f"{names[i]} ({percent(table['accuracy'][i])})" for i in map(int, tested.index[:3])]
    low, high = evaluation.interval
    # MLflow shows the first lines of a description, and the rest on a click.
    summary = f"95 % interval {percent(low)} to {percent(high)}."
    if len(tested) > 1:
        summary += f" Weakest: {', '.join(weakest)}."
    lines = [heading, "", summary, "", "| | |", "| :--- | :--- |"]
    loss = f"{evaluation.cross_entropy:.4f} nats"
    result = {"accuracy": evaluation.headline, "cross-entropy": loss}
    for key, value in {**facts, **result}.items():
        text = value if isinstance(value, str) else number(value)
        lines.append(f"| {_escape(key)} | {_escape(text)} |")

    empty = [names[i] for i in table.index[table["images"] == 0]]
    lines += ["", "## Classes, from weakest to strongest", ""]
    if empty:
        lines += [f"Without a test image, so nothing is known of them: {', '.join(empty)}.", ""]
    lines += [per_class_markdown(evaluation, weakest_first=True), "## Most confused", ""]
    pairs = [
        f"| {names[i]} | {names[j]} | {n:,} | {percent(n / evaluation.confusion[i].sum())} |"
        for i, j, n in evaluation.most_confused(5)
    ]
    if pairs:
        lines += ["| true | predicted | images | share of true |", "| :--- | :--- | ---: | ---: |"]
    lines += pairs or ["No test image was taken for another class."]
    fence = "```" if "```" not in command else "~~~~"
    lines += ["", "## Run it again", "", f"{fence}sh", command, fence]
    if links:
        lines += ["", "## Look closer", ""]
    for name, address in (links or {}).items():
        safe = address.translate({ord("<"): "%3C", ord(">"): "%3E", ord(" "): "%20"})
        lines.append(f"- [{_escape(name)}](<{safe}>)")
    return "\n".join(lines) + "\n"


def per_class_markdown(evaluation: Evaluation, weakest_first: bool = False) -> str:
    """The per-class table, shares in percent; an undefined value is a dash."""
    table = evaluation.per_class
    if weakest_first:
        table = table.sort_values("accuracy", kind="stable", na_position="last")
    lines = ["| class | images | correct | accuracy | precision | F1 |"]
    lines.append("| :--- |" + " ---: |" * 5)
    for name, images, correct, *shares in table.itertuples(index=False, name=None):
        numbers = [f"{images:,}", f"{correct:,}", *map(percent, shares)]
        lines.append(f"| {_escape(name)} | {' | '.join(numbers)} |")
    return "\n".join(lines) + "\n"


def _escape(text: str) -> str:
    """Text that shows as it is in Markdown, also in a table cell; line breaks become spaces."""
    return " ".join(text.split()).translate(_ESCAPES)
