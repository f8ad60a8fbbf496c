"""A stage of a run that is under way in this process: its record, its work, what is shown of it.

The torch work is done by a worker process (`pipelines/worker/process.py`), which the tasks of one
process share.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from prefect import get_run_logger

from torchyard.core.config.resolve import ResolvedConfig, resolve_once
from torchyard.core.config.schema import RunConfig
from torchyard.core.errors import UserError, without_secrets
from torchyard.core.hosting.host import host
from torchyard.core.hosting.sources import PLUGIN_FOLDERS
from torchyard.core.tracking.record import RunRecord
from torchyard.core.training.events import (
    BatchSplit,
    EpochDone,
    Event,
    Progress,
    TrainingBatch,
    WeightsTaken,
)
from torchyard.pipelines.display import display, epoch_line, split_line
from torchyard.pipelines.flow.failures import is_deployed
from torchyard.pipelines.flow.progress import ProgressReport
from torchyard.pipelines.flow.recording import results
from torchyard.pipelines.services.scheduling.deployments import NEEDS
from torchyard.pipelines.worker.process import shared_worker

open_records: dict[str, RunRecord] = {}  # of the runs under way in this process


def record_of(run_id: str) -> RunRecord:
    """The record of a run; a task that Prefect runs in another process opens it there."""
    return open_records.get(run_id) or RunRecord.open(run_id)


def temporary_folder(record: RunRecord) -> Path:
    """For what is of no use after the run; hidden, so that `resume` removes it after a kill."""
    return record.folder / ".temporary"


def plain(config: RunConfig) -> dict[str, Any]:
    """A configuration as the worker process is sent it."""
    return config.model_dump(mode="json")


def call(
    stage: str,
    run_id: str,
    classes: Sequence[str] = (),
    progress: ProgressReport | None = None,
    **arguments: Any,
) -> dict[str, Any]:
    """Run a stage in the worker; its events go to display, MLflow and Prefect."""
    record, shown, logger = record_of(run_id), display.get(), get_run_logger()

    def on_event(event: Event) -> None:
        shown.event(event)
        if isinstance(event, Progress) and progress is not None:
            progress.event(event)
        if isinstance(event, TrainingBatch):
            results.record_training_batch(record, Path(event.file), classes)
        if isinstance(event, WeightsTaken):
            say(stage, event.line)
            record.set_tags({"weights": event.line, "weights_file": event.file})
        if isinstance(event, EpochDone):
            logger.info(epoch_line(event, shown.monitor))
        if isinstance(event, BatchSplit):
            logger.warning(split_line(event))

    def on_output(line: str) -> None:
        shown.output(line)
        logger.info(line)

    worker = shared_worker()
    worker.on_output = on_output
    return worker.call(stage, on_event, temporary_folder(record), **arguments)


@contextlib.contextmanager
def stage(name: str, run_id: str, status: str) -> Iterator[None]:
    """Show a stage, and record how long it took."""
    started = time.perf_counter()
    with display.get().stage(name, status):
        try:
            yield
        except Exception as error:  # Prefect shows and keeps it
            if (clean := without_secrets(error)) is not error:
                raise clean from None
            raise
        record = record_of(run_id)
        record.log_metrics({f"time/{name}_seconds": time.perf_counter() - started}, step=0)
        record.flush()


def say(stage: str, text: str) -> None:
    """Print a message of a stage, and log it in Prefect."""
    display.get().line(stage, text)
    get_run_logger().info(text)


def resolve_here(config: RunConfig) -> ResolvedConfig:
    """Find the plugins, by the folders and distributions that this process has.

    Raises:
        UserError: with every problem; for a plugin that is missing here, where it was from when
            the run was deployed. Or the record would go into a folder that Prefect deletes.
    """
    temporary = Path.cwd().is_relative_to(Path(tempfile.gettempdir()).resolve())
    store = os.environ.get("MLFLOW_TRACKING_URI")
    if is_deployed() and temporary and (not store or re.match(r"sqlite[^/]*:///[^/]", store)):
        raise UserError(
            "this Prefect worker's folder is temporary, and the record would be lost with it: set "
            "MLFLOW_TRACKING_URI, for the worker or as the job variable env.MLFLOW_TRACKING_URI, "
            "or the job variable working_dir."
        )
    try:
        return resolve_once(plain(config), host())
    except UserError as error:
        needs = json.loads(os.environ.get(NEEDS, "{}"))
        missing = [
            f"{slot}: it was from {origin} when this was deployed. Install that where the Prefect "
            f"worker runs, or name its folder there in {PLUGIN_FOLDERS}."
            for slot, origin in needs.items()
            if any(problem.startswith(f"{slot}: no ") for problem in error.problems)
        ]
        raise UserError([*error.problems, *missing]) from error
