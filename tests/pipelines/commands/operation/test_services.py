"""The commands of the services: the name of what is scheduled or deployed, and the status."""

import contextlib
import json
import os
import pty
import re
import subprocess
import time
from datetime import UTC, datetime

import pytest

from torchyard.core.errors import UserError
from torchyard.pipelines.commands.operation.services import check_name


def test_a_name_is_the_presets_unless_it_is_given():
    assert check_name(None, None) == "digits"
    assert check_name(None, "train.epochs=3") == "digits"
    assert check_name(None, "some/where/night.yaml") == "night"
    assert check_name("nightly", "digits") == "nightly"
    for name in ("", " ", "a/b", "50%", "a\nb", "a\x1b[31m", "n" * 300):
        with pytest.raises(UserError, match="--name"):
            check_name(name, None)


REACHED = "concurrency limit reached"


@pytest.fixture
def nightly(workspace, monkeypatch):
    """A deployment that is scheduled at three in Shanghai, seen from Kolkata."""
    from prefect.client.orchestration import get_client

    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    workspace.invoke("schedule", "digits", "--cron", "0 3 * * *", "--timezone", "Asia/Shanghai",
                     "--name", "nightly")  # fmt: skip
    with get_client(sync_client=True) as client:
        [deployment] = [each for each in client.read_deployments() if each.name == "nightly"]
        yield client, deployment
    workspace.invoke("unschedule", "nightly")
    monkeypatch.undo()
    time.tzset()


def test_status_shows_what_trains_in_one_time_zone_and_what_waits(workspace, nightly):
    from prefect.states import Cancelled, Completed, Running, Scheduled

    client, deployment = nightly

    def run(*states):
        run = client.create_flow_run_from_deployment(
            deployment.id, parameters=deployment.parameters
        )
        for state in states:
            client.set_flow_run_state(run.id, state, force=True)
        return run

    def skip():
        """Later than the one that trains."""
        state = Scheduled(scheduled_time=datetime.now(UTC))
        run = client.create_flow_run_from_deployment(
            deployment.id, parameters=deployment.parameters, state=state
        )
        client.set_flow_run_state(run.id, Cancelled(message=REACHED), force=True)

    def row():
        status = json.loads(workspace.invoke("status", "--json"))
        assert status["waiting"] == ["nightly"]  # there is no worker
        [row] = [row for row in status["plan"] if row["name"] == "nightly"]
        return row

    client.request("POST", f"/deployments/{deployment.id}/schedule", json={})  # plan runs
    trains = run(Running())
    skip()
    assert (row()["last_state"], row()["skipped_since"]) == ("Running", REACHED)
    printed = workspace.invoke("status")
    assert "● running" in printed
    assert REACHED not in printed  # it trains: nothing is wrong
    assert re.search(r"^nightly  03:00 Shanghai  .*  next in \d+ (s|min|h)$", printed, re.MULTILINE)
    assert "Times are those of Asia/Kolkata." in printed
    assert "waiting for the services: nightly" in printed
    client.set_flow_run_state(trains.id, Completed(), force=True)
    skip()
    assert (row()["last_state"], row()["skipped_since"]) == ("Completed", REACHED)
    assert f"then skipped: {REACHED}" in " ".join(workspace.invoke("status").split())


def test_status_in_a_terminal_has_no_notice_of_prefects(workspace, tmp_path):
    """Which greets who is new to it: without a PREFECT_HOME, and not in CI."""
    kept = ("PATH", "HOME", "PYTHONPATH", "PREFECT_API_URL", "PREFECT_API_AUTH_STRING")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    terminal, side = pty.openpty()
    status = subprocess.Popen(
        workspace.command("status"), cwd=tmp_path, stdin=side, stdout=side, stderr=side,
        env=environment | {"PREFECT_HOME": str(tmp_path / "new"), "TERM": "dumb"},
    )  # fmt: skip
    os.close(side)
    printed = b""
    with contextlib.suppress(OSError):  # the end of a terminal
        while read := os.read(terminal, 10_000):
            printed += read
    os.close(terminal)
    assert status.wait(120) == 0
    assert workspace.api_url.removesuffix("/api").encode() in printed
    assert b"Prefect collects" not in printed
    assert b"usage data" not in printed


def test_what_is_scheduled_is_known_while_no_server_runs(workspace, nightly):
    from torchyard.pipelines.services.manager import ServiceManager

    assert ServiceManager().stored_schedules() == ["nightly"]


def test_a_fixed_seed_before_a_gate_is_noted(workspace, capsys):
    for settings, noted in ((["promote=digits"], True), ([], False)):
        workspace.invoke("schedule", "digits", *settings, "--interval", "52w", "--name", "seeded")
        assert ("train.seed is fixed" in capsys.readouterr().err) == noted
    workspace.invoke("unschedule", "seeded")
