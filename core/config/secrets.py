"""Secrets among the settings: a configuration is recorded, so it only says where they are."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from torchyard.core.redaction import NAMES, keep_secret

_REFERENCE = re.compile(r"env:([A-Za-z_][A-Za-z0-9_]*)")

UNMISTAKABLE = 8  # characters; a shorter secret may be a word that a setting has by chance

_Path: TypeAlias = tuple[str | int, ...]


def is_secret(name: str) -> bool:
    """Whether a parameter of that name holds a secret: `token` and `hub_token`, not `tokens`."""
    return re.search(rf"(^|_)({NAMES})$", name.lower()) is not None


def read_secrets(section: str, settings: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Settings with their secrets, at any depth, from the environment; and what is wrong."""
    read: dict[str, Any] = dict(settings)
    problems = []
    for path, written in _secrets(settings):
        reference = _REFERENCE.fullmatch(written)
        name = ".".join(map(str, (section, *path)))
        if reference is None:
            keep_secret(written)
            problems.append(
                f"{name}: is a secret, and what is in a configuration is recorded: give "
                f"the environment variable that holds it, {name}=env:NAME"
            )
        elif reference[1] not in os.environ:
            problems.append(f"{name}: the environment variable {reference[1]} is not set")
        else:
            keep_secret(os.environ[reference[1]])
            read = _replaced(read, path, os.environ[reference[1]])
    return read, problems


def recordable(typed: Mapping[str, Any], written: Mapping[str, Any]) -> dict[str, Any]:
    """The plain values of typed settings, with each secret as it was `written`: a reference."""
    plain: Any = typed
    for path, reference in _secrets(written):
        plain = _replaced(plain, path, reference)
        if (secret := os.environ[reference.removeprefix("env:")]) and len(secret) >= UNMISTAKABLE:
            plain = _without(plain, secret, reference)
    return dict(plain)


def _without(value: Any, secret: str, reference: str) -> Any:
    """A copy without a secret that a plugin's own type or validator has put elsewhere."""
    if isinstance(value, str):
        return value.replace(secret, reference)
    if isinstance(value, Mapping):
        return {key: _without(each, secret, reference) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without(each, secret, reference) for each in value]
    return value


def _secrets(value: Any, path: _Path = (), secret: bool = False) -> Iterator[tuple[_Path, str]]:
    """The place and the text of each secret; empty ones and other types are none."""
    if isinstance(value, str) and value and secret:
        yield path, value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from _secrets(each, (*path, key), secret or is_secret(str(key)))
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for index, each in enumerate(value):
            yield from _secrets(each, (*path, index), secret)


def _replaced(value: Any, path: _Path, text: str) -> Any:
    """A copy of nested values with a text at that place; where they have none, unchanged."""
    if not path:
        return text
    first, *rest = path
    if isinstance(value, Mapping) and first in value:
        return {**value, first: _replaced(value[first], tuple(rest), text)}
    if isinstance(value, Sequence) and isinstance(first, int) and first < len(value):
        changed = _replaced(value[first], tuple(rest), text)
        return [*value[:first], changed, *value[first + 1 :]]
    return value
