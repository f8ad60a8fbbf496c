"""Where torchyard keeps things: a cache that may be deleted, and the runs' own files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from platformdirs import user_cache_path

from core.blank_database import database_of
from core.errors import UserError
from core.store import tracking_uri

CACHE = "TORCHYARD_CACHE"


def cache_folder() -> Path:
    """Downloads and prepared data sets: TORCHYARD_CACHE, or the user's cache folder."""
    named = os.environ.get(CACHE)
    return Path(named).expanduser() if named else user_cache_path("torchyard")


def sweep(folder: Path) -> None:
    """Remove what processes that died left half-written below a folder that is theirs alone."""
    for partial in folder.rglob(".*"):
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def runs_folder() -> Path:
    """Where the folders of the runs are."""
    database = database_of(tracking_uri())
    return (database.parent if database else Path("mlruns").absolute()) / "runs"


def run_folder(run_id: str) -> Path:
    """Checkpoints and predictions of a run: beside a local tracking store, else in ./mlruns.

    Raises:
        UserError: the folder cannot be made.
    """
    folder = runs_folder() / run_id
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made: {error.strerror}") from error
    return folder
