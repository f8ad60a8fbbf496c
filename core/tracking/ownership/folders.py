"""Folders of this user's own, which nobody else on the machine can read or prepare."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from platformdirs import user_data_path


def private_folder(name: str) -> Path:
    """A folder that nobody else can read, below that of the user's data; it is made.

    Where the user has no home that can be written to, it is in the working folder.

    Raises:
        OSError: it cannot be made, or belongs to somebody else.
    """
    for home in (user_data_path("torchyard"), Path("mlruns").absolute()):
        folder = home / name
        with suppress(OSError):
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)
            if is_own(folder):
                return folder
    raise OSError(f"{folder} cannot be made, or is not this user's own")


def is_own(folder: Path) -> bool:
    """Whether a folder is there, is this user's, and not everybody can write to it."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    everybody = found.st_mode & stat.S_IWOTH
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not everybody
