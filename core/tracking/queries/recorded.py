"""What a run recorded: its configuration, model and predictions."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from torchyard.core.config.parsing import settings_in
from torchyard.core.errors import UserError
from torchyard.core.tracking.location.address import database_of
from torchyard.core.tracking.location.relocation import FOLDER, moved_config
from torchyard.core.tracking.queries.runs import CONFIG, shown

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

    from torchyard.core.data.predictions import PredictionTable
    from torchyard.core.evaluation.conformal import Confidence


def recorded_config(client: MlflowClient, run: Run) -> dict[str, Any]:
    """The whole configuration that a run was started with.

    Raises:
        UserError: none is recorded.
    """
    run_id, name = run.info.run_id, "config.yaml"
    missing = UserError(f"run {shown(run)} has no configuration: start it with `torchyard run`.")
    text = run.data.tags.get(CONFIG)  # until the file is there
    if text is None and not _has_artifact(client, run, name):
        raise missing
    if text is None:
        with TemporaryDirectory() as folder:
            text = Path(client.download_artifacts(run_id, name, folder)).read_text("utf-8")
    config = settings_in(text, f"the configuration of run {shown(run)}")
    if (database := database_of(client.tracking_uri)) and FOLDER in run.data.tags:
        config = moved_config(config, run.data.tags[FOLDER], database)
    return config


def logged_model_id(run: Run) -> str:
    """The model that a run logged, the one of the last epoch.

    Raises:
        UserError: there is none; the message says why.
    """
    models = run.outputs.model_outputs if run.outputs else []
    if not models:
        reason = run.data.tags.get("model_not_logged") or f"it is {run.info.status}"
        raise UserError(f"run {shown(run)} has no model: {reason}")
    newest: Any = max(models, key=lambda output: output.step)
    return str(newest.model_id)


def recorded_predictions(client: MlflowClient, run: Run) -> PredictionTable:
    """What a run predicted of its test samples.

    Raises:
        UserError: it has recorded none.
        RunError: the file is damaged.
    """
    from torchyard.core.data.predictions import PREDICTIONS_FILE, PredictionTable

    if not _has_artifact(client, run, PREDICTIONS_FILE):
        raise UserError(f"run {shown(run)} has recorded no predictions: it is {run.info.status}.")
    with TemporaryDirectory() as folder:
        file = client.download_artifacts(run.info.run_id, PREDICTIONS_FILE, folder)
        return PredictionTable.read(Path(file))


def recorded_confidence(client: MlflowClient, run: Run) -> Confidence:
    """What a run's validation split said of its probabilities.

    Raises:
        UserError: it has recorded nothing of that.
        RunError: the file is damaged.
    """
    from torchyard.core.evaluation.conformal import CONFIDENCE_FILE, Confidence

    if not _has_artifact(client, run, CONFIDENCE_FILE):
        raise UserError(
            f"run {shown(run)} had no validation split to calibrate with: train with "
            "train.validation, e.g. 0.1"
        )
    with TemporaryDirectory() as folder:
        file = client.download_artifacts(run.info.run_id, CONFIDENCE_FILE, folder)
        return Confidence.read(Path(file))


def progress_of(run: Run, client: MlflowClient) -> str:
    """How far a run is that trains: `epoch 3/10`, the last one that it has done."""
    done = client.get_metric_history(run.info.run_id, "train/loss")
    if not done:
        return "running"
    epochs = run.data.params.get("train.epochs")
    return f"epoch {max(each.step for each in done)}{f'/{epochs}' if epochs else ''}"


def _has_artifact(client: MlflowClient, run: Run, name: str) -> bool:
    # Listed, not tried: an error may mean that the store is unavailable, not that the file is.
    return name in {found.path for found in client.list_artifacts(run.info.run_id)}
