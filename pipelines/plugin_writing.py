"""`torchyard plugins new`: a plugin file that works at once, and its test."""

from __future__ import annotations

import ast
import importlib.util
import keyword
import os
import re
import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from core.errors import UserError, suggestion
from core.host import HOOKS, host
from core.parameters import KINDS
from core.plugin_sources import DEFAULT_FOLDER, PLUGIN_FOLDERS
from pipelines.display import stdout

TEMPLATES = Path(__file__).parent / "plugin_templates"


def new_plugin(
    kind: Annotated[str, typer.Argument(metavar="KIND", help=f"one of: {', '.join(HOOKS)}")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="e.g. small_net")],
    folder: Annotated[Path, typer.Option(help="where to; this one is loaded by itself")] = Path(
        DEFAULT_FOLDER
    ),
) -> None:
    """Write a plugin that works at once, to be changed, and its test beside it."""
    plugin, test = write(kind, name, folder)
    prefix = ""
    if folder.absolute() != Path(DEFAULT_FOLDER).absolute():
        prefix = f"{PLUGIN_FOLDERS}={shlex.quote(str(folder))} "
    key = "augmentations" if kind == "augmentation" else kind
    value = f"[{name}]" if kind == "augmentation" else name
    stdout.print(f"Written: {escape(str(plugin))} and {escape(str(test))}. Next:\n", soft_wrap=True)
    for command in (
        f"{prefix}torchyard plugins check",
        f"python -m pytest {shlex.quote(str(test))}",
        f"{prefix}torchyard run digits {shlex.quote(f'{key}={value}')}",
    ):
        stdout.print(f"  {escape(command)}", soft_wrap=True)


def write(kind: str, name: str, folder: Path) -> tuple[Path, Path]:
    """Write the plugin and its test; nothing that is there is changed.

    Args:
        kind: of the plugin.
        name: in lower case, as in a configuration; the class is named after it.
        folder: made if need be.

    Returns:
        The two files.

    Raises:
        UserError: no such kind, the name is not usable or taken, a file is there already, or
            the folder cannot be written to.
    """
    if kind not in HOOKS:
        raise UserError(f"no kind named '{kind}'.{suggestion(kind, list(HOOKS))}")
    usable = re.fullmatch("[a-z][a-z0-9_]*", name) and not keyword.iskeyword(name)
    if not usable or name == "conftest" or name.startswith("test_"):
        near = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
        near = near.removeprefix("test_").lstrip("0123456789_") or f"my_{kind}"
        near = f"{near}_{kind}" if keyword.iskeyword(near) or near == "conftest" else near
        raise UserError(
            f"'{name}' is no name for a plugin. Did you mean '{near}'?  (accepts: a-z, 0-9 and _, "
            "a letter first; no word of Python's, and not test_… or conftest, which are tests)"
        )
    if importlib.util.find_spec(name):
        # Its test, run from that folder, would import the plugin in the module's stead.
        raise UserError(f"'{name}' is the name of a Python module. Did you mean '{name}_{kind}'?")
    if name in dict(host().listed(kind)):
        raise UserError(f"there is a {kind} named '{name}' already: choose another name")
    plugin, test = folder / f"{name}.py", folder / f"test_{name}.py"
    there = [str(file) for file in (plugin, test) if os.path.lexists(file)]
    if there:
        raise UserError(f"{file} is there already, and is left as it is" for file in there)
    text = (TEMPLATES / f"{kind}.py").read_text("utf-8")
    class_name = _class_name(kind, name, text)
    text = text.replace("NewThing", class_name).replace("new_thing", name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in ((plugin, text), (test, _test(kind, name, class_name))):
            with file.open("x", encoding="utf-8") as new:
                new.write(content)
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {error.strerror or error}") from error
    return plugin, test


def _class_name(kind: str, name: str, text: str) -> str:
    """`SmallNet` of `small_net`; `PathDataset` where the file means something else by `Path`."""
    camel = "".join(word.capitalize() for word in name.split("_"))
    taken = {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}
    taken |= {
        alias.name for node in ast.walk(ast.parse(text)) for alias in getattr(node, "names", ())
    }
    taken |= {KINDS[kind].__name__}
    return camel + kind.capitalize() if keyword.iskeyword(camel) or camel in taken else camel


def _test(kind: str, name: str, class_name: str) -> str:
    base, assertion = KINDS[kind].__name__, f"assert_{kind}_plugin"
    argument, values = ("tmp_path: Path", "(), tmp_path") if kind == "dataset" else ("", "()")
    return f'''"""Tests of the {kind} `{name}`, with torchyard's own kit."""

from pathlib import Path

from core import {base}
from core.plugin_tests import {assertion}, plugin_in_file

{class_name} = plugin_in_file(Path(__file__).with_name("{name}.py"), {base}, "{name}")


def test_it_does_what_a_{kind}_must({argument}) -> None:
    {assertion}({class_name}{values})
'''
