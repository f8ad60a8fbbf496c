"""The command line: all commands of `torchyard`, and how their errors end it.

Neither torch, MLflow nor Prefect is imported before a configuration is known to be valid, so
that `--help` and a misspelled setting answer at once.
"""

from __future__ import annotations

import errno
import os
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from torchyard.core.errors import RunError, UserError
from torchyard.core.proxies import settle_proxies
from torchyard.core.redaction import redacted
from torchyard.pipelines.commands import audit, compare, inspect, join, plugins, run, sweep
from torchyard.pipelines.commands.models import model, promote, verify
from torchyard.pipelines.commands.operation import services, storage, ui
from torchyard.pipelines.commands.outcome import print_notes
from torchyard.pipelines.display import stderr, stdout

# What a system answers where a file is somebody else's or cannot be written, and on a full disk.
NOT_LET = (errno.EACCES, errno.EPERM, errno.EROFS)
FULL = (errno.ENOSPC, errno.EDQUOT)

app = typer.Typer(
    help="Train PyTorch classifiers: prepare → train → evaluate → per-class report.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _print_version(asked: bool) -> None:
    if asked:
        stdout.print(f"torchyard {version('torchyard')}")
        raise typer.Exit


@app.callback()
def _options(
    asked: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="print the version, and exit"
        ),
    ] = False,
) -> None:
    pass


for group in (
    run,
    join,
    sweep,
    inspect,
    audit,
    model,
    verify,
    compare,
    ui,
    promote,
    storage,
    services,
):
    app.add_typer(group.commands)
app.add_typer(plugins.commands, name="plugins")


def main() -> None:
    """Run the command line. A user's error exits with status 2, a failed run's with 1."""
    os.environ.setdefault("DO_NOT_TRACK", "1")  # else Prefect prints a notice on usage data
    for unused in settle_proxies():
        stderr.print(f"[yellow]note:[/] {escape(unused)}", soft_wrap=True)
    try:
        if len(sys.argv) > 1 and "--help" not in sys.argv:
            _check_surroundings()
        _call()
    except UserError as error:
        for problem in error.problems:
            stderr.print(f"[red]error:[/] {escape(problem)}", soft_wrap=True)
        print_notes(error)
        sys.exit(2)
    except RunError as error:
        if error.details and not error.kept:
            stderr.print(escape(error.details), style="dim", soft_wrap=True)
        stderr.print(f"[red]failed:[/] {escape(str(error))}", soft_wrap=True)
        if error.kept:
            stderr.print(f"Where that was raised, in full: {error.kept} of the run.")
        print_notes(error)
        sys.exit(1)
    except OSError as error:
        if error.errno not in FULL and (error.errno not in NOT_LET or error.filename is None):
            raise
        said = redacted(": ".join(filter(None, (error.filename, error.strerror))))
        stderr.print(f"[red]error:[/] {escape(said)}", soft_wrap=True)
        print_notes(error)
        sys.exit(2)


@cache
def commands() -> Any:
    """All commands, put together for click: some thirty milliseconds of work."""
    return typer.main.get_command(app)


def _call() -> None:
    """Run the command that was asked for; a mistake in its words is an error like any other."""
    usage_error: Any = typer.BadParameter.__base__  # click's, of which typer has a copy
    try:
        # Else the name is that of the process's first module, which may be the standby's.
        status = commands()(prog_name="torchyard", standalone_mode=False)
    except typer.Abort:
        stderr.print("Aborted.")
        sys.exit(1)
    except usage_error as error:
        context = error.ctx
        if not (message := error.format_message()):  # help was printed instead
            sys.exit(2)
        command = context.command_path if context is not None else "torchyard"
        raise UserError(f"{message}  ({command} --help)") from None
    if isinstance(status, int) and status:
        sys.exit(status)


def _check_surroundings() -> None:
    """Refuse to run without a working folder or a home folder, which every library looks for."""
    try:
        Path.cwd()
    except FileNotFoundError:
        raise UserError("The working folder is deleted: change to another one with `cd`.") from None
    try:
        Path.home()
    except RuntimeError:
        raise UserError(
            f"The account with the id {os.getuid()} has no home folder: set HOME to a folder "
            "that it can write."
        ) from None
