"""The commands `torchyard run`, `resume` and `check`: train, resume, or only validate."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.markup import escape
from rich.table import Table

from torchyard.core.config.resolve import ResolvedConfig
from torchyard.core.errors import RunError, UnreachableError, UserError
from torchyard.core.formatting import dimensions
from torchyard.core.tracking import store
from torchyard.core.tracking.location.address import is_server
from torchyard.core.tracking.ownership.lease import TakenOverError
from torchyard.core.tracking.queries.lookup import check_checkpoint
from torchyard.core.tracking.weights import recorded_weights
from torchyard.pipelines.commands.arguments import (
    Overrides,
    PresetOrFile,
    RunName,
    preset_config,
)
from torchyard.pipelines.display import (
    Display,
    JsonDisplay,
    QuietDisplay,
    print_json,
    stderr,
    stdout,
)
from torchyard.pipelines.local_run import local_pipeline
from torchyard.pipelines.resumption import Resumption, check_unfinished, study_to_resume
from torchyard.pipelines.seeds import SeedsOutcome, check_seeds, run_seeds

if TYPE_CHECKING:
    from mlflow.entities import Run

commands = typer.Typer()

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="print the run's id and nothing else")]
JsonLines = Annotated[bool, typer.Option("--json", help="print one JSON object per line")]


@commands.command()
def run(
    source: PresetOrFile = None,
    overrides: Overrides = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="run it with N seeds from train.seed on, and summarize them"
        ),
    ] = None,
    quiet: Quiet = False,
    as_json: JsonLines = False,
) -> None:
    """Run the whole pipeline, recorded in Prefect and MLflow.

    Examples: [bold]torchyard run digits[/]   [bold]torchyard run cifar10 model=resnet18
    optimizer=adam optimizer.lr=3e-4 train.epochs=10[/]
    """
    shown = _display(quiet, as_json)
    resolved = preset_config(source, overrides)
    if seeds is not None:
        check_seeds(resolved, seeds)
    store.check_writable(store.tracking_uri())
    _run_pipeline(resolved, shown, seeds=seeds)


@commands.command()
def resume(
    run: RunName,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="of a finished run: train it on, e.g. train.epochs=20; a new run, its child",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="even if it may still run on another machine")
    ] = False,
    from_start: Annotated[
        bool, typer.Option("--from-start", help="at epoch 1, where no checkpoint is found here")
    ] = False,
    quiet: Quiet = False,
    as_json: JsonLines = False,
) -> None:
    """Resume a run that was killed or failed from its last checkpoint; or train a finished one on.

    On a CPU a resumed run ends with the same weights, bit for bit, as one that was never
    interrupted. Whether one that is trained on ends as one long run would is said when it begins.
    """
    from torchyard.pipelines.worker.process import shared_worker

    shown = _display(quiet, as_json)
    if not overrides:
        check_unfinished(run)
    shared_worker()  # torch's import overlaps MLflow's
    if (study := study_to_resume(run)) is not None:
        from torchyard.pipelines.commands.sweep import resume_study  # which imports this file

        resume_study(study, overrides or (), force=force, quiet=quiet, as_json=as_json)
        return
    found = Resumption.find(
        run,
        overrides or (),
        force=force,
        say=lambda text: stderr.print(escape(text), soft_wrap=True),
        check=functools.partial(_check_checkpoint, from_start=from_start),
    )
    if isinstance(found, str):
        stdout.print(escape(found))
    else:
        _run_pipeline(found.resolved, shown, found.run_id, found.parent, found.seeds)


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
    if not found["prepared"]:
        stdout.print("The data are not prepared yet, so they were not tried.")


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


def _run_pipeline(
    resolved: ResolvedConfig,
    shown: Display,
    run_id: str | None = None,
    parent: str | None = None,
    seeds: int | None = None,
) -> None:
    outcome: SeedsOutcome | None = None
    for change in resolved.changed:
        stderr.print(f"[yellow]note:[/] {escape(change)}", soft_wrap=True)

    def call_flow() -> None:
        nonlocal outcome
        leave = functools.partial(leave_prefect, shown=shown, several=seeds is not None)
        resumed = run_id is not None and seeds is None
        with local_pipeline(resolved, shown, leave, own_process=True, resumed=resumed) as call:
            if seeds is None:
                call(resolved, run_id, parent)
            else:
                outcome = run_seeds(call, resolved, seeds, shown, run_id)

    with_outcome(call_flow, shown, several=seeds is not None)
    if outcome is not None:
        _print_seeds(outcome, shown)
    else:
        print_outcome(shown, newest=run_id is None)


def with_outcome(call: Callable[[], None], shown: Display, *, several: bool = False) -> None:
    """Call what runs a flow; an interruption exits with status 130.

    Where the outcome is recorded and Prefect is gone, it is printed, and the process ends.

    Args:
        call: runs it.
        shown: has the outcome.
        several: whether that is of one run of several.
    """
    try:
        call()
    except BaseException as error:
        if shown.outcome is not None and isinstance(error, Exception) and not several:
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


def leave_prefect(error: BaseException | None, shown: Display, several: bool) -> None:
    """End the process, whose run is recorded: Prefect does not answer.

    Args:
        several: whether it may be one of several, and the others are left.
    """
    from torchyard.pipelines.services.server.answer import patience

    silence = RunError(f"It has not answered for {patience():g} seconds.")
    if error is None and not several:
        _end_without_prefect(silence, shown)
    stderr.print(f"[red]failed:[/] {escape(str(error or silence))}", soft_wrap=True)
    print_notes(error or silence)
    if several:
        stderr.print("`torchyard resume latest` goes on with the seeds that are left.")
    _exit_without_prefect(silence, 1)


def _end_without_prefect(error: Exception, shown: Display) -> None:
    """Print the outcome of a run that is recorded, and exit: Prefect's server is gone.

    Prefect would try for minutes to report each task to it.
    """
    print_outcome(shown)
    _exit_without_prefect(error, 0)


def _exit_without_prefect(error: Exception, status: int) -> NoReturn:
    first, *_ = str(error).splitlines() or [""]
    reason = str(error) if isinstance(error, RunError) else f"{type(error).__name__}: {first[:200]}"
    stderr.print(f"The run is done, but Prefect does not know. {escape(reason)}", soft_wrap=True)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)


def print_outcome(shown: Display, *, newest: bool = True) -> None:
    """Print what is finished, and how to look at it.

    Args:
        shown: has the outcome.
        newest: whether it is of the run that was begun last.
    """
    from torchyard.pipelines.commands.operation.ui import ui_command
    from torchyard.pipelines.services.manager import served_url, ui_address

    uri, outcome = store.tracking_uri(), shown.outcome
    if outcome is None:  # skipped: it would have repeated another run
        return
    shown.outcome = dataclasses.replace(outcome, url=served_url(outcome.url))
    named = "latest" if newest else outcome.run_id
    shown.result(ui_command(named), served=bool(is_server(uri) or ui_address(uri)))


def _print_seeds(outcome: SeedsOutcome, shown: Display) -> None:
    if isinstance(shown, QuietDisplay):
        print(outcome.run_id)
        return
    if isinstance(shown, JsonDisplay):
        summary = dataclasses.asdict(outcome.results.summary)
        named = {"run_id": outcome.run_id, "name": outcome.name, "url": outcome.url}
        print_json({"event": "seeds", **named, **summary})
        return
    for line in outcome.lines:
        stdout.print(line, soft_wrap=True)
    stdout.print(f"MLflow run:  [bold]{escape(outcome.name)}[/]  {outcome.run_id}")
    stdout.print(f"Look at it:  {outcome.url}", soft_wrap=True)


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
