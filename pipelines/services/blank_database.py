"""Create the blank databases that first runs start with; a program, run by `make install`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import tempfile
from pathlib import Path

from torchyard.core.tracking.store import load_mlflow, template_database


def make_blank(program: str) -> None:
    """Create the blank database of `prefect` or `mlflow` with its own migrations."""
    target = template_database(program)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch, contextlib.chdir(scratch):
        created, compact = Path(scratch) / "created.db", Path(scratch) / "compact.db"
        MIGRATIONS[program](created)
        with contextlib.closing(sqlite3.connect(created)) as database:
            # Includes what is still in the write-ahead log.
            database.execute("VACUUM INTO ?", [str(compact)])
        compact.replace(target)


def _prefect(database: Path) -> None:
    os.environ |= {
        "PREFECT_HOME": str(database.parent),
        "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{database}",
    }
    from prefect.server.database import provide_database_interface

    asyncio.run(provide_database_interface().create_db())


def _mlflow(database: Path) -> None:
    load_mlflow()
    from mlflow import MlflowClient

    MlflowClient(tracking_uri=f"sqlite:///{database}").search_experiments()
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        # The default experiment points at this folder; MLflow creates one where there is none.
        connection.execute("DELETE FROM experiments")


MIGRATIONS = {"prefect": _prefect, "mlflow": _mlflow}

if __name__ == "__main__":
    for name in MIGRATIONS:
        make_blank(name)
