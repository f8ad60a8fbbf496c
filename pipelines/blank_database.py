"""Prefect's database as it is before the first run, made once and copied from then on.

Prefect builds a new database in some hundred migrations, 5 seconds of a first run in which
nothing else can go on. `make install` has Prefect make one, beside the installed packages; a
server that finds no database begins with a copy. Without it Prefect migrates as ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sqlite3
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from core.store import database_of


def blank_database() -> Path:
    """Where it lies: one for each version of Prefect in this environment."""
    return Path(sys.prefix) / "share" / "torchyard" / f"prefect-{version('prefect')}.db"


def begin_with_blank(connection_url: str) -> None:
    """Copy the blank database to where Prefect would make one; never over one that is there.

    Args:
        connection_url: Prefect's; any that names no SQLite file is left to Prefect.
    """
    blank, database = blank_database(), database_of(connection_url)
    if database is None or ":memory:" in connection_url:
        return
    # Linked into place whole: a second server may be making the database at this moment.
    with (
        contextlib.suppress(OSError),
        tempfile.TemporaryDirectory(dir=database.parent) as scratch,
    ):
        os.link(shutil.copyfile(blank, Path(scratch) / "copy"), database)


def make_blank() -> None:
    """Let Prefect's own migrations make the blank database."""
    target = blank_database()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        made, whole = Path(scratch) / "made.db", Path(scratch) / "whole.db"
        os.environ |= {
            "PREFECT_HOME": scratch,
            "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{made}",
        }
        from prefect.server.database import provide_database_interface

        asyncio.run(provide_database_interface().create_db())
        with contextlib.closing(sqlite3.connect(made)) as database:
            database.execute("VACUUM INTO ?", [str(whole)])  # with what is still in its log
        whole.replace(target)


if __name__ == "__main__":
    make_blank()
