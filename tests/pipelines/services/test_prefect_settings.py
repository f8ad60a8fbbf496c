"""Prefect's settings, read without Prefect: the same answer as its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from torchyard.core.errors import UserError
from torchyard.pipelines.services.prefect_settings import configured_api_url

ASK = """
import json, os, sys
from pathlib import Path
from torchyard.pipelines.services.prefect_settings import configured_api_url
def ask(how):
    answers = []
    for case in json.loads(sys.argv[1]):
        os.chdir(case["folder"])
        os.environ.update(case["env"])
        answers.append(how())
        for name in case["env"]:
            del os.environ[name]
    return answers
ours = ask(configured_api_url)
assert "prefect" not in sys.modules
from prefect.settings import Settings
print(json.dumps([ours, ask(lambda: Settings().api.url)]))
"""

PROFILES = """
active = "team"
[profiles.team]
PREFECT_API_URL = "http://team/api"
[profiles.mine]
PREFECT_API_URL = "http://mine/api"
[profiles.ephemeral]
PREFECT_SERVER_ALLOW_EPHEMERAL_MODE = "true"
"""

SETTINGS: dict[str, tuple[dict[str, str], dict[str, str], str | None]] = {
    "nothing": ({}, {}, None),
    "environment": ({"PREFECT_API_URL": "http://env/api"}, {}, "http://env/api"),
    "lower case": ({"prefect_api_url": "http://lower/api"}, {}, "http://lower/api"),
    ".env": ({}, {".env": "PREFECT_API_URL=http://dot/api"}, "http://dot/api"),
    "prefect.toml": ({}, {"prefect.toml": '[api]\nurl = "http://toml/api"'}, "http://toml/api"),
    "pyproject": (
        {},
        {"pyproject.toml": '[tool.prefect.api]\nurl = "http://project/api"'},
        "http://project/api",
    ),
    "pyproject without": ({}, {"pyproject.toml": '[project]\nname = "mine"'}, None),
    "active profile": ({"PREFECT_HOME": "."}, {"profiles.toml": PROFILES}, "http://team/api"),
    "named profile": (
        {"PREFECT_HOME": ".", "PREFECT_PROFILE": "mine"},
        {"profiles.toml": PROFILES},
        "http://mine/api",
    ),
    "ephemeral profile": (
        {"PREFECT_HOME": ".", "PREFECT_PROFILE": "ephemeral"},
        {"profiles.toml": PROFILES},
        None,
    ),
    "unknown profile": (
        {"PREFECT_HOME": ".", "PREFECT_PROFILE": "yours"},
        {"profiles.toml": PROFILES},
        None,
    ),
    "shipped profile": ({"PREFECT_PROFILE": "local"}, {}, "http://127.0.0.1:4200/api"),
    "profiles path": (
        {"PREFECT_PROFILES_PATH": "elsewhere"},
        {"elsewhere": PROFILES},
        "http://team/api",
    ),
    "profiles path in .env": (
        {},
        {".env": "PREFECT_PROFILES_PATH=elsewhere", "elsewhere": PROFILES},
        "http://team/api",
    ),
    "profiles path in prefect.toml": (
        {},
        {"prefect.toml": 'profiles_path = "elsewhere"', "elsewhere": PROFILES},
        "http://team/api",
    ),
    "home in .env, which the profiles do not follow": (
        {},
        {".env": "PREFECT_HOME=.", "profiles.toml": PROFILES},
        None,
    ),
    "test mode": (
        {"PREFECT_HOME": ".", "PREFECT_TEST_MODE": "1"},
        {"profiles.toml": PROFILES},
        None,
    ),
    ".env before prefect.toml": (
        {},
        {".env": "PREFECT_API_URL=http://dot/api", "prefect.toml": '[api]\nurl = "http://toml"'},
        "http://dot/api",
    ),
    "prefect.toml before pyproject, profile": (
        {"PREFECT_HOME": "."},
        {
            "prefect.toml": '[api]\nurl = "http://toml/api"',
            "pyproject.toml": '[tool.prefect.api]\nurl = "http://project/api"',
            "profiles.toml": PROFILES,
        },
        "http://toml/api",
    ),
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str | None, str | None]]:
    """By case: what we read without Prefect, and what Prefect reads."""
    folder = tmp_path_factory.mktemp("settings")
    cases = []
    for number, (variables, files, _) in enumerate(SETTINGS.values()):
        place = folder / f"case{number}"
        place.mkdir()
        for name, text in files.items():
            (place / name).write_text(text)
        cases.append({"env": variables, "folder": str(place)})
    plain = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    run = subprocess.run(
        [sys.executable, "-c", ASK, json.dumps(cases)],
        env=plain | {"HOME": str(folder / "empty")}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    ours, prefects = json.loads(run.stdout.splitlines()[-1])
    return dict(zip(SETTINGS, zip(ours, prefects, strict=True), strict=True))


@pytest.mark.parametrize("case", SETTINGS)
def test_the_settings_name_the_server_that_prefect_itself_would_use(
    case: str, answers: dict[str, tuple[str | None, str | None]]
) -> None:
    expected = SETTINGS[case][2]
    assert answers[case] == (expected, expected)


def test_malformed_settings_are_the_users_to_mend(alone: Path) -> None:
    (alone / "prefect.toml").write_text("[api\nurl=")
    with pytest.raises(UserError, match=r"prefect\.toml: .*cannot be read"):
        configured_api_url()
