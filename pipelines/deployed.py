"""What a run that a Prefect worker began must find where that worker is."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from prefect.runtime import deployment

from core.config import RunConfig
from core.errors import UserError
from core.host import host
from core.plugin_sources import PLUGIN_FOLDERS
from core.recipe import Recipe, resolve
from pipelines.deployments import NEEDS


def resolve_here(config: RunConfig) -> Recipe:
    """Find the plugins, by the folders and distributions that this process has.

    Raises:
        UserError: with all that is wrong; for a plugin that is not here, where it was from when
            the run was deployed. Or the record would go into a folder that Prefect deletes.
    """
    temporary = Path.cwd().is_relative_to(Path(tempfile.gettempdir()).resolve())
    if deployment.id and temporary and not os.environ.get("MLFLOW_TRACKING_URI"):
        raise UserError(
            "this worker's folder is a temporary one, and the record would be lost with it: set "
            "MLFLOW_TRACKING_URI, for the worker or as the job variable env.MLFLOW_TRACKING_URI, "
            "or the job variable working_dir."
        )
    try:
        return resolve(config.model_dump(), host())
    except UserError as error:
        needs = json.loads(os.environ.get(NEEDS, "{}"))
        missing = [
            f"{place}: it was from {origin} when this was deployed. Install that where the worker "
            f"runs, or name its folder there in {PLUGIN_FOLDERS}."
            for place, origin in needs.items()
            if any(problem.startswith(f"{place}: no ") for problem in error.problems)
        ]
        raise UserError([*error.problems, *missing]) from error
