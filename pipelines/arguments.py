"""What the commands' arguments mean: presets, plugins by name, and `key=value`."""

from __future__ import annotations

from pathlib import Path

from core.config import Recipe, read_recipe
from core.errors import UserError
from core.host import HOOKS, host

PRESETS = Path(__file__).parent / "presets"
DEFAULT_PRESET = "digits"


def preset_recipe(source: str | None, overrides: list[str] | None) -> Recipe:
    """Read and resolve what the arguments say; a first argument with '=' is an override."""
    arguments = [*([source] if source else []), *(overrides or [])]
    start = DEFAULT_PRESET if not arguments or "=" in arguments[0] else arguments.pop(0)
    return read_recipe(start, arguments, PRESETS, host())


def plugin_recipe(kind: str, name: str, parameters: list[str] | None, *more: str) -> Recipe:
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
    return read_recipe(DEFAULT_PRESET, overrides, PRESETS, host())
