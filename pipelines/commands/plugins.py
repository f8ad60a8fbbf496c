"""The commands `torchyard plugins …`: list, show, check and write plugins."""

from __future__ import annotations

import inspect
import json
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from pydantic.fields import FieldInfo
from rich.markup import escape
from typer.core import TyperGroup

from torchyard.core.config.messages import accepted
from torchyard.core.config.schema import shared_settings
from torchyard.core.errors import UserError, suggestion
from torchyard.core.hosting.containment import contained
from torchyard.core.hosting.hookspecs import HOOKS
from torchyard.core.hosting.host import host
from torchyard.core.hosting.lint import Problem, problems
from torchyard.core.hosting.registration import Registration, Unloaded
from torchyard.pipelines.commands.arguments import AsJson
from torchyard.pipelines.display import print_json, print_table, stderr, stdout
from torchyard.pipelines.scaffold.new_plugin import new_plugin
from torchyard.pipelines.terminal.plugins import print_plugins
from torchyard.pipelines.worker.process import Worker


class _ListUnlessNamed(TyperGroup):
    """`torchyard plugins model` lists, and `torchyard plugins model mlp` shows: as it reads."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or args[0] not in (*self.commands, *ctx.help_option_names):
            named = len(args) > 1 and args[0] in HOOKS and not args[1].startswith("-")
            args = ["show" if named else "list", *args]
        return super().parse_args(ctx, args)


commands = typer.Typer(cls=_ListUnlessNamed, rich_markup_mode="rich")


@commands.callback()
def _plugins() -> None:
    """List the plugins: kind, name, what it is, where it comes from; or show one.

    [bold]torchyard plugins[/] lists all, [bold]torchyard plugins model[/] those of a kind,
    [bold]torchyard plugins model mlp[/] shows one.
    """


commands.command("new")(new_plugin)


@commands.command("list")
def list_plugins(
    kind: Annotated[
        Optional[str], typer.Argument(help=f"one of: {', '.join(HOOKS)}")  # noqa: UP045
    ] = None,
    load: Annotated[
        bool, typer.Option("--load", help="import all, to list every name of a family (timm/*)")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the plugins: kind, name, what it is, where it comes from. `list` may be left out.

    Only built-in plugins are imported; the files of others show what they register.
    """
    kinds = [_known(kind)] if kind is not None else list(HOOKS)
    if load:
        host().load_all()
    rows = [_plugin_row(*named) for kind in kinds for named in host().listed(kind)]
    if as_json:
        broken = [{"source": b.source.origin, "reason": b.reason} for b in host().broken]
        print_json({"plugins": rows, "broken": broken}, indent=1)
        return
    print_plugins(rows, fold=kind is None)
    for each in host().broken:
        reason = escape(f"{each.source.origin}: {each.reason}")
        stderr.print(f"[yellow]failed to load:[/] {reason}", soft_wrap=True)


@commands.command("show")
def show_plugin(
    kind: Annotated[str, typer.Argument(metavar="KIND", help=f"one of: {', '.join(HOOKS)}")],
    name: Annotated[str, typer.Argument(metavar="NAME")],
    as_json: AsJson = False,
) -> None:
    """Show one plugin: what it is, its parameters, and where it comes from."""
    try:
        plugin = host().find(_known(kind), name)
    except LookupError as error:
        raise UserError(f"{kind}: {error}") from None
    fields = sorted(plugin.params.model_fields.items(), key=lambda each: not each[1].is_required())
    parameters = [_setting(key, field) for key, field in fields]
    shared = [
        _setting(f"{kind}.{key}", field)
        for key, field in shared_settings(kind).items()
        if key != "name"
    ]
    description = inspect.getdoc(plugin.params) or "It has no description."
    if as_json:
        about = {"identity": plugin.source.identity, "description": description}
        settings = {"parameters": parameters, "settings": shared}
        print_json(_plugin_row(name, plugin) | about | settings, indent=1)
        return
    stdout.print(f"[bold]{escape(name)}[/]  {kind}, from {escape(plugin.source.origin)}\n")
    stdout.print(escape(description), soft_wrap=True)
    stdout.print()
    if parameters:
        _print_rows(parameters, {"name": "parameter"})
    else:
        stdout.print("It has no parameters.")
    if shared:
        stdout.print(f"\nSettings of every {kind}:\n")
        _print_rows(shared, {"name": "setting"})


def _known(kind: str) -> str:
    if kind not in HOOKS:
        raise UserError(f"no kind named '{kind}'.{suggestion(kind, list(HOOKS))}")
    return kind


def _plugin_row(name: str, plugin: Registration | Unloaded) -> dict[str, str]:
    family = "a family: its names are known once it is imported" if name.endswith("*") else ""
    return {
        "kind": plugin.kind,
        "name": name,
        "summary": plugin.summary or family,
        "origin": plugin.source.origin,
        "status": plugin.status,
    }


def _setting(name: str, field: FieldInfo) -> dict[str, Any]:
    default = "required"
    if not field.is_required():
        try:
            with contained():
                value = field.get_default(call_default_factory=True, validated_data={})
        except Exception as error:  # a plugin's own code
            default = f"raises {type(error).__name__}: {error}"
        else:
            default = _value(value)
    return {
        "name": name,
        "accepts": accepted(field),
        "default": default,
        "meaning": field.description or "",
    }


def _value(value: Any) -> str:
    """A value as an override writes it."""
    if value is None:
        return "none"
    if isinstance(value, str | Path):
        return str(value)
    return json.dumps(value, default=str)


def _print_rows(rows: list[dict[str, Any]], headings: dict[str, str]) -> None:
    shown = [headings.get(key, key) for key in rows[0]] if rows else []
    print_table(shown, [row.values() for row in rows])


@commands.command("check")
def check_plugins() -> None:
    """Report what is wrong with the plugins, by file and line; exit status 1 if anything is.

    Plugins that fail to load or import names from before 0.2, misspelled or unmarked hooks,
    wrong arguments, classes that are not a parameter class or lack `build` or a docstring; then
    those that fail at one step on two samples.
    """
    failed = _printed(problems(host()))
    if not all(plugin.builtin for kind in HOOKS for _, plugin in host().registrations(kind)):
        with closing(Worker()) as worker:
            tried = worker.call("try_plugins")["problems"]
        failed |= _printed([Problem(*each) for each in tried])
    if failed:
        raise typer.Exit(1)
    count = sum(len(list(host().registrations(kind))) for kind in HOOKS)
    stdout.print(f"[green]Valid:[/] {count} plugins from {len(host().sources)} modules and files.")


def _printed(found: list[Problem]) -> bool:
    """Print problems; returns whether there are any."""
    for problem in found:
        stdout.print(escape(str(problem)), soft_wrap=True)
    return bool(found)
