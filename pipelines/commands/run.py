"""The commands `torchyard run`, `resume` and `check`: train, resume, or only validate."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import logging
import os
import sys
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from torchyard.core.config.resolve import ResolvedConfig, resolve
from torchyard.core.errors import RunError, UserError
from torchyard.core.formatting import dimensions
from torchyard.core.hosting.host import host
from torchyard.core.tracking import store
from torchyard.core.tracking.lookup import find_run, recorded_config, sync_run
from torchyard.pipelines.commands.arguments import Overrides, PresetOrFile, RunName, preset_config
from torchyard.pipelines.display import Display, JsonDisplay, QuietDisplay, display, stderr, stdout

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
def resume(run: RunName, quiet: Quiet = False, as_json: JsonLines = False) -> None:
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
        found = sync_run(client, found)
        if found.info.status == "FINISHED" != before:
            stdout.print(
                f"{escape(found.info.run_name)}: it had finished, and MLflow now has all of it."
            )
            return
        resolved = resolve(recorded_config(client, found), host())
    _run_pipeline(resolved, shown, run_id)


@commands.command()
def check(source: PresetOrFile = None, overrides: Overrides = None) -> None:
    """Validate a configuration, plugins and device included; nothing is run or recorded."""
    resolved = preset_config(source, overrides)
    store.check_writable(store.tracking_uri())
    from torchyard.pipelines.worker.process import check_config

    found = check_config(resolved.config)
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
    os.environ.setdefault("DO_NOT_TRACK", "1")
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
        from torchyard.pipelines.flow.pipeline import train_pipeline
        from torchyard.pipelines.flow.recording import load_libraries
        from torchyard.pipelines.worker.process import check_config

        load_libraries()
        gc.freeze()
        gc.enable()

        check_config(resolved.config)
        # The flow compares the plugins with those of the record, and records what differs.
        config = resolved.config.model_copy(update={"plugins": dict(resolved.recorded_origins)})
        quickly = without_heartbeat if server.managed else contextlib.nullcontext
        with use(server.wait()), quickly():
            train_pipeline(config, run_id)


def _end_without_prefect(error: Exception, shown: Display) -> None:
    """Print the outcome of a run that is recorded, and exit: Prefect's server is gone.

    Prefect would try for minutes to report each task to it.
    """
    _print_outcome(shown)
    reason = error if isinstance(error, RunError) else f"{type(error).__name__}: {error}."
    stderr.print(
        f"The run is done, but Prefect does not know. {escape(str(reason))}", soft_wrap=True
    )
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(0)


def _print_outcome(shown: Display) -> None:
    from torchyard.pipelines.commands.ui import mlflow_ui_command
    from torchyard.pipelines.services.manager import ui_address

    uri, outcome = store.tracking_uri(), shown.outcome
    address = ui_address(uri)
    if address:
        shown.outcome = dataclasses.replace(
            outcome, url=outcome.url.replace(store.LOCAL_UI, address)
        )
    shown.result("" if address else mlflow_ui_command(uri))


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
