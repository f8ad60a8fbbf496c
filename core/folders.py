"""Where torchyard keeps things: a cache that may be deleted, and the runs' own files."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_path

from core.errors import UserError

CACHE = "TORCHYARD_CACHE"


def cache_folder() -> Path:
    """Downloads and prepared data sets: TORCHYARD_CACHE, or the user's cache folder."""
    named = os.environ.get(CACHE)
    return Path(named).expanduser() if named else user_cache_path("torchyard")


def run_folder(run_id: str) -> Path:
    """Checkpoints and predictions of a run, in `mlruns/runs` beside the tracking store.

    Raises:
        UserError: the folder cannot be made.
    """
    folder = Path("mlruns", "runs", run_id).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made: {error.strerror}") from error
    return folder
