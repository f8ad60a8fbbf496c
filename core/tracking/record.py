"""The record of a run: everything torchyard tells MLflow.

MLflow takes about 6 seconds to import and 2 to open, so neither happens before a run starts;
torch is never imported here, not even to log a model.
"""

from __future__ import annotations

import json
import logging
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torchyard.core.data.dataset import PreparedDataset
from torchyard.core.data.files import remove_partial
from torchyard.core.errors import RunError, StoreAwayError, UserError
from torchyard.core.tracking import table
from torchyard.core.tracking.lookup import CONFIG, end_orphans
from torchyard.core.tracking.mlflow_format import (
    MAX_PARAMETER,
    MAX_TAG,
    dataset_links,
    flattened,
    metrics_now,
    safe_key,
    shortened,
)
from torchyard.core.tracking.outbox import FOLDER, REASON, Entry, deliver, outbox_of, send_kept
from torchyard.core.tracking.provenance import (
    PROCESS,
    git_tags,
    owner_lives,
    owner_tags,
    source_tags,
)
from torchyard.core.tracking.store import (
    LOCAL_UI,
    answers,
    check_writable,
    chosen_experiment,
    is_server,
    load_mlflow,
    one_at_a_time,
    open_store,
    run_folder,
    runs_folder,
    shown,
    store_errors,
    tracking_uri,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient
    from mlflow.entities import Run

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 5.0
RETRY_SECONDS = 15.0  # between two tries to reach a store that is away
RUN_COUNTER = "torchyard.runs"  # tag of the experiment: the number its last run was given


class RunRecord:
    """The record of one run in MLflow, addressed by its id from any thread.

    While the store is away nothing raises: what it should be told is kept on disk, in order,
    and sent when it is back. Whatever it refuses raises RunError.

    Attributes:
        run_id: MLflow's id.
        name: what people call the run, "lenet·sgd·digits #12".
        experiment_id: the experiment it belongs to.
        has_model: whether a model was logged.
        metrics: the last value of each metric.
    """

    def __init__(self, client: MlflowClient, run: Run) -> None:
        self.run_id: str = run.info.run_id
        self.name: str = run.info.run_name
        self.experiment_id: str = run.info.experiment_id
        self.has_model = bool(run.outputs and run.outputs.model_outputs)
        self.metrics: dict[str, float] = dict(run.data.metrics)
        self._client = client
        self._uri: str = client.tracking_uri
        self._outbox = outbox_of(run)
        self._next_try = 0.0
        self._buffer: list[dict[str, Any]] = []
        self._recorded: set[tuple[str, int]] = set()  # (key, step): a repeated step adds nothing
        self._digests: set[str] = set()  # of the data it began with
        self._flushing, self._telling = threading.Lock(), threading.Lock()
        self._last_flush = time.monotonic()

    @classmethod
    def start(
        cls, *, name_stem: str, parameters: Mapping[str, Any], tags: Mapping[str, str]
    ) -> RunRecord:
        """Begin a run, creating store and experiment where there are none yet.

        Args:
            name_stem: the run's name without its number.
            parameters: the whole configuration, nested.
            tags: the caller's; source, user and commit are added here.

        Raises:
            UserError: the store or the experiment named in the environment cannot be used.
            RunError: the store is out of reach, locked or full.
        """
        uri = tracking_uri()
        check_writable(uri)
        load_mlflow()
        tags = {**source_tags(), **git_tags(), **owner_tags(), **tags}
        tags |= {CONFIG: json.dumps(parameters), FOLDER: str(runs_folder())}
        with store_errors(uri), one_at_a_time(uri):
            client = open_store(uri)
            experiment = chosen_experiment(client, uri)
            end_orphans(client, experiment.experiment_id)
            number = int(experiment.tags.get(RUN_COUNTER, "0")) + 1
            client.set_experiment_tag(experiment.experiment_id, RUN_COUNTER, str(number))
            if table.TAG not in experiment.tags:
                view = table.results_view()
                client.set_experiment_tag(experiment.experiment_id, table.TAG, view)
            name = f"{name_stem} #{number}"
            run = client.create_run(
                experiment.experiment_id,
                # With the run itself: whenever it dies, it can be taken up again.
                tags=_tags(tags),
                run_name=name,
            )
        record = cls(client, run)
        try:
            record.log_parameters(parameters)
        except BaseException as error:  # an interrupt too: none is left RUNNING
            status: Literal["FAILED", "KILLED"] = "FAILED"
            if not isinstance(error, Exception):
                status = "KILLED"
            record.finish(status, f"{type(error).__name__}: {error}")
            raise
        return record

    @classmethod
    def open(cls, run_id: str) -> RunRecord:
        """The record of a run that exists, from another task or process.

        Raises:
            RunError: there is no such run, or the store is out of reach.
        """
        uri = tracking_uri()
        load_mlflow()
        with store_errors(uri), one_at_a_time(uri):
            client = open_store(uri)
            return cls(client, client.get_run(run_id))

    @classmethod
    def tagged(cls, tag: str, value: str) -> RunRecord | None:
        """Take up the run with that tag again, where the experiment has one.

        Raises:
            RunError: the store is out of reach.
        """
        uri = tracking_uri()
        load_mlflow()
        with store_errors(uri), one_at_a_time(uri):
            client = open_store(uri)
            experiment = chosen_experiment(client, uri)
            chosen = f"tags.`{tag}` = '{value}'"
            found = client.search_runs([experiment.experiment_id], chosen, max_results=1)
        return cls.taken_up(found[0].info.run_id) if found else None

    @classmethod
    def taken_up(cls, run_id: str) -> RunRecord:
        """Go on with a run that ended early: a metric it has is not recorded again.

        Raises:
            UserError: it is finished, or its process lives.
            RunError: the store is out of reach.
        """
        uri = tracking_uri()
        load_mlflow()
        with store_errors(uri), one_at_a_time(uri):
            client = open_store(uri)
            run = client.get_run(run_id)
            named = f"run {run_id} ({run.info.run_name})"
            own = owner_tags()
            lives = owner_lives(run.data.tags) and run.data.tags[PROCESS] != own[PROCESS]
            if run.info.status == "RUNNING" and lives:
                raise UserError(f"{named} is running, in process {run.data.tags[PROCESS]}.")
            send_kept(client, run_id, outbox_of(run))
            run = client.get_run(run_id)
            if run.info.status == "FINISHED":
                raise UserError(f"{named} is finished: there is nothing left to do.")
            for key, value in own.items():  # first: a run of a dead process would be ended
                client.set_tag(run_id, key, value)
            client.update_run(run_id, status="RUNNING")
            if REASON in run.data.tags:
                client.delete_tag(run_id, REASON)
            remove_partial(run_folder(run_id))
            record = cls(client, run)
            for key in run.data.metrics:
                history = client.get_metric_history(run_id, key)
                record._recorded |= {(key, metric.step) for metric in history}
            inputs = run.inputs.dataset_inputs if run.inputs else []
            record._digests = {found.dataset.digest for found in inputs}
        return record

    @property
    def unsent(self) -> int:
        """How many entries are kept on disk, because the store is away."""
        return len(self._outbox)

    @property
    def url(self) -> str:
        """The run's page in the MLflow UI."""
        server = shown(self._uri) if is_server(self._uri) else LOCAL_UI
        page = f"{server.rstrip('/')}/#/experiments/{self.experiment_id}/runs/{self.run_id}"
        # Without it the UI opens on its side for language models, where metrics do not show.
        return f"{page}?workflowType=machine_learning"

    def log_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Record a nested configuration as "optimizer.lr"; lists, true and null as JSON.

        Raises:
            RunError: also where a parameter was recorded before with another value.
        """
        flat = flattened(parameters)
        self._tell(
            "parameters", {safe_key(key): shortened(value, MAX_PARAMETER) for key, value in flat}
        )

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags; one that is longer than MLflow takes ends with its length."""
        self._tell("tags", _tags(tags))

    def describe(self, markdown: str) -> None:
        """Show a text as the run's description."""
        self.set_tags({"mlflow.note.content": markdown})

    def log_config(self, text: str) -> None:
        """Keep the configuration as config.yaml, from which the run can be had again."""
        self.log_text(text, "config.yaml")
        self._tell("untag", {"tag": CONFIG})

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Add metrics to the buffer, and send it when it has waited for some seconds."""
        for metric in metrics_now(values, step):
            self.metrics[metric["key"]] = metric["value"]
            if (metric["key"], step) not in self._recorded:
                self._recorded.add((metric["key"], step))
                self._buffer.append(metric)
        if time.monotonic() - self._last_flush >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Send the buffered metrics."""
        # Others append at the end meanwhile, and must not wait for a server that is slow.
        with self._flushing:
            if batch := self._buffer[:]:
                self._tell("metrics", {"metrics": batch})
                del self._buffer[: len(batch)]
            self._last_flush = time.monotonic()

    def catch_up(self) -> bool:
        """Send the buffer and what was kept; whether the store now has all of the run."""
        self._next_try = 0.0
        self.flush()
        with self._telling:
            return self._try(lambda: None)

    def log_dataset(self, prepared: PreparedDataset) -> None:
        """Record both splits as the run's inputs, with digest, counts and statistics.

        Raises:
            UserError: the run was taken up again, and began with other data.
        """
        digest = dataset_links(prepared, "train")["dataset_digest"]
        if self._digests and digest not in self._digests:
            raise UserError(
                f"dataset {prepared.name}: it has changed since run {self.run_id} began: its "
                f"digest is {digest} and was {' or '.join(sorted(self._digests))}."
            )
        self._tell("dataset", {"folder": str(prepared.folder)})

    def log_text(self, text: str, artifact_path: str) -> None:
        """Keep a text as the file `artifact_path` of the run."""
        with self._as_artifact(artifact_path) as file:
            file.write_text(text, "utf-8")

    def log_file(self, file: Path) -> None:
        """Keep a file as an artifact, under its own name."""
        self._tell("artifact", {"folder": None}, file)

    def log_figure(self, figure: Figure, artifact_path: str) -> None:
        """Keep a figure as a picture; the ending of `artifact_path` says of which kind."""
        with self._as_artifact(artifact_path) as file:
            figure.savefig(file)

    @contextmanager
    def _as_artifact(self, artifact_path: str) -> Iterator[Path]:
        folder, _, name = artifact_path.rpartition("/")
        with store_errors(self._uri), tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / name
            yield file
            self._tell("artifact", {"folder": folder or None}, file)

    def log_model(
        self,
        exported: Path,
        prepared: PreparedDataset,
        *,
        torch_version: str,
        metrics: Mapping[str, float] | None = None,
        step: int = 0,
    ) -> None:
        """Log an exported network as an MLflow model, tied to run, data set and metrics.

        mlflow.pyfunc and mlflow.pytorch load it as "runs:/<run_id>/model".

        Args:
            exported: the file torch.export.save wrote, its tensors on the CPU.
            prepared: the data set: shape and type of a sample, class names.
            torch_version: torch.__version__ of the process that exported.
            metrics: the model's results on the test split; they become the run's metrics too.
            step: the epoch the model is from.

        Raises:
            RunError: there is no such file, or the store refused the model.
        """
        if not exported.is_file():
            raise RunError(f"The exported network {exported} is missing.")
        values = {
            "data": str(prepared.folder),
            "torch_version": torch_version,
            "metrics": metrics_now(metrics or {}, step),
            "step": step,
        }
        self._tell("model", values, exported)
        self.has_model = True

    def finish(self, status: Literal["FINISHED", "FAILED", "KILLED"], reason: str = "") -> None:
        """Send what is buffered and end the run; the tag torchyard.reason says why.

        Raises:
            RunError: the store refused a FINISHED run's last figures. For one that FAILED or
                was KILLED the refusal goes to the log: it must not hide what ended the run.
        """
        now = time.time_ns() // 1_000_000
        end = {"status": status, "reason": shortened(reason, MAX_TAG), "end_time": now}
        self._next_try = 0.0
        if status == "FINISHED":
            self.flush()
            self._tell("end", end)
            return
        try:
            self._tell("end", end)  # first: a second Ctrl-C may come
            self.flush()
        except (RunError, UserError) as error:
            logger.warning("The run's end (%s) is not wholly recorded. %s", status, error)

    def _tell(self, kind: str, values: Mapping[str, Any], attachment: Path | None = None) -> None:
        """Tell MLflow, or keep it on disk where the store is away or older entries wait."""
        entry = Entry(kind, values, attachment)
        with self._telling:
            if not self._try(lambda: deliver(self._client, self.run_id, entry)):
                self._outbox.put(entry)

    def _try(self, tell: Callable[[], object]) -> bool:
        """Whether the store could be told, what was kept before that included."""
        if self._outbox and time.monotonic() < self._next_try:
            return False
        try:
            with store_errors(self._uri):
                # MLflow's own client waits and tries again for up to ten minutes.
                if is_server(self._uri) and not answers(self._uri):
                    raise ConnectionError("Connection refused, or no answer")
                send_kept(self._client, self.run_id, self._outbox)
                tell()
        except StoreAwayError as error:
            if not self._outbox:
                logger.warning("%s What it should be told waits on disk.", error)
            self._next_try = time.monotonic() + RETRY_SECONDS
            return False
        return True


def _tags(tags: Mapping[str, Any]) -> dict[str, str]:
    return {safe_key(key): shortened(str(value), MAX_TAG) for key, value in tags.items()}
