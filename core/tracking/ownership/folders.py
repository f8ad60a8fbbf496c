"""Folders of this user's own, which nobody else on the machine can read or prepare."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from platformdirs import user_data_path

from torchyard.core.data.files import private_folder


def user_folder(name: str) -> Path:
    """A `private_folder` below that of the user's data.

    Where the user has no home that can be written to, it is in the working folder.

    Raises:
        OSError: it cannot be made, or belongs to somebody else.
    """
    for home in (user_data_path("torchyard"), Path("mlruns").absolute()):
        folder = home / name
        with suppress(OSError):
            if not folder.is_symlink() and is_own(private_folder(folder)):
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
