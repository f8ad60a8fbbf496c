"""The flow: prepare, train, evaluate, report; every task a few lines that call core.

Between tasks go handles: folders, files, ids. The torch work is done by a worker process
(`core.worker`), which the tasks of one process share.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from prefect import flow, get_run_logger, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.exceptions import CancelledRun, TerminationSignal
from prefect.runtime import flow_run
from prefect.utilities.urls import url_for

from core import report
from core.config import Recipe, RunConfig, resolve
from core.dataset import PreparedDataset
from core.evaluation import Evaluation, Predictions, evaluate
from core.folders import cache_folder, run_folder
from core.host import host
from core.tracking import RunRecord, class_metric_keys
from core.worker import shared_worker
from pipelines.display import current_display, epoch_line

_INTERRUPTIONS = (
    *(KeyboardInterrupt, SystemExit, asyncio.CancelledError),
    *(CancelledRun, TerminationSignal),
)


@dataclass(frozen=True)
class Trained:
    """The handle of a trained network: its weights' file, and what is told of them."""

    weights: str
    facts: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What a finished run hands back.

    Attributes:
        run_id, name, url: of the MLflow run.
        accuracy: on the test split, 0 to 1.
        images: test samples.
        per_class: one row a class: class, images, correct, accuracy, precision, f1.
    """

    run_id: str
    name: str
    url: str
    accuracy: float
    images: int
    per_class: list[dict[str, Any]]


_records: dict[str, RunRecord] = {}


def check_config(config: RunConfig) -> dict[str, Any]:
    """Try device, model, loss and schedule in the worker before any work.

    Raises:
        UserError: with every problem found.
    """
    return shared_worker().call("check", config=_plain(config), cache=str(cache_folder()))


@task(task_run_name="prepare_data: {config.dataset.name}", cache_policy=NO_CACHE)
def prepare_data(config: RunConfig, run_id: str) -> str:
    """Download or read, verify and store the data set; gives the folder of its arrays."""
    with _stage("prepare", run_id, config.dataset.name):
        done = _call("prepare", run_id, config=_plain(config), cache=str(cache_folder()))
        data = PreparedDataset.open(Path(done["folder"]))
        _record(run_id).log_dataset(data)
        shape = "x".join(map(str, data.shape))
        found = "found prepared" if done["found"] else "prepared"
        _say(
            "prepare",
            f"{data.name}: {data.counts['train']:,} training and {data.counts['test']:,} test "
            f"samples of {shape}, {len(data.classes)} classes, {found}",
        )
    return str(data.folder)


@task(task_run_name="train_model: {config.model.name}, {config.optimizer.name}",
      cache_policy=NO_CACHE)  # fmt: skip
def train_model(config: RunConfig, data: str, run_id: str) -> Trained:
    """Train; gives the best weights, or the last where there was no validation."""
    record = _record(run_id)
    with _stage("train", run_id, config.model.name):
        folder = run_folder(run_id)
        done = _call("train", run_id, config=_plain(config), data=data, folder=str(folder))
        fit, placement = done["fit"], done["placement"]
        record.set_tags(
            placement
            | {
                "weights_digest": done["weights_digest"],
                "parameters": done["parameters"],
                "checkpoints": str(folder),
                "stopped_early": str(fit["stopped_early"]).lower(),
            }
        )
        summary = {
            "train/mean_images_per_second": fit["images_per_second"],
            "train/best_epoch": fit["best_epoch"],
            "train/steps": fit["steps"],
        }
        record.log_metrics(
            summary | {f"system/{key}": value for key, value in done["peaks"].items()},
            step=fit["epochs"],
        )
        _say(
            "train",
            f"{config.model.name} with {done['parameters']:,} parameters, {fit['steps']:,} steps "
            f"in {fit['seconds']:.1f} s on {placement['device']} ({placement['device_name']})"
            + (f", stopped early: epoch {fit['best_epoch']} was best" * fit["stopped_early"]),
        )
    return Trained(done["weights"], {**placement, **fit, "parameters": done["parameters"]})


@task(task_run_name="evaluate_model: {config.model.name}", cache_policy=NO_CACHE)
def evaluate_model(config: RunConfig, data: str, trained: Trained, run_id: str) -> str:
    """Predict the test split; gives the file of the predictions."""
    record = _record(run_id)
    target = str(run_folder(run_id) / "predictions.npz")
    with _stage("evaluate", run_id, config.dataset.name):
        _call("evaluate", run_id, config=_plain(config), data=data, weights=trained.weights,
              target=target)  # fmt: skip
        classes = PreparedDataset.open(Path(data)).classes
        result = evaluate(Predictions.load(Path(target)), classes)
        record.log_metrics(_test_metrics(result, classes), step=trained.facts["epochs"])
        _say(
            "evaluate",
            f"{result.accuracy:.1%} of {result.images:,} test samples right, "
            f"cross-entropy {result.cross_entropy:.4f}",
        )
    return target


@task(task_run_name="report_per_class: {config.dataset.name}", cache_policy=NO_CACHE)
def report_per_class(
    config: RunConfig, data: str, trained: Trained, predictions: str, run_id: str
) -> Outcome:
    """Write the per-class report to MLflow and Prefect, and log the model with it."""
    record = _record(run_id)
    with _stage("report", run_id, "per class"):
        prepared = PreparedDataset.open(Path(data))
        predicted = Predictions.load(Path(predictions))
        result = evaluate(predicted, prepared.classes)
        _log_model(config, prepared, trained, result, record)
        _log_report(config, prepared, trained, predicted, result, record)
        rows = result.per_class.astype(object).where(result.per_class.notna(), None)
        per_class = [{str(key): row[key] for key in row} for row in rows.to_dict("records")]
        create_table_artifact(
            key="per-class", table=per_class, description=f"{record.name}: {result.accuracy:.1%}"
        )
        create_link_artifact(key="mlflow-run", link=record.url, link_text=record.name)
        _say("report", "per-class table, pictures and model are in MLflow")
    return Outcome(run_id, record.name, record.url, result.accuracy, result.images, per_class)


@flow(name="train_pipeline")
def train_pipeline(config: RunConfig) -> Outcome:
    """Train a classifier: prepare → train → evaluate → per-class report, in one MLflow run."""
    recipe = resolve(config.model_dump(), host())
    config = recipe.config
    check_config(config)
    parts = (config.model.name, config.optimizer.name, config.dataset.name)
    record = RunRecord.start(
        name_stem="·".join(parts), parameters=_plain(config), tags=_identity(recipe)
    )
    _records[record.run_id] = record
    try:
        _link(record)
        record.log_text(_as_yaml(config), "config.yaml")
        data = prepare_data(config, record.run_id)
        trained = train_model(config, data, record.run_id)
        predictions = evaluate_model(config, data, trained, record.run_id)
        outcome = report_per_class(config, data, trained, predictions, record.run_id)
        record.finish("FINISHED")
    except BaseException as error:
        killed = isinstance(error, _INTERRUPTIONS)
        reason = str(error).strip() or type(error).__name__
        record.finish("KILLED" if killed else "FAILED", reason)
        raise
    return outcome


def _plain(config: RunConfig) -> dict[str, Any]:
    return config.model_dump(mode="json")


def _as_yaml(config: RunConfig) -> str:
    import yaml

    return yaml.safe_dump(_plain(config), sort_keys=False, allow_unicode=True)


def _record(run_id: str) -> RunRecord:
    # A task that Prefect runs in another process opens the record there.
    if run_id not in _records:
        _records[run_id] = RunRecord.open(run_id)
    return _records[run_id]


def _identity(recipe: Recipe) -> dict[str, str]:
    """Tags to filter by: the plugins' names, where each comes from, and the Prefect run."""
    tags = {kind: found.name for kind, found in recipe.plugins.items()}
    tags |= {f"plugin.{kind}": found.source.identity for kind, found in recipe.plugins.items()}
    return tags


def _link(record: RunRecord) -> None:
    """Give the Prefect run the MLflow run's name, and each the other's address."""
    if flow_run.id is None:
        return
    with get_client(sync_client=True) as client:
        client.update_flow_run(flow_run.id, name=record.name)
    record.set_tags(
        {
            "prefect.flow_run_id": flow_run.id,
            "prefect.flow_run_url": url_for("flow-run", obj_id=flow_run.id) or "",
        }
    )


def _call(stage: str, run_id: str, **arguments: Any) -> dict[str, Any]:
    """Run a stage in the worker, and tell display, MLflow and Prefect of its events."""
    record, shown, logger = _record(run_id), current_display(), get_run_logger()

    def follow(name: str, values: dict[str, Any]) -> None:
        shown.event(name, values)
        if name == "RunningLoss":
            record.log_metrics({"train/running_loss": values["loss"]}, step=values["step"])
        elif name == "EpochDone":
            record.log_metrics(_epoch_metrics(values), step=values["epoch"])
            logger.info(epoch_line(values))

    worker = shared_worker()
    worker.on_output = shown.output
    return worker.call(stage, follow, **arguments)


@contextlib.contextmanager
def _stage(name: str, run_id: str, status: str) -> Iterator[None]:
    """Show a stage, and record how long it took."""
    started = time.perf_counter()
    with current_display().stage(name, status):
        yield
    record = _record(run_id)
    record.log_metrics({f"time/{name}_seconds": time.perf_counter() - started}, step=0)
    record.flush()


def _say(stage: str, text: str) -> None:
    current_display().line(stage, text)
    get_run_logger().info(text)


def _log_model(
    config: RunConfig,
    prepared: PreparedDataset,
    trained: Trained,
    result: Evaluation,
    record: RunRecord,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder) / "model.pt2"
        _call("export", record.run_id, config=_plain(config), data=str(prepared.folder),
              weights=trained.weights, target=str(exported))  # fmt: skip
        record.log_model(
            exported,
            prepared,
            torch_version=trained.facts["torch_version"],
            metrics={"test/accuracy": result.accuracy, "test/loss": result.cross_entropy},
            step=trained.facts["epochs"],
        )


def _log_report(
    config: RunConfig,
    prepared: PreparedDataset,
    trained: Trained,
    predictions: Predictions,
    result: Evaluation,
    record: RunRecord,
) -> None:
    record.log_text(result.per_class_csv(), "per_class.csv")
    record.log_text(result.per_class_json(), "per_class.json")
    record.log_figure(
        report.confusion_matrix_figure(result, prepared.classes), "confusion_matrix.png"
    )
    images = report.test_images_figure(prepared.test.samples, predictions, prepared.classes)
    if images is not None:
        record.log_figure(images, "test_images.png")
    facts = trained.facts
    text = report.markdown_report(
        result,
        prepared.classes,
        facts={
            "model": config.model.name,
            "data set": prepared.name,
            "test images": result.images,
            "parameters": facts["parameters"],
            "epochs": facts["epochs"],
            "training": f"{facts['seconds']:.1f} s, {facts['images_per_second']:,.0f} images/s",
            "device": f"{facts['device']} ({facts['device_name']}), {facts['precision']}",
            "data digest": prepared.digest,
        },
        command="torchyard run config.yaml  # the file is beside this report",
        links={"Prefect flow run": url_for("flow-run", obj_id=flow_run.id) or ""}
        if flow_run.id
        else None,
    )
    record.log_text(text, "report.md")
    record.describe(text)
    create_markdown_artifact(key="report", markdown=text)


def _epoch_metrics(values: Mapping[str, Any]) -> dict[str, float]:
    metrics = {
        "train/loss": values["loss"],
        "train/accuracy": values["accuracy"],
        "train/learning_rate": values["learning_rate"],
        "train/images_per_second": values["images_per_second"],
        "train/epoch_seconds": values["seconds"],
    }
    if values["validation_loss"] is not None:
        metrics["val/loss"] = values["validation_loss"]
        metrics["val/accuracy"] = values["validation_accuracy"]
    return metrics


def _test_metrics(result: Evaluation, classes: tuple[str, ...]) -> dict[str, float]:
    metrics = {"test/accuracy": result.accuracy, "test/loss": result.cross_entropy}
    table = result.per_class
    for column, name in (("accuracy", "recall"), ("precision", "precision"), ("f1", "f1")):
        for key, value in zip(class_metric_keys(classes, f"test/{name}/"), table[column],
                              strict=True):  # fmt: skip
            if not pd.isna(value):
                metrics[key] = float(value)
    return metrics
