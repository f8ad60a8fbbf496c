"""What is wrong with settings, in a user's words: where, what is accepted, what may be meant."""

from __future__ import annotations

from collections.abc import Iterable
from typing import get_args

from pydantic import BaseModel, ValidationError

from core.errors import suggestion
from core.secret_settings import is_secret

_WORDING = {
    "tuple_type": "must be a list, e.g. [1,2]",
    "model_type": "must be a section of settings, e.g. {epochs: 3}",
}


def explained(
    error: ValidationError, model: type[BaseModel], prefix: str = "", owner: str = ""
) -> Iterable[str]:
    """Say each problem of a validation in a user's words."""
    reasons: dict[str, list[str]] = {}
    inputs: dict[str, str] = {}
    for problem in error.errors():
        location = [prefix] if prefix else []
        # Of a union pydantic tells what every member says, under a name of the member's.
        location += [
            str(part)
            for at, part in enumerate(problem["loc"])
            if isinstance(part, int) or part in _fields_at(model, problem["loc"][:at]) or not at
        ]
        if problem["type"] == "extra_forbidden":
            location = [*filter(None, [prefix]), *map(str, problem["loc"])]
            noun = "parameter" if prefix else "setting"
            reason = f"unknown {noun}{owner}.{_nearest(model, location, problem['loc'])}"
        elif problem["type"] == "missing":
            reason = "is missing"
        else:
            # pydantic goes on: "…, unable to parse string as an integer".
            reason = problem["msg"].removeprefix("Value error, ").partition(", unable to")[0]
            reason = _WORDING.get(problem["type"], reason.replace("Input should be", "must be"))
            shown = problem["type"] != "value_error" and not isinstance(problem["input"], dict)
            if shown and not (location and is_secret(location[-1])):
                inputs[".".join(location)] = f", not {problem['input']!r}"
        reasons.setdefault(".".join(location), []).append(reason)
    for where, found in reasons.items():
        message = " or ".join(dict.fromkeys(found)) + inputs.get(where, "")
        yield f"{where}: {message}" if where else message


def _nearest(model: type[BaseModel], location: list[str], within: tuple[int | str, ...]) -> str:
    """The nearest setting, as it can be pasted into a command, and those there are."""
    accepted = list(_fields_at(model, within[:-1]))
    *sections, name = ".".join(location).split(".")
    # The items of a list have no keys of their own in a command, which writes it whole.
    within_list = any(section.isdecimal() for section in sections)
    prefix = "" if within_list else "".join(f"{section}." for section in sections)
    nearby = {each: f"{prefix}{each}" for each in accepted}
    if not sections:  # the setting of a section may be meant
        nearby |= {
            inner: f"{section}.{inner}"
            for section in accepted
            for inner in _fields_at(model, (section,))
            if inner not in nearby
        }
    return suggestion(name, accepted, nearby)


def _fields_at(model: type[BaseModel], location: tuple[int | str, ...]) -> Iterable[str]:
    for part in location:
        annotation = model.model_fields[str(part)].annotation if isinstance(part, str) else None
        sections = [
            member
            for member in (annotation, *get_args(annotation))
            if isinstance(member, type) and issubclass(member, BaseModel)
        ]
        if not sections:
            return ()
        model = sections[0]
    return model.model_fields
