"""The page of several seeds of one configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from torchyard.core.errors import UserError
from torchyard.core.evaluation.metrics import Evaluation, evaluate
from torchyard.core.evaluation.seeds import SeedSummary, over_seeds
from torchyard.core.report.drawing.plots import Curves, learning_curves
from torchyard.core.report.page import data_uri, render

if TYPE_CHECKING:
    import pandas as pd

    from torchyard.core.data.predictions import PredictionTable


@dataclass(frozen=True, eq=False)
class SeedRun:
    """The run of one seed.

    Attributes:
        seed: its number.
        name, url: of the run.
        table, curves: its predictions, and its training.
    """

    seed: int
    name: str
    url: str
    table: PredictionTable
    curves: Curves


@dataclass(frozen=True, eq=False)
class SeedResults:
    """The results of all seeds.

    Attributes:
        runs: one per seed.
        evaluations: of each.
        summary: of their accuracies.
    """

    runs: Sequence[SeedRun]
    evaluations: Sequence[Evaluation]
    summary: SeedSummary

    @classmethod
    def of(cls, runs: Sequence[SeedRun]) -> SeedResults:
        """Evaluate and summarize.

        Raises:
            UserError: the runs were tested on different samples.
        """
        tables = [run.table for run in runs]
        if len({table.test_digest for table in tables}) > 1:
            raise UserError("the seeds were tested on different samples: the data set has changed")
        correct = [each.predictions.predicted == each.predictions.targets for each in tables]
        evaluations = [evaluate(each.predictions, each.classes) for each in tables]
        return cls(runs, evaluations, over_seeds(np.stack(correct)))

    @property
    def classes(self) -> pd.DataFrame:
        """A row per class: class, images, and mean, spread, low, high of the seeds' accuracies."""
        table = self.evaluations[0].per_class[["class", "images"]].copy()
        shares = np.stack([each.per_class["accuracy"] for each in self.evaluations])
        table["mean"], table["spread"] = shares.mean(axis=0), shares.std(axis=0, ddof=1)
        table["low"], table["high"] = shares.min(axis=0), shares.max(axis=0)
        return table

    @property
    def losses(self) -> tuple[float, float]:
        """Mean and standard deviation of the seeds' cross-entropies."""
        losses = [each.cross_entropy for each in self.evaluations]
        return float(np.mean(losses)), float(np.std(losses, ddof=1))

    def page(self, title: str, config: str) -> str:
        """Make the page: HTML that needs no other file.

        Args:
            title: the name of the run whose children these are.
            config: the configuration as YAML.
        """
        least = np.floor(10 * np.nanmin([*self.classes["low"], 0.9])) / 10
        return render(
            "seeds.html",
            title=title,
            least=float(least),
            rows=list(zip(self.runs, self.evaluations, strict=True)),
            summary=self.summary,
            losses=self.losses,
            classes=self.classes.sort_values("mean", kind="stable").to_dict("records"),
            curves=learning_curves([run.curves for run in self.runs]),
            validated=any(run.curves.get("val/loss") for run in self.runs),
            config=config,
            config_file=data_uri(config.encode(), "text/yaml"),
        )
