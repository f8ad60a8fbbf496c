"""One trial of a study: a run of its own in MLflow, trained by a worker process that stays.

A trial is recorded as any run is, with its configuration, metrics, predictions and the digest of
its weights. A model to load, the pictures and the report, which take longer than a short training,
are made where a trial is the best of its study so far, so the best of all has them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from prefect.exceptions import CancelledRun

from torchyard.core.config.resolve import ResolvedConfig
from torchyard.core.config.schema import RunConfig
from torchyard.core.data.dataset import PreparedDataset
from torchyard.core.data.files import cache_folder
from torchyard.core.errors import RunError, StoreUnavailableError, UserError
from torchyard.core.hosting.host import host
from torchyard.core.study.plan import StudyPlan
from torchyard.core.tracking.delivery import REASON
from torchyard.core.tracking.mlflow_format import event_metrics
from torchyard.core.tracking.ownership.lease import TakenOverError
from torchyard.core.tracking.queries.runs import TRIAL_STATE
from torchyard.core.tracking.record import RunRecord
from torchyard.core.tracking.weights import recorded_weights
from torchyard.core.training.events import EpochDone, Event, WeightsTaken
from torchyard.pipelines.flow import tasks
from torchyard.pipelines.flow.failures import SuspendedError, ended_as, reason_of
from torchyard.pipelines.flow.recording.results import (
    class_metrics,
    curves,
    overall_metrics,
    record_training,
    record_training_batch,
)
from torchyard.pipelines.flow.stage import open_records
from torchyard.pipelines.study import recording
from torchyard.pipelines.study.search import Search
from torchyard.pipelines.study.sharing import SharedTraining
from torchyard.pipelines.worker.process import WorkerKilledError, check_config, shared_worker

if TYPE_CHECKING:
    from mlflow.entities import Run

NO_MODEL = (
    "it was not the best trial of its study when it ended. `torchyard run` with its config.yaml "
    "makes one"
)


class StoppedError(Exception):
    """The study is being stopped; its trials under way go on when it is resumed."""


@dataclass(frozen=True)
class TrialEnd:
    """How a trial ended.

    Attributes:
        state: "stopped" of one that is to be resumed.
        value: of the study's figure.
        reason: why it is not complete.
        error: that ends the whole study.
        run: its name in MLflow; "" of one that had not begun.
    """

    state: Literal["complete", "pruned", "failed", "stopped"]
    value: float | None = None
    reason: str = ""
    error: BaseException | None = None
    run: str = ""


@dataclass
class RunningStudy:
    """What the trials of a study share.

    Attributes:
        plan: the study.
        search: Optuna's part.
        record: of the study's own run.
        seed: of the study; that of a trial is its configuration's.
        begun: ids of the runs of trials that a process before this one began.
        stopping: set once no trial is to go on.
        goes_on: asked before a trial goes on, where the study is led by another process.
        prepared: folders of the prepared data sets, by their settings.
    """

    plan: StudyPlan
    search: Search
    record: RunRecord
    seed: int
    begun: Mapping[int, str] = field(default_factory=dict)
    stopping: threading.Event = field(default_factory=threading.Event)
    goes_on: Callable[[], bool] = lambda: True
    prepared: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._preparing = threading.Lock()
        self.sharing = SharedTraining(
            self.plan,
            self.record.folder / "prefixes",
            lambda values: self.resolved(values, 0).config,
        )
        self._drawing = threading.Lock()  # matplotlib's fonts are for one thread at a time

    def run_trial(self, number: int) -> TrialEnd:
        """Run a trial, or go on with it, once more where its worker is killed; never raises."""
        begun = self.begun.get(number)
        for again in (True, False):
            try:
                resolved = self.resolved(self.search.values(number), number)
                self._check()
                record = recording.start_trial(self.record, number, resolved, begun)
            except Exception as error:
                return _ending(error)
            open_records[record.run_id] = record
            try:
                return self._record_trial(number, resolved, record, again=again)
            except WorkerKilledError:  # for want of memory, it will be killed once more
                begun = record.run_id
            finally:
                del open_records[record.run_id]
        raise AssertionError("the last time nothing is raised")

    def _record_trial(
        self, number: int, resolved: ResolvedConfig, record: RunRecord, *, again: bool
    ) -> TrialEnd:
        """Run a trial to its end.

        Args:
            again: whether that a worker is killed is raised, and not the end.
        """
        began = time.perf_counter()
        try:
            end = self._train(number, resolved, record)
            record.log_metrics({"time/total_seconds": time.perf_counter() - began}, step=0)
            record.set_tags({TRIAL_STATE: end.state})
            record.finish("FINISHED" if end.state == "complete" else "KILLED", end.reason)
        except Exception as error:
            end = _ending(error)
            if again and isinstance(error, WorkerKilledError):
                record.finish("KILLED", end.reason)
                raise
            if end.state == "failed":
                record.set_tags({TRIAL_STATE: end.state})
            record.finish("KILLED" if end.state == "stopped" else ended_as(error), end.reason)
        return dataclasses.replace(end, run=record.name)

    def resolved(self, values: Mapping[str, Any], number: int) -> ResolvedConfig:
        """The configuration of a trial; the seed of `per_run` is one of its number.

        Raises:
            UserError: with everything that is wrong with it.
        """
        resolved = self.plan.resolved(values, host())
        train = resolved.config.train
        if train.seed != "per_run":
            return resolved
        train = train.model_copy(update={"seed": (self.seed + number) % 2**32})
        drawn = resolved.config.model_copy(update={"train": train})
        return dataclasses.replace(resolved, config=drawn)

    def prepare(self, config: RunConfig) -> str:
        """The folder of a prepared data set; it is prepared once in a study."""
        key = config.dataset.model_dump_json()
        with self._preparing:
            self._check()
            if key not in self.prepared or not Path(self.prepared[key]).is_dir():
                plain = config.model_dump(mode="json")
                done = shared_worker().call("prepare", config=plain, cache=str(cache_folder()))
                self.prepared[key] = done["folder"]
            return self.prepared[key]

    def prepare_for(self, number: int) -> None:
        """Prepare the data of a trial that another process will run, which says what fails."""
        with contextlib.suppress(UserError, RunError):
            self.prepare(self.resolved(self.search.values(number), number).config)

    def _train(self, number: int, resolved: ResolvedConfig, record: RunRecord) -> TrialEnd:
        config, resumed = resolved.config, any(record.folder.glob("*.pt"))
        weights = None if resumed else recorded_weights(resolved)  # a checkpoint has its own
        check_config(config, weights=weights, resumed=resumed)
        data = self.prepare(config)
        prepared = PreparedDataset.open(Path(data))
        record.log_dataset(prepared)
        figure = self.plan.settings.figure
        if self.search.pruned_after(number):  # its process was killed before the study knew
            return self._pruned(number, config, record)

        def on_event(event: Event) -> None:
            if isinstance(event, WeightsTaken):
                record.set_tags({"weights": event.line, "weights_file": event.file})
            if isinstance(event, EpochDone):
                value = event_metrics(event)[0].get(figure)
                if value is not None:
                    last = event.epoch == config.train.epochs
                    self.search.report(number, event.epoch, value, last=last)

            self._check()

        def go_on(event: EpochDone) -> bool:
            return self.search.pruned_after(number) is None

        self._check()
        began = time.perf_counter()
        shared = self.sharing.of(config, data)
        prunes = self.plan.settings.pruner != "none"
        done = shared_worker().call(
            "train",
            on_event,
            record.folder / ".temporary",
            go_on if prunes else None,
            config=config.model_dump(mode="json"),
            data=data,
            folder=str(record.folder),
            weights=weights,
            shared=shared,
        )
        record.log_metrics({"time/train_seconds": time.perf_counter() - began}, step=0)
        if not done:  # pruned in epochs that another trial has trained
            return self._pruned(number, config, record)
        record_training(record, done)
        fit = done["fit"]
        epochs, best = fit["epochs"], fit["best_epoch"]
        record.log_metrics({recording.SHARED_STEPS: done["shared_steps"]}, step=epochs)
        value = dict(curves(record.folder).get(figure, [])).get(best)
        if value is None:
            raise RunError(f"It has no {figure}: set train.validation.")
        if self.search.pruned_after(number) == epochs:
            return self._pruned(number, config, record)
        trained = {**done["placement"], **fit} | {
            "weights": done["weights"],
            "parameters": done["parameters"],
            "balance": done["balance"].get("balance", ""),
        }
        self._check()
        self._evaluate(number, config, data, trained, record, value)
        return TrialEnd("complete", value)

    def _pruned(self, number: int, config: RunConfig, record: RunRecord) -> TrialEnd:
        figure, epoch = self.plan.settings.figure, self.search.pruned_after(number)
        value = dict(curves(record.folder)[figure])[epoch or 0]
        after = f"after epoch {epoch} of {config.train.epochs}"
        return TrialEnd("pruned", value, f"pruned {after}: {figure} {value:.4f}")

    def _evaluate(
        self,
        number: int,
        config: RunConfig,
        data: str,
        trained: dict[str, Any],
        record: RunRecord,
        value: float,
    ) -> None:
        """Predict the test split; of the best trial so far, make a model and a report as well."""
        if not self.search.is_best(number, value):
            prepared, _, result = tasks.predict_test(
                config, data, trained["weights"], record.run_id
            )
            metrics = overall_metrics(result)
            metrics |= class_metrics(result, prepared.classes)
            record.log_metrics(metrics, step=trained["best_epoch"])
            record.set_tags({"model_not_logged": NO_MODEL})
            return
        with self._drawing:
            batch = record.folder / "training_batch.npz"
            if batch.exists():
                classes = PreparedDataset.open(Path(data)).classes
                record_training_batch(record, batch, classes)
            predictions = tasks.evaluate_model.fn(config, data, trained, record.run_id)
            tasks.report_per_class.fn(config, data, trained, predictions, record.run_id)

    def _check(self) -> None:
        if self.stopping.is_set() or not self.goes_on():
            raise StoppedError("interrupted")


def known_end(plan: StudyPlan, run: Run) -> TrialEnd | None:
    """How a trial ended whose run is recorded to its end; None where it is to go on."""
    name, state = run.info.run_name, run.data.tags.get(TRIAL_STATE)
    value = recording.recorded_value(run, plan.settings.figure)
    reason = run.data.tags.get(REASON, "")
    if run.info.status == "FINISHED" and value is not None:
        return TrialEnd("complete", value, run=name)
    if state == "pruned":
        return TrialEnd("pruned", value, reason, run=name)
    if state == "failed":
        return TrialEnd("failed", value, reason, run=name)
    return None


def _ending(error: Exception) -> TrialEnd:
    """How an exception ends a trial: the study goes on, unless it was no trial's fault."""
    reason = reason_of(error) if str(error) else type(error).__name__
    if isinstance(error, StoppedError):
        return TrialEnd("stopped", reason="interrupted")
    ends_study = isinstance(
        error, StoreUnavailableError | TakenOverError | CancelledRun | SuspendedError
    )
    if ends_study:
        return TrialEnd("stopped", reason=reason, error=error)
    known = isinstance(error, UserError | RunError)
    return TrialEnd("failed", reason=reason if known else f"{type(error).__name__}: {error}")
