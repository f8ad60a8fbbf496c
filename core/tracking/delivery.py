"""Delivering the lines of a run's log that MLflow does not have yet, each kind in its way."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import chain, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, get_args

from torchyard.core.data.dataset import PreparedDataset
from torchyard.core.errors import RunError, StoreUnavailableError
from torchyard.core.tracking import mlflow_format
from torchyard.core.tracking.mlflow_format import metric_points
from torchyard.core.tracking.store import run_folder, store_errors
from torchyard.core.training.events import TrainingMetrics
from torchyard.core.training.run_log import Line, RunLog

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


logger = logging.getLogger(__name__)

ATTACHMENTS = "attachments"  # in the run's folder: the files that its log's lines name
SENT = "sent"  # in the run's folder: MLflow has the log up to this byte
METRICS = {"metrics", *(kind.__name__ for kind in get_args(TrainingMetrics))}  # kinds of lines
MODEL_TYPE = "classifier"
REASON = "torchyard.reason"  # tag of a run: why it ended


class LogDelivery:
    """Delivers the lines of a run's log to MLflow.

    Sending a line twice changes nothing, so no death between sending it and noting that in the
    file `sent` does harm. A step that a metric has already is left out: a training that was
    resumed repeats those after its checkpoint.

    Attributes:
        folder: the run's.
        log: in that folder.
        recorded: (key, step) of every metric that is not to be recorded again.
    """

    def __init__(self, client: MlflowClient, run: Run) -> None:
        self.folder = run_folder(client.tracking_uri, run)
        self.log = RunLog(self.folder)
        self.recorded: set[tuple[str, int]] = set()
        self._noted = 0  # the lines before this byte are in `recorded`
        self._client = client
        self._run_id: str = run.info.run_id

    def __len__(self) -> int:
        """How many lines are pending."""
        try:
            with (self.folder / SENT).open("rb") as file:
                sent = _offset(file)
        except FileNotFoundError:
            sent = 0
        return sum(1 for _ in self.log.read(sent))

    def attachment(self, name: str) -> Path:
        """Where to put a file of that name, for a line to name it.

        Raises:
            OSError: there is no room for it.
        """
        folder = self.folder / ATTACHMENTS
        folder.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(dir=folder)) / name

    def deliver(self, refused: Literal["keep", "drop", "skip"] = "keep") -> None:
        """Deliver what is pending, in order. After an error the rest stays pending.

        Args:
            refused: what becomes of a line that the store refuses: "keep" it pending, and raise;
                "drop" it, unless it has metrics, and raise; "skip" it, and go on.

        Raises:
            StoreUnavailableError: the store is out of reach, locked or full.
            UserError, RunError: it refused.
            OSError: the offset cannot be written.
        """
        if not self.log.path.exists():
            return
        with _locked(self.folder / SENT) as file:
            sent = _offset(file)
            if sent > (size := self.log.path.stat().st_size):  # a power cut took the last lines
                sent = size
                _move_offset(file, size)
            if self._noted < sent:  # sent by another process
                self._note(line for line in self.log.read(self._noted) if line.end <= sent)
            # Metrics that follow each other are sent together, every other line alone.
            together = groupby(self.log.read(sent), lambda line: line.kind in METRICS or line.end)
            for batch in (list(lines) for _, lines in together):
                try:
                    self.send(batch)
                except RunError as error:
                    if isinstance(error, StoreUnavailableError):
                        raise
                    if refused == "skip":
                        self._send_each(batch)
                    else:
                        if refused == "drop" and batch[0].kind not in METRICS:
                            _move_offset(file, batch[-1].end)
                            self._remove_attachment(batch[0])
                        raise
                _move_offset(file, batch[-1].end)
                self._note(batch)

    def _send_each(self, lines: list[Line]) -> None:
        """Send each line by itself, but for those that the store refuses even so."""
        for line in lines:
            try:
                self.send([line])
            except StoreUnavailableError:
                raise
            except RunError as error:
                logger.warning("The store refuses a line of %s: %s", self.log.path, error)
                self._remove_attachment(line)

    def _remove_attachment(self, line: Line) -> None:
        if "file" in line.values:
            shutil.rmtree((self.folder / line.values["file"]).parent, ignore_errors=True)

    def _note(self, lines: Iterable[Line]) -> None:
        for line in lines:
            if line.kind in METRICS or "metrics" in line.values:
                self.recorded |= {(point["key"], point["step"]) for point in metric_points(line)}
            self._noted = line.end

    def send(self, lines: list[Line]) -> None:
        """Send one line, or several with metrics.

        Raises:
            StoreUnavailableError, UserError, RunError: as `store_errors` raises them.
        """
        from mlflow.entities import Param, RunTag

        values, client, run_id = lines[0].values, self._client, self._run_id
        file = self.folder / values["file"] if "file" in values else None
        with store_errors(client.tracking_uri):
            match lines[0].kind:
                case "parameters":
                    self._log_batches("params", [Param(*e) for e in values["parameters"].items()])
                case "tags":
                    self._log_batches("tags", [RunTag(*e) for e in values["tags"].items()])
                case "untag":
                    if values["tag"] in client.get_run(run_id).data.tags:
                        client.delete_tag(run_id, values["tag"])
                case "dataset":
                    prepared = PreparedDataset.open(Path(values["folder"]))
                    client.log_inputs(run_id, datasets=mlflow_format.dataset_inputs(prepared))
                case "artifact":
                    assert file is not None
                    if file.exists():  # otherwise it was sent: it is removed afterwards
                        client.log_artifact(run_id, str(file), values["folder"])
                case "model":
                    assert file is not None
                    self._send_model(lines[0], file)
                case "end":
                    end_run(client, run_id, **values, end_time=lines[0].time)
                case _:
                    points: dict[tuple[str, int], dict[str, Any]] = {}
                    for point in chain.from_iterable(map(metric_points, lines)):
                        if (step := (point["key"], point["step"])) not in self.recorded:
                            points.setdefault(step, point)
                    self._log_points(points.values())
        self._remove_attachment(lines[0])

    def _log_points(self, points: Iterable[Mapping[str, Any]]) -> None:
        from mlflow.entities import Metric

        self._log_batches(
            "metrics", [Metric(**point) for point in points], mlflow_format.MAX_METRICS
        )

    def _log_batches(
        self, kind: str, entities: list[Any], size: int = mlflow_format.MAX_ENTRIES
    ) -> None:
        for start in range(0, len(entities), size):
            batch = {kind: entities[start : start + size]}
            self._client.log_batch(self._run_id, **batch, synchronous=True)

    def _send_model(self, line: Line, exported: Path) -> None:
        """Log the exported network as a model, tied to run, data set and metrics."""
        from mlflow.entities import LoggedModelOutput, LoggedModelStatus

        run = self._client.get_run(self._run_id)
        prepared = PreparedDataset.open(Path(line.values["data"]))
        linked = [output.model_id for output in run.outputs.model_outputs] if run.outputs else []
        ready = None
        for found in self._client.search_logged_models(
            [run.info.experiment_id], f"source_run_id = '{self._run_id}'"
        ):
            if found.status == LoggedModelStatus.READY:
                ready = found.model_id
            else:  # its upload was cut short
                self._client.delete_logged_model(found.model_id)
        version = line.values["torch_version"]
        model_id = ready or self._upload(run, exported, prepared, version)
        if model_id not in linked:
            output = LoggedModelOutput(model_id, line.values["step"])
            self._client.log_outputs(self._run_id, [output])
        links = mlflow_format.dataset_links(prepared, "test") | {
            "model_id": model_id,
            "run_id": self._run_id,
        }
        self._log_points(point | links for point in metric_points(line))

    def _upload(
        self, run: Run, exported: Path, prepared: PreparedDataset, torch_version: str
    ) -> str:
        model = self._client.create_logged_model(
            run.info.experiment_id,
            name="model",
            source_run_id=self._run_id,
            params=run.data.params,
            model_type=MODEL_TYPE,
        )
        try:
            with tempfile.TemporaryDirectory() as folder:
                mlflow_format.write_model(
                    Path(folder),
                    exported,
                    prepared,
                    torch_version=torch_version,
                    run_id=self._run_id,
                    model_id=model.model_id,
                    location=model.artifact_location,
                )
                self._client.log_model_artifacts(model.model_id, folder)
            self._client.finalize_logged_model(model.model_id, "READY")
        except BaseException:
            with suppress(Exception):
                self._client.finalize_logged_model(model.model_id, "FAILED")
            raise
        return str(model.model_id)


def end_run(
    client: MlflowClient, run_id: str, status: str, reason: str, end_time: int | None = None
) -> None:
    """Set a run's status and end (milliseconds since 1970; None: now), and the reason as a tag."""
    client.set_terminated(run_id, status, end_time)
    if reason:
        client.set_tag(run_id, REASON, reason)


@contextmanager
def _locked(path: Path) -> Iterator[BinaryIO]:
    """Open the file of the offset; other threads and processes wait until it is closed."""
    path.touch()
    with path.open("r+b", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def _offset(file: BinaryIO) -> int:
    try:
        return int(file.read())
    except ValueError:  # empty, or damaged: all is sent again, which does no harm
        return 0


def _move_offset(file: BinaryIO, offset: int) -> None:
    # In place and in one write: no reader sees half of it, and it needs no room on a full disk.
    os.pwrite(file.fileno(), b"%020d" % offset, 0)
