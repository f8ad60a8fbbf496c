"""How a command ends that ran a flow: what it prints, its exit status, a Prefect that is gone."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable
from typing import NoReturn

import typer
from rich.markup import escape

from torchyard.core.errors import DivergedError, RunError, UnreachableError, UserError
from torchyard.core.tracking import store
from torchyard.core.tracking.location.address import is_server
from torchyard.core.tracking.ownership.lease import TakenOverError
from torchyard.pipelines.display import Display, stderr


def print_notes(error: BaseException) -> None:
    """Print where a run that did not finish is recorded, if it had started."""
    for note in getattr(error, "__notes__", []):
        stderr.print(escape(note), soft_wrap=True)
        resumable = not isinstance(error, UserError) or isinstance(error, UnreachableError)
        if resumable and not isinstance(error, TakenOverError | DivergedError):
            stderr.print("`torchyard resume latest` resumes it.")


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


def _is_interruption(error: BaseException) -> bool:
    """Whether it is Ctrl-C, Prefect's exception for a termination, or a cancellation in its UI."""
    prefect = sys.modules.get("prefect.exceptions")
    return isinstance(error, KeyboardInterrupt) or (
        prefect is not None and isinstance(error, prefect.TerminationSignal | prefect.CancelledRun)
    )
