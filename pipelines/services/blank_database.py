"""Make the blank databases that first runs begin with; a program, run by `make install`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import tempfile
from pathlib import Path

from torchyard.core.tracking.store import blank_database, load_mlflow


def make_blank(program: str) -> None:
    """Let the program's own migrations make its blank database."""
    target = blank_database(program)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch, contextlib.chdir(scratch):
        made, whole = Path(scratch) / "made.db", Path(scratch) / "whole.db"
        MAKERS[program](made)
        with contextlib.closing(sqlite3.connect(made)) as database:
            database.execute("VACUUM INTO ?", [str(whole)])  # with what is still in its log
        whole.replace(target)


def _prefects(database: Path) -> None:
    os.environ |= {
        "PREFECT_HOME": str(database.parent),
        "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{database}",
    }
    from prefect.server.database import provide_database_interface

    asyncio.run(provide_database_interface().create_db())


def _mlflows(database: Path) -> None:
    load_mlflow()
    from mlflow import MlflowClient

    MlflowClient(tracking_uri=f"sqlite:///{database}").search_experiments()
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        # Its artifacts would go to this folder; MLflow makes another where there is none.
        connection.execute("DELETE FROM experiments")


MAKERS = {"prefect": _prefects, "mlflow": _mlflows}

if __name__ == "__main__":
    for name in MAKERS:
        make_blank(name)
