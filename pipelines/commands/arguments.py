"""What the commands' arguments mean: presets, plugins by name, and `key=value`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from torchyard.core.config.resolve import ResolvedConfig, preset_names, read_config
from torchyard.core.errors import UserError
from torchyard.core.hosting.hookspecs import HOOKS
from torchyard.core.hosting.manager import host

PRESETS = Path(__file__).parents[1] / "presets"
DEFAULT_PRESET = "digits"

Source = Annotated[
    Optional[str],  # noqa: UP045 - typer reads the annotation
    typer.Argument(
        metavar="[PRESET|FILE.yaml]",
        help=f"{', '.join(preset_names(PRESETS))}, or a file. \\[default: digits]",
    ),
]
Overrides = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Argument(metavar="[KEY=VALUE]...", help="e.g. model=resnet18 optimizer.lr=0.01"),
]


def preset_config(source: str | None, overrides: list[str] | None) -> ResolvedConfig:
    """Read and resolve what the arguments say; a first argument with '=' is an override."""
    arguments = [*([source] if source else []), *(overrides or [])]
    start = start_of(source)
    return read_config(start, arguments[start == source :], PRESETS, host())


def start_of(source: str | None) -> str:
    """The preset or file that a first argument names; the default one where it is an override."""
    return source if source and "=" not in source else DEFAULT_PRESET


def plugin_recipe(kind: str, name: str, parameters: list[str] | None, *more: str) -> ResolvedConfig:
    """A configuration with that plugin, whose parameters need no prefix.

    Args:
        kind, name: the plugin.
        parameters: `key=value`; one that begins with a kind ("dataset.path=…") is of that.
        more: whole overrides, which come first.

    Raises:
        UserError: with all that is wrong.
    """
    overrides = [*more, f"{kind}={name}"]
    for parameter in parameters or []:
        first, dot, _ = parameter.partition("=")[0].partition(".")
        if "=" not in parameter:
            raise UserError(f"'{parameter}' is not of the form key=value")
        overrides.append(parameter if dot and first in HOOKS else f"{kind}.{parameter}")
    return read_config(DEFAULT_PRESET, overrides, PRESETS, host())
