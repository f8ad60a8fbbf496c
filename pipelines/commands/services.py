"""The commands of a yard: `up`, `down`, `status`, and what is begun without a person."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Optional, TypeVar

import typer
from rich.markup import escape
from rich.table import Table

from torchyard.core.config.resolve import ResolvedConfig
from torchyard.core.errors import UserError
from torchyard.core.tracking.store import check_writable, tracking_uri
from torchyard.pipelines.commands.arguments import Overrides, Source, preset_config, start_of
from torchyard.pipelines.display import stdout
from torchyard.pipelines.services.manager import FOUND, UP, Part, Yard, pool_name
from torchyard.pipelines.services.prefect_server import FLOW, PrefectServer, use
from torchyard.pipelines.services.schedules import read_times


def check_name(name: str | None, source: str | None) -> str:
    """The name that was given, else that of the preset or the file.

    Raises:
        UserError: it is empty, or has characters that addresses give a meaning.
    """
    chosen = Path(start_of(source)).stem if name is None else name
    if not chosen.strip() or re.search(r"[/%&<>]", chosen):
        raise UserError(f"--name: '{chosen}' must not be empty or have any of / % & < >")
    return chosen


commands = typer.Typer()

T = TypeVar("T")
Name = Annotated[
    Optional[str],  # noqa: UP045 - typer reads the annotation
    typer.Option(metavar="NAME", help="its name. \\[default: the preset's or the file's]"),
]

AsJson = Annotated[bool, typer.Option("--json", help="for machines")]


@commands.command()
def up() -> None:
    """Start the Prefect server, the MLflow UI and a worker for what is scheduled, or find them.

    They stay until [bold]torchyard down[/]; what dies is started again. A second `up` changes
    nothing.
    """
    _print_parts(Yard().up())


@commands.command()
def down() -> None:
    """End what `torchyard up` started. Schedules are kept, and go on with the next `up`."""
    ended, server_stays = Yard().down()
    stdout.print(f"Ended: {', '.join(ended)}" if ended else "Nothing was up.")
    if server_stays:
        stdout.print("The Prefect server stays for the runs that use it, and ends with them.")


@commands.command()
def status(as_json: AsJson = False) -> None:
    """Show what runs, where, since when and started by whom, and when what is done next."""
    parts = Yard().parts()
    plan = _plan(parts)
    if as_json:
        print(json.dumps({"parts": [_plain(part) for part in parts], "plan": plan}, indent=1))
        return
    _print_parts(parts)
    if plan:
        stdout.print(_plan_table(plan))


@commands.command("schedule")
def schedule_runs(
    source: Source = None,
    overrides: Overrides = None,
    cron: Annotated[
        Optional[str],  # noqa: UP045 - typer reads the annotation
        typer.Option(metavar="'M H D M W'", help='e.g. "0 3 * * *": every night at three'),
    ] = None,
    interval: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="LENGTH", help="e.g. 30m, 12h, 1d12h; from now on"),
    ] = None,
    rrule: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="RULE", help="RFC 5545, e.g. FREQ=WEEKLY;BYDAY=SA;BYHOUR=3"),
    ] = None,
    timezone: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="ZONE", help="e.g. Asia/Shanghai. \\[default: this machine's]"),
    ] = None,
    name: Name = None,
) -> None:
    """Have a run begun at its times, on this machine, while `torchyard up` is up.

    A run that is late or would overlap with the one before is skipped. The same name again
    replaces a schedule.

    Example: [bold]torchyard schedule cifar10 model=resnet18 --cron "0 3 * * *"
    --timezone Asia/Shanghai[/]
    """
    from torchyard.pipelines.services import deployments

    problems: list[str] = []
    resolved = _told(problems, preset_config, source, overrides)
    times = _told(problems, read_times, cron, interval, rrule, timezone)
    name = _told(problems, check_name, name, source)
    _told(problems, check_writable, tracking_uri())
    if problems or resolved is None or times is None or name is None:
        raise UserError(problems)
    with _prefect(resolved) as server:
        made = deployments.schedule(resolved, name, times, pool_name(server.api_url))
    stdout.print(
        f"{'Replaced' if made.replaced else 'Scheduled'} [bold]{escape(made.name)}[/]: "
        f"{escape(times.text)}; first {times.first:%a %d %b %Y %H:%M}",
        soft_wrap=True,
    )
    stdout.print(f"Its configuration: {made.url}", soft_wrap=True)
    if not Yard().stores:
        stdout.print("Nothing is begun before `torchyard up`.")


@commands.command()
def unschedule(
    name: Annotated[str, typer.Argument(metavar="NAME", help="as `torchyard status` lists it")],
) -> None:
    """Forget a schedule or a deployment; a run under way goes on."""
    from torchyard.pipelines.services import deployments

    with _prefect():
        deleted = deployments.remove(name)
    stdout.print(f"Forgotten: [bold]{escape(name)}[/]")
    if not deleted:
        stdout.print("The run that is under way goes on.")


@commands.command()
def deploy(
    pool: Annotated[str, typer.Option(metavar="NAME", help="the work pool")],
    source: Source = None,
    overrides: Overrides = None,
    name: Name = None,
    job_variables: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            "--job-variable",
            metavar="KEY=VALUE",
            help="of the pool, e.g. env.MLFLOW_TRACKING_URI=http://tracking:5000; repeatable",
        ),
    ] = None,
) -> None:
    """Register a run for a work pool: any `prefect worker` of it runs it, here or elsewhere.

    Example: [bold]torchyard deploy cifar10 --pool gpus
    --job-variable env.MLFLOW_TRACKING_URI=http://tracking:5000[/]
    """
    from torchyard.pipelines.services import deployments

    problems: list[str] = []
    resolved = _told(problems, preset_config, source, overrides)
    variables = _told(problems, deployments.read_variables, job_variables or [])
    name = _told(problems, check_name, name, source)
    if problems or resolved is None or variables is None or name is None:
        raise UserError(problems)
    with _prefect(resolved):
        made = deployments.deploy(resolved, name, pool, variables)
    stdout.print(
        f"{'Replaced' if made.replaced else 'Deployed'} [bold]{escape(made.name)}[/]: "
        f"prefect deployment run {FLOW}/{escape(made.name)}",
        soft_wrap=True,
    )
    stdout.print(f"Its configuration: {made.url}", soft_wrap=True)


@contextmanager
def _prefect(resolved: ResolvedConfig | None = None) -> Iterator[PrefectServer]:
    """Use the Prefect server; first try the configuration, as `torchyard check` does."""
    with PrefectServer.connect() as server:
        if resolved is not None:
            from torchyard.pipelines.worker.process import check_config

            check_config(resolved.config)
        with use(server.wait()):
            yield server


def _told(problems: list[str], read: Callable[..., T], *arguments: Any) -> T | None:
    """What `read` gives; what is wrong is added to the problems."""
    try:
        return read(*arguments)
    except UserError as error:
        problems += error.problems
        return None


def _plan(parts: list[Part]) -> list[dict[str, Any]]:
    """What is scheduled and deployed, where there is a server to ask."""
    prefect = parts[0]
    if prefect.state not in (UP, FOUND):
        return []
    from torchyard.pipelines.services import deployments

    with use(prefect.api):
        return deployments.planned()


def _plan_table(plan: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, title_justify="left", title="\nscheduled and deployed")
    for heading in ("name", "pool", "times", "next", "last", ""):
        table.add_column(heading, overflow="fold")
    for row in plan:
        times = "by hand" if row["times"] is None else row["times"]
        last = row["last_state"] or "–"
        if row["last_message"] and last not in ("Completed", "Running"):
            last = f"{last}: {row['last_message']}"
        cells = (
            row["name"],
            row["pool"] or "–",
            f"{times} (paused)" if row["paused"] else times,
            _short(row["next"]),
            _short(row["last"]),
            last,
        )
        table.add_row(*map(escape, cells))
    return table


def _short(time: str | None) -> str:
    return f"{datetime.fromisoformat(time):%d %b %H:%M}" if time else "–"


def _print_parts(parts: list[Part]) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("", "", "where", "since", "by", "process"):
        table.add_column(heading, no_wrap=True)
    for part in parts:
        facts = part.facts
        since = datetime.fromisoformat(facts.since).astimezone() if facts else None
        table.add_row(
            part.name,
            part.state if part.state in (UP, FOUND) else f"[red]{part.state}[/]",
            escape(part.address),
            f"{since:%d %b %H:%M}" if since else "",
            escape(facts.by) if facts else "",
            str(facts.pid or "") if facts else "",
        )
    stdout.print(table)


def _plain(part: Part) -> dict[str, object]:
    facts = part.facts
    return {
        "name": part.name,
        "state": part.state,
        "address": part.address or None,
        "since": facts.since if facts else None,
        "started_by": facts.by if facts else None,
        "process": facts.pid if facts else None,
        "log": str(part.log) if facts else None,
    }
