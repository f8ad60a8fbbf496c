"""Settings as they are written: presets, YAML files, and `key=value` overrides of them."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from torchyard.core.config.schema import SINGLE_KINDS, shared_settings
from torchyard.core.errors import UserError, suggestion


def read_overridden(
    source: str, overrides: Sequence[str], presets: Path
) -> tuple[dict[str, Any], list[str]]:
    """Read a preset or a YAML file, and apply `key=value` overrides to it.

    Returns:
        The settings, and the problems with the overrides that are left out.

    Raises:
        UserError: the file cannot be read; with the malformed overrides, too.
    """
    problems: list[str] = []
    assignments = []
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator or not all(part.isidentifier() for part in key.split(".")):
            problems.append(f"'{override}' is not of the form key=value, e.g. train.epochs=3")
            continue
        path = key.split(".")
        if path[0] in SINGLE_KINDS and len(path) == 1:
            path.append("name")
        assignments.append((path, parse_value(value)))
    try:
        settings = read_settings(_find_source(source, presets))
    except UserError as error:
        raise UserError(error.problems + problems) from None
    # Names first, wherever they are on the line: they decide which parameters the others set.
    for path, value in sorted(assignments, key=lambda item: item[0][1:] != ["name"]):
        try:
            _assign(settings, path, value)
        except UserError as error:
            problems += error.problems
    return settings, problems


def preset_names(presets: Path) -> list[str]:
    """The names of the presets in a folder."""
    return sorted(file.stem for file in presets.glob("*.yaml"))


def read_settings(file: Path) -> dict[str, Any]:
    """The settings in a YAML file.

    Raises:
        UserError: it cannot be read, holds no settings, or sets something twice.
    """
    try:
        text = file.read_text(encoding="utf-8")
        loaded = yaml.safe_load(text)
        duplicates = list(_duplicate_keys(yaml.compose(text, yaml.SafeLoader)))
    except (yaml.YAMLError, ValueError, RecursionError, OSError) as error:
        raise UserError(f"{file}: cannot be read: {' '.join(str(error).split())}") from None
    if duplicates:
        raise UserError(f"{file}, line {line}: {problem}" for line, problem in duplicates)
    if not isinstance(loaded, dict):
        raise UserError(f"{file}: must hold settings such as 'model: {{name: lenet}}'")
    return loaded


def parse_value(text: str) -> Any:
    """The value of an override: lists, mappings and none are parsed, all else stays text."""
    # Scalars stay text: pydantic converts them to the parameter's type, so that a path named
    # 'no' or '1e3' is not read as something else, as YAML would.
    if text.lower() in ("none", "null"):
        return None
    if text.startswith(("[", "{")):
        try:
            return yaml.safe_load(text)
        # yaml raises ValueError for a date or a number that does not exist.
        except (yaml.YAMLError, ValueError, RecursionError):
            return text
    return text


def as_section(value: Any, key: str = "name") -> Any:
    """Let `model: lenet` stand for `model: {name: lenet}`."""
    return {key: value} if isinstance(value, str) else value


def _find_source(source: str, presets: Path) -> Path:
    names = preset_names(presets)
    if source in names:
        return presets / f"{source}.yaml"
    file = Path(source)
    if file.suffix in (".yaml", ".yml") or len(file.parts) > 1:
        if file.is_file():
            return file
        siblings = [str(sibling) for sibling in file.parent.glob("*.y*ml")]
        nearest = difflib.get_close_matches(str(file), siblings, n=1)
        hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
        raise UserError(f"{source}: no such file.{hint}")
    raise UserError(f"no preset named '{source}'.{suggestion(source, names)}")


def _assign(settings: dict[str, Any], path: list[str], value: Any) -> None:
    *parents, last = path
    if parents and parents[0] in SINGLE_KINDS and last == "name" and len(path) == 2:
        section = as_section(settings.get(parents[0], {}))
        if isinstance(section, dict) and section.get("name") != value:
            shared = shared_settings(parents[0])
            settings[parents[0]] = {key: section[key] for key in section if key in shared}
    for parent in parents:
        if settings.get(parent) is None:
            settings[parent] = {}
        inner = as_section(settings[parent], "model" if parent == "promote" else "name")
        if not isinstance(inner, dict):
            raise UserError(f"{'.'.join(path)}: '{parent}' is a single value, not a section")
        settings[parent] = inner
        settings = inner
    settings[last] = value


def _duplicate_keys(node: yaml.Node | None, path: str = "") -> Iterator[tuple[int, str]]:
    """The line and problem of each key that a mapping has twice: YAML silently takes the last."""
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _duplicate_keys(item, f"{path}{index}.")
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if isinstance(key, yaml.ScalarNode):
            if key.value in lines:
                yield line, f"'{path}{key.value}' is set already, in line {lines[key.value]}"
            lines.setdefault(key.value, line)
            yield from _duplicate_keys(value, f"{path}{key.value}.")
