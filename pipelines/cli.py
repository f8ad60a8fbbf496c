"""The command line: all commands of `torchyard`, and how their errors end it.

Neither torch, MLflow nor Prefect is imported before a configuration is known to be valid, so
that `--help` and a misspelled setting answer at once.
"""

from __future__ import annotations

import sys

import typer
from rich.markup import escape

from torchyard.core.errors import RunError, UserError
from torchyard.pipelines.commands import (
    compare,
    inspect,
    plugins,
    promote,
    run,
    services,
    ui,
    verify,
)
from torchyard.pipelines.display import stderr

app = typer.Typer(
    help="Train PyTorch classifiers: prepare → train → evaluate → per-class report.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for group in (run, inspect, compare, ui, promote, verify, services):
    app.add_typer(group.commands)
app.add_typer(plugins.commands, name="plugins")


def main() -> None:
    """Run the command line. A user's error exits with status 2, a failed run's with 1."""
    try:
        app(standalone_mode=True)
    except UserError as error:
        for problem in error.problems:
            stderr.print(f"[red]error:[/] {escape(problem)}", soft_wrap=True)
        run.print_notes(error)
        sys.exit(2)
    except RunError as error:
        if error.details:
            stderr.print(escape(error.details), style="dim", soft_wrap=True)
        stderr.print(f"[red]failed:[/] {escape(str(error))}", soft_wrap=True)
        run.print_notes(error)
        sys.exit(1)
