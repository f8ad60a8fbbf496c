"""The per-class report as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torchyard.core.formatting import percent
from torchyard.core.report.page import markdown_text, render

if TYPE_CHECKING:
    from torchyard.core.evaluation.metrics import Evaluation


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
    table = evaluation.per_class
    tested = table[table["images"] > 0].sort_values("accuracy", kind="stable")
    named = " on ".join(str(facts[key]) for key in ("model", "data set") if key in facts)
    return render(
        "report.md",
        title=named or "Test",
        evaluation=evaluation,
        classes=classes,
        tested=tested.to_dict("records"),
        untested=table["class"][table["images"] == 0].tolist(),
        facts=facts,
        table=per_class_markdown(evaluation, weakest_first=True),
        confused=evaluation.most_confused(5),
        command=command,
        links=links or {},
    )


def per_class_markdown(evaluation: Evaluation, weakest_first: bool = False) -> str:
    """The per-class table, shares in percent; an undefined value is a dash."""
    table = evaluation.per_class
    if weakest_first:
        table = table.sort_values("accuracy", kind="stable")
    lines = ["| class | images | correct | accuracy | precision | F1 |"]
    lines.append("| :--- |" + " ---: |" * 5)
    for name, images, correct, *shares in table.itertuples(index=False, name=None):
        numbers = [f"{images:,}", f"{correct:,}", *map(percent, shares)]
        lines.append(f"| {markdown_text(name)} | {' | '.join(numbers)} |")
    return "\n".join(lines) + "\n"
