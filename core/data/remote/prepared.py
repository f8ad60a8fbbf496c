"""Prepared data that machines share, at the address in TORCHYARD_SHARED.

    prepared/<key>.json      which files a data set has, with size and sha256 of each
    prepared/files/<sha256>  each file, by its digest

`<key>` is that of `core/preparation/prepare.py`. Files come before the entry that names them, and
what is fetched is compared with its digest, so nothing that is half written is ever used.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from torchyard.core.data.dataset import MANIFEST, PreparedDataset
from torchyard.core.data.files import fsync
from torchyard.core.data.remote.connection import NothingThereError, Remote
from torchyard.core.data.remote.shared import PREPARED, SharedAddress
from torchyard.core.errors import RunError, UnreachableError, UserError
from torchyard.core.formatting import byte_size
from torchyard.core.redaction import redacted

logger = logging.getLogger(__name__)

FILES = "files"  # folder at the address
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_FOLDER = re.compile(r"[0-9a-f]{16}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


class SharedPrepared:
    """The prepared data at an address, and one data set among them.

    Args:
        address: that machines share.
        name: of the data set.
        key: of its source and how it was prepared.
        on_progress: called with ("fetching NAME, bytes:" or "sharing …", done, all).

    Attributes:
        place: the address as it is shown.
    """

    def __init__(
        self,
        address: SharedAddress,
        name: str,
        key: str,
        on_progress: Callable[[str, int, int], None],
    ) -> None:
        self._address, self._name, self._key = address, name, key
        self._on_progress = on_progress
        self.place = redacted(address.source)
        self._damaged: set[str] = set()  # digests of what is something else there

    @classmethod
    def chosen(
        cls, name: str, key: str, on_progress: Callable[[str, int, int], None]
    ) -> SharedPrepared | None:
        """At the address that the environment names, if it does.

        Raises:
            UserError: it names something else.
        """
        address = SharedAddress.chosen()
        return cls(address, name, key, on_progress) if address else None

    @cached_property
    def _remote(self) -> Remote:
        return self._address.folder(PREPARED)

    def fetch(self, folder: Path) -> dict[str, Any] | None:
        """Download the data set into a folder; None where it is not there, or not usable.

        What has come stays in the folder when the connection breaks, for the next time.

        Returns:
            what is known of the source, as `put` was given it.

        Raises:
            OSError: the disk is full.
        """
        try:
            remote = self._remote
            content = remote.read(f"{self._key}.json")
            if content is None:
                return None
            entry = _parsed(content)
            files = entry.pop("files")
            total = sum(size for size, _ in files.values())
            logger.info("Fetching '%s' (%s) from %s.", self._name, byte_size(total), self.place)
            folder.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(folder).free < total:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            done = 0
            for name, (size, digest) in files.items():
                self._on_progress(f"fetching {self._name}, bytes:", done, total)
                self._download(remote, digest, size, folder / name)
                done += size
            self._on_progress(f"fetching {self._name}, bytes:", total, total)
            fsync(folder)
            PreparedDataset.open(folder)
        except UnreachableError as error:
            logger.warning("%s '%s' is prepared here.", error, self._name)
            return None
        except (ValueError, UserError, RunError) as error:
            text = "The prepared data of '%s' at %s cannot be used: %s. It is prepared here."
            logger.warning(text, self._name, self.place, str(error).rstrip("."))
            shutil.rmtree(folder, ignore_errors=True)
            return None
        return entry

    def put(self, folder: Path, entry: dict[str, Any]) -> bool:
        """Upload what was prepared in a folder; False where that fails: a warning says why."""
        if not self._address.writable:
            return False
        manifest = PreparedDataset.open(folder)
        names = [MANIFEST, *sorted(manifest.blocks)]
        sizes = {name: (folder / name).stat().st_size for name in names}
        files, done = {}, 0
        try:
            remote = self._remote
            for name, size in sizes.items():
                self._on_progress(f"sharing {self._name}, bytes:", done, sum(sizes.values()))
                with (folder / name).open("rb") as opened:
                    digest = hashlib.file_digest(opened, "sha256").hexdigest()
                if digest in self._damaged or remote.size(f"{FILES}/{digest}") != size:
                    remote.upload(folder / name, f"{FILES}/{digest}")
                files[name] = (size, digest)
                done += size
            self._on_progress(f"sharing {self._name}, bytes:", done, done)
            remote.write(f"{self._key}.json", json.dumps(entry | {"files": files}).encode())
        except UserError as error:
            text = "The prepared data of '%s' are not shared: %s"
            logger.warning(text, self._name, error)
            return False
        return True

    def _download(self, remote: Remote, digest: str, size: int, path: Path) -> None:
        """Download a file, or the rest of it, by its digest.

        Raises:
            ValueError: there is none, or it is something else.
            UnreachableError: the connection breaks again and again.
            OSError: the disk is full.
        """
        part = path.with_name(digest)
        if not path.exists():
            try:
                remote.download(f"{FILES}/{digest}", {"size": size}, part)
            except NothingThereError:
                raise ValueError(f"it has no file {digest}") from None
            with part.open("rb") as opened:
                found = hashlib.file_digest(opened, "sha256").hexdigest()
            if found != digest:
                self._damaged.add(digest)
                raise ValueError(f"the sha256 of its {path.name} is {found}, not {digest}")
            fsync(part)
            part.rename(path)


def _parsed(content: bytes) -> dict[str, Any]:
    """An entry that is what `put` writes; no name in it leads out of a folder.

    Raises:
        ValueError: it is something else.
    """
    try:
        entry: dict[str, Any] = json.loads(content)
        right = (
            isinstance(entry["source"], str)
            and _FOLDER.fullmatch(entry["folder"]) is not None
            and all(
                _NAME.fullmatch(name) and _DIGEST.fullmatch(digest) and type(size) is int
                for name, (size, digest) in entry["files"].items()
            )
        )
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError("its entry is damaged") from error
    if not right:
        raise ValueError("its entry is damaged")
    return entry
