"""The base of the data sets that are downloaded from their publishers.

Their addresses and checksums are torchvision's, repeated because importing it takes seconds. A
test compares them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from torchyard import DatasetParams, UserError
from torchyard.plugins.datasets.paths import ExistingPath, state_of


def web_address(address: str) -> str:
    """Validate that an address is an http, https or file URL.

    Raises:
        ValueError: it is not.
    """
    if urlsplit(address).scheme not in ("http", "https", "file"):
        raise ValueError(f"'{address}' does not begin with http://, https:// or file://")
    return address


Checksum = Annotated[
    str,
    Field(pattern="^([0-9a-f]{32}|[0-9a-f]{64})$", description="md5 or sha256 of the archive"),
]


class PublishedDataset(DatasetParams):
    """A data set that is downloaded, from a mirror if one is given, or read from a folder."""

    mirror: Annotated[str, AfterValidator(web_address)] | None = Field(
        None, description="address to download from instead: the folder's, or the archive's own"
    )
    path: ExistingPath | None = Field(
        None, description="folder with the archive or the unpacked files; nothing is downloaded"
    )

    dataset: ClassVar[str]  # the name it is registered under
    folders: ClassVar[tuple[str, ...]]  # subfolders of `path` that may hold the unpacked files
    files: ClassVar[tuple[str, ...]]  # names of the unpacked files

    def fingerprint(self) -> str:
        """State of the files in `path`; a download has its checksum."""
        if self.path is None:
            return ""
        if self.path.is_file():
            return state_of([self.path])
        folders = [self.path / folder for folder in ("", *self.folders)]
        entries = [entry for folder in folders for entry in sorted(folder.glob("*"))]
        return state_of(entry for entry in entries if entry.is_file())

    def _unpacked(self, endings: tuple[str, ...] = ("",)) -> dict[str, Path]:
        """The unpacked files in `path`, by name.

        Raises:
            UserError: some are missing.
        """
        assert self.path is not None
        best: dict[str, Path] = {}
        for folder in ("", *self.folders):
            present = {
                name: file
                for name in self.files
                for ending in reversed(endings)
                if (file := self.path / folder / (name + ending)).is_file()
            }
            best = max(best, present, key=len)
        missing = [name for name in self.files if name not in best]
        if missing:
            raise UserError(
                f"{self.path} holds neither {self.dataset}'s archive nor all of its files; "
                f"missing: {', '.join(missing)}"
            )
        return best
