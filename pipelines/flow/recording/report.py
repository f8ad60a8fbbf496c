"""The report of a run: the page, Markdown, tables, the model card; and the champion it faces."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.runtime import flow_run

from torchyard.core.config.schema import RunConfig
from torchyard.core.data.dataset import PreparedDataset
from torchyard.core.data.predictions import PredictionTable
from torchyard.core.errors import RunError, UserError
from torchyard.core.evaluation.metrics import Evaluation
from torchyard.core.evaluation.nearest import FILE as NEAREST_FILE
from torchyard.core.evaluation.nearest import Nearest
from torchyard.core.evaluation.paired_test import compare
from torchyard.core.formatting import percent
from torchyard.core.report import markdown
from torchyard.core.report.run.headline import Headline, Rival
from torchyard.core.report.run.model_card import FILE as CARD_FILE
from torchyard.core.report.run.model_card import model_card
from torchyard.core.report.run.recipe import recipe
from torchyard.core.report.run_page import run_page
from torchyard.core.tracking.location.errors import store_errors
from torchyard.core.tracking.mlflow_format import BEST
from torchyard.core.tracking.queries.lookup import CHAMPION
from torchyard.core.tracking.queries.recorded import recorded_predictions
from torchyard.core.tracking.record import RunRecord
from torchyard.core.tracking.store import if_there, open_store, tracking_uri
from torchyard.pipelines.flow.prefect_calls import tell
from torchyard.pipelines.flow.recording.results import curves
from torchyard.pipelines.flow.recording.start import config_text, data_name, flow_run_url

if TYPE_CHECKING:
    from torchyard.core.data.dataset import Labels, Samples

# The facts about a run's environment that the page folds away, and those of the run itself.
ENVIRONMENT_FACTS = (
    *("model_device", "data_device", "threads"),
    *("torch_version", "python_version", "processes"),
)
PAGE_FACTS = ("training", "device", "validation", "notes on the data", "data digest")
SHARES = ("accuracy", "precision", "f1")  # columns of the per-class table
TRAINING_BATCH = "training_batch.npz"


def record_report(
    record: RunRecord,
    config: RunConfig,
    prepared: PreparedDataset,
    table: PredictionTable,
    result: Evaluation,
    facts: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Write tables and the report; returns the rows of the per-class table.

    Args:
        table: what was predicted of the test split.
        result: the evaluation of that.
        facts: of the training: its placement, how `fit` ended, the number of parameters.
    """
    record.log_text(result.per_class_csv(), "per_class.csv")
    record.log_text(result.per_class_json(), "per_class.json")
    classes, samples = prepared.classes, prepared.test.samples
    stated: dict[str, str | float] = {
        "model": config.model.name,
        "data set": data_name(config),
        "test samples": result.images,
        "trained parameters": facts["parameters"],
        "epochs": facts["epochs"],
        "training": f"{facts['seconds']:.1f} s, {facts['images_per_second']:,.0f} images/s",
        "device": f"{facts['device']} ({facts['device_name']}), {facts['precision']}",
        "data digest": prepared.digest,
    }
    metrics = record.metrics
    if (validated := metrics.get(f"{BEST}val/loss")) is not None:
        right, epoch = percent(metrics.get(f"{BEST}val/accuracy")), facts["best_epoch"]
        text = f"loss {validated:.4f}, accuracy {right} in epoch {epoch}, the best"
        if (monitor := config.train.monitor) != "loss":
            value = metrics.get(f"{BEST}val/{monitor}", math.nan)
            text += f" by {monitor}" + f" ({value:.4f})" * (monitor != "accuracy")
        stated["validation"] = text
    if (leaked := result.figures.get("leaked")) is not None:
        others = percent(result.figures.get("accuracy_without_leaked"))
        stated["audit"] = (
            f"{percent(leaked)} of the test samples were trained on, too; {others} of the samples "
            "that are in the test split alone are right"
        )
    if facts["balance"]:
        stated["balance"] = facts["balance"]
    if prepared.notes:
        stated["notes on the data"] = "; ".join(prepared.notes)
    links = {"Prefect flow run": flow_run_url()} if flow_run.id else {}
    command = "torchyard run config.yaml  # the file is beside this report"
    text = markdown.markdown_report(result, classes, facts=stated, command=command, links=links)
    record.log_text(text, "report.md")
    record.describe(text)
    tags = record.tags
    headline = Headline(
        data_name(config),
        result,
        record.started,
        tags.get("mlflow.source.git.commit"),
        None if record.sender.unavailable else find_rival(record.run_id, config, table),
    )
    done = recipe(config, facts, tags)
    card = model_card(
        *(config, prepared, table.predictions, headline),
        run=record.name,
        recipe=done,
        trained=facts,
        tags=tags,
    )
    record.log_text(card, CARD_FILE)
    page = run_page(
        samples,
        table.predictions,
        classes,
        title=record.name,
        headline=headline,
        recipe=done,
        facts={name: stated[name] for name in PAGE_FACTS if name in stated},
        environment={key: facts[key] for key in ENVIRONMENT_FACTS},
        metrics=metrics,
        curves=curves(record.folder),
        config=config_text(config),
        links=links | {"MLflow run": record.url},
        batch=_training_batch(record.folder),
        nearest=_nearest(record.folder, prepared),
    )
    record.log_text(page, "report.html")

    # Through JSON, so that what is missing is None.
    rows: list[dict[str, Any]] = json.loads(result.per_class.round(4).to_json(orient="records"))
    shown = [row | {key: percent(row[key]) for key in SHARES} for row in weakest_first(rows)]
    about = f"{record.name}: {percent(result.accuracy)} of {result.images:,} test samples"

    def publish() -> None:
        create_table_artifact(key="per-class", table=shown, description=about)
        create_markdown_artifact(key="report", markdown=text, description=about)

    tell("report", publish)
    return rows


def weakest_first(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of a per-class table by accuracy; last the classes without a test sample."""
    return sorted(rows, key=lambda row: math.inf if row["accuracy"] is None else row["accuracy"])


def _training_batch(folder: Path) -> tuple[Samples, Labels] | None:
    """Samples and labels as the training saw them first, of a run that augments images."""
    file = folder / TRAINING_BATCH
    if not file.is_file():
        return None
    with np.load(file, allow_pickle=False) as arrays:
        return arrays["samples"], arrays["labels"]


def _nearest(folder: Path, prepared: PreparedDataset) -> tuple[Nearest, Samples] | None:
    """The training images nearest to the surest mistakes, where the evaluation found any."""
    file = folder / NEAREST_FILE
    return (Nearest.read(file), prepared.train.samples) if file.is_file() else None


def find_rival(run_id: str, config: RunConfig, table: PredictionTable) -> Rival | None:
    """The champion of the model that the run is for; else any tested on the same samples.

    None where there is none but the run itself, or the store does not answer: a report needs none.

    Args:
        run_id: of the run.
        config: of the run.
        table: what it predicted of the test split.
    """
    uri = tracking_uri()
    with suppress(RunError, UserError), store_errors(uri):
        client = open_store(uri)
        champions = {
            found.name: int(found.aliases[CHAMPION])
            for found in client.search_registered_models()
            if CHAMPION in found.aliases
        }
        if config.promote is not None:
            name = config.promote.model
            champions = {name: champions[name]} if name in champions else {}
        for model, version in champions.items():
            found = client.get_model_version(model, str(version))
            run = if_there(client.get_run, str(found.run_id))
            if run is None or run.info.run_id == run_id:
                continue
            if run.data.tags.get("dataset") != config.dataset.name:
                continue
            with suppress(UserError):  # it was tested on other samples, or nothing is recorded
                difference = compare(recorded_predictions(client, run), table).overall
                return Rival(model, version, difference)
    return None
