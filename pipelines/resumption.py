"""How training goes on: of a run that did not finish, of several seeds, or of a finished run."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchyard.core.config.resolve import ResolvedConfig, read_config, resolve
from torchyard.core.data.checkpoint_file import LAST, PREVIOUS
from torchyard.core.errors import UserError
from torchyard.core.formatting import natural
from torchyard.core.hosting.host import host
from torchyard.core.tracking import store
from torchyard.core.tracking.checkpoints import check_checkpoint, fetch_checkpoint
from torchyard.core.tracking.location.address import database_of
from torchyard.core.tracking.location.errors import store_errors
from torchyard.core.tracking.ownership.orphans import settle_owner, sync_run
from torchyard.core.tracking.queries.lookup import LATEST, find_run
from torchyard.core.tracking.queries.recorded import recorded_config
from torchyard.core.tracking.queries.runs import (
    PARENT,
    SEEDS,
    STUDY,
    study_under_way,
    unfinished_whole,
)
from torchyard.pipelines.commands.arguments import PRESETS

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

NEWEST = """
select run_uuid, name, status from runs
where lifecycle_stage = 'active' and (:wanted is null or :wanted in (run_uuid, name))
order by start_time desc limit 1
"""
# Of a run that belongs to a study, or to several seeds.
TOGETHER = f"""
select key from tags where run_uuid = ? and key in ('{PARENT}', '{SEEDS}', '{STUDY}')
"""


@dataclass(frozen=True)
class Resumption:
    """How training goes on.

    Attributes:
        resolved: the configuration.
        run_id: of the run that goes on; None where a new one begins, as the child of `parent`.
        parent: of the run that it is a child of, if any.
        seeds: how many, where the run is several seeds.
    """

    resolved: ResolvedConfig
    run_id: str | None
    parent: str | None
    seeds: int | None

    @classmethod
    def find(
        cls,
        wanted: str,
        overrides: Sequence[str | Mapping[str, Any]] = (),
        *,
        force: bool = False,
        say: Callable[[str], None],
        check: Callable[[Run, Path], None] = check_checkpoint,
    ) -> Resumption | str:
        """Find the run, and make sure that no process trains it; a text if it had finished.

        Args:
            wanted: as `lookup.find_run` takes it. Of one of several seeds all are resumed.
            overrides: of a finished run, which is trained on.
            force: whether one is taken over that may still run on another machine.
            say: is told what takes a while, or is not as asked.
            check: whether the run's checkpoint is in its folder.

        Raises:
            UserError: there is no such run, it still trains, or nothing is left to do.
            RunError: the store is out of reach.
        """
        uri = store.tracking_uri()
        client = store.open_existing(uri)
        with store_errors(uri):
            found = find_run(client, wanted)
            if not overrides and (whole := unfinished_whole(client, found)):
                say(
                    f"{found.info.run_name} is one of the seeds of {whole.info.run_name}, "
                    "which is resumed."
                )
                found = whole
            before = found.info.status
            settle_owner(client, found, force=force, say=say)
            found = sync_run(client, found)
            run_id, name, tags = found.info.run_id, found.info.run_name, found.data.tags
            seeds = natural(tags.get(SEEDS, ""))
            if overrides and seeds:
                raise UserError(f"run {run_id} ({name}) is {seeds} seeds: train one of them on.")
            if overrides:
                return cls(_extended(client, found, overrides), None, run_id, None)
            if found.info.status == "FINISHED" == before:  # before Prefect has a flow run of it
                raise UserError(_finished(run_id, name))
            if found.info.status == "FINISHED":
                return f"{name}: it had finished, and MLflow now has all of it."
            check(found, store.run_folder(uri, found))
            resolved = resolve(recorded_config(client, found), host())
            return cls(resolved, run_id, tags.get(PARENT), seeds)


def check_unfinished(wanted: str) -> None:
    """Refuse a run that has finished before the seconds of importing MLflow and torch.

    MLflow's own database is asked, where it is a file. Where it does not answer as expected, or
    the run is one of several, nothing is known yet.

    Raises:
        UserError: it has finished.
    """
    database = database_of(store.tracking_uri())
    if database is None or not database.is_file():
        return
    address = f"{database.absolute().as_uri()}?mode=ro"
    try:
        with contextlib.closing(sqlite3.connect(address, uri=True)) as opened:
            latest = wanted == LATEST
            found = opened.execute(NEWEST, {"wanted": None if latest else wanted}).fetchone()
            alone = found and not opened.execute(TOGETHER, [found[0]]).fetchone()
    except sqlite3.Error:
        return
    if alone and found[2] == "FINISHED":
        raise UserError(_finished(*found[:2]))


def _finished(run_id: str, name: str) -> str:
    return (
        f"run {run_id} ({name}) is finished: there is nothing left to do. "
        "To train it on, set train.epochs."
    )


def study_to_resume(wanted: str) -> Run | None:
    """The own run of the study that is named, or of the unfinished one that a named run is in.

    Raises:
        UserError: there is no such run.
        RunError: the store is out of reach.
    """
    uri = store.tracking_uri()
    client = store.open_existing(uri)
    with store_errors(uri):
        found = find_run(client, wanted)
        study = study_under_way(client, found, latest=wanted == LATEST) or found
    return study if STUDY in study.data.tags else None


def _extended(
    client: MlflowClient, found: Run, overrides: Sequence[str | Mapping[str, Any]]
) -> ResolvedConfig:
    """The configuration of a run that trains a finished one on.

    Raises:
        UserError: it is not finished, its checkpoint is not here, or nothing would be trained.
    """
    run_id, name = found.info.run_id, found.info.run_name
    if found.info.status != "FINISHED":
        raise UserError(
            f"run {run_id} ({name}) is {found.info.status}: only a finished run is trained on "
            "with other settings. Resume it without settings first."
        )
    resolved = read_config(recorded_config(client, found), overrides, PRESETS, host())
    trained, wanted = int(found.data.metrics.get("train/epochs", 0)), resolved.config.train.epochs
    problems = []
    if wanted <= trained:
        problems.append(
            f"train.epochs: {trained} epochs are trained already, so it must be greater than "
            f"{trained}, not {wanted}"
        )
    folder = store.run_folder(client.tracking_uri, found)
    fetch_checkpoint(run_id, folder)
    if not any((folder / each).exists() for each in (LAST, PREVIOUS)):
        problems.append(f"run {run_id} ({name}): there is no checkpoint of it in {folder}")
    if problems:
        raise UserError(problems)
    return resolved
