"""Runs of deployments, which a Prefect worker starts: ready before their time, as others else."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest

from tests.pipelines.services.sandbox import LONG, Sandbox, eventually

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(sys.platform != "linux", reason="there is a standby on Linux alone"),
]
PROFILE = 'active = "mine"\n[profiles.mine]\nPREFECT_RESULTS_PERSIST_BY_DEFAULT = "false"\n'


@pytest.fixture(scope="module")
def deployment(sandbox: Sandbox) -> str:
    """Where Prefect's API starts runs of a deployment; the Prefect worker looks two hours ahead."""
    sandbox.environment["PREFECT_WORKER_PREFETCH_SECONDS"] = "7200"
    # A Prefect worker hands on what a file of settings says: that is no other environment.
    (sandbox.folder / "home").mkdir()
    (sandbox.folder / "home" / "profiles.toml").write_text(PROFILE)
    sandbox.torchyard("up")
    sandbox.torchyard("schedule", "digits", *LONG, "--interval", "52w", "--name", "yearly")
    sandbox.wait_for_standby()
    [made] = sandbox.post("deployments/filter")
    return f"deployments/{made['id']}/create_flow_run"


def engine_of(sandbox: Sandbox, flow_run: str) -> psutil.Process:
    """The process that the Prefect worker has started for a flow run."""
    number = eventually(lambda: sandbox.run(flow_run)["infrastructure_pid"])
    return psutil.Process(int(number))


def test_a_run_is_ready_before_its_time_and_ends_with_the_process_that_prefect_knows(
    sandbox: Sandbox, deployment: str
) -> None:
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    waiting = {"type": "SCHEDULED", "state_details": {"scheduled_time": later}}
    flow_run = sandbox.post(deployment, state=waiting)["id"]
    engine = engine_of(sandbox, flow_run)
    [worker] = eventually(lambda: sandbox.processes("worker.serve"))
    assert worker.ppid() != engine.pid  # but of a process that the standby has forked
    assert worker.cwd() == str(sandbox.folder / "work")
    assert sandbox.run(flow_run)["state_type"] == "PENDING"
    sandbox.cancel(flow_run)  # what Prefect's UI does
    assert eventually(lambda: sandbox.run(flow_run)["state_type"] == "CANCELLED")
    assert eventually(lambda: sandbox.processes("worker.serve") == [])

    flow_run = sandbox.post(deployment)["id"]
    _, record = eventually(sandbox.training)
    engine = engine_of(sandbox, flow_run)
    number = int(record["torchyard.process"].split()[0])
    assert number != engine.pid
    assert record["schedule"] == "yearly"
    assert Path(psutil.Process(number).cwd()) == sandbox.folder / "work"
    engine.kill()
    assert eventually(lambda: sandbox.run(flow_run)["state_type"] == "CRASHED")
    assert eventually(lambda: sandbox.record(flow_run)["status"] == "KILLED")
    assert eventually(lambda: sandbox.processes("worker.serve") == [])


@pytest.mark.long
def test_a_run_goes_on_by_itself_where_the_standby_does_not_answer(
    sandbox: Sandbox, deployment: str
) -> None:
    [standby] = sandbox.processes("standby.process")
    standby.suspend()
    try:
        flow_run = sandbox.post(deployment)["id"]
        _, record = eventually(sandbox.training)
        assert int(record["torchyard.process"].split()[0]) == engine_of(sandbox, flow_run).pid
    finally:
        standby.resume()
    sandbox.cancel(flow_run)
    assert eventually(lambda: sandbox.run(flow_run)["state_type"] == "CANCELLED")
    assert eventually(lambda: sandbox.ended(flow_run))["torchyard.reason"] == "cancelled in Prefect"
