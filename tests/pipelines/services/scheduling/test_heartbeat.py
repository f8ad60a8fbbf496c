"""A run whose machine died, as Prefect's own server sees it."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate

from tests.pipelines.services.sandbox import eventually
from torchyard.pipelines.commands.arguments import preset_config
from torchyard.pipelines.services.prefect_server import FLOW
from torchyard.pipelines.services.scheduling.deployments import deploy
from torchyard.pipelines.services.scheduling.heartbeat import HEARTBEAT, NAME, watch_heartbeats

FLOW_THAT_WAITS = """
import sys, time
from prefect import flow, runtime
@flow(name=sys.argv[1])
def waiting():
    print(runtime.flow_run.id, flush=True)
    time.sleep(1000)
waiting()
"""


@pytest.fixture
def client(workspace):
    with get_client(sync_client=True) as client:
        yield client
        for found in client.read_automations_by_name(NAME):
            client.delete_automation(found.id)


def test_deploying_installs_the_watch_once_and_leaves_its_switch_alone(client):
    pool = f"pool-{uuid4()}"
    client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
    for name in ("first", "second"):
        deploy(preset_config("digits", []), f"{name}-{pool}", pool, {})
    [found] = client.read_automations_by_name(NAME)
    assert found.enabled
    assert found.trigger.within == timedelta(seconds=540)
    client.pause_automation(found.id)
    watch_heartbeats(client, timedelta(minutes=20))
    [changed] = client.read_automations_by_name(NAME)
    assert (changed.enabled, changed.trigger.within) == (False, timedelta(minutes=20))


@pytest.mark.timeout(600)
@pytest.mark.slow  # the least silence that Prefect takes is ten seconds
def test_a_run_that_falls_silent_is_crashed_and_one_of_another_flow_is_not(workspace, client):
    watch_heartbeats(client, timedelta(seconds=10))
    runs = {name: run_until_it_is_heard(workspace, client, name) for name in (FLOW, "another")}
    assert eventually(lambda: client.read_flow_run(runs[FLOW]).state.name == "Crashed")
    assert "Nothing was heard of it" in client.read_flow_run(runs[FLOW]).state.message
    assert client.read_flow_run(runs["another"]).state.name == "Running"


def run_until_it_is_heard(workspace, client, name):
    """Kill a flow's process once the server has its first heartbeat; returns the flow run's id."""
    process = subprocess.Popen(
        [sys.executable, "-c", FLOW_THAT_WAITS, name],
        stdout=subprocess.PIPE,
        text=True,
        env=workspace.environment,
    )
    try:
        assert process.stdout is not None
        run_id = process.stdout.readline().strip()
        resource = {"id": [f"prefect.flow-run.{run_id}"]}
        wanted = {"filter": {"event": {"name": [HEARTBEAT]}, "resource": resource}}
        assert eventually(
            lambda: client.request("POST", "/events/filter", json=wanted).json()["events"]
        )
    finally:
        process.kill()  # as with the machine's power
        process.communicate()
    return UUID(run_id)
