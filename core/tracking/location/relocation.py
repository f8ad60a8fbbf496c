"""A local store in another folder than before: a project that was copied, moved or renamed.

MLflow records where artifacts are as absolute addresses. Runs and experiments of ours have a tag
with the folder that the store was in; where addresses in the database are still below that
folder, and the database is not, they are rewritten: the artifacts are beside their database.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

FOLDER = "torchyard.folder"  # tag of a run and an experiment: where the runs' own folders are made
RUNS_NAME = "runs"  # of that folder, where it is beside the database
CHECKPOINTS = "checkpoints"  # tag of a run: its own folder

# Tables and columns with the addresses of artifacts.
_ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
_WAIT_SECONDS = 60.0  # for a program that holds the database


def relocate(database: Path) -> None:
    """Make every address of a store that has moved one below the folder where it is now.

    In one transaction: other processes see all addresses as before, or all as now.

    Raises:
        sqlite3.Error: the database cannot be read or written.
    """
    if not database.exists():
        return
    name = f"{database.as_uri()}?mode=rw"
    with closing(
        sqlite3.connect(name, uri=True, timeout=_WAIT_SECONDS, isolation_level=None)
    ) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        if not {"tags", "experiment_tags", *(table for table, _ in _ADDRESSES)} <= tables:
            return  # of another version of MLflow, which says so
        for before in _places_before(connection, database):
            connection.execute("BEGIN IMMEDIATE")
            _rewrite(connection, before, database.parent)
            connection.execute("COMMIT")


def moved_config(config: dict[str, Any], folder: str, database: Path) -> dict[str, Any]:
    """A recorded configuration that names the files of a project where they are now.

    Args:
        config: as it was recorded.
        folder: where the run's own folder was made then.
        database: of the store, now.
    """
    before, here = Path(folder), database.parent / RUNS_NAME
    if before.parts[-2:] != here.parts[-2:]:  # the runs' folders are elsewhere by choice
        return config
    moved: dict[str, Any] = _moved(config, before.parents[1], here.parents[1])
    return moved


def _moved(value: Any, before: Path, here: Path) -> Any:
    if isinstance(value, dict):
        return {key: _moved(each, before, here) for key, each in value.items()}
    if isinstance(value, list):
        return [_moved(each, before, here) for each in value]
    if isinstance(value, str) and value.startswith(f"{before}/"):
        moved = here / value.removeprefix(f"{before}/")
        return str(moved) if moved.exists() else value
    return value


def _places_before(connection: sqlite3.Connection, database: Path) -> list[Path]:
    """The folders that the store was in, as far as addresses are still below them."""
    named = connection.execute(
        "SELECT value FROM tags WHERE key = :key "
        "UNION SELECT value FROM experiment_tags WHERE key = :key",
        {"key": FOLDER},
    )
    folders = (Path(value) for (value,) in named)
    places = {each.parent for each in folders if each.is_absolute() and each.name == RUNS_NAME}
    return [
        place
        for place in places
        if not database.is_relative_to(place)  # also of runs whose folder is elsewhere by choice
        and not _same_file(place / database.name, database)
        and _has_addresses(connection, place)
    ]


def _has_addresses(connection: sqlite3.Connection, place: Path) -> bool:
    return any(
        connection.execute(
            f"SELECT 1 FROM {table} WHERE substr({column}, 1, ?) = ? LIMIT 1", (len(text), text)
        ).fetchone()
        for table, column in _ADDRESSES
        for text, _ in _spellings(place, place)
    )


def _rewrite(connection: sqlite3.Connection, before: Path, here: Path) -> None:
    for old, new in _spellings(before, here):
        moved = (new, len(old) + 1, len(old), old)
        for table, column in _ADDRESSES:
            connection.execute(
                f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                f"WHERE substr({column}, 1, ?) = ?",
                moved,
            )
        connection.execute(
            "UPDATE tags SET value = ? || substr(value, ?) "
            "WHERE substr(value, 1, ?) = ? AND key = ?",
            (*moved, CHECKPOINTS),
        )
        # For the next move: the runs' own tags stay as they are.
        connection.execute(
            "INSERT OR REPLACE INTO experiment_tags (experiment_id, key, value) "
            "SELECT experiment_id, ?, ? FROM experiments WHERE substr(artifact_location, 1, ?) = ?",
            (FOLDER, str(here / RUNS_NAME), len(new), new),
        )
    values = connection.execute(
        "SELECT DISTINCT value FROM params WHERE instr(value, ?)", (f"{before.parent}/",)
    )
    for (value,) in values.fetchall():
        with suppress(ValueError):  # cut short: it is JSON no more
            setting = json.loads(value) if value.startswith(("[", "{")) else value
            setting = _moved(setting, before.parent, here.parent)
            text = setting if isinstance(setting, str) else json.dumps(setting, ensure_ascii=False)
            connection.execute("UPDATE params SET value = ? WHERE value = ?", (text, value))


def _spellings(before: Path, here: Path) -> Iterator[tuple[str, str]]:
    """How an address in a folder begins: as a URI, and as MLflow's own experiment has it."""
    yield f"{before.as_uri()}/", f"{here.as_uri()}/"
    yield f"{before}/", f"{here}/"


def _same_file(one: Path, other: Path) -> bool:
    """Whether both name one file, as a folder with two names (a link, a mount) has it."""
    try:
        return one.samefile(other)
    except OSError:
        return False
