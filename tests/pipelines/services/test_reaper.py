"""The reaper: what dead processes left running is ended, what lives or is to come is left alone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import psutil
import pytest

from torchyard.core.tracking.provenance import owner_tags


@pytest.fixture
def client(workspace: Any) -> Iterator[Any]:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        yield client


@pytest.fixture
def deployment(client: Any) -> Iterator[Any]:
    """A deployment that is scheduled every hour."""
    from torchyard.pipelines.commands.arguments import preset_config
    from torchyard.pipelines.services import deployments
    from torchyard.pipelines.services.schedules import parse_schedule

    hourly = parse_schedule(None, "1h", None, "UTC")
    deployments.schedule(preset_config("digits", []), "reaped", hourly, "reaped")
    [deployment] = [each for each in client.read_deployments() if each.name == "reaped"]
    yield deployment
    if deployment.id in [each.id for each in client.read_deployments()]:
        client.delete_deployment(deployment.id)


def labels_of_a_dead_process() -> dict[str, str]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        created = psutil.Process(process.pid).create_time()
        process.communicate(b"\n")
    return {
        name: f"{process.pid} {created:.2f}" if value.split()[0].isdecimal() else value
        for name, value in owner_tags().items()
    }


def test_flow_runs_of_dead_processes_end_and_those_of_living_ones_go_on(client, deployment) -> None:
    from prefect.states import Cancelling, Running

    from torchyard.pipelines.services import reaper

    dead = labels_of_a_dead_process()
    started = [(dead, Running()), (dead, Cancelling()), (owner_tags(), Running()), ({}, Running())]
    runs = [
        client.create_flow_run_from_deployment(
            deployment.id, parameters=deployment.parameters, labels=labels
        )
        for labels, _ in started
    ]
    for run, (_, state) in zip(runs, started, strict=True):
        client.set_flow_run_state(run.id, Running(), force=True)
        client.set_flow_run_state(run.id, state, force=True)
        assert client.read_flow_run(run.id).state.name == state.name
    reaper.end_dead_flow_runs()
    states = [client.read_flow_run(run.id).state for run in runs]
    assert [state.name for state in states] == ["Crashed", "Cancelled", "Running", "Running"]
    assert states[0].message == "Its process ended without reporting why."


def test_a_deployment_unscheduled_in_mid_run_is_deleted_when_that_has_ended(
    client, deployment
) -> None:
    from prefect.states import Completed, Running

    from torchyard.pipelines.services import deployments, reaper

    run = client.create_flow_run_from_deployment(deployment.id, parameters=deployment.parameters)
    client.set_flow_run_state(run.id, Running(), force=True)
    assert not deployments.remove("reaped")
    assert "reaped" not in [row["name"] for row in deployments.overview()]
    reaper.delete_retired()
    assert client.read_deployment(deployment.id).schedules == []
    client.set_flow_run_state(run.id, Completed(), force=True)
    reaper.delete_retired()
    assert deployment.id not in [each.id for each in client.read_deployments()]


def test_scheduled_runs_that_were_missed_are_cancelled(client, deployment, plan_runs) -> None:
    from torchyard.pipelines.services import reaper

    now = datetime.now(UTC)
    plan_runs(deployment.id)
    reaper.skip_missed("reaped")
    runs = [run for run in client.read_flow_runs() if run.deployment_id == deployment.id]
    states = {run.state.name for run in runs if run.expected_start_time < now - reaper.MISSED}
    assert states == {"Cancelled"}
    states = {run.state.name for run in runs if run.expected_start_time > now - reaper.MISSED}
    assert states == {"Scheduled"}
