"""The user's Prefect settings, read as Prefect reads them but without importing it."""

from __future__ import annotations

import importlib.util
import os
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchyard.core.errors import UserError


def configured_api_url() -> str | None:
    """The Prefect server that the user's settings name, or None.

    Without importing Prefect, which takes 3 seconds, unless this process has done so already.
    """
    if "prefect.context" in sys.modules:  # Prefect also knows settings made in this process
        from prefect.settings import get_current_settings

        return get_current_settings().api.url or None
    return setting("PREFECT_API_URL", "api", "url") or None


def services_folder() -> Path:
    """Where locks, logs and the password are: `torchyard/` in the user's PREFECT_HOME."""
    home = Path(setting("PREFECT_HOME", "home") or "~/.prefect").expanduser()
    return home.absolute() / "torchyard"


def setting(variable: str, *keys: str) -> str | None:
    """One Prefect setting, from the sources that Prefect reads, in its order.

    These are the environment, .env, prefect.toml and pyproject.toml of the working folder, and
    the active profile.
    """
    for variables in (os.environ, _dotenv()):
        for name, value in variables.items():
            if name.upper() == variable and value is not None:
                return value
    for table in (_toml("prefect.toml"), _dig(_toml("pyproject.toml"), "tool", "prefect") or {}):
        if (value := _dig(table, *keys)) is not None:
            return str(value)
    value = _profile().get(variable)
    return None if value is None else str(value)


def _profile() -> Mapping[str, Any]:
    """The settings of the active profile; a fresh install's default profile names no server."""
    in_tests = ("TEST_MODE", "UNIT_TEST_MODE", "TESTING_UNIT_TEST_MODE", "TESTING_TEST_MODE")
    if any(os.environ.get(f"PREFECT_{name}") for name in in_tests):
        return {}
    path = (
        os.environ.get("PREFECT_PROFILES_PATH")
        or _dotenv().get("PREFECT_PROFILES_PATH")
        or _dig(_toml("prefect.toml"), "profiles_path")
        or _dig(_toml("pyproject.toml"), "tool", "prefect", "profiles_path")
    )
    if not path and (home := os.environ.get("PREFECT_HOME")):
        path = Path(home, "profiles.toml")
    elif not path and not (path := Path.home() / ".prefect" / "profiles.toml").exists():
        # Prefect then reads the profiles it ships, so PREFECT_PROFILE=local names a server.
        package = importlib.util.find_spec("prefect")
        path = Path(str(package and package.origin)).parent / "settings" / "profiles.toml"
    profiles = _toml(path)
    active = os.environ.get("PREFECT_PROFILE") or profiles.get("active")
    return _dig(profiles, "profiles", str(active)) or {}


def _dotenv() -> Mapping[str, str | None]:
    if not Path(".env").is_file():
        return {}
    from dotenv import dotenv_values

    return dotenv_values(".env", encoding="utf8")


def _toml(path: str | Path) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(path).read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: Prefect's settings cannot be read: {error}") from error


def _dig(table: Any, *keys: str) -> Any:
    for key in keys:
        table = table.get(key) if isinstance(table, Mapping) else None
    return table
