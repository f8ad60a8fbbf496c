"""The checkpoints of a run at the address that machines share, in TORCHYARD_SHARED.

    checkpoints/<run>/<step>-<sha256>.pt   the last two
    checkpoints/<run>/log.jsonl            the metrics that MLflow did not have then
    checkpoints/<run>/batch_size.json      where `train.batch_size=auto` found one

A checkpoint is named by its digest and compared with it when it has come. What it rests on is put
there before it, and the run's tag CHECKPOINT names it only once it is there.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from torchyard.core.data.checkpoint_file import LAST, PREVIOUS, CheckpointFile
from torchyard.core.data.files import atomic_write, fsync, link_or_copy, make_folder
from torchyard.core.data.remote.connection import Remote
from torchyard.core.data.remote.shared import CHECKPOINTS, SHARED, SharedAddress
from torchyard.core.errors import RunError, UnreachableError, UserError
from torchyard.core.redaction import redacted
from torchyard.core.tracking.delivery import METRICS
from torchyard.core.tracking.mlflow_format import metric_points
from torchyard.core.tracking.ownership.process import described_owner
from torchyard.core.tracking.queries.runs import shown
from torchyard.core.tracking.store import RUNS
from torchyard.core.training.run_log import FILE, Line, RunLog

if TYPE_CHECKING:
    from mlflow.entities import Run

logger = logging.getLogger(__name__)

CHECKPOINT = "torchyard.checkpoint"  # tag of a run: where its last checkpoint is
BESIDE = ("batch_size.json",)  # files of a run's folder that its training rests on
KEPT = 2
LOOK_SECONDS = 0.5  # between two looks for a new checkpoint
RETRY_SECONDS = 15.0  # after one that could not be put there
END_SECONDS = 20.0  # for the last one, when the run ends
_NAME = re.compile(r"(\d{12})-([0-9a-f]{64})\.pt")


class SharedCheckpoints:
    """A run's checkpoints at an address, and those in its folder.

    Args:
        address: that machines share.
        run_id: of the run.
        folder: the run's, on this machine.
    """

    def __init__(self, address: SharedAddress, run_id: str, folder: Path) -> None:
        self._address, self._run_id, self._folder = address, run_id, folder
        self._uploaded = ""

    @cached_property
    def _remote(self) -> Remote:
        name = re.sub(r"[^A-Za-z0-9_-]", "_", self._run_id)  # one name, no path
        return self._address.folder(CHECKPOINTS, name)

    @property
    def place(self) -> str:
        """Where the last checkpoint is that was put there."""
        name = f"{CHECKPOINTS}/{self._run_id}/{self._uploaded}"
        return f"{redacted(self._address.source).rstrip('/')}/{name}"

    def _names(self) -> list[str]:
        """The names of the checkpoints there, the last one last."""
        return [name for name in self._remote.names("") if _NAME.fullmatch(name)]

    def upload(self, waiting: Iterable[Line]) -> bool:
        """Put the folder's last checkpoint there; False if it is there, or is not whole yet.

        Args:
            waiting: the lines with metrics that MLflow does not have.

        Raises:
            UserError, UnreachableError: it cannot be put there.
            OSError: this machine's disk does not answer.
        """
        with TemporaryDirectory(dir=self._folder, prefix=".shared-") as scratch:
            copy = Path(scratch) / LAST
            try:
                link_or_copy(self._folder / LAST, copy)  # which training goes on to replace
            except FileNotFoundError:
                return False
            found = CheckpointFile.read(copy)
            if found is None or found.step is None:
                return False
            name = f"{found.step:012d}-{found.digest}.pt"
            if name == self._uploaded:
                return False
            log = RunLog(Path(scratch))
            for line in waiting:
                log.append(line)
            self._remote.write(FILE, log.path.read_bytes() if log.path.exists() else b"")
            for beside in BESIDE:
                if (file := self._folder / beside).exists():
                    self._remote.write(beside, file.read_bytes())
            self._remote.upload(copy, name)
        self._uploaded = name
        for old in self._names()[:-KEPT]:
            if old != name:  # a run that began again before those there
                self._remote.remove(old)
        return True

    def fetch(self) -> bool:
        """Fetch the last checkpoint, with what it rests on, unless the folder has one as late.

        Raises:
            UserError, UnreachableError: the address cannot be used, and the folder has none.
        """
        files = (CheckpointFile.read(self._folder / name) for name in (LAST, PREVIOUS))
        here = max((-1 if file.step is None else file.step for file in files if file), default=-2)
        try:
            for name in reversed(self._names()):
                step, digest = int(name[:12]), name[13:-3]
                if step <= here:
                    return False
                if self._fetched(name, digest):
                    shown = redacted(self._address.source)
                    logger.info("Fetched the checkpoint of step %d from %s.", step, shown)
                    return True
        except UserError as error:
            if here == -2:
                raise
            logger.warning("%s The checkpoint that is here is used.", error)
        return False

    def _fetched(self, name: str, digest: str) -> bool:
        """Fetch a checkpoint; False, with a warning, where it is not what was put there."""
        new = not self._folder.exists()
        make_folder(self._folder)
        part = self._folder / f".{name}"
        self._remote.download(name, {"size": self._remote.size(name)}, part)
        found = CheckpointFile.read(part)
        if found != CheckpointFile(int(name[:12]), digest):
            part.unlink()
            if new:  # a run that has no folder was not trained here, and does not begin anew
                self._folder.rmdir()
            shown = redacted(self._address.source)
            logger.warning("The checkpoint %s at %s is damaged, and not used.", name, shown)
            return False
        fsync(part)
        self._take_beside()
        if (last := self._folder / LAST).exists():
            last.replace(self._folder / PREVIOUS)
        part.replace(last)
        fsync(self._folder)
        return True

    def _take_beside(self) -> None:
        """Add the metrics to the folder's log, from where they are sent; and the other files."""
        with TemporaryDirectory(dir=self._folder, prefix=".shared-") as scratch:
            (Path(scratch) / FILE).write_bytes(self._remote.read(FILE) or b"")
            log = RunLog(self._folder)
            for line in RunLog(Path(scratch)).read():
                # Who can write there is not to say how the run ended, or whose it is.
                with suppress(LookupError, TypeError, ValueError, AttributeError):
                    if line.kind in METRICS and metric_points(line):
                        log.append(line)
            log.fsync()
        for beside in BESIDE:
            target = self._folder / beside
            if not target.exists() and (content := self._remote.read(beside)):
                with atomic_write(target) as file:
                    file.write(content)


def fetch_checkpoint(run_id: str, folder: Path) -> None:
    """Fetch a run's last checkpoint into its folder, where machines share them.

    Raises:
        UserError, UnreachableError: the address cannot be used, and the folder has none.
    """
    if address := SharedAddress.chosen():
        SharedCheckpoints(address, run_id, folder).fetch()


def check_checkpoint(run: Run, folder: Path) -> None:
    """Refuse to begin a run again that was trained, where nothing of that is here.

    What is at an address that machines share is fetched.

    Raises:
        UserError: it was trained on another machine, or its folder was deleted.
        UnreachableError: the address does not answer.
    """
    trained = {key for key in run.data.metrics if key.startswith("train/")}
    if not trained - {"train/base_learning_rate"} or folder.exists():
        return
    fetch_checkpoint(run.info.run_id, folder)
    if not folder.exists():
        raise UserError(
            f"run {shown(run)} was trained by {described_owner(run.data.tags)}, and its "
            f"checkpoint is not here: there is no {folder}. Resume it on that machine; or let both "
            f"use one folder, named in {RUNS}, or one address, in {SHARED}; or begin again at "
            "epoch 1 with --from-start."
        )


class CheckpointUploads:
    """A thread that puts each new checkpoint of a run to where machines share them.

    The training, in another process, does not wait for it: what is replaced before it was put
    there is left out.

    Args:
        shared: the run's checkpoints.
        waiting: the lines with metrics that MLflow does not have.
        on_uploaded: called with where a checkpoint is, once it is there.
    """

    def __init__(
        self,
        shared: SharedCheckpoints,
        waiting: Callable[[], Iterable[Line]],
        on_uploaded: Callable[[str], None],
        last: Path,
    ) -> None:
        self._shared, self._waiting = shared, waiting
        self._on_uploaded, self._last = on_uploaded, last
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    @classmethod
    def start(
        cls,
        run_id: str,
        folder: Path,
        waiting: Callable[[], Iterable[Line]],
        on_uploaded: Callable[[str], None],
    ) -> CheckpointUploads | None:
        """Begin, where machines share checkpoints.

        Raises:
            UserError: the environment names no address.
        """
        address = SharedAddress.chosen()
        if address is None or not address.writable:
            return None
        uploads = cls(
            SharedCheckpoints(address, run_id, folder), waiting, on_uploaded, folder / LAST
        )
        uploads._thread.start()
        return uploads

    def stop(self) -> None:
        """End it, once the last checkpoint is there, or has had its time."""
        self._stopped.set()
        self._thread.join(END_SECONDS)
        if self._thread.is_alive():
            logger.warning("The last checkpoint has not reached the address in time.")

    def _follow(self) -> None:
        done, next_try, warned = None, 0.0, False
        stopping = False
        while not stopping:
            stopping = self._stopped.wait(LOOK_SECONDS)
            now = _version(self._last)
            if now in (None, done) or not (stopping or time.monotonic() >= next_try):
                continue
            try:
                if self._shared.upload(self._waiting()):
                    self._on_uploaded(self._shared.place)
                done, warned = now, False
            except (UserError, RunError, OSError) as error:
                next_try = time.monotonic() + RETRY_SECONDS
                if not warned or stopping:
                    why = "It is tried again." if isinstance(error, UnreachableError) else ""
                    logger.warning("The checkpoint is only on this machine: %s %s", error, why)
                warned = True


def _version(file: Path) -> tuple[int, int] | None:
    """What tells a file from the one that replaces it; None where there is none."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns
