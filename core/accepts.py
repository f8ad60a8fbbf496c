"""What a parameter accepts, in words: its type and its bounds."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from pydantic.fields import FieldInfo

WORDS = {int: "integer", str: "text", bool: "true or false", type(None): "none", Path: "path"}
BOUNDS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤", "multiple_of": "a multiple of"}
SEQUENCES = (list, tuple, set, frozenset, Sequence, Iterable)


def accepted(field: FieldInfo) -> str:
    """Say what a field takes: "float ≥ 0 and < 1", "integer > 0, or none"."""
    return _bounded(field.annotation, field.metadata)


def _bounded(annotation: Any, metadata: Iterable[Any]) -> str:
    text = _in_words(annotation)
    limits = [
        f"{sign} {value:g}" if isinstance(value, int | float) else f"{sign} {value}"
        for limit in metadata
        for name, sign in BOUNDS.items()
        if (value := getattr(limit, name, None)) is not None
    ]
    for limit in metadata:
        pattern = getattr(limit, "pattern", None)
        limits += [f"matching {pattern}"] if pattern else []
        for name, words in (("min_length", "at least"), ("max_length", "at most")):
            if (length := getattr(limit, name, None)) is not None:
                limits.append(f"of {words} {length}")
    if not limits:
        return text
    # A bound of the whole field, when that is a union, is one of its members that are numbers.
    return (
        f"{text}: {' and '.join(limits)}" if ", or " in text else f"{text} {' and '.join(limits)}"
    )


def _in_words(annotation: Any) -> str:
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _bounded(inner[0], inner[1:])
    if origin is Literal:
        return _either([str(value) for value in inner])
    if origin in (Union, types.UnionType):
        return ", or ".join(_in_words(member) for member in inner)
    if origin is tuple and inner[-1:] != (...,):
        return f"({', '.join(_in_words(member) for member in inner)})"
    if origin in SEQUENCES:
        return f"list of {_in_words(inner[0])}"
    if isinstance(annotation, type) and origin is None:
        return WORDS.get(annotation, annotation.__name__)
    return str(annotation).replace("typing.", "")


def _either(words: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
