"""The weights of a run or a registered model, as a file on this machine."""

from __future__ import annotations

import json
from pathlib import Path

from torchyard.core.config.resolve import ResolvedConfig
from torchyard.core.config.weights import WeightsSource, about_file
from torchyard.core.data.files import atomic_write, cache_folder
from torchyard.core.errors import UserError
from torchyard.core.tracking.location.errors import store_errors
from torchyard.core.tracking.mlflow_format import DATA, WEIGHTS
from torchyard.core.tracking.registry.classifier import found_model
from torchyard.core.tracking.store import current_store, open_existing, tracking_uri


def recorded_weights(resolved: ResolvedConfig) -> str | None:
    """The file with the weights of the run or registered model that `model.weights` names.

    Returns:
        None where it names something else, or nothing.

    Raises:
        UserError: there is no such run or model, or it has logged no network of torchyard's.
        RunError: the store is out of reach.
    """
    named = resolved.weights
    if named is None or WeightsSource.of(named) is not WeightsSource.RECORDED:
        return None
    try:
        return str(_exported(named, tracking_uri()))
    except UserError as error:
        raise UserError([f"model.weights: {problem}" for problem in error.problems]) from error


def _exported(named: str, uri: str) -> Path:
    client = open_existing(uri)
    import mlflow

    with store_errors(uri), current_store(uri):
        address, name, _ = found_model(client, named.removeprefix("models:/"))
        info = mlflow.models.get_model_info(address)
        if info.flavors.get("pytorch", {}).get("model_data") != DATA:
            raise UserError(f"{named}: its model is not one that torchyard logged.")
        folder = cache_folder() / "weights" / info.model_id
        file = folder / DATA / WEIGHTS
        if not file.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            where = client.get_logged_model(info.model_id).artifact_location
            mlflow.artifacts.download_artifacts(
                artifact_uri=f"{where}/{DATA}", dst_path=str(folder)
            )
    if not file.is_file():
        raise UserError(f"{named}: its model has no file {DATA}/{WEIGHTS}.")
    about = {"name": name, "classes": (info.metadata or {}).get("classes", [])}
    with atomic_write(about_file(file)) as written:
        written.write(json.dumps(about, ensure_ascii=False).encode())
    return file
