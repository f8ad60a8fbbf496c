"""`torchyard plugins check`: what is wrong with the plugins there are."""

from __future__ import annotations

import typer
from rich.markup import escape

from core.host import HOOKS, host
from core.plugin_check import problems
from pipelines.display import stdout


def check_plugins() -> None:
    """Report what is wrong with the plugins, by file and line; exit status 1 if anything is.

    Plugins that were set aside, misspelled or unmarked hooks, wrong arguments, classes that
    are no parameter class or lack `build` or a docstring.
    """
    found = problems(host())
    for problem in found:
        stdout.print(escape(str(problem)), soft_wrap=True)
    if found:
        raise typer.Exit(1)
    count = sum(len(list(host().registrations(kind))) for kind in HOOKS)
    stdout.print(f"[green]Right:[/] {count} plugins from {len(host().sources)} modules and files.")
