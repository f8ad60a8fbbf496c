"""The runs there are: whose process lives, which one a person means."""

from __future__ import annotations

import difflib
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import yaml

from core.delivery import REASON, send_kept
from core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlflow import MlflowClient
    from mlflow.entities import Run

HOST, PROCESS = "torchyard.host", "torchyard.process"
RECENT = 200  # runs among which a name is looked for
LATEST = "latest"


def owner_tags() -> dict[str, str]:
    """What tells this process from any other: the machine, its number, when it began."""
    own = psutil.Process()
    return {HOST: platform.node(), PROCESS: f"{own.pid} {own.create_time():.2f}"}


def owner_lives(tags: Mapping[str, str]) -> bool | None:
    """Whether the process that a run's tags name is there; None if this machine cannot tell."""
    if tags.get(HOST) != platform.node() or PROCESS not in tags:
        return None
    number, began = tags[PROCESS].split()
    try:
        return f"{psutil.Process(int(number)).create_time():.2f}" == began
    except psutil.NoSuchProcess:
        return False


def end_orphans(client: MlflowClient, experiment_id: str) -> None:
    """Set to KILLED every run that a dead process of this machine left RUNNING.

    What was kept of it while the store was away is sent first; its true end may be in that.
    """
    for run in client.search_runs([experiment_id], "attributes.status = 'RUNNING'"):
        if owner_lives(run.data.tags) is False:
            run_id = run.info.run_id
            if send_kept(client, run_id) and client.get_run(run_id).info.status != "RUNNING":
                continue
            client.set_terminated(run_id, "KILLED")
            client.set_tag(run_id, REASON, "its process ended without a word")


def find_run(client: MlflowClient, wanted: str) -> Run:
    """The run a person means: by its id, by its name, or the `latest`.

    Raises:
        UserError: there is none; the message names the nearest.
    """
    experiments = [found.experiment_id for found in client.search_experiments()]
    runs = client.search_runs(
        experiments, max_results=RECENT, order_by=["attributes.start_time DESC"]
    )
    if not runs:
        raise UserError(f"no run '{wanted}': there is no run yet.")
    if wanted == LATEST:
        return runs[0]
    known = {run.info.run_name: run for run in reversed(runs)}
    known |= {run.info.run_id: run for run in runs}
    if wanted in known:
        return known[wanted]
    if older := _by_id(client, wanted):
        return older
    begun = [name for name in known if wanted and name.startswith(wanted)]
    near = begun or difflib.get_close_matches(wanted, known, n=1)
    run = known[near[0]] if near else runs[0]
    found = f"{run.info.run_id} ({run.info.run_name})"
    hint = f"Did you mean {found}?" if near else f"The last one is {found}."
    raise UserError(f"no run with the id or name '{wanted}'. {hint}")


def recorded_config(client: MlflowClient, run: Run) -> dict[str, Any]:
    """The whole configuration that a run began with.

    Raises:
        UserError: the run ended before it was recorded.
    """
    from mlflow.exceptions import MlflowException

    try:
        text = Path(client.download_artifacts(run.info.run_id, "config.yaml")).read_text("utf-8")
    except (MlflowException, OSError) as error:
        raise UserError(
            f"run {run.info.run_id} ({run.info.run_name}) ended before its configuration was "
            "recorded: start it anew with `torchyard run`."
        ) from error
    config: dict[str, Any] = yaml.safe_load(text)
    return config


def _by_id(client: MlflowClient, run_id: str) -> Run | None:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return None
