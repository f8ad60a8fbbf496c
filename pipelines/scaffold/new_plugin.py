"""`torchyard plugins new`: a plugin file that works as it is, and its test."""

from __future__ import annotations

import ast
import importlib.util
import keyword
import os
import re
import shlex
from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.markup import escape

from torchyard.core.errors import UserError, suggestion
from torchyard.core.hosting.hookspecs import HOOKS
from torchyard.core.hosting.host import host
from torchyard.core.hosting.params import KINDS
from torchyard.core.hosting.sources import DEFAULT_FOLDER, PLUGIN_FOLDERS
from torchyard.pipelines.display import stdout
from torchyard.pipelines.scaffold.package import (
    TEMPLATES,
    package_folder,
    plugin_files,
    setting_of,
)


def new_plugin(
    kind: Annotated[str, typer.Argument(metavar="KIND", help=f"one of: {', '.join(HOOKS)}")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="e.g. small_net")],
    folder: Annotated[
        Optional[Path],  # noqa: UP045 - typer reads the annotation
        typer.Option(
            help=f"where to write; default: {DEFAULT_FOLDER}, which is always loaded, "
            "and for a package the working folder"
        ),
    ] = None,
    package: Annotated[
        bool, typer.Option("--package", help="write a distribution to install, in its own folder")
    ] = False,
) -> None:
    """Write a plugin that works as it is, for you to change, and its test beside it."""
    folder = folder or Path("." if package else DEFAULT_FOLDER)
    written = write(kind, name, folder, package=package)
    test = shlex.quote(str(next(file for file in written if file.name.startswith("test_"))))
    chosen = shlex.quote(setting_of(kind, name))
    chosen += " promote.model=digits" if kind == "gate" else ""
    commands = ["torchyard plugins check", f"python -m pytest {test}"]
    commands.append(f"torchyard run digits {chosen}")
    if package:
        commands.insert(0, f"python -m pip install -e {shlex.quote(str(written[0].parent))}")
    elif folder.absolute() != Path(DEFAULT_FOLDER).absolute():
        setting = f"{PLUGIN_FOLDERS}={shlex.quote(str(folder))}"
        commands[0], commands[2] = f"{setting} {commands[0]}", f"{setting} {commands[2]}"
    files = " and ".join(map(str, written)) if not package else written[0].parent
    stdout.print(f"Written: {escape(str(files))}. Next:\n", soft_wrap=True)
    for command in commands:
        stdout.print(f"  {escape(command)}", soft_wrap=True)


def write(kind: str, name: str, folder: Path, *, package: bool = False) -> list[Path]:
    """Write the plugin and its test; existing files are not changed.

    Args:
        kind: of the plugin.
        name: in lower case, as in a configuration; the class is named after it.
        folder: created if it does not exist.
        package: whether to write a distribution (`pipelines/scaffold/package.py`).

    Returns:
        The files; the first is the plugin's, or the package's pyproject.toml.

    Raises:
        UserError: no such kind, an unusable or taken name, an existing file, or a folder that
            cannot be written to.
    """
    _check_name(kind, name)
    text = (TEMPLATES / f"{kind}.py").read_text("utf-8")
    class_name = _class_name(kind, name, text)
    text = text.replace("NewThing", class_name).replace("new_thing", name)
    inside = plugin_files(kind, name, class_name, text, package=package)
    files = {folder / path: content for path, content in inside.items()}
    targets = [folder / package_folder(name)] if package else list(files)
    existing = {path for path in targets if os.path.lexists(path)}
    if existing:
        raise UserError(f"{path} exists already, and is not changed" for path in sorted(existing))
    try:
        for file, content in files.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("x", encoding="utf-8") as new:
                new.write(content)
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {error.strerror or error}") from error
    return list(files)


def _check_name(kind: str, name: str) -> None:
    if kind not in HOOKS:
        raise UserError(f"no kind named '{kind}'.{suggestion(kind, list(HOOKS))}")
    usable = re.fullmatch("[a-z][a-z0-9_]*", name) and not keyword.iskeyword(name)
    if not usable or name == "conftest" or name.startswith("test_"):
        near = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
        near = near.removeprefix("test_").lstrip("0123456789_") or f"my_{kind}"
        near = f"{near}_{kind}" if keyword.iskeyword(near) or near == "conftest" else near
        raise UserError(
            f"'{name}' is not a plugin name. Did you mean '{near}'?  (accepts: a-z, 0-9 and _, "
            "a letter first; no keyword of Python, not test_… or conftest, which are tests)"
        )
    if importlib.util.find_spec(name):
        # Tests that run in that folder would import the plugin in place of the module.
        raise UserError(f"'{name}' is the name of a Python module. Did you mean '{name}_{kind}'?")
    if name in dict(host().listed(kind)):
        raise UserError(f"there is a {kind} named '{name}' already: choose another name")


def _class_name(kind: str, name: str, text: str) -> str:
    """`SmallNet` for `small_net`; `PathDataset` where the file uses `Path` already."""
    camel = "".join(word.capitalize() for word in name.split("_"))
    nodes = list(ast.walk(ast.parse(text)))
    taken = {node.id for node in nodes if isinstance(node, ast.Name)} | {KINDS[kind].__name__}
    taken |= {alias.name for node in nodes for alias in getattr(node, "names", ())}
    return camel + kind.capitalize() if keyword.iskeyword(camel) or camel in taken else camel
