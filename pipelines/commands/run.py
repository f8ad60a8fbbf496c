"""The commands `torchyard run`, `resume` and `check`: train, resume, or only validate."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.markup import escape
from rich.table import Table

from torchyard.core.config.resolve import ResolvedConfig, resolve
from torchyard.core.errors import RunError, UnreachableError, UserError
from torchyard.core.formatting import dimensions
from torchyard.core.hosting.host import host
from torchyard.core.tracking import store
from torchyard.core.tracking.lookup import (
    check_checkpoint,
    find_run,
    recorded_config,
    settle_owner,
    sync_run,
)
from torchyard.core.tracking.ownership.lease import TakenOverError
from torchyard.core.tracking.weights import recorded_weights
from torchyard.pipelines.commands.arguments import Overrides, PresetOrFile, RunName, preset_config
from torchyard.pipelines.display import Display, JsonDisplay, QuietDisplay, display, stderr, stdout

if TYPE_CHECKING:
    from mlflow.entities import Run

commands = typer.Typer()

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="print the run's id and nothing else")]
JsonLines = Annotated[bool, typer.Option("--json", help="print one JSON object per line")]


@commands.command()
def run(
    source: PresetOrFile = None,
    overrides: Overrides = None,
    quiet: Quiet = False,
    as_json: JsonLines = False,
) -> None:
    """Run the whole pipeline, recorded in Prefect and MLflow.

    Examples: [bold]torchyard run digits[/]   [bold]torchyard run cifar10 model=resnet18
    optimizer=adam optimizer.lr=3e-4 train.epochs=10[/]
    """
    shown = _display(quiet, as_json)
    resolved = preset_config(source, overrides)
    store.check_writable(store.tracking_uri())
    _run_pipeline(resolved, shown)


@commands.command()
def resume(
    run: RunName,
    force: Annotated[
        bool, typer.Option("--force", help="even if it may still run on another machine")
    ] = False,
    from_start: Annotated[
        bool, typer.Option("--from-start", help="at epoch 1, where no checkpoint is found here")
    ] = False,
    quiet: Quiet = False,
    as_json: JsonLines = False,
) -> None:
    """Resume a run that was killed or failed from its last checkpoint.

    On a CPU it ends with the same weights, bit for bit, as one that was never interrupted.
    """
    from torchyard.pipelines.worker.process import shared_worker

    shown = _display(quiet, as_json)
    uri = store.tracking_uri()
    shared_worker()  # torch's import overlaps MLflow's
    client = store.open_existing(uri)
    with store.store_errors(uri):
        found = find_run(client, run)
        run_id, before = found.info.run_id, found.info.status
        settle_owner(client, found, force=force, say=stderr.print)
        found = sync_run(client, found)
        name = found.info.run_name
        if found.info.status == "FINISHED" == before:  # before Prefect has a flow run of it
            raise UserError(f"run {run_id} ({name}) is finished: there is nothing left to do.")
        if found.info.status == "FINISHED":
            stdout.print(f"{escape(name)}: it had finished, and MLflow now has all of it.")
            return
        _check_checkpoint(found, store.run_folder(uri, found), from_start)
        resolved = resolve(recorded_config(client, found), host())
    _run_pipeline(resolved, shown, run_id)


def _check_checkpoint(found: Run, folder: Path, from_start: bool) -> None:
    """Ask before a run begins again at epoch 1, because its checkpoint is not here."""
    try:
        check_checkpoint(found, folder)
    except UserError as error:
        question = f"{error}\nBegin at epoch 1?"
        if not from_start and not (sys.stdin.isatty() and typer.confirm(question, err=True)):
            raise
        folder.mkdir(parents=True, mode=0o700)


@commands.command()
def check(source: PresetOrFile = None, overrides: Overrides = None) -> None:
    """Validate a configuration, its plugins by one step on two samples; nothing is recorded."""
    resolved = preset_config(source, overrides)
    store.check_writable(store.tracking_uri())
    from torchyard.pipelines.worker.process import check_config

    found = check_config(resolved.config, exports=True, weights=recorded_weights(resolved))
    stdout.print(_config_table(resolved.config.model_dump(mode="json")))
    if found["parameters"] is None:
        stdout.print("The model is checked once the data, whose shape is unknown, are prepared.")
    else:
        stdout.print(
            f"{resolved.config.model.name}: {found['parameters']:,} parameters "
            f"on samples of {dimensions(found['shape'])}"
        )
    stdout.print(f"[green]Valid.[/] It would run on {found['device']}.")


def print_notes(error: BaseException) -> None:
    """Print where a run that did not finish is recorded, if it had started."""
    for note in getattr(error, "__notes__", []):
        stderr.print(escape(note), soft_wrap=True)
        resumable = not isinstance(error, UserError) or isinstance(error, UnreachableError)
        if resumable and not isinstance(error, TakenOverError):
            stderr.print("`torchyard resume latest` resumes it.")


def _display(quiet: bool, as_json: bool) -> Display:
    if quiet and as_json:
        raise UserError("--quiet and --json cannot be combined")
    return JsonDisplay() if as_json else QuietDisplay() if quiet else Display(stdout)


def _run_pipeline(resolved: ResolvedConfig, shown: Display, run_id: str | None = None) -> None:
    display.set(shown)
    for change in resolved.changed:
        stderr.print(f"[yellow]note:[/] {escape(change)}", soft_wrap=True)
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    # A lost server is reported once, at the end, not for each event and log line.
    os.environ.setdefault("PREFECT_LOGGING_INTERNAL_LEVEL", "CRITICAL")
    logging.raiseExceptions = False
    try:
        _call_flow(resolved, shown, run_id)
    except BaseException as error:
        if shown.outcome is not None and isinstance(error, Exception):
            _end_without_prefect(error, shown)
        if not _is_interruption(error):
            raise
        # Typer would exit without a message.
        if isinstance(error, Exception):  # cancelled in Prefect: its message has the notes
            stderr.print(escape(str(error)), soft_wrap=True)
            stderr.print("`torchyard resume latest` resumes it.")
        else:
            stderr.print("Interrupted.")
            print_notes(error)
        raise typer.Exit(130) from None
    _print_outcome(shown)


def _call_flow(resolved: ResolvedConfig, shown: Display, run_id: str | None) -> None:
    # Seconds of imports overlap: torch in the worker, Prefect's server in its process,
    # Prefect and MLflow here.
    from torchyard.pipelines.services.prefect_server import PrefectServer, use, without_heartbeat
    from torchyard.pipelines.worker.process import shared_worker

    worker = shared_worker()
    with PrefectServer.connect() as server, shown.bars():
        if server.starting:
            worker.wait_for_stage()
        # Imports take longer with the garbage collector (`benchmarks/reasons/startup.md`).
        gc.disable()
        from torchyard.pipelines.flow.pipeline import call_pipeline
        from torchyard.pipelines.flow.prefect_calls import limited_end
        from torchyard.pipelines.flow.recording import load_libraries
        from torchyard.pipelines.worker.process import check_config

        load_libraries()
        gc.freeze()
        gc.enable()

        resumed = run_id is not None
        weights = None if resumed else recorded_weights(resolved)
        check_config(resolved.config, weights=weights, resumed=resumed)
        # The flow compares the plugins with those of the record, and records what differs.
        config = resolved.config.model_copy(update={"plugins": dict(resolved.recorded_origins)})
        quickly = without_heartbeat if server.managed else contextlib.nullcontext
        with (
            use(server.wait()),
            quickly(),
            limited_end(lambda error: _leave_prefect(error, shown)) as end,
        ):
            try:
                call_pipeline(config, run_id)
            except Exception:
                # Prefect may have failed at what ended the run: that is what counts.
                if isinstance(end.error, UserError | RunError):
                    raise end.error from None
                raise


def _leave_prefect(error: BaseException | None, shown: Display) -> None:
    """End the process, whose run is recorded: Prefect does not answer."""
    from torchyard.pipelines.services.server.answer import patience

    silence = RunError(f"It has not answered for {patience():g} seconds.")
    if error is None:
        _end_without_prefect(silence, shown)
    stderr.print(f"[red]failed:[/] {escape(str(error))}", soft_wrap=True)
    print_notes(error or silence)
    _exit_without_prefect(silence, 1)


def _end_without_prefect(error: Exception, shown: Display) -> None:
    """Print the outcome of a run that is recorded, and exit: Prefect's server is gone.

    Prefect would try for minutes to report each task to it.
    """
    _print_outcome(shown)
    _exit_without_prefect(error, 0)


def _exit_without_prefect(error: Exception, status: int) -> NoReturn:
    first, *_ = str(error).splitlines() or [""]
    reason = str(error) if isinstance(error, RunError) else f"{type(error).__name__}: {first[:200]}"
    stderr.print(f"The run is done, but Prefect does not know. {escape(reason)}", soft_wrap=True)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)


def _print_outcome(shown: Display) -> None:
    from torchyard.pipelines.commands.ui import mlflow_ui_command
    from torchyard.pipelines.services.manager import served_url, ui_address

    uri, outcome = store.tracking_uri(), shown.outcome
    if outcome is None:  # skipped: it would have repeated another run
        return
    shown.outcome = dataclasses.replace(outcome, url=served_url(outcome.url))
    shown.result("" if ui_address(uri) else mlflow_ui_command(uri))


def _is_interruption(error: BaseException) -> bool:
    """Whether it is Ctrl-C, Prefect's exception for a termination, or a cancellation in its UI."""
    prefect = sys.modules.get("prefect.exceptions")
    return isinstance(error, KeyboardInterrupt) or (
        prefect is not None and isinstance(error, prefect.TerminationSignal | prefect.CancelledRun)
    )


def _config_table(config: dict[str, Any]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    for section, value in config.items():
        if section == "plugins" and not value:
            continue
        if isinstance(value, dict):
            name = value.pop("name", "")
            settings = "  ".join(f"{key}={json.dumps(v)}" for key, v in value.items())
            value = f"{name}  {settings}".strip()
        table.add_row(section, escape(str(value)))
    return table
