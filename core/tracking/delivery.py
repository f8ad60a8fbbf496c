"""Delivering the lines of a run's log that MLflow does not have yet, each kind in its way."""

from __future__ import annotations

import json
import logging
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import chain, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from torchyard.core.errors import RunError, StoreUnavailableError
from torchyard.core.redaction import redacted
from torchyard.core.tracking import mlflow_format
from torchyard.core.tracking.location.address import is_server
from torchyard.core.tracking.location.errors import store_errors
from torchyard.core.tracking.mlflow_format import metric_points
from torchyard.core.tracking.ownership.folders import is_own
from torchyard.core.tracking.ownership.lease import Lease
from torchyard.core.tracking.store import get_run, run_folder
from torchyard.core.tracking.uploads import logged_model, upload_artifact
from torchyard.core.training.events import TrainingMetrics
from torchyard.core.training.run_log import Line, Offset, RunLog

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


logger = logging.getLogger(__name__)

ATTACHMENTS = "attachments"  # in the run's folder: the files that its log's lines name
SENT = "sent"  # in the run's folder: MLflow has the log up to this byte
SET_ASIDE = "refused.jsonl"  # in the run's folder: the lines that cannot be sent, and why
METRICS = {"metrics", *(kind.__name__ for kind in get_args(TrainingMetrics))}  # kinds of lines
RACES, RACE_SECONDS = 5, 0.5  # tries of what another run does at the same moment, and the pause
# What PostgreSQL, SQLite and MySQL say of a row that is there by now.
ADDED_TWICE = "UniqueViolation|UNIQUE constraint failed|Duplicate entry"
REASON = "torchyard.reason"  # tag of a run: why it ended


class LogDelivery:
    """Delivers the lines of a run's log to MLflow.

    Sending a line twice changes nothing, so no death between sending it and noting that in the
    file `sent` does harm. A step that a metric has already is left out: a training that was
    resumed repeats those after its checkpoint.

    Args:
        client: of the store.
        run: whose log it is.
        lease: of the process whose run it is; once another process has the run, nothing is sent.

    Attributes:
        folder: the run's.
        log: in that folder.
        recorded: the value of every metric at every step, by (key, step): none is recorded again.
        differing: the last step of every loss and accuracy that had another value the second time.
        set_aside: how many lines could not be sent, and were put into the file `refused.jsonl`.
    """

    def __init__(self, client: MlflowClient, run: Run, lease: Lease | None = None) -> None:
        self.folder = run_folder(client.tracking_uri, run)
        self.log = RunLog(self.folder)
        self.recorded: dict[tuple[str, int], float] = {}
        self.differing: dict[str, int] = {}
        self.set_aside = 0
        self._sent = Offset(self.folder / SENT)
        self._noted = 0  # the lines before this byte are in `recorded`
        self._client = client
        self._run_id: str = run.info.run_id
        self._lease = lease

    def __len__(self) -> int:
        """How many lines are pending."""
        return sum(1 for _ in self.log.read(self._sent.get()))

    def waiting_metrics(self) -> list[Line]:
        """The pending lines with metrics."""
        return [line for line in self.log.read(self._sent.get()) if line.kind in METRICS]

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
                "drop" it, unless it has metrics, and raise; "skip": set it aside, and go on.

        Raises:
            StoreUnavailableError: the store is out of reach, locked or full.
            TakenOverError: the run has another owner.
            UserError, RunError: it refused.
            OSError: the offset cannot be written.
        """
        if not self.log.path.exists():
            return
        if not is_own(self.folder):
            raise RunError(
                f"{self.folder} belongs to another user, or everybody can write to it: nothing in "
                "it is sent."
            )
        with self._sent.locked():
            sent = self._sent.get()
            if sent > (size := self.log.path.stat().st_size):  # a power cut took the last lines
                sent = size
                self._sent.set(size)
            if self._noted < sent:  # sent by another process
                self._note(line for line in self.log.read(self._noted) if line.end <= sent)
            waiting = self.log.read(sent)
            if (first := next(waiting, None)) is None:
                return
            self._confirm([])
            # Metrics that follow each other are sent together, every other line alone.
            together = groupby(
                chain([first], waiting), lambda line: line.kind in METRICS or line.end
            )
            before = self._noted, dict(self.recorded)
            try:
                self._send_all((list(lines) for _, lines in together), refused)
            except StoreUnavailableError:
                if is_server(self._client.tracking_uri):
                    self._noted, self.recorded = before
                raise

    def _send_all(self, batches: Iterable[list[Line]], refused: str) -> None:
        done: list[Line] = []
        try:
            for batch in batches:
                self._send_batch(batch, refused)
                done += batch
                self._note(batch)
        except StoreUnavailableError:
            # Who knows what a server has got: it is sent all of it again, which is harmless.
            if not is_server(self._client.tracking_uri):
                self._settle(done)
            raise
        except RunError:
            if refused == "drop" and batch[0].kind not in METRICS:
                done += batch
            self._settle(done)
            raise
        self._settle(done)

    def _send_batch(self, batch: list[Line], refused: str) -> None:
        """Send lines; where those are to be skipped that cannot be sent, set them aside."""
        try:
            self.send(batch)
        except RunError as error:
            if refused != "skip":
                raise
            if isinstance(error, StoreUnavailableError):
                if "status 500" not in str(error):
                    raise
                self._confirm([])  # it answers anything else: the line is at fault
            if len(batch) > 1:
                for line in batch:
                    self._send_batch([line], refused)
                return
            logger.warning("The store refuses a line of %s: %s", self.log.path, error)
            self.set_aside += 1
            entry = {"kind": batch[0].kind, "values": batch[0].values, "why": str(error)}
            with (self.folder / SET_ASIDE).open("a", encoding="utf-8") as aside:
                aside.write(json.dumps(entry) + "\n")

    def _settle(self, done: list[Line]) -> None:
        """Note that MLflow has these lines."""
        if done:
            self._confirm(done)
            self._sent.set(done[-1].end)
            for line in done:
                self._remove_attachment(line)

    def _confirm(self, sent: list[Line]) -> None:
        """Make sure that MLflow's server is there, has what was sent, and the run is ours.

        MLflow's client takes an empty answer, which any proxy may give, for a success.
        """
        uri = self._client.tracking_uri
        if not is_server(uri):
            return
        with store_errors(uri):
            run = get_run(self._client, self._run_id)
            ended = [line.values["status"] for line in sent if line.kind == "end"]
            if ended and run.info.status != ended[-1]:
                raise OSError(f"status 200, but the run is still {run.info.status}")
        if self._lease is not None:
            self._lease.check(run)

    def _attached(self, values: Mapping[str, Any]) -> Path:
        """The file that a line names: one that the run itself attached, and no other."""
        file = self.folder / str(values["file"])
        attachments = (self.folder / ATTACHMENTS).resolve()
        if file.is_symlink() or attachments not in (file.resolve().parents):
            raise RunError(f"{values['file']!r} is no file that the run attached")
        return file

    def _remove_attachment(self, line: Line) -> None:
        if "file" in line.values and line.kind in ("artifact", "model"):
            with suppress(RunError):
                shutil.rmtree(self._attached(line.values).parent, ignore_errors=True)

    def _note(self, lines: Iterable[Line]) -> None:
        for line in lines:
            if line.kind in METRICS or "metrics" in line.values:
                with suppress(LookupError, TypeError, ValueError, AttributeError):  # damaged
                    for point in metric_points(line):
                        self.recorded.setdefault((point["key"], point["step"]), point["value"])
            self._noted = line.end

    def send(self, lines: list[Line]) -> None:
        """Send one line, or several with metrics.

        Raises:
            StoreUnavailableError, UserError, RunError: as `store_errors` raises them; a line
                that is damaged, or was written by another version, is a RunError, too.
        """
        try:
            with store_errors(self._client.tracking_uri):
                self._send(lines)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            self._confirm([])  # it was not what answered
            kinds = " and ".join({line.kind for line in lines})
            reason = f"{type(error).__name__}: {error}"
            raise RunError(f"An entry of the kind {kinds} cannot be sent: {reason}") from error

    def _send(self, lines: list[Line]) -> None:
        from mlflow.entities import Param, RunTag

        values, client, run_id = lines[0].values, self._client, self._run_id
        match lines[0].kind:
            case "parameters":
                self._log_batches("params", [Param(*e) for e in values["parameters"].items()])
            case "tags":
                self._log_batches("tags", [RunTag(*e) for e in values["tags"].items()])
            case "untag":
                if values["tag"] in client.get_run(run_id).data.tags:
                    client.delete_tag(run_id, values["tag"])
            case "dataset":
                self._send_inputs(mlflow_format.dataset_inputs(values["inputs"]))
            case "artifact":
                upload_artifact(client, run_id, self._attached(values), values["folder"])
            case "model":
                self._send_model(lines[0], self._attached(values))
            case "end":
                if self._lease is not None:
                    self._lease.check()  # the run may have been taken over since it was renewed
                end_run(client, run_id, **values, end_time=lines[0].time)
            case _:
                self._log_points(self._new_points(lines))

    def _send_inputs(self, inputs: list[Any]) -> None:
        """Log data sets; again where another run logged one of them at the same moment.

        MLflow looks a data set up and adds it where it is not there: of two that do so at once a
        database refuses one.
        """
        from mlflow.exceptions import MlflowException

        for tried in range(1, RACES + 1):
            try:
                self._client.log_inputs(self._run_id, datasets=inputs)
                return
            except MlflowException as error:
                if tried == RACES or not re.search(ADDED_TWICE, str(error)):
                    raise
                time.sleep(RACE_SECONDS)

    def _new_points(self, lines: Iterable[Line]) -> list[dict[str, Any]]:
        """The metrics in lines, without the steps that are recorded."""
        new: dict[tuple[str, int], dict[str, Any]] = {}
        for point in chain.from_iterable(map(metric_points, lines)):
            key, step, value = point["key"], point["step"], point["value"]
            if (first := self.recorded.get((key, step))) is None:
                first = new.setdefault((key, step), point)["value"]
            if key.endswith(("loss", "/accuracy")) and str(value) != str(first):  # NaN is NaN
                self.differing[key] = step
        return [*new.values()]

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
        from mlflow.entities import LoggedModelOutput

        run = self._client.get_run(self._run_id)
        linked = [output.model_id for output in run.outputs.model_outputs] if run.outputs else []
        model_id = logged_model(self._client, run, exported, line.values["about"])
        if model_id not in linked:
            output = LoggedModelOutput(model_id, line.values["step"])
            self._client.log_outputs(self._run_id, [output])
        links = line.values["dataset"] | {"model_id": model_id, "run_id": self._run_id}
        self._log_points(point | links for point in metric_points(line))


def end_run(
    client: MlflowClient, run_id: str, status: str, reason: str, end_time: int | None = None
) -> None:
    """Set a run's status and end (milliseconds since 1970; None: now), and the reason as a tag."""
    client.set_terminated(run_id, status, end_time)
    if reason:
        client.set_tag(run_id, REASON, redacted(reason))
