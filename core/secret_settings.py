"""Secrets among the parameters of plugins: a configuration names the variable that holds one.

So the secret itself is never in MLflow, in Prefect, in a log or in a file of ours.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

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
