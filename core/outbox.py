"""What a store that is away was not told: kept on disk, in the order it happened."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import RunError

ENTRY = "entry.json"


@dataclass(frozen=True)
class Entry:
    """One thing to tell.

    Attributes:
        kind: what it is; `core.delivery` knows how each is told.
        values: plain, as JSON has them.
        attachment: the file that goes with it, if one does.
    """

    kind: str
    values: Mapping[str, Any]
    attachment: Path | None = None


class Outbox:
    """The entries that wait, each in a numbered folder with its attachment.

    A folder gets its number by being renamed when it is whole, so no death of the process
    leaves half an entry; one that was sent and not yet removed is sent again, which changes
    nothing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __len__(self) -> int:
        return len(self._places())

    def put(self, entry: Entry) -> None:
        """Keep an entry behind those that wait, and its attachment, which may then go away.

        Raises:
            RunError: it cannot be written.
        """
        places = self._places()
        number = int(places[-1].name) + 1 if places else 1
        partial = self.folder / f".{os.getpid()}"
        try:
            partial.mkdir(parents=True)
            content = {"kind": entry.kind, "values": entry.values, "attachment": None}
            if entry.attachment is not None:
                content["attachment"] = entry.attachment.name
                shutil.copyfile(entry.attachment, partial / entry.attachment.name)
            with (partial / ENTRY).open("w", encoding="utf-8") as file:
                json.dump(content, file)
                file.flush()
                os.fsync(file.fileno())
            partial.rename(self.folder / f"{number:06}")
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise RunError(
                f"What MLflow does not take cannot be kept in {self.folder} either: "
                f"{error.strerror}."
            ) from error

    def waiting(self) -> Iterator[Entry]:
        """The entries, oldest first; each is removed once the next is asked for."""
        for place in self._places():
            content = json.loads((place / ENTRY).read_text("utf-8"))
            name = content["attachment"]
            yield Entry(content["kind"], content["values"], place / name if name else None)
            gone = place.with_name(f".sent{place.name}")
            place.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)

    def _places(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9]*"))
