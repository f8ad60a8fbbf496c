"""The flow: prepare, train, evaluate, report.

Tasks pass on folders, files and ids.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from pathlib import Path
from typing import TypeVar

from prefect import flow, get_run_logger
from prefect.runtime import flow_run
from prefect.states import Completed
from prefect.utilities.annotations import quote

from torchyard.core.config.schema import RunConfig
from torchyard.core.data.dataset import PreparedDataset
from torchyard.core.data.files import temporary_files_in
from torchyard.core.errors import RunError
from torchyard.core.redaction import redact_logs
from torchyard.core.tracking.record import RunRecord
from torchyard.core.tracking.store import check_writable, tracking_uri
from torchyard.core.tracking.weights import recorded_weights
from torchyard.pipelines.display import display
from torchyard.pipelines.flow.failures import ended_as, is_mistake, reason_of, run_cancellable
from torchyard.pipelines.flow.outcome import Outcome
from torchyard.pipelines.flow.prefect_calls import call_flow, recorded
from torchyard.pipelines.flow.recording import start
from torchyard.pipelines.flow.recording.extension import FinishedRun
from torchyard.pipelines.flow.stage import open_records, resolve_here, say, temporary_folder
from torchyard.pipelines.flow.tasks import (
    evaluate_model,
    prepare_data,
    promote_model,
    report_per_class,
    train_model,
)
from torchyard.pipelines.services.prefect_server import FLOW
from torchyard.pipelines.worker.process import check_config

T = TypeVar("T")
FAILURE_FILE = "failure.txt"  # artifact of a failed run: a traceback, or a process's last output
_failed: set[str | None] = set()  # flow runs that this process has tried
DESCRIPTION = "Train a classifier: prepare → train → evaluate → report, in one MLflow run."


@flow(name=FLOW, description=DESCRIPTION)
def train_pipeline(
    config: RunConfig, run_id: str | None = None, parent: str | None = None
) -> Outcome | None:
    """Train a classifier: prepare → train → evaluate → per-class report, in one MLflow run.

    Args:
        config: data set, model, training and device.
        run_id: of an MLflow run that ended early, to resume from its last checkpoint.
        parent: of the MLflow run that this one is a child of, if any: one of several seeds, or
            a finished run that is extended, from its last weights.

    Raises:
        UserError: the configuration or the data are wrong.
        RunError: a stage failed.
        CancelledRun: it was cancelled in Prefect.

    Returns:
        The outcome; None where `train.skip_repeats` let it end before it trained.
    """
    ended: Outcome | str
    try:
        ended = run_cancellable(lambda: _run_stages(config, run_id, parent))
    except start.FinishedError as error:
        ended = str(error)
    except BaseException:
        _failed.add(flow_run.id)
        raise
    if flow_run.id in _failed:
        # Prefect 3.9 raises what a try before this one raised where this one returns a state.
        return ended if isinstance(ended, Outcome) else None
    # A state with a message is how a flow tells Prefect's pages what it came to.
    if isinstance(ended, Outcome):
        return Completed(message=ended.line, data=ended)  # type: ignore[return-value]
    return Completed(message=ended) if isinstance(ended, str) else ended  # type: ignore[return-value]


def call_pipeline(config: RunConfig, run_id: str | None = None, parent: str | None = None) -> None:
    """Call the flow; whenever this process dies, its flow run has a label that names it.

    Raises:
        As the flow does.
    """
    call_flow(train_pipeline, {"config": config, "run_id": run_id, "parent": parent})


@recorded()
def _run_stages(config: RunConfig, run_id: str | None, parent: str | None) -> Outcome | str:
    """Run the tasks; a text if none was to be trained: why."""
    redact_logs()
    resolved = resolve_here(config)
    config = resolved.config
    check_writable(tracking_uri())
    for change in resolved.changed:
        get_run_logger().warning(change)
    resumed = run_id is not None
    weights = None if resumed else recorded_weights(resolved)
    check_config(config, weights=weights, resumed=resumed)
    resolved = start.with_drawn_seed(start.with_weights(resolved, weights))
    config = resolved.config
    began = time.perf_counter()
    record = start.start_record(resolved, run_id, parent)
    open_records[record.run_id] = record
    display.get().began(record.run_id, record.name)
    try:
        with temporary_files_in(temporary_folder(record)):
            data = prepare_data(config, record.run_id)
            if extended := FinishedRun.find(parent):
                extended.begin(record, config, Path(data))
            elif run_id is None and (skipped := _repeats(record, config, data)):
                return skipped
            if resumed and not any(record.folder.glob("*.pt")):  # a checkpoint has the weights
                weights = recorded_weights(resolved)
            trained = train_model(config, data, record.run_id, weights)
            predictions = evaluate_model(config, _unlinked(data), trained, record.run_id)
            outcome = report_per_class(
                config, _unlinked(data), _unlinked(trained), predictions, record.run_id
            )
            if config.promote:
                outcome = dataclasses.replace(outcome, **promote_model(config, record.run_id))
        # Behind the temporary files: nothing looks for those of a finished run.
        record.log_metrics({"time/total_seconds": time.perf_counter() - began}, step=0)
        record.finish("FINISHED")
        display.get().outcome = outcome
        if record.pending:
            say(
                "record",
                f"MLflow does not answer: {record.pending} entries wait on disk for it; "
                f"`torchyard resume {record.run_id}` sends them, and so does the next run.",
            )
    except BaseException as error:
        reason = reason_of(error)
        status = ended_as(error)
        if isinstance(error, RunError) and error.details:
            with contextlib.suppress(OSError, RunError):  # it must not hide what ended the run
                record.log_text(error.details, FAILURE_FILE)
                error.kept = FAILURE_FILE
        recorded = record.finish(status, reason)
        if not (is_mistake(error) and record.discard()):
            error.add_note(start.ending_note(record, status, recorded))
        raise
    finally:
        del open_records[record.run_id]
    return outcome


def _repeats(record: RunRecord, config: RunConfig, data: str) -> str:
    """Say if a run can only repeat an earlier one; returns why, if it is ended for that."""
    earlier = start.repeated_run(record, config, PreparedDataset.open(Path(data)))
    if earlier is None:
        return ""
    same = f"{earlier} had the same configuration, seed, data and code"
    if config.train.skip_repeats:
        skipped = f"skipped: {same}"
        say("train", skipped)
        record.finish("KILLED", skipped)
        return skipped
    say("train", f"{same}: this run can only repeat it (train.seed=per_run draws another seed)")
    return ""


def _unlinked(handed_on: T) -> T:
    """What a task is given without an arrow: Prefect draws one from the task before, not from all.

    Otherwise they cross one another and the names of the tasks.
    """
    return quote(handed_on)  # type: ignore[return-value]
