"""The commands `torchyard du` and `prune`: what runs, data and downloads take, and deleting it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from torchyard.core.data.files import cache_folder
from torchyard.core.errors import UserError, suggestion
from torchyard.core.formatting import byte_size
from torchyard.core.redaction import redacted_uri
from torchyard.core.storage.cache import DOWNLOADS, cached, delete_cached
from torchyard.core.storage.deletion import finish
from torchyard.core.storage.holding import KINDS, Holding, chosen, read_age, read_size, room
from torchyard.core.storage.records import Records
from torchyard.core.tracking.location.address import database_of
from torchyard.core.tracking.location.errors import store_errors
from torchyard.core.tracking.store import open_existing, runs_folder, tracking_uri
from torchyard.pipelines.commands.arguments import AsJson
from torchyard.pipelines.display import print_json, print_table, stdout
from torchyard.pipelines.terminal.columns import print_columns

commands = typer.Typer()

DEFAULT_KINDS = [kind for kind in KINDS if kind != "runs"]  # no run's record
DEFAULT_AGE = "30d"
WHAT = {
    "checkpoints": "checkpoints of runs",
    "prepared": "prepared data",
    "downloads": "downloads",
    "runs": "artifacts and models in MLflow",
}


@commands.command()
def du(as_json: AsJson = False) -> None:
    """Show what runs, checkpoints, prepared data, downloads and caches take on this machine.

    The last column is what [bold]torchyard prune[/] could delete, whatever its age.
    """
    uri, cache = tracking_uri(), cache_folder()
    records, database = _records(uri), database_of(uri)
    holdings = _holdings(records, cache, KINDS)
    runs = runs_folder(uri)
    places = {
        "checkpoints": str(runs),
        "prepared": str(cache / "prepared"),
        "downloads": str(cache),
        "runs": str(database.parent / "artifacts") if database else redacted_uri(uri),
    }
    rows = []
    for kind in KINDS:
        own = [each for each in holdings if each.kind == kind]
        free = sum(each.size for each in own if not each.kept)
        size = sum(each.size for each in own)
        rows.append(_row(WHAT[kind], places[kind], len(own), size, free))
        if kind == "runs" and database is None:  # the server's machine has them
            rows[-1] |= {"bytes": None, "can_go": None}
    in_runs = sum(each.size for each in holdings if each.kind == "checkpoints")
    rows.append(_row("logs of runs", str(runs), None, room([runs])[0] - in_runs, 0))
    if database:
        files = [database.with_name(database.name + end) for end in ("", "-wal", "-shm")]
        rows.append(_row("database of MLflow", str(database), None, room(files)[0], 0))
    compiled = cache / "compiled"
    rows.append(_row("compiled code", str(compiled), None, room([compiled])[0], 0))
    if as_json:
        print_json(rows, indent=1)
        return
    headings = ("what", "number", "size", "prune could delete", "where")
    table = [
        (
            row["what"],
            "" if row["number"] is None else f"{row['number']:,}",
            _size(row["bytes"]),
            _size(row["can_go"]) if row["can_go"] != 0 else "–",
            _nearby(row["where"]) if stdout.is_terminal else row["where"],
        )
        for row in rows
    ]
    print_columns(headings, table, right=headings[1:4])


@commands.command()
def prune(
    kinds: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KIND]...",
            help=f"{', '.join(KINDS)}. \\[default: {', '.join(DEFAULT_KINDS)}]",
        ),
    ] = None,
    older_than: Annotated[
        str | None,
        typer.Option(
            metavar="AGE",
            help="not used for so long, e.g. 30d, 12h. \\[default, without other conditions: 30d]",
        ),
    ] = None,
    keep: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="keep the newest N of each kind")
    ] = None,
    down_to: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="the longest unused, until all takes no more than e.g. 20GB"
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="delete; otherwise it is only shown")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete checkpoints, prepared data and downloads that are not needed; first shows which.

    Whatever a champion, a parent of other runs, a run that can be resumed or a running process
    needs stays. [bold]runs[/] deletes whole runs with their artifacts and models, through MLflow.

    Example: [bold]torchyard prune checkpoints --older-than 14d --keep 20 --yes[/]
    """
    wanted, conditions = _read(kinds or DEFAULT_KINDS, older_than, down_to)
    uri, cache = tracking_uri(), cache_folder()
    if not (conditions or keep is not None):
        conditions["older_than"] = read_age(DEFAULT_AGE)
    records = _records(uri) if {"checkpoints", "runs"} & {*wanted} else None
    holdings = _holdings(records, cache, wanted)
    going = chosen(holdings, time.time(), keep=keep, **conditions)  # type: ignore[arg-type]
    left, command = [], ""
    if yes:
        finish([cache / "prepared", *(cache / each for each in DOWNLOADS), runs_folder(uri)])
        with store_errors(uri):
            left = [each for each in going if not _delete(each, records)]
            if records is not None and "runs" in wanted:
                command = records.empty_trash()
    if as_json:
        print_json([_as_dict(each, yes and each not in left) for each in going], indent=1)
        return
    _print(going, holdings, left, yes)
    if command:
        stdout.print(
            "The runs are in MLflow's trash, out of which they can be restored. "
            f"To free their room, where the server is: `{escape(command)}`",
            soft_wrap=True,
        )


def _read(
    kinds: Sequence[str], older_than: str | None, down_to: str | None
) -> tuple[list[str], dict[str, float]]:
    """The kinds and the conditions that a person names.

    Raises:
        UserError: with every problem found.
    """
    problems = [
        f"there is no kind '{kind}' to prune.{suggestion(kind, KINDS)}"
        for kind in kinds
        if kind not in KINDS
    ]
    conditions: dict[str, float] = {}
    for name, text, read in (
        ("older_than", older_than, read_age),
        ("down_to", down_to, read_size),
    ):
        try:
            if text is not None:
                conditions[name] = read(text)
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(problems)
    return [*kinds], conditions


def _records(uri: str) -> Records | None:
    """The runs of the store; None where there is no store yet."""
    database = database_of(uri)
    if database is not None and not database.exists():
        return None
    client = open_existing(uri)
    with store_errors(uri):
        return Records(client)


def _holdings(records: Records | None, cache: Path, kinds: Sequence[str]) -> list[Holding]:
    found = [each for each in cached(cache) if each.kind in kinds]
    if records is not None:
        with store_errors(records.client.tracking_uri):
            found += records.checkpoints() if "checkpoints" in kinds else ()
            found += records.runs() if "runs" in kinds else ()
    return found


def _delete(holding: Holding, records: Records | None) -> bool:
    if holding.kind in ("prepared", "downloads"):
        return delete_cached(holding)
    assert records is not None
    if holding.kind == "checkpoints":
        return records.delete_checkpoints(holding)
    return records.discard(holding)


def _print(
    going: Sequence[Holding], holdings: Sequence[Holding], left: Sequence[Holding], yes: bool
) -> None:
    headings = ("what", "name", "last used", "size")
    rows = [
        (
            each.kind,
            each.name,
            f"{datetime.fromtimestamp(each.used):%Y-%m-%d %H:%M}",
            byte_size(each.size),
        )
        for each in going
        if each not in left
    ]
    if rows:
        print_table(headings, rows, right=("size",), no_wrap=("what", "last used", "size"))
    for each in left:
        stdout.print(escape(f"{each.kind}: {each.name} kept, because it is in use"), soft_wrap=True)
    for (kind, why), count in Counter((e.kind, e.kept) for e in holdings if e.kept).items():
        stdout.print(escape(f"{kind}: {count:,} kept, because {why}"), soft_wrap=True)
    size = byte_size(sum(each.size for each in going if each not in left))
    if not rows:
        stdout.print("Nothing to delete.")
    elif yes:
        stdout.print(f"Deleted: {size}.")
    else:
        stdout.print(f"{size} would be deleted. Nothing was: --yes does it.")


def _row(what: str, where: str, number: int | None, size: int, free: int) -> dict[str, Any]:
    return {"what": what, "number": number, "bytes": size, "can_go": free, "where": where}


def _nearby(place: str) -> str:
    """A path as it is written from here, or from home."""
    path = Path(place)
    if path.is_relative_to(here := Path.cwd()):
        return str(path.relative_to(here))
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home := Path.home()) else place


def _size(size: object) -> str:
    return byte_size(size) if isinstance(size, int) else "not here"


def _as_dict(holding: Holding, deleted: bool) -> dict[str, object]:
    return {
        "kind": holding.kind,
        "name": holding.name,
        "key": holding.key,
        "bytes": holding.size,
        "last_used": holding.used,
        "deleted": deleted,
    }
