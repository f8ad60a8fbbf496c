"""The record of a run: everything torchyard tells MLflow.

MLflow takes about 6 seconds to import and 2 to open, so neither happens before a run starts;
torch is never imported here, not even to log a model.
"""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from core.dataset import PreparedDataset
from core.entries import (
    MAX_ENTRIES,
    MAX_METRICS,
    MAX_PARAMETER,
    MAX_TAG,
    batches,
    dataset_inputs,
    dataset_links,
    flattened,
    metrics_now,
    safe_key,
    shortened,
)
from core.errors import RunError, UserError
from core.logged_model import write_model
from core.provenance import git_tags, source_tags
from core.runs import PROCESS, REASON, end_orphans, owner_lives, owner_tags
from core.store import (
    LOCAL_UI,
    check_writable,
    chosen_experiment,
    load_mlflow,
    one_at_a_time,
    open_store,
    shown,
    store_errors,
    tracking_uri,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient
    from mlflow.entities import Metric

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 5.0
RUN_COUNTER = "torchyard.runs"  # tag of the experiment: the number its last run was given


class RunRecord:
    """The record of one run in MLflow, addressed by its id from any thread.

    Whatever fails raises RunError with one message that names the store; only the buffer of
    metrics waits out a store that is away for a while.

    Attributes:
        run_id: MLflow's id.
        name: what people call the run, "lenet·sgd·digits #12".
        experiment_id: the experiment it belongs to.
    """

    def __init__(self, client: MlflowClient, run_id: str, name: str, experiment_id: str) -> None:
        self.run_id = run_id
        self.name = name
        self.experiment_id = experiment_id
        self._client = client
        self._uri: str = client.tracking_uri
        self._buffer: list[Metric] = []
        self._recorded: set[tuple[str, int]] = set()  # (key, step): a repeated step adds nothing
        self._digests: set[str] = set()  # of the data it began with
        self._sending = threading.Lock()
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
        with store_errors(uri), one_at_a_time(uri):
            client = open_store(uri)
            experiment = chosen_experiment(client, uri)
            end_orphans(client, experiment.experiment_id)
            number = int(experiment.tags.get(RUN_COUNTER, "0")) + 1
            client.set_experiment_tag(experiment.experiment_id, RUN_COUNTER, str(number))
            name = f"{name_stem} #{number}"
            run = client.create_run(
                experiment.experiment_id,
                tags={**source_tags(), **git_tags(), **owner_tags()},
                run_name=name,
            )
        record = cls(client, run.info.run_id, name, experiment.experiment_id)
        try:
            record.set_tags(tags)
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
            info = client.get_run(run_id).info
        return cls(client, run_id, info.run_name, info.experiment_id)

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
            if run.info.status == "FINISHED":
                raise UserError(f"{named} is finished: there is nothing left to do.")
            lives = owner_lives(run.data.tags) and run.data.tags[PROCESS] != own[PROCESS]
            if run.info.status == "RUNNING" and lives:
                raise UserError(f"{named} is running, in process {run.data.tags[PROCESS]}.")
            client.update_run(run_id, status="RUNNING")
            record = cls(client, run_id, run.info.run_name, run.info.experiment_id)
            for key in run.data.metrics:
                history = client.get_metric_history(run_id, key)
                record._recorded |= {(key, metric.step) for metric in history}
            inputs = run.inputs.dataset_inputs if run.inputs else []
            record._digests = {found.dataset.digest for found in inputs}
        record.set_tags(own)
        if REASON in run.data.tags:
            with store_errors(uri):
                client.delete_tag(run_id, REASON)
        return record

    @property
    def has_model(self) -> bool:
        """Whether a model was logged."""
        with store_errors(self._uri):
            run = self._client.get_run(self.run_id)
        return bool(run.outputs and run.outputs.model_outputs)

    @property
    def url(self) -> str:
        """The run's page in the MLflow UI."""
        server = shown(self._uri) if self._uri.startswith("http") else LOCAL_UI
        page = f"{server.rstrip('/')}/#/experiments/{self.experiment_id}/runs/{self.run_id}"
        # Without it the UI opens on its side for language models, where metrics do not show.
        return f"{page}?workflowType=machine_learning"

    def log_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Record a nested configuration as "optimizer.lr"; lists, true and null as JSON.

        Raises:
            RunError: also where a parameter was recorded before with another value.
        """
        from mlflow.entities import Param

        entries = [
            Param(safe_key(key), shortened(value, MAX_PARAMETER))
            for key, value in flattened(parameters)
        ]
        with store_errors(self._uri):
            for batch in batches(entries, MAX_ENTRIES):
                self._client.log_batch(self.run_id, params=batch, synchronous=True)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags; one that is longer than MLflow takes ends with its length."""
        from mlflow.entities import RunTag

        entries = [
            RunTag(safe_key(key), shortened(str(value), MAX_TAG)) for key, value in tags.items()
        ]
        with store_errors(self._uri):
            for batch in batches(entries, MAX_ENTRIES):
                self._client.log_batch(self.run_id, tags=batch, synchronous=True)

    def describe(self, markdown: str) -> None:
        """Show a text as the run's description."""
        self.set_tags({"mlflow.note.content": markdown})

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Add metrics to the buffer, and send it when it has waited for some seconds.

        Raises nothing over a store that is away: the metrics wait for the next `flush`.
        """
        for metric in metrics_now(values, step):
            if (metric.key, step) not in self._recorded:
                self._recorded.add((metric.key, step))
                self._buffer.append(metric)
        if time.monotonic() - self._last_flush >= FLUSH_SECONDS:
            try:
                self.flush()
            except RunError as error:
                logger.warning("%s %d metrics wait.", error, len(self._buffer))

    def flush(self) -> None:
        """Send the buffered metrics; what could not be sent stays in the buffer."""
        # Only sending is locked: others append at the end meanwhile, and must not wait for
        # a server that is slow to answer.
        with self._sending, store_errors(self._uri):
            try:
                while batch := self._buffer[:MAX_METRICS]:
                    self._client.log_batch(self.run_id, metrics=batch, synchronous=True)
                    del self._buffer[: len(batch)]
            finally:
                self._last_flush = time.monotonic()

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
        with store_errors(self._uri):
            self._client.log_inputs(self.run_id, datasets=dataset_inputs(prepared))

    def log_text(self, text: str, artifact_path: str) -> None:
        """Keep a text as the file `artifact_path` of the run."""
        with store_errors(self._uri):
            self._client.log_text(self.run_id, text, artifact_path)

    def log_file(self, file: Path) -> None:
        """Keep a file as an artifact, under its own name."""
        with store_errors(self._uri):
            self._client.log_artifact(self.run_id, str(file))

    def log_figure(self, figure: Figure, artifact_path: str) -> None:
        """Keep a figure as a picture; the ending of `artifact_path` says of which kind."""
        with store_errors(self._uri):
            self._client.log_figure(self.run_id, figure, artifact_path)

    def log_model(
        self,
        exported: Path,
        prepared: PreparedDataset,
        *,
        torch_version: str,
        metrics: Mapping[str, float] | None = None,
        step: int = 0,
    ) -> str:
        """Log an exported network as an MLflow model, tied to run, data set and metrics.

        Args:
            exported: the file torch.export.save wrote, its tensors on the CPU.
            prepared: the data set: shape and type of a sample, class names.
            torch_version: torch.__version__ of the process that exported.
            metrics: the model's results on the test split; they become the run's metrics too.
            step: the epoch the model is from.

        Returns:
            "models:/<id>", which mlflow.pyfunc and mlflow.pytorch load.

        Raises:
            RunError: there is no such file, or the store did not take the model.
        """
        from mlflow.entities import LoggedModelOutput

        if not exported.is_file():
            raise RunError(f"The exported network {exported} is missing.")
        client = self._client
        with store_errors(self._uri):
            model = client.create_logged_model(
                self.experiment_id,
                name="model",
                source_run_id=self.run_id,
                params=client.get_run(self.run_id).data.params,
                model_type="classifier",
            )
            try:
                with tempfile.TemporaryDirectory() as folder:
                    write_model(
                        Path(folder),
                        exported,
                        prepared,
                        torch_version=torch_version,
                        run_id=self.run_id,
                        model_id=model.model_id,
                        location=model.artifact_location,
                    )
                    client.log_model_artifacts(model.model_id, folder)
                client.finalize_logged_model(model.model_id, "READY")
            except BaseException:
                with suppress(Exception):
                    client.finalize_logged_model(model.model_id, "FAILED")
                raise
            client.log_outputs(self.run_id, [LoggedModelOutput(model.model_id, step)])
        links = dataset_links(prepared, "test")
        links |= {"model_id": model.model_id, "run_id": self.run_id}
        self._buffer.extend(metrics_now(metrics or {}, step, **links))
        self.flush()
        return f"models:/{model.model_id}"

    def finish(self, status: Literal["FINISHED", "FAILED", "KILLED"], reason: str = "") -> None:
        """Send what is buffered and end the run; the tag torchyard.reason says why.

        Raises:
            RunError: a FINISHED run's last figures could not be recorded. For one that
                FAILED or was KILLED the store's trouble goes to the log: it must not hide
                what ended the run.
        """
        if status == "FINISHED":
            self.flush()
            self._terminate(status, reason)
            return
        try:
            self._terminate(status, reason)  # first: a second Ctrl-C may come
            self.flush()
        except (RunError, UserError) as error:
            logger.warning("The run's end (%s) is not wholly recorded. %s", status, error)

    def _terminate(self, status: str, reason: str) -> None:
        with store_errors(self._uri):
            self._client.set_terminated(self.run_id, status)
        if reason:
            self.set_tags({REASON: reason})
