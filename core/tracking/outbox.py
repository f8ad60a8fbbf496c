"""What a store that is away was not told: kept on disk, in the order it happened."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchyard.core.data.dataset import PreparedDataset
from torchyard.core.errors import RunError
from torchyard.core.tracking.mlflow_format import (
    MAX_ENTRIES,
    MAX_METRICS,
    batches,
    dataset_inputs,
    dataset_links,
    write_model,
)
from torchyard.core.tracking.store import runs_folder

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


ENTRY = "entry.json"


@dataclass(frozen=True)
class Entry:
    """One thing to tell.

    Attributes:
        kind: what it is; `core/tracking/outbox.py` knows how each is told.
        values: plain, as JSON has them.
        attachment: the file that goes with it, if one does.
    """

    kind: str
    values: Mapping[str, Any]
    attachment: Path | None = None


class Outbox:
    """The entries that wait, each in a numbered folder with its attachment.

    A folder gets its number by being renamed when it is whole, so no death of the process
    leaves half an entry; one that was sent and not yet removed is sent again, which changes
    nothing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __len__(self) -> int:
        return len(self._places())

    def put(self, entry: Entry) -> None:
        """Keep an entry behind those that wait, and its attachment, which may then go away.

        Raises:
            RunError: it cannot be written.
        """
        places = self._places()
        number = int(places[-1].name) + 1 if places else 1
        partial = self.folder / f".{os.getpid()}"
        try:
            partial.mkdir(parents=True)
            content = {"kind": entry.kind, "values": entry.values, "attachment": None}
            if entry.attachment is not None:
                content["attachment"] = entry.attachment.name
                shutil.copyfile(entry.attachment, partial / entry.attachment.name)
            with (partial / ENTRY).open("w", encoding="utf-8") as file:
                json.dump(content, file)
                file.flush()
                os.fsync(file.fileno())
            partial.rename(self.folder / f"{number:06}")
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise RunError(
                f"What MLflow does not take cannot be kept in {self.folder} either: "
                f"{error.strerror}."
            ) from error

    def waiting(self) -> Iterator[Entry]:
        """The entries, oldest first; each is removed once the next is asked for."""
        for place in self._places():
            content = json.loads((place / ENTRY).read_text("utf-8"))
            name = content["attachment"]
            yield Entry(content["kind"], content["values"], place / name if name else None)
            gone = place.with_name(f".sent{place.name}")
            place.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)

    def _places(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9]*"))


MODEL_TYPE = "classifier"
REASON = "torchyard.reason"
FOLDER = "torchyard.folder"  # tag of a run: where its own folder is


def deliver(client: MlflowClient, run_id: str, entry: Entry) -> None:
    """Tell MLflow one thing about a run; raises what MLflow raises."""
    _DELIVERIES[entry.kind](client, run_id, entry)


def outbox_of(run: Run) -> Outbox:
    """Where the entries of a run wait: who asks may have another working folder than it had."""
    folder = Path(run.data.tags.get(FOLDER) or runs_folder())
    return Outbox(folder / run.info.run_id / "outbox")


def send_kept(client: MlflowClient, run_id: str, outbox: Outbox) -> int:
    """Tell MLflow what was kept of a run whose process is gone; gives the number of entries."""
    kept = len(outbox)
    for entry in outbox.waiting():
        deliver(client, run_id, entry)
    return kept


def _metrics(client: MlflowClient, run_id: str, entry: Entry) -> None:
    from mlflow.entities import Metric

    metrics = [Metric(**point) for point in entry.values["metrics"]]
    for batch in batches(metrics, MAX_METRICS):
        client.log_batch(run_id, metrics=batch, synchronous=True)


def _parameters(client: MlflowClient, run_id: str, entry: Entry) -> None:
    from mlflow.entities import Param

    for batch in batches([Param(*item) for item in entry.values.items()], MAX_ENTRIES):
        client.log_batch(run_id, params=batch, synchronous=True)


def _tags(client: MlflowClient, run_id: str, entry: Entry) -> None:
    from mlflow.entities import RunTag

    for batch in batches([RunTag(*item) for item in entry.values.items()], MAX_ENTRIES):
        client.log_batch(run_id, tags=batch, synchronous=True)


def _untag(client: MlflowClient, run_id: str, entry: Entry) -> None:
    if entry.values["tag"] in client.get_run(run_id).data.tags:
        client.delete_tag(run_id, entry.values["tag"])


def _artifact(client: MlflowClient, run_id: str, entry: Entry) -> None:
    client.log_artifact(run_id, str(entry.attachment), entry.values["folder"])


def _dataset(client: MlflowClient, run_id: str, entry: Entry) -> None:
    prepared = PreparedDataset.open(Path(entry.values["folder"]))
    client.log_inputs(run_id, datasets=dataset_inputs(prepared))


def _model(client: MlflowClient, run_id: str, entry: Entry) -> None:
    """Log the exported network as a model, tied to run, data set and metrics."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    run = client.get_run(run_id)
    prepared = PreparedDataset.open(Path(entry.values["data"]))
    linked = [output.model_id for output in run.outputs.model_outputs] if run.outputs else []
    ready = None
    for found in client.search_logged_models(
        [run.info.experiment_id], f"source_run_id = '{run_id}'"
    ):
        if found.status == LoggedModelStatus.READY:
            ready = found.model_id
        else:  # its upload was cut short
            client.delete_logged_model(found.model_id)
    model_id = ready or _upload(client, run, entry, prepared)
    if model_id not in linked:
        client.log_outputs(run_id, [LoggedModelOutput(model_id, entry.values["step"])])
    links = dataset_links(prepared, "test") | {"model_id": model_id, "run_id": run_id}
    points = [point | links for point in entry.values["metrics"]]
    _metrics(client, run_id, Entry("metrics", {"metrics": points}))


def _upload(client: MlflowClient, run: Any, entry: Entry, prepared: PreparedDataset) -> str:
    assert entry.attachment is not None
    model = client.create_logged_model(
        run.info.experiment_id,
        name="model",
        source_run_id=run.info.run_id,
        params=run.data.params,
        model_type=MODEL_TYPE,
    )
    try:
        with tempfile.TemporaryDirectory() as folder:
            write_model(
                Path(folder),
                entry.attachment,
                prepared,
                torch_version=entry.values["torch_version"],
                run_id=run.info.run_id,
                model_id=model.model_id,
                location=model.artifact_location,
            )
            client.log_model_artifacts(model.model_id, folder)
        client.finalize_logged_model(model.model_id, "READY")
    except BaseException:
        with suppress(Exception):
            client.finalize_logged_model(model.model_id, "FAILED")
        raise
    return str(model.model_id)


def _end(client: MlflowClient, run_id: str, entry: Entry) -> None:
    client.set_terminated(run_id, entry.values["status"], entry.values["end_time"])
    if reason := entry.values["reason"]:
        client.set_tag(run_id, REASON, reason)


_DELIVERIES: dict[str, Callable[[MlflowClient, str, Entry], None]] = {
    "metrics": _metrics,
    "parameters": _parameters,
    "tags": _tags,
    "untag": _untag,
    "artifact": _artifact,
    "dataset": _dataset,
    "model": _model,
    "end": _end,
}
