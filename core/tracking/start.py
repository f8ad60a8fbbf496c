"""How a run comes to be in the store: made anew, or found and fit to go on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torchyard.core.errors import UserError
from torchyard.core.formatting import natural
from torchyard.core.redaction import without_passwords
from torchyard.core.tracking import provenance, store
from torchyard.core.tracking.checkpoints import check_checkpoint, fetch_checkpoint
from torchyard.core.tracking.delivery import LogDelivery
from torchyard.core.tracking.location.errors import check_answer
from torchyard.core.tracking.location.relocation import FOLDER
from torchyard.core.tracking.mlflow_format import mlflow_tags
from torchyard.core.tracking.ownership.lease import LEASE, check_resumable, lease_text
from torchyard.core.tracking.ownership.orphans import end_orphans
from torchyard.core.tracking.ownership.process import PROCESS, owner_lives
from torchyard.core.tracking.queries import view
from torchyard.core.tracking.queries.runs import CONFIG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

RUN_COUNTER = "torchyard.runs"  # tag of the experiment: the number its last run was given


def create_run(
    client: MlflowClient, name_stem: str, parameters: Mapping[str, Any], tags: Mapping[str, str]
) -> Run:
    """Make a run of the next number, once those of dead processes are ended.

    Args:
        name_stem: the run's name without its number.
        parameters: the whole configuration, nested; a tag until the file is there.
        tags: whose run it is, among them; source, user and commit are added here.

    Raises:
        UserError: the folder of the runs or the experiment cannot be used.
    """
    folder = store.runs_folder(client.tracking_uri)
    own = provenance.source_tags() | provenance.git_tags()
    own |= {CONFIG: without_passwords(json.dumps(parameters)), LEASE: lease_text(0)}
    own |= {FOLDER: str(folder)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made: {error.strerror}") from error
    experiment = store.chosen_experiment(client, client.tracking_uri)
    end_orphans(client, experiment.experiment_id)
    number = (natural(experiment.tags.get(RUN_COUNTER, "")) or 0) + 1
    client.set_experiment_tag(experiment.experiment_id, RUN_COUNTER, str(number))
    if experiment.tags.get(view.TAG) != (shown := view.results_view()):
        client.set_experiment_tag(experiment.experiment_id, view.TAG, shown)
    run = client.create_run(
        experiment.experiment_id,
        # With the run itself: whenever it dies, it can be resumed.
        tags=mlflow_tags({**tags, **own}),
        run_name=f"{name_stem} #{number}",
    )
    check_answer(bool(run.info.run_id), True)
    return run


def resumable_run(client: MlflowClient, run_id: str, process: str) -> Run:
    """A run that ended early, with all that its log had, and its checkpoint here.

    Args:
        process: that is to resume it.

    Raises:
        UserError: it is finished; its process lives, or may live; its checkpoint is elsewhere.
    """
    run = store.get_run(client, run_id)
    named = f"run {run_id} ({run.info.run_name})"
    folder = store.run_folder(client.tracking_uri, run)
    if run.data.tags.get(PROCESS) != process:
        check_resumable(run, owner_lives(run.data.tags, folder))
    if (folder / "journal.jsonl").exists():
        raise UserError(f"{named} was begun by torchyard 0.1: resume it with that version.")
    fetch_checkpoint(run_id, folder)
    LogDelivery(client, run).deliver("skip")
    run = store.get_run(client, run_id)
    if run.info.status == "FINISHED":
        raise UserError(f"{named} is finished: there is nothing left to do.")
    check_checkpoint(run, folder)
    return run
