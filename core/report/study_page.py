"""The report of a study as an HTML page: its trials, and how they compare, in plots that answer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from torchyard.core.report.drawing.plots import SERIES
from torchyard.core.report.page import render

if TYPE_CHECKING:
    from optuna import Study

FEWEST = 3  # complete trials, from which importances are worth a look
HEIGHT = 380  # pixels of a plot
NOTHING = "rgba(0,0,0,0)"  # the page's own ground; its style colours texts and grid
LAYOUT = {
    "title": None, "height": HEIGHT, "template": "plotly_white", "colorway": SERIES,
    "margin": {"t": 40, "r": 40, "b": 50, "l": 60}, "paper_bgcolor": NOTHING,
    "plot_bgcolor": NOTHING, "legend": {"orientation": "h", "y": 1.12},
}  # fmt: skip
NAMES = {
    "Trial": "trial", "Step": "epoch", "Best Value": "the best so far", "Hyperparameter": "",
    "Hyperparameter Importance": "share of what makes the difference",
}  # fmt: skip


def study_page(
    study: Study,
    *,
    title: str,
    figure: str,
    facts: Mapping[str, str | float],
    trials: Sequence[Mapping[str, Any]],
    links: Mapping[str, str],
) -> str:
    """Make the page: HTML with plotly.js in it, which asks nothing of the network.

    Args:
        study: in Optuna, whose plots these are.
        title: of the page.
        figure: by which the trials are compared.
        facts: of the study, in the order they are shown.
        trials: a row each, of the same keys.
        links: addresses by their names.
    """
    from plotly.offline import get_plotlyjs

    return render(
        "study.html",
        title=title,
        figure=figure,
        best=study.best_value,
        facts=facts,
        plots=dict(_plots(study, figure)),
        script=Markup(get_plotlyjs()),
        trials=trials,
        links=links,
    )


def _plots(study: Study, figure: str) -> list[tuple[str, Markup]]:
    """The plots that there are enough trials for, with their headings."""
    from optuna import importance, visualization
    from optuna.trial import TrialState

    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    varied = [
        name for name in study.best_params if len({each.params.get(name) for each in complete}) > 1
    ]
    wanted: list[tuple[str, Callable[[], Any]]] = [
        ("History", lambda: visualization.plot_optimization_history(study, target_name=figure))
    ]
    if len(complete) >= FEWEST and len(varied) > 1:  # one alone makes all of the difference
        wanted.append(
            (
                "Importances",
                lambda: visualization.plot_param_importances(
                    study,
                    # In place of random forests, which would take seconds of imports.
                    evaluator=importance.PedAnovaImportanceEvaluator(),
                    params=varied,
                    target_name=figure,
                ),
            )
        )
    if len(complete) >= FEWEST and varied:
        wanted.append(
            (
                "Parallel coordinates",
                lambda: visualization.plot_parallel_coordinate(
                    study, params=varied, target_name=figure
                ),
            )
        )
    trials = study.get_trials(deepcopy=False)
    epochs = max((step for each in trials for step in each.intermediate_values), default=1)
    counts = {"Trial": len(trials), "Step": epochs}
    if any(len(each.intermediate_values) > 1 for each in trials):
        wanted.append(("Epochs", lambda: visualization.plot_intermediate_values(study)))
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PED-ANOVA is called experimental; too few good trials
        for heading, plot in wanted:
            drawn = plot()
            drawn.update_layout(LAYOUT)
            _rename(drawn, NAMES | {"Intermediate Value": figure}, counts)
            text = drawn.to_html(
                full_html=False, include_plotlyjs=False, config={"displaylogo": False}
            )
            found.append((heading, Markup(text)))
    return found


def _rename(drawn: Any, names: Mapping[str, str], counts: Mapping[str, int]) -> None:
    """Name axes and traces as people do; those of `counts` have whole numbers, up to these."""
    for trace in drawn.data:
        trace.name = names.get(trace.name, trace.name)
    for axis in (*drawn.select_xaxes(), *drawn.select_yaxes()):
        called = axis.title.text
        axis.title.text = names.get(called, called)
        if called in counts:
            axis.dtick = max(1, round(counts[called] / 8))
