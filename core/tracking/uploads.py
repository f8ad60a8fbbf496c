"""Uploads to MLflow: files and models, and whether they have arrived."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchyard.core.tracking import mlflow_format
from torchyard.core.tracking.location.address import database_of, is_server
from torchyard.core.tracking.location.relocation import relocate

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


MODEL_TYPE = "classifier"


def upload_artifact(client: MlflowClient, run_id: str, file: Path, folder: str | None) -> None:
    """Store a file as an artifact of a run; one that is gone was sent before.

    Raises:
        OSError: something else than MLflow answered, and has swallowed it.
    """
    if not file.exists():
        return  # it is removed once it was sent
    size = file.stat().st_size
    with _patience(size):
        client.log_artifact(run_id, str(file), folder)
    if is_server(client.tracking_uri):
        path = f"{folder}/{file.name}" if folder else file.name
        _check_arrived(client.list_artifacts(run_id, folder), path, size)


def logged_model(client: MlflowClient, run: Run, exported: Path, about: Mapping[str, Any]) -> str:
    """The id of the run's model, which is uploaded unless a whole one is there.

    Args:
        exported: the exported network.
        about: what `mlflow_format.write_model` is to know of it.

    Raises:
        OSError: something else than MLflow answered, and has swallowed it.
    """
    from mlflow.entities import LoggedModelStatus

    ready = None
    for found in client.search_logged_models(
        [run.info.experiment_id], f"source_run_id = '{run.info.run_id}'"
    ):
        if found.status == LoggedModelStatus.READY:
            ready = found.model_id
        else:  # its upload was cut short
            client.delete_logged_model(found.model_id)
    return ready or _upload(client, run, exported, about)


def _check_arrived(found: Iterable[Any], path: str, size: int) -> None:
    """Raise OSError unless a file is listed, with its size where that is known."""
    if not any(each.path == path and each.file_size in (None, size) for each in found):
        raise OSError(f"status 200, but {path} is not there")


def _upload(client: MlflowClient, run: Run, exported: Path, about: Mapping[str, Any]) -> str:
    if database := database_of(client.tracking_uri):
        relocate(database)  # a program on another mount of the folder may have done so
    model = client.create_logged_model(
        run.info.experiment_id,
        name="model",
        source_run_id=run.info.run_id,
        params=run.data.params,
        model_type=MODEL_TYPE,
    )
    try:
        with tempfile.TemporaryDirectory() as folder:
            mlflow_format.write_model(
                Path(folder),
                exported,
                **about,
                run_id=run.info.run_id,
                model_id=model.model_id,
                location=model.artifact_location,
            )
            size = exported.stat().st_size
            with _patience(size):
                client.log_model_artifacts(model.model_id, folder)
            if is_server(client.tracking_uri):
                data = mlflow_format.DATA
                found = client.list_logged_model_artifacts(model.model_id, data)
                _check_arrived(found, f"{data}/{mlflow_format.WEIGHTS}", size)
        client.finalize_logged_model(model.model_id, "READY")
    except BaseException:
        with suppress(Exception):
            client.finalize_logged_model(model.model_id, "FAILED")
        raise
    return str(model.model_id)


_one_upload = threading.Lock()


@contextmanager
def _patience(size: int) -> Iterator[None]:
    """Let a server take a second for each MiB of an upload that it has to pass on.

    Large uploads of one process take turns: the limit is the process'.
    """
    name, seconds = "MLFLOW_HTTP_REQUEST_TIMEOUT", size >> 20
    if not seconds:
        yield
        return
    with _one_upload:
        before = os.environ.get(name, "")
        if not before.isdecimal() or seconds <= int(before):
            yield
            return
        os.environ[name] = str(seconds)
        try:
            yield
        finally:
            os.environ[name] = before
