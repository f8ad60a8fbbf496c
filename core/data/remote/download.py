"""A copy of data elsewhere, downloaded once: whole and with the right digest, or not there.

A connection that breaks is resumed where it broke, also by the next process: what has come is kept
beside a note of the version that it is of (the size and, where the server tells them, the ETag or
the time of the last change).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

from filelock import FileLock

from torchyard.core.data.files import atomic_write
from torchyard.core.data.remote.address import RemoteAddress
from torchyard.core.data.remote.connection import Remote
from torchyard.core.errors import UnreachableError, UserError
from torchyard.core.formatting import byte_size
from torchyard.core.redaction import redacted

logger = logging.getLogger(__name__)

NOTE = "source.json"  # in the copy's folder
# What tells one version of a file from another, by the names that the file systems give it.
_VERSION = (
    *("ETag", "etag", "Last-Modified", "LastModified", "last_modified", "mtime"),
    *("Content-MD5", "md5Hash", "generation", "blob_id"),
)


class RemoteCopy:
    """The copy of what an address names, in a folder of downloads.

    Args:
        address: of a file, or of a folder where its kind of address has some.
        downloads: the folder.
    """

    def __init__(self, address: RemoteAddress, downloads: Path) -> None:
        self._address = address
        key = hashlib.sha256(address.source.encode()).hexdigest()[:16]
        self._folder = downloads / f"remote-{key}"
        name = address.source.partition("://")[2].partition("?")[0].rstrip("/").rpartition("/")[2]
        self._path = self._folder / f"data-{re.sub(r'[^A-Za-z0-9_.-]', '_', name)[-100:]}"

    def version(self) -> str:
        """What is there now, without downloading it; of what cannot be asked, what is known.

        Raises:
            UserError: there is nothing, or it may not be read.
            UnreachableError: nothing answers, and nothing is known.
        """
        if self._address.digest:
            return self._address.digest
        try:
            return _version(Remote(self._address.source).files())
        except UnreachableError as error:
            if known := self._note().get("version"):
                logger.warning("%s The copy of it that is here is used.", error)
                return str(known)
            raise

    def fetch(self) -> tuple[Path, str]:
        """Download it, unless that version is here; returns where it is, and its sha256.

        Raises:
            UserError: there is nothing, it may not be read, or its digest is another.
            UnreachableError: nothing answers, or the connection breaks again and again.
            OSError: the disk is full.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self._folder}.lock"):
            note = self._note()
            here = str(note["sha256"]) if note and self._path.exists() else ""
            if not here or here != self._address.digest:
                try:
                    remote = Remote(self._address.source)
                    version = _version(files := remote.files())
                except UnreachableError as error:
                    if not here or self._address.digest:
                        raise
                    logger.warning("%s The copy of it that is here is used.", error)
                    version = note["version"]
                if not here or self._address.digest or note["version"] != version:
                    here = self._download(remote, files, version)
            os.utime(self._folder / NOTE)  # `torchyard prune` sees that it is used
            return self._path, here

    def _download(self, remote: Remote, files: dict[str, dict[str, Any]], version: str) -> str:
        """Download all files into a folder beside, and put it in place of the copy."""
        part = self._folder / "part"
        begun = self._folder / "part.json"
        if not begun.exists() or begun.read_text("utf-8") != version:
            shutil.rmtree(part, ignore_errors=True)
            with atomic_write(begun) as file:
                file.write(version.encode())
        total = sum(info.get("size") or 0 for info in files.values())
        logger.info("Downloading %s (%s).", redacted(self._address.source), byte_size(total))
        sums = {}
        for name, info in files.items():
            path = part / name if name else part / self._path.name
            path.parent.mkdir(parents=True, exist_ok=True)
            remote.download(name, info, path)
            with path.open("rb") as opened:
                sums[name] = hashlib.file_digest(opened, "sha256").hexdigest()
        digest = sums.get("") or _digest_of_folder(sums)
        shown = redacted(self._address.source)
        if _version(Remote(self._address.source).files()) != version:
            raise UnreachableError(f"{shown} was changed while it was downloaded.")
        if self._address.digest not in ("", digest):
            shutil.rmtree(part)
            raise UserError(
                f"{shown} is not what it should be: its sha256 is {digest}, not "
                f"{self._address.digest}. It was not kept."
            )
        (self._folder / NOTE).unlink(missing_ok=True)
        _replace(part if "" not in sums else part / self._path.name, self._path)
        note = {"address": redacted(self._address), "version": version, "sha256": digest}
        with atomic_write(self._folder / NOTE) as file:
            file.write(json.dumps(note).encode())
        shutil.rmtree(part, ignore_errors=True)
        begun.unlink(missing_ok=True)
        return digest

    def _note(self) -> dict[str, Any]:
        try:
            note = json.loads((self._folder / NOTE).read_bytes())
        except (OSError, ValueError):
            return {}
        return note if isinstance(note, dict) and {"version", "sha256"} <= note.keys() else {}


def _version(files: dict[str, dict[str, Any]]) -> str:
    known = {
        name: [info.get("size"), *(str(info[key]) for key in _VERSION if info.get(key))]
        for name, info in files.items()
    }
    return json.dumps(known, sort_keys=True)


def _digest_of_folder(sums: dict[str, str]) -> str:
    """sha256 of what `sha256sum` prints of the files in the order of their names."""
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def _replace(new: Path, path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    new.replace(path)
