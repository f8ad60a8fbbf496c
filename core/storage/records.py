"""What runs take: their checkpoints on this machine, and their records and models in MLflow.

A run that can be resumed, the parent of another, what has an alias such as `champion`, and the
trials and seeds of a study or run that has not finished stay as they are. So does whatever has a
version of a registered model: its checkpoints may go, its record may not.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from torchyard.core.data.checkpoint_file import LAST
from torchyard.core.errors import RunError
from torchyard.core.storage.deletion import delete
from torchyard.core.storage.holding import Holding, Kind, room
from torchyard.core.tracking.delivery import SENT
from torchyard.core.tracking.location.address import database_of
from torchyard.core.tracking.location.relocation import FOLDER
from torchyard.core.tracking.ownership.process import hold_folder, leave_folder, owner_lives
from torchyard.core.tracking.queries.runs import NEWEST, PARENT, search
from torchyard.core.tracking.store import get_run, run_folder
from torchyard.core.training.run_log import Offset, RunLog

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

PRUNED = "torchyard.pruned"  # tag of a run in MLflow's trash that `torchyard prune` put there
FINISHED = "FINISHED"


@dataclass(frozen=True)
class Records:
    """The runs of a store, and what they take.

    Args:
        client: of the store.
    """

    client: MlflowClient
    _experiments: list[str] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        from mlflow.entities import ViewType

        found = self.client.search_experiments(view_type=ViewType.ACTIVE_ONLY)
        self._experiments.extend(each.experiment_id for each in found)

    @cached_property
    def _runs(self) -> list[Run]:
        """Those that torchyard began, the newest first."""
        found = search(self.client, self._experiments, "", (NEWEST,))
        return [run for run in found if FOLDER in run.data.tags]

    @cached_property
    def _discarded(self) -> list[Run]:
        """Those in MLflow's trash."""
        found = search(self.client, self._experiments, "", (NEWEST,), deleted=True)
        return [run for run in found if FOLDER in run.data.tags]

    @cached_property
    def _with_version(self) -> dict[str, list[str]]:
        """The aliases that versions of registered models have, by the runs they are from."""
        aliases: dict[str, list[str]] = {}
        named: dict[tuple[str, str], list[str]] = {}
        for model in self.client.search_registered_models():
            for alias, version in model.aliases.items():
                named.setdefault((model.name, str(version)), []).append(f"{model.name}@{alias}")
        token = None
        while token != "":
            page = self.client.search_model_versions(page_token=token)
            for version in page:
                key = (version.name, str(version.version))
                aliases.setdefault(str(version.run_id), []).extend(named.get(key, []))
            token = page.token or ""
        return aliases

    @cached_property
    def _children(self) -> dict[str, list[Run]]:
        children: dict[str, list[Run]] = {}
        for run in self._runs:
            if parent := run.data.tags.get(PARENT):
                children.setdefault(parent, []).append(run)
        return children

    @cached_property
    def _unfinished(self) -> set[str]:
        return {run.info.run_id for run in self._runs if run.info.status != FINISHED}

    def checkpoints(self) -> Iterator[Holding]:
        """The checkpoints on this machine, and the whole folder of what is in MLflow's trash."""
        for run in self._runs:
            folder = run_folder(self.client.tracking_uri, run)
            # The last one goes last: with it alone a run can be trained on.
            if paths := sorted(folder.glob("*.pt"), key=lambda path: path.name == LAST):
                yield _holding("checkpoints", run, paths, self._kept(run, folder))
        for run in self._discarded:
            folder = run_folder(self.client.tracking_uri, run)
            if folder.is_dir():
                running = run.info.status == "RUNNING"
                lives = running and owner_lives(run.data.tags, folder) is not False
                yield _holding("checkpoints", run, [folder], "it runs" if lives else "")

    def runs(self) -> Iterator[Holding]:
        """The runs in MLflow, with their artifacts and models where these are on this machine."""
        for run in self._runs:
            kept = self._kept(run, run_folder(self.client.tracking_uri, run))
            if not kept and run.info.run_id in self._with_version:
                kept = "it has a version of a registered model"
            yield _holding("runs", run, self._places(run), kept)

    def _kept(self, run: Run, folder: Path) -> str:
        """Why a run's checkpoints stay."""
        if run.info.status == "RUNNING":
            return "it runs"
        if run.info.status != FINISHED:
            return "it can be resumed"
        if aliases := self._with_version.get(run.info.run_id):
            return f"it is {aliases[0]}"
        if run.info.run_id in self._children:
            return "it is the parent of another run"
        if run.data.tags.get(PARENT) in self._unfinished:
            return "its study or its seeds have not finished"
        log = RunLog(folder).path
        if log.exists() and Offset(folder / SENT).get() < log.stat().st_size:
            return "MLflow does not have all of its record yet"
        return ""

    def _places(self, run: Run) -> list[Path]:
        addresses = [run.info.artifact_uri or ""]
        if database_of(self.client.tracking_uri) is not None:
            for model in _model_ids(run):
                with suppress(Exception):  # its record is gone
                    addresses.append(self.client.get_logged_model(model).artifact_location)
        parts = map(urlsplit, addresses)
        return [Path(unquote(each.path)) for each in parts if each.scheme in ("", "file")]

    def delete_checkpoints(self, holding: Holding) -> bool:
        """Delete a run's checkpoints; False if they are needed by now."""
        run = get_run(self.client, holding.key)
        with self._idle_folder(run) as free:
            if free:
                for path in holding.paths:
                    delete(path)
            return free

    def discard(self, holding: Holding) -> bool:
        """Put a run and its models into MLflow's trash, delete its folder; False if it is needed.

        Killed at any moment, it leaves a run that is whole, or one in the trash with the tag
        PRUNED, which `empty_trash` finishes.
        """
        run = get_run(self.client, holding.key)
        with self._idle_folder(run) as free:
            if free:
                self.client.set_tag(holding.key, PRUNED, "true")
                self.client.delete_run(holding.key)
                self._finish(run)
            return free

    @contextmanager
    def _idle_folder(self, run: Run) -> Iterator[bool]:
        """Hold a run's folder; False if another process does, or the run is needed by now."""
        folder, there = run_folder(self.client.tracking_uri, run), False
        try:
            there = folder.is_dir() and hold_folder(folder)
            child = f"tags.`{PARENT}` = '{run.info.run_id}'"
            yield (there or not folder.is_dir()) and (
                run.info.lifecycle_stage == "deleted"
                or (
                    run.info.status == FINISHED
                    and not next(search(self.client, self._experiments, child, (NEWEST,), 1), None)
                )
            )
        finally:
            if there:
                leave_folder(folder)

    def _finish(self, run: Run) -> None:
        """Delete what belongs to a run in MLflow's trash."""
        from mlflow.exceptions import MlflowException

        for model in _model_ids(run):
            try:
                self.client.delete_logged_model(model)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        delete(run_folder(self.client.tracking_uri, run))

    def empty_trash(self) -> str:
        """Free what `discard` put into MLflow's trash, where that is possible from here.

        Returns:
            what is left to do, as a command; empty if nothing is.
        """
        from mlflow.entities import ViewType

        self.__dict__.pop("_discarded", None)
        ours = [run for run in self._discarded if PRUNED in run.data.tags]
        if not ours:
            return ""
        for run in ours:  # of a deletion that was killed
            self._finish(run)
        models = [model for run in ours for model in _model_ids(run)]
        uri = self.client.tracking_uri
        # Without a list of models, and of experiments in any case, it empties the whole trash.
        others = self.client.search_experiments(view_type=ViewType.DELETED_ONLY)
        if database_of(uri) is None or others or not models:
            where = uri if database_of(uri) else "THE_SERVER'S_DATABASE"
            return f"mlflow gc --backend-store-uri {where}"
        command = [sys.executable, "-m", "mlflow", "gc", "--backend-store-uri", uri]
        command += ["--tracking-uri", uri, "--run-ids", ",".join(run.info.run_id for run in ours)]
        command += ["--logged-model-ids", ",".join(models)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RunError("`mlflow gc` failed: what it deletes is in MLflow's trash.", done.stderr)
        return ""


def _holding(kind: Kind, run: Run, paths: Iterable[Path], kept: str) -> Holding:
    places = tuple(paths)
    size, _ = room(places)
    used = (run.info.end_time or run.info.start_time) / 1000
    name = run.info.run_name or run.info.run_id
    return Holding(kind, name, run.info.run_id, places, size, used, kept)


def _model_ids(run: Run) -> list[str]:
    outputs = run.outputs.model_outputs if run.outputs else []
    return [output.model_id for output in outputs]
