"""The flow of a study: a task for each trial, as many at a time as it has workers."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import flow

from torchyard.core.data.files import atomic_write, temporary_files_in
from torchyard.core.errors import RunError
from torchyard.core.hosting.host import host
from torchyard.core.redaction import redact_logs
from torchyard.core.study.plan import StudyPlan
from torchyard.core.study.space import as_override
from torchyard.core.tracking.record import RunRecord
from torchyard.pipelines.display import Display, display
from torchyard.pipelines.flow.failures import ended_as, reason_of, run_cancellable
from torchyard.pipelines.flow.prefect_calls import call_flow, recorded
from torchyard.pipelines.flow.recording.start import config_text, ending_note
from torchyard.pipelines.services.prefect_server import STUDY_FLOW
from torchyard.pipelines.study import recording
from torchyard.pipelines.study.engines.engine import Engine, LocalEngine
from torchyard.pipelines.study.engines.pool import PoolEngine
from torchyard.pipelines.study.engines.runners import TaskRunnerEngine
from torchyard.pipelines.study.search import Finished, Search
from torchyard.pipelines.study.trial import RunningStudy, StoppedError, TrialEnd, known_end

FAILURES = 5  # so many trials fail, and none was complete: the study ends


@dataclass(frozen=True)
class StudyOutcome:
    """What a finished study returns.

    Attributes:
        run_id, name, url: of the study's MLflow run.
        study: its name, by which it goes on.
        asked, complete, pruned, failed: how many trials.
        steps: of the training of all trials, each by itself.
        trained_steps: of these, the ones that were trained; the others are shared.
        figure: by which they are compared.
        best, value, values: the number of the best one, its figure, and its values of the space.
        best_run, best_run_id: its MLflow run.
        command: what runs it by itself.
    """

    run_id: str
    name: str
    url: str
    study: str
    asked: int
    complete: int
    pruned: int
    failed: int
    steps: int
    trained_steps: int
    figure: str
    best: int
    value: float
    values: Mapping[str, Any]
    best_run: str
    best_run_id: str
    command: str


@flow(name=STUDY_FLOW)
def sweep(study: dict[str, Any], source: str | None = None, run_id: str | None = None) -> None:
    """Run the trials of a study that it does not have yet.

    Args:
        study: the study, as a file has it.
        source: the preset or file that runs a trial by itself.
        run_id: of a study's MLflow run that ended early, to go on with.

    Raises:
        UserError: it is not to be resumed.
        RunError: all trials failed, or MLflow is out of reach.
        CancelledRun: it was cancelled in Prefect.
    """
    plan = StudyPlan.read(study, (), {}, Path(), host())
    run_cancellable(lambda: _run_study(plan, source, run_id))


def call_sweep(plan: StudyPlan, source: str | None, run_id: str | None) -> None:
    """Call the flow.

    Raises:
        As the flow does.
    """
    call_flow(sweep, {"study": plan.document, "source": source, "run_id": run_id})


@recorded()
def _run_study(plan: StudyPlan, source: str | None, run_id: str | None) -> None:
    redact_logs()
    record = recording.start_study(plan, source, run_id)
    display.get().began(record.run_id, record.name)
    try:
        with temporary_files_in(record.folder / ".temporary"):
            _run_trials(_opened(plan, record), source)
        record.finish("FINISHED")
    except BaseException as error:
        status = ended_as(error)
        recorded = record.finish(status, reason_of(error))
        error.add_note(ending_note(record, status, recorded))
        raise


def _opened(plan: StudyPlan, record: RunRecord) -> RunningStudy:
    first = plan.resolved(next(plan.space.corners()), host()).config.train
    seed = first.seed if isinstance(first.seed, int) else int(record.run_id[:8], 16)
    search = Search(plan, record.folder, seed, plan.most_epochs or first.epochs)
    return RunningStudy(plan, search, record, seed)


def _run_trials(study: RunningStudy, source: str | None) -> None:
    """Run trials until the study has all of its own.

    Raises:
        RunError: all of the first ones failed.
    """
    search, plan, shown = study.search, study.plan, display.get()
    unfinished = search.unfinished()
    begun = recording.runs_begun(study.record.run_id, unfinished)
    for number in list(unfinished):
        if (run := begun.get(number)) and (end := known_end(study.plan, run)):
            unfinished.remove(number)  # its process was killed before the study knew
            _conclude(study, number, end, shown)
    study.begun = {number: run.info.run_id for number, run in begun.items()}
    failed = 0
    for number, end in _ended_trials(study, unfinished):
        if end.error is not None:
            raise end.error
        if end.state == "stopped":
            raise StoppedError("interrupted")
        _conclude(study, number, end, shown)
        failed += end.state == "failed"
        if failed >= min(FAILURES, plan.trials) and search.best() is None:
            raise RunError(f"The first {failed} trials failed, and none is complete. {end.reason}")
    _report(study, source, shown)


def _ended_trials(study: RunningStudy, unfinished: list[int]) -> Iterator[tuple[int, TrialEnd]]:
    """Run trials, as many at a time as there are workers; yields each as it ends."""
    search, plan, under_way = study.search, study.plan, 0
    with _engine(study) as engine:
        while True:
            while under_way < plan.settings.workers:
                if unfinished:
                    number = unfinished.pop(0)
                elif search.asked < plan.trials:
                    number = search.ask()
                else:
                    break
                search.values(number)  # drawn here, in the order of the numbers
                engine.submit(number)
                under_way += 1
            if not under_way:
                return
            yield engine.next_end()
            under_way -= 1


def _engine(study: RunningStudy) -> Engine:
    settings = study.plan.settings
    if settings.engine == "local":
        return LocalEngine(study)
    if settings.engine == "pool":
        return PoolEngine(study)
    return TaskRunnerEngine(study)


def _conclude(study: RunningStudy, number: int, end: TrialEnd, shown: Display) -> None:
    """Tell Optuna how a trial ended, record it with the study, and show it."""
    assert end.state != "stopped"
    search, figure = study.search, study.plan.settings.figure
    values = search.values(number)
    search.tell(number, end.state, end.value)
    best = search.best()
    metrics = {}
    if end.value is not None and end.state == "complete":
        metrics["study/value"] = end.value
    if best is not None and best.value is not None:
        metrics["study/best"] = best.value
    study.record.log_metrics(metrics, step=number)
    settings = " ".join(_shown(key, value) for key, value in values.items())
    text = {
        "complete": f"{figure} {end.value or 0:.4f}",
        "pruned": end.reason,
        "failed": f"failed: {end.reason}",
    }[end.state]
    mark = ", the best so far" if best is not None and best.number == number else ""
    shown.line(f"trial {number}", f"{settings}: {text}{mark}")


def _shown(key: str, value: Any) -> str:
    return f"{key}={value:.4g}" if isinstance(value, float) else as_override(key, value)


def _report(study: RunningStudy, source: str | None, shown: Display) -> None:
    """Record what the study found; the display gets its outcome."""
    search, plan, record = study.search, study.plan, study.record
    best, finished = search.best(), search.finished()
    counts = {
        state: sum(each.state == state for each in finished)
        for state in ("complete", "pruned", "failed")
    }
    if best is None or best.value is None:
        raise RunError(f"None of the {len(finished)} trials is complete.")
    runs = recording.recorded_trials(record)
    found, steps = runs[best.number], recording.steps_of(runs.values())
    shutil.rmtree(study.sharing.folder, ignore_errors=True)
    command = _command(study, best, source)
    recording.record_report(record, plan, search, found, command, counts, steps)
    shown.outcome = StudyOutcome(
        record.run_id,
        record.name,
        record.url,
        plan.name,
        len(finished),
        **counts,
        steps=steps.all,
        trained_steps=steps.trained,
        figure=plan.settings.figure,
        best=best.number,
        value=best.value,
        values=best.values,
        best_run=found.info.run_name,
        best_run_id=found.info.run_id,
        command=command,
    )


def _command(study: RunningStudy, best: Finished, source: str | None) -> str:
    """What runs the best trial by itself; its configuration is a file of the study's, too."""
    resolved = study.resolved(best.values, best.number)
    text = config_text(resolved.config)
    file = study.record.folder / "best.yaml"
    with atomic_write(file) as opened:
        opened.write(text.encode())
    study.record.log_text(text, "best.yaml")
    if source is None:
        return shlex.join(["torchyard", "run", str(file)])
    return shlex.join(study.plan.command(best.values, source))
