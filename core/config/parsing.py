"""Settings as they are written: YAML files, and the values of overrides."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from torchyard.core.errors import UserError


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


REFERENCE = re.compile(r"env:([A-Za-z_][A-Za-z0-9_]*)")
_NAMES = "password|passwd|passphrase|secret|token|api_?key|access_?key|private_?key|credentials?"


def is_secret(name: str) -> bool:
    """Whether a parameter of that name holds a secret: `token` and `hub_token`, not `tokens`."""
    return re.search(rf"(^|_)({_NAMES})$", name.lower()) is not None


def references(settings: Mapping[str, Any]) -> dict[str, str]:
    """The secrets among some settings, as they are written; none that is not a text."""
    return {
        name: value
        for name, value in settings.items()
        if is_secret(name) and isinstance(value, str) and value
    }


def revealed(where: str, settings: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
    """The secrets that the environment holds, and what is wrong with naming them."""
    found, problems = {}, []
    for name, written in references(settings).items():
        reference = REFERENCE.fullmatch(written)
        if reference is None:
            problems.append(
                f"{where}.{name}: is a secret, and what is in a configuration is recorded: give "
                f"the environment variable that holds it, {where}.{name}=env:NAME"
            )
        elif reference[1] not in os.environ:
            problems.append(f"{where}.{name}: the environment variable {reference[1]} is not set")
        else:
            found[name] = os.environ[reference[1]]
    return found, problems
