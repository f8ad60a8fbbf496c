"""Settings as they are written: YAML files, and the values of overrides."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from core.errors import UserError


def read_settings(file: Path) -> dict[str, Any]:
    """The settings in a YAML file.

    Raises:
        UserError: it cannot be read, holds no settings, or sets something twice.
    """
    try:
        text = file.read_text(encoding="utf-8")
        loaded = yaml.safe_load(text)
        twice = list(_set_twice(yaml.compose(text, yaml.SafeLoader)))
    except (yaml.YAMLError, ValueError, RecursionError, OSError) as error:
        raise UserError(f"{file}: cannot be read: {' '.join(str(error).split())}") from None
    if twice:
        raise UserError(f"{file}, line {line}: {problem}" for line, problem in twice)
    if not isinstance(loaded, dict):
        raise UserError(f"{file}: must hold settings such as 'model: {{name: lenet}}'")
    return loaded


def parse_value(text: str) -> Any:
    """The value of an override: lists, mappings and none; any other stays text."""
    # Scalars stay text: pydantic turns them into the type the parameter has, so that a
    # path named 'no' or '1e3' is not taken for something else as YAML would.
    if text.lower() in ("none", "null"):
        return None
    if text.startswith(("[", "{")):
        try:
            return yaml.safe_load(text)
        # yaml raises ValueError for a day or a number there is not.
        except (yaml.YAMLError, ValueError, RecursionError):
            return text
    return text


def _set_twice(node: yaml.Node | None, path: str = "") -> Iterator[tuple[int, str]]:
    """The keys that a mapping has more than once: YAML takes the last, without a word."""
    if isinstance(node, yaml.SequenceNode):
        for at, item in enumerate(node.value):
            yield from _set_twice(item, f"{path}{at}.")
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if isinstance(key, yaml.ScalarNode):
            if key.value in lines:
                yield line, f"'{path}{key.value}' is set already, in line {lines[key.value]}"
            lines.setdefault(key.value, line)
            yield from _set_twice(value, f"{path}{key.value}.")
