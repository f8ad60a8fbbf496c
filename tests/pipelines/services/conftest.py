"""Fixtures of the tests of services: an installation of its own, and a folder without settings."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest

from tests.pipelines.services.sandbox import Sandbox, eventually


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    sandbox = Sandbox(tmp_path_factory.mktemp("sandbox"))
    yield sandbox
    sandbox.torchyard("down")
    dead = eventually(sandbox.all_dead)
    for process in sandbox.processes(""):
        process.kill()
    assert dead


@pytest.fixture
def plan_runs(workspace: Any) -> Callable[[UUID], None]:
    """Has the server plan the runs of a deployment from two hours ago on, as its scheduler does."""

    def plan(deployment: UUID) -> None:
        start = datetime.now(UTC) - timedelta(hours=2)

        def planned() -> bool:
            answer = httpx.post(
                f"{workspace.api_url}/deployments/{deployment}/schedule",
                json={"start_time": start.isoformat(), "min_runs": 4},
                headers=workspace.headers,
                trust_env=False,
                timeout=60,
            )
            return answer.status_code != httpx.codes.SERVICE_UNAVAILABLE and bool(
                answer.raise_for_status()
            )

        assert eventually(planned, 60)  # its database may be locked

    return plan


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder of its own, no Prefect setting, and Prefect not imported."""
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        monkeypatch.delenv(name)
    monkeypatch.delitem(sys.modules, "prefect.context", raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path
