"""The commands `torchyard plugins …`: which there are, and what one of them takes."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.markup import escape
from rich.table import Table
from typer.core import TyperGroup

from core.accepts import accepted
from core.errors import UserError
from core.host import HOOKS, Registration, host
from pipelines.display import stderr, stdout
from pipelines.plugin_check import check_plugins
from pipelines.plugin_writing import new_plugin


class _ListUnlessNamed(TyperGroup):
    """`torchyard plugins model` lists: what names no command of the group is `list`'s."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or args[0] not in (*self.commands, *ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)


commands = typer.Typer(cls=_ListUnlessNamed, rich_markup_mode="rich")


@commands.callback()
def _plugins() -> None:
    """List the plugins: kind, name, what it is, where it comes from; or show one.

    [bold]torchyard plugins[/] lists all, [bold]torchyard plugins model[/] those of a kind,
    [bold]torchyard plugins show model mlp[/] tells of one.
    """


commands.command("check")(check_plugins)
commands.command("new")(new_plugin)


@commands.command("list")
def list_plugins(
    kind: Annotated[
        Optional[str], typer.Argument(help=f"one of: {', '.join(HOOKS)}")  # noqa: UP045
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="for machines")] = False,
) -> None:
    """List the plugins: kind, name, what it is, where it comes from. `list` may be left out."""
    found = [
        (name, registration)
        for each in ([_known(kind)] if kind is not None else HOOKS)
        for name, registration in host().registrations(each)
    ]
    if as_json:
        rows = [_plugin_row(name, registration) for name, registration in found]
        aside = [{"source": b.source.origin, "reason": b.reason} for b in host().broken]
        print(json.dumps({"plugins": rows, "broken": aside}, indent=1, ensure_ascii=False))
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("kind", "name", "what it is", "from"):
        table.add_column(heading, overflow="fold")
    for name, registration in found:
        row = _plugin_row(name, registration)
        table.add_row(*(escape(row[key]) for key in ("kind", "name", "summary", "origin")))
    stdout.print(table)
    for broken in host().broken:
        stderr.print(f"[yellow]set aside:[/] {escape(f'{broken.source.origin}: {broken.reason}')}")


@commands.command("show")
def show_plugin(
    kind: Annotated[str, typer.Argument(metavar="KIND", help=f"one of: {', '.join(HOOKS)}")],
    name: Annotated[str, typer.Argument(metavar="NAME")],
) -> None:
    """Show one plugin: what it is, its parameters, and where it comes from."""
    try:
        found = host().find(_known(kind), name)
    except LookupError as error:
        raise UserError(f"{kind}: {error}") from None
    stdout.print(f"[bold]{escape(name)}[/]  {kind}, from {escape(found.source.origin)}\n")
    stdout.print(escape(inspect.getdoc(found.params) or "It has no description."), soft_wrap=True)
    stdout.print()
    fields = found.params.model_fields
    if not fields:
        stdout.print("It has no parameters.")
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("parameter", "accepts", "default", "meaning"):
        table.add_column(heading, overflow="fold")
    for key, field in fields.items():
        default = "required"
        if not field.is_required():
            default = _value(field.get_default(call_default_factory=True, validated_data={}))
        table.add_row(*map(escape, (key, accepted(field), default, field.description or "")))
    stdout.print(table)


def _known(kind: str) -> str:
    if kind not in HOOKS:
        raise UserError(f"no kind named '{kind}'.  (accepts: {', '.join(HOOKS)})")
    return kind


def _plugin_row(name: str, registration: Registration) -> dict[str, str]:
    return {
        "kind": registration.kind,
        "name": name,
        "summary": registration.summary,
        "origin": registration.source.origin,
    }


def _value(value: Any) -> str:
    """As an override would write it."""
    if value is None:
        return "none"
    if isinstance(value, str | Path):
        return str(value)
    return json.dumps(value, default=str)
