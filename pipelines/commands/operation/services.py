"""The commands of the services: `up`, `down`, `status`, `schedule`, `unschedule`, `deploy`."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.markup import escape
from rich.text import Text

from torchyard.core.config.resolve import ResolvedConfig
from torchyard.core.errors import RunError, UserError
from torchyard.core.proxies import answers
from torchyard.core.tracking.store import check_writable, tracking_uri
from torchyard.pipelines.commands import arguments
from torchyard.pipelines.commands.arguments import Overrides, PresetOrFile
from torchyard.pipelines.display import print_json, stderr, stdout
from torchyard.pipelines.services import manager
from torchyard.pipelines.services.manager import DOWN, FOUND, UP, ServiceManager, ServiceStatus
from torchyard.pipelines.services.prefect_server import FLOW, PrefectServer, named_server, use
from torchyard.pipelines.services.server.access import how_to_get_in
from torchyard.pipelines.terminal.columns import moment, print_columns
from torchyard.pipelines.terminal.schedules import print_schedules
from torchyard.pipelines.time_zone import local_zone

commands = typer.Typer()

T = TypeVar("T")
MOST_OF_A_NAME = 200  # characters
NAMES = {"server": "Prefect", "mlflow": "MLflow"}  # of daemons, as `status` has them
Name = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="its name. \\[default: the preset's or the file's]"),
]


@commands.command()
def up() -> None:
    """Start or find the Prefect server, the MLflow UI and a Prefect worker for scheduled runs.

    They run until [bold]torchyard down[/], and are restarted when they die. A second `up` changes
    nothing.
    """
    services = ServiceManager()
    started = services.up()
    _print_services(started)
    if started[0].daemon:
        lines = how_to_get_in(services.folder, started[0].api)
        stdout.print(escape("\n".join(["", *lines])), soft_wrap=True)


@commands.command()
def down() -> None:
    """Stop what `torchyard up` started. Schedules are kept, and resume with the next `up`."""
    services = ServiceManager()
    before = services.status()
    trains = _trained_here(before)
    stopped, server_stays = services.down()
    where = {each.name: each.address for each in before}
    names = [NAMES.get(name, name) for name in stopped]
    if not names:
        stdout.print("Nothing was up.")
    rows = [("stopped", name, where.get(name, "")) for name in names]
    print_columns(("", "name", "where"), rows, header=False)
    for name, progress in trains.items():
        at = f" at {progress.partition(',')[0]}" if progress else ""
        text = f"ended    {escape(name)}{at}, with a checkpoint from which it can be resumed"
        stdout.print(text, soft_wrap=True)
    if server_stays:
        stdout.print("The Prefect server stays for the runs that use it, and stops after them.")


@commands.command()
def status(as_json: arguments.AsJson = False) -> None:
    """Show what is running, where, since when and started by whom, and what runs next."""
    found = ServiceManager()
    services = found.status()
    prefect, *others = services
    plan, waiting = _plan(prefect), []
    if prefect.state == DOWN and not named_server():
        waiting = found.stored_schedules()
    elif any(each.state != UP for each in others if each.name == "worker"):
        here = manager.pool_name(prefect.api)
        mine = (row for row in plan if row["pool"] == here and not row["paused"])
        waiting = [row["name"] for row in mine if row["schedule"]]
    if (standby := found.standby_status()) is not None:
        services = [*services, standby]
    if as_json:
        rows = [_as_dict(service) for service in services]
        print_json({"services": rows, "plan": plan, "waiting": waiting}, indent=1)
        return
    zone = _local_zone()
    _print_services(services)
    if plan:
        stdout.print()
        print_schedules(plan, manager.pool_name(prefect.api), zone)
    if plan or any(service.daemon for service in services):
        stdout.print(f"\n[dim]Times are those of {zone}.[/]")
    if waiting:
        stdout.print(
            f"Scheduled, and waiting for the services: {escape(', '.join(waiting))}", soft_wrap=True
        )
        stdout.print("`torchyard up` starts them.")


@commands.command("schedule")
def schedule_runs(
    source: PresetOrFile = None,
    overrides: Overrides = None,
    cron: Annotated[
        str | None,
        typer.Option(metavar="'M H D M W'", help='e.g. "0 3 * * *": every night at three'),
    ] = None,
    interval: Annotated[
        str | None, typer.Option(metavar="LENGTH", help="e.g. 30m, 12h, 1d12h; counted from now")
    ] = None,
    rrule: Annotated[
        str | None,
        typer.Option(metavar="RULE", help="RFC 5545, e.g. FREQ=WEEKLY;BYDAY=SA;BYHOUR=3"),
    ] = None,
    timezone: Annotated[
        str | None,
        typer.Option(metavar="ZONE", help="e.g. Asia/Shanghai. \\[default: this machine's]"),
    ] = None,
    name: Name = None,
) -> None:
    """Schedule a run on this machine, while the services of `torchyard up` run.

    A run that is late or would overlap with the one before is skipped. Scheduling under the same
    name replaces the schedule.

    Example: [bold]torchyard schedule cifar10 model=resnet18 --cron "0 3 * * *"
    --timezone Asia/Shanghai[/]
    """
    from torchyard.pipelines.services.scheduling import deployments, schedules
    from torchyard.pipelines.services.scheduling.wording import described

    problems: list[str] = []
    resolved = _read(problems, arguments.preset_config, source, overrides)
    when = _read(problems, schedules.parse_schedule, cron, interval, rrule, timezone)
    name = _read(problems, check_name, name, source)
    _read(problems, check_writable, tracking_uri())
    if problems or resolved is None or when is None or name is None:
        raise UserError(problems)
    with _prefect(resolved) as server:
        pool = manager.pool_name(server.api_url)
        url, replaced = deployments.schedule(resolved, name, when, pool)
    text = f"{described(when.prefect)}; first {when.first:%a %d %b %Y %H:%M}"
    text = f"{text}, {when.prefect.timezone}"
    _print_registered(name, "Replaced" if replaced else "Scheduled", text, url)
    _note_fixed_seed(resolved)
    if not ServiceManager().stores:
        stdout.print("It starts only while the services run: `torchyard up` starts them.")


@commands.command()
def unschedule(
    name: Annotated[str, typer.Argument(metavar="NAME", help="as `torchyard status` lists it")],
) -> None:
    """Remove a schedule or a deployment; a run that has started continues."""
    from torchyard.pipelines.services.scheduling import deployments

    with _prefect():
        deleted = deployments.remove(name)
    stdout.print(f"Removed: [bold]{escape(name)}[/]")
    if not deleted:
        stdout.print("Its run that has started continues.")


@commands.command()
def deploy(
    pool: Annotated[str, typer.Option(metavar="NAME", help="the work pool")],
    source: PresetOrFile = None,
    overrides: Overrides = None,
    name: Name = None,
    job_variables: Annotated[
        list[str] | None,
        typer.Option(
            "--job-variable",
            metavar="KEY=VALUE",
            help="of the pool, e.g. env.MLFLOW_TRACKING_URI=http://tracking:5000; repeatable",
        ),
    ] = None,
) -> None:
    """Register a run for a work pool, to run on any Prefect worker of that pool.

    Example: [bold]torchyard deploy cifar10 --pool gpus
    --job-variable env.MLFLOW_TRACKING_URI=http://tracking:5000[/]
    """
    from torchyard.pipelines.services.scheduling import deployments
    from torchyard.pipelines.services.scheduling.job_variables import read_variables

    problems: list[str] = []
    resolved = _read(problems, arguments.preset_config, source, overrides)
    variables = _read(problems, read_variables, job_variables or [])
    name = _read(problems, check_name, name, source)
    if problems or resolved is None or variables is None or name is None:
        raise UserError(problems)
    with _prefect(resolved):
        url, replaced = deployments.deploy(resolved, name, pool, variables)
    verb, text = "Replaced" if replaced else "Deployed", f"prefect deployment run {FLOW}/{name}"
    _print_registered(name, verb, text, url)
    _note_fixed_seed(resolved)


def check_name(name: str | None, source: str | None) -> str:
    """The name that was given; otherwise that of the preset or the file.

    Raises:
        UserError: it is empty, too long, or has characters that addresses or terminals give a
            meaning.
    """
    chosen = Path(arguments.preset_or_file(source)).stem if name is None else name
    if not chosen.strip() or re.search(r"[/%&<>]", chosen):
        raise UserError(f"--name: '{chosen}' must not be empty or have any of / % & < >")
    if not chosen.isprintable() or len(chosen) > MOST_OF_A_NAME:
        raise UserError(
            f"--name: {chosen!r} must have {MOST_OF_A_NAME} characters at most, all of them visible"
        )
    return chosen


@contextmanager
def _prefect(resolved: ResolvedConfig | None = None) -> Iterator[PrefectServer]:
    """Use the Prefect server, after the checks of `torchyard check`."""
    with PrefectServer.connect() as server:
        if resolved is not None:
            from torchyard.pipelines.worker.process import check_config

            check_config(resolved.config)
        with use(server.wait()):
            from prefect.exceptions import PrefectHTTPStatusError

            try:
                yield server
            except PrefectHTTPStatusError as error:
                raise RunError(f"Prefect refuses it: {str(error).splitlines()[0]}") from error


def _read(problems: list[str], read: Callable[..., T], *arguments: Any) -> T | None:
    """What `read` returns; None if it raises a `UserError`, whose problems are collected."""
    try:
        return read(*arguments)
    except UserError as error:
        problems += error.problems
        return None


def _trained_here(services: list[ServiceStatus]) -> dict[str, str]:
    """The schedules of which this machine's Prefect worker trains a run, and how far that is."""
    prefect, *others = services
    if all(each.name != "worker" or each.state != UP for each in others):
        return {}
    pool = manager.pool_name(prefect.api)
    here = (row for row in _plan(prefect) if row["pool"] == pool)
    return {row["name"]: row["progress"] or "" for row in here if row["last_state"] == "Running"}


def _plan(prefect: ServiceStatus) -> list[dict[str, Any]]:
    """What is scheduled and deployed; nothing while there is no server to ask."""
    if prefect.state == DOWN or not answers(f"{prefect.api}/health"):  # it may be starting
        return []
    from torchyard.pipelines.services.scheduling import deployments

    with use(prefect.api):
        return deployments.overview()


def _local_zone() -> str:
    try:
        offset = f"UTC{datetime.now().astimezone():%z}"
    except ValueError as error:
        raise UserError(f"TZ={os.environ.get('TZ')} is no time zone: {error}") from None
    try:
        return local_zone()
    except UserError:
        return offset


def _print_registered(name: str, verb: str, text: str, url: str) -> None:
    stdout.print(f"{verb} [bold]{escape(name)}[/]: {escape(text)}", soft_wrap=True)
    stdout.print(f"Its configuration: {url}", soft_wrap=True)


def _note_fixed_seed(resolved: ResolvedConfig) -> None:
    config = resolved.config
    if config.promote and config.promote.gates and isinstance(config.train.seed, int):
        stderr.print(
            "[yellow]note:[/] train.seed is fixed: while the data stay the same, every run trains "
            "the same network, and the gates judge it again. train.seed=per_run trains another.",
            soft_wrap=True,
        )


def _print_services(services: list[ServiceStatus]) -> None:
    rows = []
    for row in map(_as_dict, services):
        good = row["state"] in (UP, FOUND)
        state = Text(row["state"], "green" if good else "red")
        since = f"since {moment(datetime.fromisoformat(row['since']))}" if row["since"] else ""
        by = f"by {row['started_by']}" if row["started_by"] else ""
        process = f"process {row['process']}" if row["process"] else ""
        rows.append((row["name"], state, row["address"] or "", since, by, process))
    headings = ("name", "state", "where", "since", "by", "process")
    print_columns(headings, rows, droppable=("process", "by", "since"), header=False)


def _as_dict(service: ServiceStatus) -> dict[str, Any]:
    daemon = service.daemon
    return {
        "name": service.name,
        "state": service.state,
        "address": service.address or None,
        "since": daemon.started_at if daemon else None,
        "started_by": daemon.started_by if daemon else None,
        "process": daemon.pid if daemon else None,
        "log": str(service.log) if daemon else None,
    }
