"""A database as a program has it before the first run, made once and copied from then on.

Prefect and MLflow build a new database in many migrations, seconds of a first run.
`make install` has each make one, beside the installed packages (`pipelines.blank_database`);
where none is, they migrate as ever.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path


def blank_database(program: str) -> Path:
    """Where it lies: one for each version of the program in this environment."""
    return Path(sys.prefix) / "share" / "torchyard" / f"{program}-{version(program)}.db"


def begin_with_blank(program: str, url: str) -> None:
    """Copy the blank database to where the program would make one; never over one that is there.

    Args:
        program: "prefect" or "mlflow".
        url: the program's; any that names no SQLite file is left to it.
    """
    blank, database = blank_database(program), database_of(url)
    if database is None or ":memory:" in url or database.exists():
        return
    # Linked into place whole: a second process may be making the database at this moment.
    with (
        contextlib.suppress(OSError),
        tempfile.TemporaryDirectory(dir=database.parent) as scratch,
    ):
        os.link(shutil.copyfile(blank, Path(scratch) / "copy"), database)


def database_of(url: str) -> Path | None:
    """The file of a SQLite database; None for any other."""
    match = re.match(r"sqlite(\+\w+)?:///([^?]+)", url)
    return Path(match[2]).absolute() if match else None
