"""The page of `torchyard compare`: runs side by side, with plots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from core.figures import accuracy_against_cost, learning_curves, svg
from core.page import render
from core.run_comparison import classes_compared, results, settings_that_differ, verdict

if TYPE_CHECKING:
    from core.run_comparison import Compared


def comparison_page(compared: Sequence[Compared]) -> str:
    """The page as HTML that needs no other file."""
    curves = learning_curves([each.curves for each in compared])
    points = [
        (
            each.run.data.metrics.get("time/train_seconds", float("nan")),
            each.run.data.metrics.get("test/accuracy", float("nan")),
            *each.interval,
        )
        for each in compared
    ]
    placed = any(seconds == seconds and accuracy == accuracy for seconds, accuracy, *_ in points)
    return render(
        "comparison.html",
        runs=[_run(each) for each in compared],
        verdicts=[verdict(compared[0], each) for each in compared[1:]],
        settings=settings_that_differ(compared).to_dict("split"),
        results=results(compared).to_dict("split"),
        classes=classes_compared(compared),
        curves=[Markup(svg(figure, f"curves {place}")) for place, figure in enumerate(curves)],
        validated=any(each.curves.get("val/loss") for each in compared),
        cost=Markup(svg(accuracy_against_cost(points), "cost")) if placed else "",
    )


def _run(each: Compared) -> dict[str, Any]:
    low, high = each.interval
    return {
        "label": each.label,
        "id": each.run.info.run_id,
        "status": each.run.info.status,
        "dataset": each.run.data.tags.get("dataset", "–"),
        "accuracy": each.run.data.metrics.get("test/accuracy"),
        "low": low,
        "high": high,
    }
