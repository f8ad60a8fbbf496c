"""What a study and its trials in other processes tell each other: files in the study's folder.

The folder is on this machine or on a file system that all workers share, as the checkpoints
are, from which a trial goes on in another process than it began in.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchyard.core.data.files import atomic_write
from torchyard.core.errors import RunError, UserError
from torchyard.core.tracking.ownership.process import ProcessIdentity
from torchyard.pipelines.study.trial import TrialEnd


@dataclass(frozen=True)
class Exchange:
    """The files of one process that leads the study.

    Attributes:
        folder: of the study.
        session: tells that process from the ones that led the study before or do after it.
    """

    folder: Path
    session: str

    @classmethod
    def open(cls, folder: Path) -> Exchange:
        """Lead the study from now on: trials that another process submitted stop."""
        exchange = cls(folder, uuid.uuid4().hex)
        shutil.rmtree(exchange._trials, ignore_errors=True)
        exchange._trials.mkdir()
        with atomic_write(exchange._leader) as file:
            file.write(exchange.session.encode())
        return exchange

    def close(self) -> None:
        """Have all trials stop."""
        self._leader.unlink(missing_ok=True)

    @property
    def is_open(self) -> bool:
        """Whether the study is still led by the process that opened this."""
        try:
            return self._leader.read_text() == self.session
        except OSError:
            return False

    def begin(self, number: int) -> None:
        """Say that this process runs a trial."""
        self._write(number, {"process": str(ProcessIdentity.of(os.getpid()))})

    def end(self, number: int, end: TrialEnd) -> None:
        """Say how a trial ended."""
        values = dataclasses.asdict(dataclasses.replace(end, error=None))
        ends_study = end.error is not None
        self._write(number, values | {"error": end.reason if ends_study else None})

    def end_of(self, number: int) -> TrialEnd | None:
        """How a trial ended; None while it runs, or waits for a worker."""
        found = self._read(number)
        if "state" not in found:
            return None
        reason = found.pop("error")
        return TrialEnd(**found, error=RunError(reason) if reason else None)

    def is_dead(self, number: int) -> bool:
        """Whether the process that runs a trial is known to have died."""
        owner = ProcessIdentity.parse(self._read(number).get("process", ""))
        # Read again: it may have ended well in between.
        return owner is not None and owner.lives() is False and self.end_of(number) is None

    def forget(self, number: int) -> None:
        """Take away what the process that ran a trial has said."""
        self._file(number).unlink(missing_ok=True)

    @property
    def _leader(self) -> Path:
        return self.folder / "leader"

    @property
    def _trials(self) -> Path:
        return self.folder / "trials"

    def _file(self, number: int) -> Path:
        return self._trials / f"{number}.json"

    def _read(self, number: int) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(self._file(number).read_text())
        except FileNotFoundError:
            return {}
        return found

    def _write(self, number: int, values: dict[str, Any]) -> None:
        try:
            with atomic_write(self._file(number)) as file:
                file.write(json.dumps(values).encode())
        except OSError as error:
            raise UserError(
                f"the study's folder {self.folder} cannot be written here: {error.strerror}. "
                "Workers of a study need a file system that they share with it."
            ) from error
