"""Job variables of a work pool: read from `key=value`, and fitted to the pool's job template."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from torchyard.core.config.parsing import parse_value
from torchyard.core.errors import UserError, suggestion


def read_variables(assignments: Sequence[str]) -> dict[str, Any]:
    """Job variables from `key=value`; a dot in the key opens a section, as in `env.NAME`.

    Raises:
        UserError: with every problem.
    """
    variables: dict[str, Any] = {}
    problems = []
    for assignment in assignments:
        key, separator, value = assignment.partition("=")
        *sections, last = key.split(".")
        inner = variables
        for section in sections:
            inner = inner.setdefault(section, {}) if isinstance(inner, dict) else inner
        if not separator or not all([*sections, last]) or not isinstance(inner, dict):
            problems.append(f"--job-variable: '{assignment}' is not of the form key=value")
        elif last in inner:
            problems.append(f"--job-variable: '{key}' is given twice")
        else:
            try:
                inner[last] = _read_value(value)
            except ValueError as error:
                problems.append(f"--job-variable: '{assignment}': {error}")
    if problems:
        raise UserError(problems)
    return variables


def _read_value(text: str) -> Any:
    """Text, or the list or mapping that it stands for.

    Raises:
        ValueError: it is none, or one that JSON, and so Prefect, does not know.
    """
    if not text.startswith(("[", "{")) or text.startswith("{{"):  # {{ }}: filled in by Prefect
        return text
    value = parse_value(text)
    if isinstance(value, str):
        raise ValueError("is neither a list [a, b] nor a mapping {a: b}")
    try:
        same = json.loads(json.dumps(value, allow_nan=False)) == value
    except (TypeError, ValueError):
        same = False
    if not same:
        raise ValueError("has a value or a key that JSON does not know")
    return value


def fit_variables(variables: Mapping[str, Any], template: Mapping[str, Any]) -> dict[str, Any]:
    """Job variables of the types that a work pool's job template declares: `30` as a number.

    Raises:
        UserError: with every one that the template does not have, or not of that type.
    """
    declared = template.get("variables", {})
    # Imported here: with it comes half of SQLAlchemy, and every run imports this module.
    from prefect.utilities.schema_tools.validation import validate

    known = list(declared.get("properties", {}))
    fitted, problems = {}, []
    for key, value in variables.items():
        if key not in known:
            hint = suggestion(key, known)
            problems.append(f"--job-variable: the pool has no variable '{key}'.{hint}")
            continue
        meant = [value]
        if isinstance(value, str):
            with contextlib.suppress(ValueError):
                meant.append(json.loads(value.lower()))
        wrong = [
            validate({key: each}, declared, preprocess=False, ignore_required=True)
            for each in meant
        ]
        valid = [each for each, errors in zip(meant, wrong, strict=True) if not errors]
        fitted[key] = (valid or meant)[0]
        if not valid and "{{" not in str(value):
            for error in wrong[0]:
                where = ".".join(map(str, error.absolute_path))
                problems.append(f"--job-variable: {where}: {error.message}")
    if problems:
        raise UserError(problems)
    return fitted
