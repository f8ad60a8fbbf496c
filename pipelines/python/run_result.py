"""A run as Python sees it: its results, its predictions and its model, read on first use."""

from __future__ import annotations

import html
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torchyard.core.errors import UserError
from torchyard.core.formatting import percent
from torchyard.core.tracking import store
from torchyard.core.tracking.location.errors import store_errors
from torchyard.core.tracking.queries.lookup import find_run
from torchyard.core.tracking.queries.recorded import recorded_config, recorded_predictions
from torchyard.core.tracking.queries.runs import SEEDS, seeds_of
from torchyard.core.tracking.registry.versions import registered_version
from torchyard.core.tracking.store import page_address
from torchyard.pipelines.python.model import Model

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient
    from mlflow.entities import Run

    from torchyard.core.data.predictions import PredictionTable
    from torchyard.core.evaluation.metrics import Evaluation


class RunResult:
    """A run that is recorded in MLflow. What is not needed is not read.

    Attributes:
        run_id, name: of the run.
        status: "FINISHED", "RUNNING", "FAILED" or "KILLED".
        url: of its page in MLflow's UI.
        metrics: the last value of each metric.
    """

    def __init__(self, client: MlflowClient, run: Run) -> None:
        from torchyard.pipelines.services.manager import served_url

        self._client, self._run = client, run
        self.run_id: str = run.info.run_id
        self.name: str = run.info.run_name
        self.status: str = run.info.status
        self.metrics: dict[str, float] = dict(run.data.metrics)
        page = page_address(client.tracking_uri, run.info.experiment_id, self.run_id)
        self.url: str = served_url(page)

    @classmethod
    def find(cls, wanted: str) -> RunResult:
        """The run that is meant, as `torchyard.load` takes it."""
        uri = store.tracking_uri()
        client = store.open_existing(uri)
        with store_errors(uri):
            version = registered_version(client, wanted)
            if version is None:
                return cls(client, find_run(client, wanted))
            if not version.run_id:
                raise UserError(f"version {version.version} of {version.name} is not from a run.")
            return cls(client, client.get_run(version.run_id))

    def or_repeated(self) -> RunResult:
        """The run; or, if `train.skip_repeats` ended it, the finished run that it would repeat."""
        from torchyard.pipelines.flow.recording.start import INPUTS

        inputs = self._run.data.tags.get(INPUTS)
        if self.status == "FINISHED" or not inputs:
            return self
        chosen = f"attributes.status = 'FINISHED' and tags.`{INPUTS}` = '{inputs}'"
        with store_errors(self._client.tracking_uri):
            found = self._client.search_runs([self._run.info.experiment_id], chosen, max_results=1)
        return RunResult(self._client, found[0]) if found else self

    @cached_property
    def config(self) -> dict[str, Any]:
        """The whole configuration; `torchyard.run(run.config)` runs it again."""
        with store_errors(self._client.tracking_uri):
            return recorded_config(self._client, self._run)

    @cached_property
    def prediction_table(self) -> PredictionTable:
        """What it predicted of the test samples, as gates are given it.

        Raises:
            UserError: it has recorded none.
        """
        with store_errors(self._client.tracking_uri):
            return recorded_predictions(self._client, self._run)

    @cached_property
    def evaluation(self) -> Evaluation:
        """The metrics of its predictions: cross_entropy, confusion and more."""
        from torchyard.core.evaluation.metrics import evaluate

        table = self.prediction_table
        return evaluate(table.predictions, table.classes)

    @cached_property
    def seeds(self) -> list[RunResult]:
        """The runs of the seeds, if it was run with several; else none."""
        if SEEDS not in self._run.data.tags:
            return []
        with store_errors(self._client.tracking_uri):
            children = seeds_of(self._client, self._run)
        return [RunResult(self._client, run) for _, run in sorted(children.items())]

    @property
    def accuracy(self) -> float:
        """The share of the test samples that it predicts correctly, 0 to 1; of seeds the mean.

        Raises:
            UserError: it has recorded no predictions; so do `interval`, `per_class` and the like.
        """
        if "seeds/accuracy" in self.metrics:
            return self.metrics["seeds/accuracy"]
        return self.evaluation.accuracy

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the accuracy, 0 to 1: how far the test samples decide (Wilson).

        With several seeds: over other seeds and other test samples.
        """
        if "seeds/accuracy" in self.metrics:
            return self.metrics["seeds/accuracy_low"], self.metrics["seeds/accuracy_high"]
        return self.evaluation.interval

    @property
    def per_class(self) -> pd.DataFrame:
        """A row per class: class, images, correct, accuracy, precision, f1."""
        return self.evaluation.per_class

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """A row per test sample: true, predicted, confidence, probabilities, logits."""
        table = self.prediction_table.frame()
        table.insert(2, "confidence", self.prediction_table.predictions.confidence)
        return table

    @cached_property
    def model(self) -> Model:
        """The model that it logged; it is loaded when it first predicts.

        Raises:
            UserError: it has none.
        """
        return Model.find(self.run_id)

    def __repr__(self) -> str:
        return f"{self.name}  {self.run_id}\n{self._headline}"

    def _repr_html_(self) -> str:
        name, url = html.escape(self.name), html.escape(self.url)
        page = f'<p><b>{name}</b> <a href="{url}">{self.run_id}</a><br>{self._headline}</p>'
        if self.status != "FINISHED" or self.seeds:
            return page
        table = self.per_class.copy()
        for share in ("accuracy", "precision", "f1"):
            table[share] = table[share].map(percent)
        return page + table.to_html(index=False, border=0)

    @property
    def _headline(self) -> str:
        if self.status != "FINISHED":
            return f"It is {self.status}."
        low, high = self.interval
        images = f"{percent(self.accuracy)} of the test samples right, by {len(self.seeds)} seeds"
        if not self.seeds:
            images = f"{percent(self.accuracy)} of {self.evaluation.images:,} test samples right"
        return f"{images} (95 % interval {percent(low)} to {percent(high)})"
