"""The arguments that commands share: presets or files, and `key=value` overrides."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from torchyard.core.config.parsing import preset_names
from torchyard.core.config.resolve import ResolvedConfig, read_config
from torchyard.core.errors import UserError
from torchyard.core.hosting.hookspecs import HOOKS
from torchyard.core.hosting.host import host

PRESETS = Path(__file__).parents[1] / "presets"
DEFAULT_PRESET = "digits"

PresetOrFile = Annotated[
    str | None,
    typer.Argument(
        metavar="[PRESET|FILE.yaml]",
        help=f"{', '.join(preset_names(PRESETS))}, or a file. \\[default: digits]",
    ),
]
RunName = Annotated[
    str, typer.Argument(metavar="RUN", help="an id, a name, latest, best, champion, MODEL@ALIAS")
]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="e.g. model=resnet18 optimizer.lr=0.01"),
]


def preset_config(source: str | None, overrides: list[str] | None) -> ResolvedConfig:
    """Read and resolve a configuration; a first argument with '=' is an override."""
    arguments = [*([source] if source else []), *(overrides or [])]
    start = preset_or_file(source)
    return read_config(start, arguments[start == source :], PRESETS, host())


def preset_or_file(source: str | None) -> str:
    """What the first argument names; the default preset where it is an override."""
    return source if source and "=" not in source else DEFAULT_PRESET


def plugin_config(kind: str, name: str, parameters: list[str] | None, *more: str) -> ResolvedConfig:
    """Resolve the default preset with one plugin, whose parameters need no prefix.

    Args:
        kind, name: of the plugin.
        parameters: `key=value`; a key that begins with a kind ("dataset.path") has its prefix.
        more: whole overrides, which come first.

    Raises:
        UserError: with every problem found.
    """
    overrides = [*more, f"{kind}={name}"]
    for parameter in parameters or []:
        first, dot, _ = parameter.partition("=")[0].partition(".")
        if "=" not in parameter:
            raise UserError(f"'{parameter}' is not of the form key=value")
        overrides.append(parameter if dot and first in HOOKS else f"{kind}.{parameter}")
    return read_config(DEFAULT_PRESET, overrides, PRESETS, host())
