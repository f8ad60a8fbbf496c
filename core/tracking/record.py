"""The record of a run: everything torchyard sends to MLflow.

MLflow takes about 6 seconds to import and 2 to open, so neither happens before a run starts;
torch is never imported here, not even to log a model.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torchyard.core.data.dataset import PreparedDataset
from torchyard.core.data.files import link_or_copy, remove_partial
from torchyard.core.errors import RunError, UserError
from torchyard.core.redaction import redacted, without_passwords
from torchyard.core.tracking import mlflow_format, store
from torchyard.core.tracking.checkpoints import CHECKPOINT, CheckpointUploads
from torchyard.core.tracking.delivery import ATTACHMENTS, METRICS, REASON, LogDelivery
from torchyard.core.tracking.location.errors import store_errors
from torchyard.core.tracking.location.relocation import FOLDER
from torchyard.core.tracking.mlflow_format import (
    MAX_PARAMETER,
    MAX_TAG,
    mlflow_tags,
    safe_key,
    shortened,
)
from torchyard.core.tracking.ownership.folders import is_own
from torchyard.core.tracking.ownership.lease import Lease
from torchyard.core.tracking.ownership.process import PROCESS, hold_folder, leave_folder, owner_tags
from torchyard.core.tracking.ownership.sender import LogSender
from torchyard.core.tracking.queries.runs import CONFIG
from torchyard.core.tracking.start import create_run, resumable_run
from torchyard.core.training.run_log import Line

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient
    from mlflow.entities import Run

logger = logging.getLogger(__name__)


class RunRecord:
    """The record of one run in MLflow, addressed by its id from any thread.

    Everything is a line of the run's log first (`core/training/run_log.py`), then delivered.
    While the store is unavailable nothing raises: the lines stay pending, in order.
    Whatever it refuses raises RunError.

    Attributes:
        run_id: MLflow's id.
        name: what people call the run, "lenet·sgd·digits #12".
        experiment_id: the experiment it belongs to.
        started: when it began, in this machine's time zone.
        folder: of the run's log, checkpoints and predictions.
        has_model: whether a model was logged.
        sender: sends the log, and says when the store is unavailable or the run taken over.
    """

    def __init__(self, client: MlflowClient, run: Run, lease: Lease | None = None) -> None:
        self.run_id: str = run.info.run_id
        self.name: str = run.info.run_name
        self.experiment_id: str = run.info.experiment_id
        self.started = datetime.fromtimestamp(run.info.start_time / 1000, UTC).astimezone()
        self.has_model = bool(run.outputs and run.outputs.model_outputs)
        self._client = client
        self._uri: str = client.tracking_uri
        self._delivery = LogDelivery(client, run, lease)
        self.folder = self._delivery.folder
        self._metrics: dict[str, float] = run.data.metrics
        self._tags: dict[str, str] = run.data.tags
        self._digests: set[str] = set()  # of the data it was started with
        self.sender = LogSender(self._uri, self._delivery, lease)
        self._uploads: CheckpointUploads | None = None

    @classmethod
    def start(
        cls,
        *,
        name_stem: str,
        parameters: Mapping[str, Any],
        tags: Mapping[str, str],
        may_begin: Callable[[MlflowClient], None] | None = None,
    ) -> RunRecord:
        """Start a run, creating store and experiment where there are none yet.

        Args:
            name_stem: the run's name without its number.
            parameters: the whole configuration, nested.
            tags: the caller's; source, user and commit are added here.
            may_begin: raises a UserError if the run must not begin; no other one begins meanwhile.

        Raises:
            UserError: the store, the folder of the runs or the experiment named in the
                environment cannot be used.
            RunError: the store is out of reach, locked or full.
        """
        own = owner_tags()
        with store.locked_store() as client:
            if may_begin is not None:
                may_begin(client)
            run = create_run(client, name_stem, parameters, _redacted(tags) | own)
        record = cls(client, run, Lease(client, run.info.run_id, own[PROCESS]))
        try:
            record._begin()
            record.log_parameters(parameters)
        except BaseException as error:  # an interrupt too: none is left RUNNING
            reason = f"{type(error).__name__}: {error}"
            record.finish("FAILED" if isinstance(error, Exception) else "KILLED", reason)
            raise
        return record

    @classmethod
    def open(cls, run_id: str) -> RunRecord:
        """The record of a run that exists, from another task or process.

        Raises:
            RunError: there is no such run, or the store is out of reach.
        """
        with store.locked_store() as client:
            return cls(client, store.get_run(client, run_id))

    @classmethod
    def resume(cls, run_id: str) -> RunRecord:
        """Resume a run that ended early: a step that a metric has is not recorded again.

        Raises:
            UserError: it is finished; its process lives, or may live; its checkpoint is elsewhere.
            RunError: the store is out of reach.
        """
        own = owner_tags()
        with store.locked_store() as client:
            run = resumable_run(client, run_id, own[PROCESS])
            record = cls(client, run, Lease(client, run_id, own[PROCESS]))
            record._begin()
            own[FOLDER] = str(record.folder.parent)
            for key, value in own.items():  # first: a run of a dead process would be ended
                client.set_tag(run_id, key, value)
            client.update_run(run_id, status="RUNNING")
            if REASON in run.data.tags:
                client.delete_tag(run_id, REASON)
            remove_partial(record.folder)
            shutil.rmtree(record.folder / ATTACHMENTS, ignore_errors=True)  # all are sent
            for key in run.data.metrics:
                history = client.get_metric_history(run_id, key)
                record._delivery.recorded |= {(key, each.step): each.value for each in history}
            inputs = run.inputs.dataset_inputs if run.inputs else []
            record._digests = {found.dataset.digest for found in inputs}
        return record

    def _begin(self) -> None:
        """Make the run's folder this process's own, and keep the run's lease from now on.

        Raises:
            UserError: another process holds the folder, or it cannot be made.
        """
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            held = hold_folder(self.folder)
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be made: {error.strerror}") from error
        if not held:
            raise UserError(
                f"run {self.run_id} ({self.name}): another process holds {self.folder}."
            )
        if not is_own(self.folder):
            raise UserError(f"{self.folder} belongs to another user, or everybody can write to it.")
        self.sender.start()
        self._uploads = CheckpointUploads.start(
            self.run_id,
            self.folder,
            self._delivery.waiting_metrics,
            lambda place: self._log("tags", {"tags": {CHECKPOINT: place}}, send=False),
        )

    @property
    def metrics(self) -> dict[str, float]:
        """The last value of each metric, pending ones included."""
        lines = [line for line in self._delivery.log.read() if line.kind in METRICS]
        points = [point for line in lines for point in mlflow_format.metric_points(line)]
        return self._metrics | {point["key"]: point["value"] for point in points}

    @property
    def tags(self) -> dict[str, str]:
        """The value of each tag, pending ones included."""
        lines = [line for line in self._delivery.log.read() if line.kind == "tags"]
        return self._tags | {k: v for line in lines for k, v in line.values["tags"].items()}

    @property
    def differing(self) -> str:
        """Of which metrics MLflow keeps what it had, though training anew gave other values."""
        return ", ".join(f"{key} to {step}" for key, step in self._delivery.differing.items())

    @property
    def pending(self) -> int:
        """How many lines wait on disk, because the store is unavailable."""
        return len(self._delivery)

    @property
    def url(self) -> str:
        """The run's page in the MLflow UI."""
        return store.page_address(self._uri, self.experiment_id, self.run_id)

    def log_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Record a nested configuration as "optimizer.lr"; lists, true and null as JSON.

        Raises:
            RunError: also where a parameter was recorded before with another value.
        """
        flat = mlflow_format.flattened(parameters)
        safe = {safe_key(key): shortened(redacted(value), MAX_PARAMETER) for key, value in flat}
        self._log("parameters", {"parameters": safe})

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags; one that is longer than MLflow takes ends with its length."""
        self._log("tags", {"tags": mlflow_tags(_redacted(tags))})

    def describe(self, markdown: str) -> None:
        """Show a text as the run's description."""
        self.set_tags({"mlflow.note.content": markdown})

    def log_config(self, text: str) -> None:
        """Store the configuration as config.yaml, from which the run can be had again."""
        with self._artifact("config.yaml") as file:  # a run can be had again from it
            file.write_text(without_passwords(text), "utf-8")
        self._log("untag", {"tag": CONFIG})

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log metrics; they are sent together with those of some seconds."""
        plain = {key: float(value) for key, value in values.items()}
        self._log("metrics", {"metrics": plain, "step": step}, send=False)

    def flush(self) -> bool:
        """Deliver what is in the log, the worker process's lines too; True if the store has all.

        While the store is unavailable this does not wait for it: it is asked again in between.
        """
        return self._flushed(not self.sender.unavailable)

    def sync(self) -> bool:
        """`flush`, even if the store was unavailable a moment ago."""
        return self._flushed(True)

    def _flushed(self, ask: bool) -> bool:
        sent = ask and self.sender.send()
        if not sent:
            self._delivery.log.fsync()
        return sent

    def log_dataset(self, prepared: PreparedDataset) -> None:
        """Record both splits as the run's inputs, with digest, counts and statistics.

        Raises:
            UserError: the run was resumed, and was started with other data.
        """
        digest = mlflow_format.dataset_links(prepared, "train")["dataset_digest"]
        if self._digests and digest not in self._digests:
            raise UserError(
                f"dataset {prepared.name}: it has changed since run {self.run_id} began: its "
                f"digest is {digest} and was {' or '.join(sorted(self._digests))}."
            )
        self._digests.add(digest)
        # All that is to be sent, since the prepared data may be deleted before that.
        self._log("dataset", {"inputs": mlflow_format.described_dataset(prepared)})

    def log_text(self, text: str, artifact_path: str) -> None:
        """Store a text as the file `artifact_path` of the run."""
        with self._artifact(artifact_path) as file:
            file.write_text(redacted(text), "utf-8")

    def log_file(self, file: Path) -> None:
        """Store a file as an artifact, under its own name."""
        with self._artifact(file.name) as attachment:
            link_or_copy(file, attachment)

    def log_figure(self, figure: Figure | None, artifact_path: str) -> None:
        """Store a figure, if there is one; the ending of `artifact_path` says in which format."""
        if figure is not None:
            with self._artifact(artifact_path) as file:
                figure.savefig(file)

    def _artifact(self, artifact_path: str) -> AbstractContextManager[Path]:
        folder, _, name = artifact_path.rpartition("/")
        return self._attached("artifact", name, {"folder": folder or None})

    def log_model(
        self,
        exported: Path,
        prepared: PreparedDataset,
        *,
        torch_version: str,
        digest: str | None = None,
        metrics: Mapping[str, float] | None = None,
        step: int = 0,
    ) -> None:
        """Log an exported network as an MLflow model, tied to run, data set and metrics.

        mlflow.pyfunc and mlflow.pytorch load it as "runs:/<run_id>/model".

        Args:
            exported: the file torch.export.save wrote, its tensors on the CPU.
            prepared: the data set: shape and type of a sample, class names.
            torch_version: torch.__version__ of the process that exported.
            digest: of the weights, as `core.training.network.export` returns it.
            metrics: the model's results on the test split; they become the run's metrics too.
            step: the epoch the model is from.

        Raises:
            RunError: there is no such file, or the store refused the model.
        """
        if not exported.is_file():
            raise RunError(f"The exported network {exported} is missing.")
        values = {
            "about": mlflow_format.described_model(prepared, torch_version, digest),
            "dataset": mlflow_format.dataset_links(prepared, "test"),
            "metrics": {key: float(value) for key, value in (metrics or {}).items()},
            "step": step,
        }
        with self._attached("model", "model.pt2", values) as file:
            link_or_copy(exported, file)
        self.has_model = True

    def finish(self, status: Literal["FINISHED", "FAILED", "KILLED"], reason: str = "") -> bool:
        """Deliver what is in the log and end the run; the tag torchyard.reason says why.

        Returns:
            whether MLflow has it all: otherwise it waits on disk.

        Raises:
            RunError: the store refused a FINISHED run's last lines, or another process has taken
                the run over. For one that FAILED or was KILLED that goes to the log: it must not
                hide what ended the run.
        """
        values = {"status": status, "reason": shortened(redacted(reason), MAX_TAG)}
        ended = False
        if status == "FINISHED":
            self._stop_uploads()
        try:
            self.sender.check_owner()
            self._log("end", values, send=False)
            if status == "FINISHED":
                ended = self.sync()
            else:
                # Out of turn: a second Ctrl-C may come, or what is pending be refused.
                ended = self.sender.send(Line("end", values), first=True)
        except (RunError, UserError) as error:
            if status == "FINISHED":
                raise
            logger.warning("The run's end (%s) is not wholly recorded. %s", status, error)
        finally:
            self._stop_uploads()
            self.sender.stop()
            leave_folder(self.folder)
        return ended

    def _stop_uploads(self) -> None:
        if self._uploads is not None:
            self._uploads.stop()
            self._uploads = None

    def discard(self) -> bool:
        """Remove a run that has ended before it had any data; False if it had, or cannot be."""
        if self._digests or self.sender.taken_over:
            return False
        try:
            with store_errors(self._uri):
                self._client.delete_run(self.run_id)
        except (RunError, UserError):
            return False
        shutil.rmtree(self.folder, ignore_errors=True)
        return True

    def _log(self, kind: str, values: dict[str, Any], *, send: bool = True) -> None:
        """Append a line to the log, and deliver what is in it."""
        if self.sender.taken_over is not None:
            raise self.sender.taken_over
        line = Line(kind, values)
        try:
            self._delivery.log.append(line)
        except OSError as error:  # a store on another machine may take it all the same
            if not self.sender.send(line):
                raise RunError(
                    f"MLflow does not answer, and the run's log {self._delivery.log.path} cannot "
                    f"be written: {error.strerror}."
                ) from error
        else:
            if send:
                self.flush()

    @contextmanager
    def _attached(self, kind: str, name: str, values: Mapping[str, Any]) -> Iterator[Path]:
        """Log a line with a file of that name, which the body writes."""
        try:
            file = self._delivery.attachment(name)
            yield file
        except OSError as error:
            raise RunError(f"{name} cannot be kept in {self.folder}: {error.strerror}.") from error
        self._log(kind, {**values, "file": str(file.relative_to(self.folder))})


def _redacted(tags: Mapping[str, Any]) -> dict[str, str]:
    return {key: redacted(str(value)) for key, value in tags.items()}
