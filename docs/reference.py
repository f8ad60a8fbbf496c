"""Write `docs/reference.md`, what every command takes, from the program: `make reference`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from rich.text import Text

from torchyard.pipelines.cli import app

HEAD = """# Every command

Written by `make reference` from the program, and checked by a test.
`torchyard COMMAND --help` says the same.
"""


def reference() -> str:
    """The page as Markdown, a section a command in the order of `torchyard --help`."""
    return "\n".join([HEAD, *_sections("", typer.main.get_command(app))])


def _sections(name: str, command: Any) -> Iterator[str]:
    """The command's own section, unless it is `torchyard` itself, and those below it."""
    if name:
        yield _section(name, command)
    for below, each in getattr(command, "commands", {}).items():
        yield from _sections(f"{name} {below}".strip(), each)


def _section(name: str, command: Any) -> str:
    taken = [parameter for parameter in command.params if "--help" not in parameter.opts]
    taken.sort(key=lambda parameter: parameter.param_type_name)  # arguments come before options
    arguments = [each for each in taken if each.param_type_name == "argument"]
    usage = " ".join(["torchyard", name, *(_argument(each) for each in arguments)])
    if len(arguments) < len(taken):
        usage += " [OPTIONS]"
    told = Text.from_markup(inspect.cleandoc(command.help or "")).plain
    rows = [
        f"| {_written(each)} | {_cell_text(Text.from_markup(each.help or '').plain)} |"
        for each in taken
    ]
    table = ["| | |", "|---|---|", *rows, ""] if rows else []
    return "\n".join([f"## {name}", "", f"`{usage}`", "", told, "", *table])


def _written(parameter: typer.core.TyperArgument | typer.core.TyperOption) -> str:
    if parameter.param_type_name == "argument":
        return f"`{_cell_text(_argument(parameter))}`"
    names = ", ".join(f"`{name}`" for name in [*parameter.opts, *parameter.secondary_opts])
    value = "" if parameter.is_flag else f" `{parameter.metavar or parameter.name.upper()}`"
    return names + value


def _argument(parameter: typer.core.TyperArgument) -> str:
    name = parameter.metavar or parameter.name.upper()
    return name if parameter.required or name.startswith("[") else f"[{name}]"


def _cell_text(text: str) -> str:
    return text.strip().replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    Path(__file__).with_suffix(".md").write_text(reference(), "utf-8")
