"""Secrets among the settings: a configuration is recorded, so it only says where they are."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

_REFERENCE = re.compile(r"env:([A-Za-z_][A-Za-z0-9_]*)")
_NAMES = "password|passwd|passphrase|secret|token|api_?key|access_?key|private_?key|credentials?"


def is_secret(name: str) -> bool:
    """Whether a parameter of that name holds a secret: `token` and `hub_token`, not `tokens`."""
    return re.search(rf"(^|_)({_NAMES})$", name.lower()) is not None


def secret_references(settings: Mapping[str, Any]) -> dict[str, str]:
    """The secrets among some settings, as they are written; empty ones and other types are none."""
    return {
        name: value
        for name, value in settings.items()
        if is_secret(name) and isinstance(value, str) and value
    }


def read_secrets(section: str, settings: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
    """The secrets of a section, from the environment, and what is wrong with their references."""
    secrets, problems = {}, []
    for name, written in secret_references(settings).items():
        reference = _REFERENCE.fullmatch(written)
        if reference is None:
            problems.append(
                f"{section}.{name}: is a secret, and what is in a configuration is recorded: give "
                f"the environment variable that holds it, {section}.{name}=env:NAME"
            )
        elif reference[1] not in os.environ:
            problems.append(f"{section}.{name}: the environment variable {reference[1]} is not set")
        else:
            secrets[name] = os.environ[reference[1]]
    return secrets, problems
