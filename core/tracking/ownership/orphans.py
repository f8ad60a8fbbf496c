"""Runs that are RUNNING by what the store says, and whose process is dead, or may be."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torchyard.core.tracking.delivery import SET_ASIDE, LogDelivery, end_run
from torchyard.core.tracking.ownership import lease
from torchyard.core.tracking.ownership.process import described_owner, owner_lives
from torchyard.core.tracking.store import run_folder, store_lock

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


SILENT_SECONDS = 600.0  # without a renewed lease: its machine is cut off, suspended or gone


def end_orphans(client: MlflowClient, *experiment_ids: str) -> None:
    """Set to KILLED every run that a dead process of this machine left RUNNING.

    What is pending in its log is delivered first; its true end may be in there.
    """
    for run in client.search_runs(list(experiment_ids), "attributes.status = 'RUNNING'"):
        folder = run_folder(client.tracking_uri, run)
        if owner_lives(run.data.tags, folder) is not False:
            continue
        reason, pending = "its process ended without reporting why", "what its log has"
        try:
            delivery = LogDelivery(client, run)
            if count := len(delivery):
                pending = f"{count} lines in {delivery.log.path}"
                delivery.deliver("skip")
                if client.get_run(run.info.run_id).info.status != "RUNNING":
                    continue
                if delivery.set_aside:
                    reason += f"; {delivery.set_aside} entries are in {delivery.folder / SET_ASIDE}"
        except Exception as error:  # of one run: the others go on
            reason += f"; {pending} cannot be delivered: {error}"
        end_run(client, run.info.run_id, "KILLED", reason)


def silent_runs(client: MlflowClient, *experiment_ids: str) -> list[Run]:
    """The runs that are RUNNING by what a store says, of whose machine nothing is heard."""
    return [
        run
        for run in client.search_runs(list(experiment_ids), "attributes.status = 'RUNNING'")
        if lease.silent_seconds(run) > SILENT_SECONDS
        and owner_lives(run.data.tags, run_folder(client.tracking_uri, run)) is None
    ]


def sync_run(client: MlflowClient, run: Run) -> Run:
    """Deliver what is pending of a run whose process is dead; returns the updated run."""
    with store_lock(client.tracking_uri):
        run = client.get_run(run.info.run_id)
        alive = owner_lives(run.data.tags, run_folder(client.tracking_uri, run))
        if run.info.status == "RUNNING" and alive is not False:
            return run
        LogDelivery(client, run).deliver("skip")
        return client.get_run(run.info.run_id)


def settle_owner(
    client: MlflowClient, run: Run, *, force: bool, say: Callable[[str], None]
) -> None:
    """Make sure that no process trains a run that is to be resumed.

    Args:
        client: of the store.
        run: to be resumed.
        force: whether one of which that cannot be known is taken over.
        say: is told why this takes a while.

    Raises:
        UserError: its process lives; or that cannot be known, and it is not forced.
    """
    if run.info.status != "RUNNING":
        return
    folder = run_folder(client.tracking_uri, run)
    alive = owner_lives(run.data.tags, folder)
    if alive is None:
        begun = f"{run.info.run_name} was begun by {described_owner(run.data.tags)}"
        say(f"{begun}: looking for {lease.WATCH_SECONDS:g} s whether that still runs.")
        alive = lease.is_renewed(client, run)
    lease.check_resumable(run, alive, force=force)
    if alive is None:
        reason = f"taken over: {described_owner(run.data.tags)} was said to run no more"
        end_run(client, run.info.run_id, "KILLED", reason)
