"""Settings as they are written: presets, YAML files, and `key=value` overrides of them."""

from __future__ import annotations

import copy
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from torchyard.core.config.schema import SINGLE_KINDS, shared_settings
from torchyard.core.errors import UserError, nearest_file, suggestion

# Of a YAML document; a configuration that a person wrote has a hundredth of each.
MOST_BYTES = 1 << 20
MOST_VALUES = 20_000
MOST_DEPTH = 30
TOO_MANY = f"it has more than {MOST_VALUES:,} values, counting those its aliases stand for"
TOO_DEEP = f"it is more than {MOST_DEPTH} levels deep"


def read_overridden(
    source: str | Mapping[str, Any], overrides: Sequence[str | Mapping[str, Any]], presets: Path
) -> tuple[dict[str, Any], list[str]]:
    """Read a preset or a YAML file, and apply overrides to it.

    Args:
        source: of the settings; or the settings themselves.
        overrides: "key=value", or mappings such as {"optimizer.lr": 0.1, "train": {"epochs": 2}}.

    Returns:
        The settings, and the problems with the overrides that are left out.

    Raises:
        UserError: the file cannot be read; with the malformed overrides, too.
    """
    problems: list[str] = []
    assignments = []
    while split := _split_by_shell(overrides):
        first, end, problem = split
        problems.append(problem)
        overrides = [*overrides[:first], *overrides[end:]]
    for override in overrides:
        if isinstance(override, Mapping):
            for path, value in _settings_of(override):
                if all(part.isidentifier() for part in path):
                    assignments.append((path, value))
                else:
                    problems.append(f"{'.'.join(path)!r} is not a key such as 'train.epochs'")
            continue
        key, separator, value = override.partition("=")
        if not separator or not all(part.isidentifier() for part in key.split(".")):
            problems.append(f"'{override}' is not of the form key=value, e.g. train.epochs=3")
            continue
        assignments.append((_path(key), parse_value(value)))
    try:
        if isinstance(source, Mapping):
            settings = plain(source)
        else:
            settings = read_settings(_find_source(source, presets))
    except UserError as error:
        raise UserError(error.problems + problems) from None
    # A file may write `optimizer.lr: 0.1`, as the command line does.
    dotted = [key for key in settings if len(path := str(key).split(".")) > 1 and all(path)]
    assignments = [(_path(key), settings.pop(key)) for key in dotted] + assignments
    return settings, problems + _assign_all(settings, assignments)


def _split_by_shell(words: Sequence[Any]) -> tuple[int, int, str] | None:
    """Where a list was not quoted, and the shell made several words of it.

    Returns:
        The first of the words, the one behind the last, and what to write.
    """
    for first, word in enumerate(words):
        key, _, value = str(word).partition("=")
        if not isinstance(word, str) or not value.startswith(("[", "{")):
            continue
        for end in range(first + 1, len(words) + 1):
            text = " ".join(map(str, words[first:end]))
            if sum(map(text.count, "[{")) <= sum(map(text.count, "]}")):
                if end == first + 1:
                    break
                quoted = shlex.quote(text)
                return first, end, f"{key}: the shell split it at its spaces: quote it, {quoted}"
    return None


def _path(key: str) -> list[str]:
    path = key.split(".")
    return [*path, "name"] if len(path) == 1 and key in SINGLE_KINDS else path


def _settings_of(overrides: Mapping[str, Any]) -> Iterator[tuple[list[str], Any]]:
    """The path and value of each setting; a section sets only what it names."""
    for key, value in overrides.items():
        if isinstance(value, Mapping) and "." not in str(key):
            for inner, each in value.items():
                yield [str(key), *str(inner).split(".")], plain(each)
        else:
            yield _path(str(key)), plain(value)


def plain(value: Any) -> Any:
    """A value of Python or numpy as a configuration file would have it."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(each) for each in value]
    if isinstance(value, Path):
        return str(value)
    return value.tolist() if hasattr(value, "tolist") else value  # numpy's and torch's


def with_values(
    settings: Mapping[str, Any], values: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """A copy of settings with values in their places, by their keys: {"optimizer.lr": 0.1}.

    A text is read as that of an override is.

    Returns:
        The settings, and the problems with the values that are left out.
    """
    changed = copy.deepcopy(dict(settings))
    assignments = [
        (_path(key), parse_value(value) if isinstance(value, str) else value)
        for key, value in values.items()
    ]
    return changed, _assign_all(changed, assignments)


def _assign_all(settings: dict[str, Any], assignments: list[tuple[list[str], Any]]) -> list[str]:
    """Put values into their places; returns the problems with those that are left out."""
    problems: list[str] = []
    # Names first, wherever they are on the line: they decide which parameters the others set.
    for path, value in sorted(assignments, key=lambda item: item[0][1:] != ["name"]):
        try:
            _assign(settings, path, value)
        except UserError as error:
            problems += error.problems
    return problems


def preset_names(presets: Path) -> list[str]:
    """The names of the presets in a folder."""
    return sorted(file.stem for file in presets.glob("*.yaml"))


def read_settings(file: Path) -> dict[str, Any]:
    """The settings in a YAML file.

    Raises:
        UserError: it cannot be read, holds no settings, or sets something twice.
    """
    try:
        with file.open("rb") as opened:
            content = opened.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
        text = content.decode("utf-8")
    except (ValueError, OSError) as error:
        raise UserError(f"{file}: cannot be read: {error}") from None
    return settings_in(text, str(file))


def settings_in(text: str, where: str) -> dict[str, Any]:
    """The settings in a YAML document.

    Args:
        where: it is from, for messages.

    Raises:
        UserError: it is no YAML, holds no settings, or sets something twice.
    """
    try:
        loaded, duplicates = _load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{where}: cannot be read: {' '.join(str(error).split())}") from None
    if duplicates:
        raise UserError(f"{where}, line {line}: {problem}" for line, problem in duplicates)
    if not isinstance(loaded, dict):
        raise UserError(f"{where}: must hold settings such as 'model: {{name: lenet}}'")
    return loaded


def parse_value(text: str) -> Any:
    """The value of an override: lists, mappings and none are parsed, all else stays text."""
    # Scalars stay text: pydantic converts them to the parameter's type, so that a path named
    # 'no' or '1e3' is not read as something else, as YAML would.
    if text.lower() in ("none", "null"):
        return None
    if text.startswith(("[", "{")):
        try:
            return _load(text)[0]
        except (yaml.YAMLError, ValueError):
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
        if file.exists():
            raise UserError(f"{source}: is not a file.")
        raise UserError(f"{source}: no such file.{nearest_file(file, '*.y*ml')}")
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


class _Loader(yaml.SafeLoader):
    """YAML of what JSON has, too: numbers, texts, true, false, null, lists, mappings.

    A date is a text, and so is every key, as it is written: a configuration is recorded as JSON.
    """

    composed = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.composed += 1  # counted here, too: to read all of a huge document takes minutes
        if self.composed > MOST_VALUES:
            raise ValueError(TOO_MANY)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        self.flatten_mapping(node)
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                key.tag = "tag:yaml.org,2002:str"
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [pair for pair in resolvers if pair[0] != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.yaml_constructors = {
    tag: constructor
    for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
    if str(tag).rpartition(":")[2] not in ("binary", "timestamp", "omap", "pairs", "set")
}


def _load(text: str) -> tuple[Any, list[tuple[int, str]]]:
    """What a YAML document holds, and the line and problem of each key that is set twice.

    Raises:
        yaml.YAMLError, ValueError: it is none, too deep, or its aliases stand for too much.
    """
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None, []
        values, depth = _extent(root, {})
        if depth > MOST_DEPTH:
            raise ValueError(TOO_DEEP)
        if values > MOST_VALUES:
            raise ValueError(TOO_MANY)
        duplicates = list(_duplicate_keys(root))  # before merged keys (<<) are added
        return loader.construct_document(root), duplicates
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    finally:
        loader.dispose()


def _extent(node: yaml.Node, known: dict[yaml.Node, tuple[float, float]]) -> tuple[float, float]:
    """How many values a node has, written out, and how deep it is; infinite if it holds itself."""
    if node not in known:
        known[node] = (math.inf, math.inf)
        inner = [] if isinstance(node, yaml.ScalarNode) else list(node.value)
        if isinstance(node, yaml.MappingNode):
            inner = [each for pair in node.value for each in pair]
        extents = [_extent(each, known) for each in inner]
        known[node] = (
            1 + sum(values for values, _ in extents),
            1 + max((depth for _, depth in extents), default=0),
        )
    return known[node]


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
