"""Messages about settings: what is wrong, what is accepted, and the nearest right name."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from torchyard.core.config.secrets import is_secret
from torchyard.core.errors import did_you_mean, suggestion

MOST_SHOWN = 100  # characters of a value that is refused

_WORDING = {
    "tuple_type": "must be a list, e.g. [1,2]",
    "model_type": "must be a section of settings, e.g. {epochs: 3}",
}


def explain(
    error: ValidationError, model: type[BaseModel], prefix: str = "", owner: str = ""
) -> Iterable[str]:
    """A line for each problem in validating `model`, whose settings are at `prefix`.

    `owner` names the plugin they belong to, as messages do: " of 'sgd'".
    """
    reasons: dict[str, list[str]] = {}
    inputs: dict[str, str] = {}
    for problem in error.errors():
        path, section = problem["loc"], [prefix] if prefix else []
        # For a union pydantic reports the problem of each member, whose name is in the path.
        location = section + [
            str(part)
            for depth, part in enumerate(path)
            if not depth or isinstance(part, int) or part in _fields_at(model, path[:depth])
        ]
        if problem["type"] == "extra_forbidden":
            location = section + [str(part) for part in path]
            noun = "parameter" if prefix else "setting"
            reason = f"unknown {noun}{owner}.{_nearest(model, location, path)}"
        elif problem["type"] == "missing":
            reason = "is missing"
        elif (union := _union_at(model, path)) and problem["type"] != "value_error":
            depth, field = union
            location = section + [str(part) for part in path[:depth]]
            reason = f"must be {accepted(field)}"
            if len(path) == depth + 1 and not any(map(is_secret, location)):  # of the whole value
                inputs[".".join(location)] = f", not {_shown(problem['input'])}"
        else:
            # The first half of "must be a valid integer, unable to parse string as an integer".
            reason = problem["msg"].removeprefix("Value error, ").partition(", unable to")[0]
            reason = _WORDING.get(problem["type"], reason.replace("Input should be", "must be"))
            one_value = problem["type"] != "value_error" and not isinstance(problem["input"], dict)
            if one_value and not any(map(is_secret, location)):
                inputs[".".join(location)] = f", not {_shown(problem['input'])}{_meant(problem)}"
        reasons.setdefault(".".join(location), []).append(reason)
    for setting, alternatives in reasons.items():
        message = " or ".join(dict.fromkeys(alternatives)) + inputs.get(setting, "")
        yield f"{setting}: {message}" if setting else message


def _meant(problem: Mapping[str, Any]) -> str:
    """The nearest of the names that a setting accepts, as a question."""
    if problem["type"] != "literal_error" or not isinstance(problem["input"], str):
        return ""
    names = re.findall(r"'([^']*)'", problem["ctx"]["expected"])
    hint = did_you_mean(problem["input"], names)
    return hint and f".{hint}"


def _shown(value: Any) -> str:
    written = repr(value)
    return written if len(written) <= MOST_SHOWN else f"{written[:MOST_SHOWN]}…"


def _union_at(model: type[BaseModel], path: tuple[int | str, ...]) -> tuple[int, FieldInfo] | None:
    """The field of several types that a problem is in, and how many parts of the path lead to it.

    Behind them pydantic names the type.
    """
    for depth, part in enumerate(path[1:], start=1):
        fields = _model_at(model, path[: depth - 1])
        field = fields.model_fields.get(str(path[depth - 1])) if fields else None
        if field and isinstance(part, str) and not _model_at(model, path[:depth]):
            return depth, field
    return None


def _nearest(model: type[BaseModel], location: list[str], within: tuple[int | str, ...]) -> str:
    """The nearest setting, as it is written in a command, and all that are accepted."""
    fields = list(_fields_at(model, within[:-1]))
    *sections, name = ".".join(location).split(".")
    # A command writes a list as one value: its items have no keys.
    within_list = any(section.isdecimal() for section in sections)
    prefix = "" if within_list else "".join(f"{section}." for section in sections)
    nearby = {field: f"{prefix}{field}" for field in fields}
    if not sections:  # the setting of a section may be meant
        nearby |= {
            inner: f"{section}.{inner}"
            for section in fields
            for inner in _fields_at(model, (section,))
            if inner not in nearby
        }
    return suggestion(name, fields, nearby)


def _fields_at(model: type[BaseModel], location: tuple[int | str, ...]) -> Iterable[str]:
    """The names of the settings in the section at that path; none where it is no section."""
    section = _model_at(model, location)
    return section.model_fields if section else ()


def _model_at(model: type[BaseModel], location: tuple[int | str, ...]) -> type[BaseModel] | None:
    """The section at that path; None where it is no section."""
    for part in location:
        if isinstance(part, int):  # an item of a list of sections
            continue
        field = model.model_fields.get(part)
        annotation = field.annotation if field else None
        sections = [
            member
            for member in (annotation, *get_args(annotation))
            if isinstance(member, type) and issubclass(member, BaseModel)
        ]
        if not sections:
            return None
        model = sections[0]
    return model


_TYPES = {int: "integer", str: "text", bool: "true or false", type(None): "none", Path: "path"}
_LIMITS = {
    **{"gt": "> {}", "ge": "≥ {}", "lt": "< {}", "le": "≤ {}", "multiple_of": "a multiple of {}"},
    **{"pattern": "matching {}", "min_length": "of at least {}", "max_length": "of at most {}"},
}
_SEQUENCES = (list, tuple, set, frozenset, Sequence, Iterable)


def accepted(field: FieldInfo) -> str:
    """What a field accepts: "float ≥ 0 and < 1", "integer > 0, or none"."""
    return _bounded(field.annotation, field.metadata)


def _bounded(annotation: Any, metadata: Iterable[Any]) -> str:
    text = _in_words(annotation)
    limits = [
        words.format(f"{value:.10g}" if isinstance(value, int | float) else value)
        for limit in metadata
        for name, words in _LIMITS.items()
        if (value := getattr(limit, name, None)) is not None
    ]
    if not limits:
        return text
    # The bounds of a union hold for its members that are numbers.
    return f"{text}{':' if ', or ' in text else ''} {' and '.join(limits)}"


def _in_words(annotation: Any) -> str:
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        limits = (each.metadata if isinstance(each, FieldInfo) else [each] for each in inner[1:])
        return _bounded(inner[0], chain.from_iterable(limits))
    if origin is Literal:
        return _either([str(value) for value in inner])
    if origin in (Union, types.UnionType):
        return ", or ".join(_in_words(member) for member in inner)
    if origin is tuple and inner[-1:] != (...,):
        return f"({', '.join(_in_words(member) for member in inner)})"
    if origin in _SEQUENCES:
        return f"list of {_in_words(inner[0])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    if isinstance(annotation, type) and origin is None:
        return _TYPES.get(annotation, annotation.__name__)
    return str(annotation).replace("typing.", "")


def _either(words: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
