"""The supervisor: what is killed is reported as it is, and restarted."""

from __future__ import annotations

import psutil
import pytest

from tests.pipelines.services.sandbox import OFTEN, Sandbox, eventually


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_whatever_is_killed_is_reported_as_dead_and_restarted(sandbox: Sandbox) -> None:
    sandbox.torchyard("up")
    sandbox.torchyard(*OFTEN)
    flow_run, _ = eventually(sandbox.training)
    before = sandbox.services()
    # The Prefect worker dies and its run continues. Then that dies, too, and cannot report it.
    psutil.Process(before["worker"]["process"]).kill()
    assert eventually(
        lambda: sandbox.services()["worker"]["process"] not in (None, before["worker"])
    )
    assert sandbox.run(flow_run)["state_type"] == "RUNNING"
    for process in sandbox.processes("prefect.engine"):
        process.kill()
    assert eventually(lambda: sandbox.run(flow_run)["state_type"] == "CRASHED")
    assert eventually(lambda: (sandbox.record(flow_run) or {})["status"] == "KILLED")
    assert "without reporting why" in sandbox.record(flow_run)["torchyard.reason"]  # type: ignore[index]

    # The slot it held is free: the schedule continues.
    flow_run, _ = eventually(sandbox.training)
    # The server and the MLflow UI die under it, and come back at their addresses.
    for name in ("Prefect", "MLflow"):
        psutil.Process(before[name]["process"]).kill()
    assert eventually(lambda: sandbox.services()["Prefect"]["state"] == "up")
    assert eventually(lambda: sandbox.services()["MLflow"]["state"] == "up")
    after = sandbox.services()
    for name in ("Prefect", "MLflow"):
        assert after[name]["address"] == before[name]["address"]
        assert after[name]["process"] != before[name]["process"]
    assert sandbox.run(flow_run)["state_type"] == "RUNNING"

    # Without a supervisor all services run on; `up` starts a new one.
    psutil.Process(after["supervisor"]["process"]).kill()
    assert eventually(lambda: sandbox.services()["supervisor"]["state"] == "down")
    assert sandbox.services()["Prefect"] == after["Prefect"]
    sandbox.torchyard("up")
    assert sandbox.services()["Prefect"] == after["Prefect"]
    assert sandbox.services()["supervisor"]["state"] == "up"
    # The new one restarts the others, too.
    psutil.Process(sandbox.services()["worker"]["process"]).kill()
    assert eventually(lambda: sandbox.services()["worker"]["state"] == "up")
