"""The reaper: what dead processes left running is ended, what lives or is to come is left alone."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from torchyard.core.tracking.ownership.process import owner_tags


@pytest.fixture
def client(workspace: Any) -> Iterator[Any]:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        yield client


@pytest.fixture
def deployment(client: Any) -> Iterator[Any]:
    """A deployment that is scheduled every hour."""
    from torchyard.pipelines.commands.arguments import preset_config
    from torchyard.pipelines.services.scheduling import deployments
    from torchyard.pipelines.services.scheduling.schedules import parse_schedule

    hourly = parse_schedule(None, "1h", None, "UTC")
    deployments.schedule(preset_config("digits", []), "reaped", hourly, "reaped")
    [deployment] = [each for each in client.read_deployments() if each.name == "reaped"]
    yield deployment
    if deployment.id in [each.id for each in client.read_deployments()]:
        client.delete_deployment(deployment.id)


@pytest.fixture
def two_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server answers with two of a kind at most, where by itself it does with 200."""
    from prefect.client.orchestration import SyncPrefectClient

    for name in ("read_flow_runs", "read_task_runs", "read_deployments"):
        limited = functools.partialmethod(getattr(SyncPrefectClient, name), limit=2)
        monkeypatch.setattr(SyncPrefectClient, name, limited)


def labels_of_a_dead_process() -> dict[str, str]:
    module = owner_tags.__module__
    program = f"import json; from {module} import owner_tags; print(json.dumps(owner_tags()))"
    return json.loads(subprocess.check_output([sys.executable, "-c", program]))


def paused(reschedule: bool) -> Any:
    from prefect.client.schemas.objects import StateDetails
    from prefect.states import Paused

    details = StateDetails(pause_reschedule=reschedule)
    return Paused(name="Suspended" if reschedule else "Paused", state_details=details)


def test_flow_runs_of_dead_processes_end_and_those_of_living_ones_go_on(client, deployment) -> None:
    from prefect.states import Cancelling, Pending, Running

    from torchyard.pipelines.flow.pipeline import train_pipeline
    from torchyard.pipelines.services import reaper

    dead, alive = labels_of_a_dead_process(), owner_tags()
    cases = [  # deployed, labels, state, what becomes of it
        (True, dead, Running(), "Crashed"),
        (True, dead, Cancelling(), "Cancelled"),
        (True, alive, Running(), "Running"),
        (True, {}, Running(), "Running"),
        (True, dead, Pending(), "Pending"),  # Prefect starts it anew
        (True, dead, paused(True), "Suspended"),  # and can
        (False, dead, Pending(), "Crashed"),
        (False, alive, Pending(), "Pending"),
        (False, dead, paused(False), "Cancelled"),
        (False, dead, Cancelling(), "Cancelled"),
    ]
    runs = []
    for deployed, labels, state, _ in cases:
        run = client.create_flow_run(train_pipeline)
        if deployed:
            run = client.create_flow_run_from_deployment(
                deployment.id, parameters=deployment.parameters
            )
        client.set_flow_run_state(run.id, Running(), force=True)
        running = client.read_flow_run(run.id).state
        # As by the process itself, once it runs.
        client.update_flow_run_labels(run.id, labels | {reaper.STATE: str(running.id)})
        if not state.is_running():
            client.set_flow_run_state(run.id, state, force=True)
        assert client.read_flow_run(run.id).state.name == state.name
        runs.append(run)
    reaper.end_dead_flow_runs("reaped")
    states = [client.read_flow_run(run.id).state for run in runs]
    assert [state.name for state in states] == [ends for *_, ends in cases]
    assert states[0].message == "Its process ended without reporting why."
    for run in runs:
        client.delete_flow_run(run.id)


@pytest.mark.usefixtures("two_at_a_time")
def test_all_flow_runs_of_dead_processes_end_however_many_there_are(client) -> None:
    from prefect import task
    from prefect.states import Running

    from torchyard.pipelines.flow.pipeline import train_pipeline
    from torchyard.pipelines.services import reaper

    @task
    def trains() -> None:
        pass

    dead, runs, tasks = labels_of_a_dead_process(), [], []
    for _ in range(5):
        run = client.create_flow_run(train_pipeline, state=Running())
        client.update_flow_run_labels(run.id, {**dead})
        runs.append(run.id)
        tasks.append(client.create_task_run(trains, run.id, dynamic_key="0", state=Running()).id)
    reaper.end_dead_flow_runs()
    assert {client.read_flow_run(each).state.name for each in runs} == {"Crashed"}
    assert {client.read_task_run(each).state.name for each in tasks} == {"Crashed"}


@pytest.mark.usefixtures("two_at_a_time")
def test_no_page_is_asked_for_once_all_that_there_can_be_is_found(client) -> None:
    from prefect.client.schemas.filters import FlowRunFilter
    from prefect.client.schemas.sorting import FlowRunSort

    from torchyard.pipelines.flow.pipeline import train_pipeline
    from torchyard.pipelines.services.prefect_server import all_pages

    made = [client.create_flow_run(train_pipeline).id for _ in range(3)]
    offsets = []

    def read(**asked):
        offsets.append(asked["offset"])
        return client.read_flow_runs(**asked)

    for most, ends in ((3, []), (4, [3])):
        chosen = FlowRunFilter.model_validate({"id": {"any_": made}})
        runs = all_pages(read, most, flow_run_filter=chosen, sort=FlowRunSort.ID_DESC)
        assert sorted(run.id for run in runs) == sorted(made)
        assert offsets == [0, 2, *ends]
        offsets.clear()


@pytest.mark.usefixtures("two_at_a_time")
def test_all_deployments_are_listed_however_many_there_are(client) -> None:
    from torchyard.pipelines.flow.pipeline import train_pipeline
    from torchyard.pipelines.services.scheduling import deployments

    flow = client.create_flow(train_pipeline)
    names = {f"one of five {number}" for number in range(5)}
    made = [client.create_deployment(flow, name) for name in names]
    assert names <= {each.name for each in deployments.list_deployments(client)}
    for each in made:
        client.delete_deployment(each)


def test_a_flow_run_whose_process_could_not_tell_ends_as_mlflow_has_it(client) -> None:
    """The server was killed, and the run went on to its end."""
    from prefect import task
    from prefect.states import Running

    from torchyard.core.tracking.record import RunRecord
    from torchyard.core.tracking.store import tracking_uri
    from torchyard.pipelines.flow.pipeline import train_pipeline
    from torchyard.pipelines.services import reaper

    @task
    def trains() -> None:
        pass

    dead, found = labels_of_a_dead_process(), {}
    for status in ("FINISHED", "FAILED", "KILLED"):
        run = client.create_flow_run(train_pipeline)
        client.update_flow_run_labels(run.id, {**dead})
        client.set_flow_run_state(run.id, Running(), force=True)
        last = client.create_task_run(trains, run.id, dynamic_key="0", state=Running())
        record = RunRecord.start(
            name_stem="told", parameters={}, tags={reaper.FLOW_RUN_ID: str(run.id)}
        )
        record.finish(status, "" if status == "FINISHED" else "the reason")
        found[run.id] = (record.name, last.id)
    reaper.end_dead_flow_runs(stores=["sqlite:////none/mlflow.db", tracking_uri()])
    ends = [("Completed", "Completed"), ("Failed", "Crashed"), ("Crashed", "Crashed")]
    for (run_id, (name, task_id)), (state, of_task) in zip(found.items(), ends, strict=True):
        ended = client.read_flow_run(run_id).state
        assert ended.name == state
        finished = f"{name} is finished, as MLflow has recorded."
        assert ended.message == (finished if state == "Completed" else "the reason")
        assert client.read_task_run(task_id).state.name == of_task


def test_a_flow_run_that_starts_again_is_not_taken_for_the_process_before(
    client, deployment, monkeypatch
) -> None:
    """Killed, started anew by Prefect, killed before it had named its process."""
    from prefect.states import Running

    from torchyard.pipelines.services import reaper

    run = client.create_flow_run_from_deployment(deployment.id, parameters=deployment.parameters)
    client.set_flow_run_state(run.id, Running(), force=True)
    before = client.read_flow_run(run.id).state
    client.update_flow_run_labels(
        run.id, labels_of_a_dead_process() | {reaper.STATE: str(before.id)}
    )
    client.set_flow_run_state(run.id, Running(), force=True)
    reaper.end_dead_flow_runs("reaped")
    assert client.read_flow_run(run.id).state.name == "Running"
    monkeypatch.setattr(reaper, "SILENT", timedelta(0))
    reaper.end_dead_flow_runs("another")  # its pool's machine knows better
    assert client.read_flow_run(run.id).state.name == "Running"
    reaper.end_dead_flow_runs("reaped")
    assert client.read_flow_run(run.id).state.name == "Crashed"


def test_task_runs_end_with_their_flow_run(client, deployment, monkeypatch) -> None:
    from prefect import task
    from prefect.states import Crashed, Running

    from torchyard.pipelines.services import reaper

    @task
    def trains() -> None:
        pass

    tasks = {}
    for state in (Crashed(), Running()):
        run = client.create_flow_run_from_deployment(
            deployment.id, parameters=deployment.parameters
        )
        client.set_flow_run_state(run.id, Running(), force=True)
        tasks[state.name] = client.create_task_run(trains, run.id, dynamic_key="0", state=Running())
        client.set_flow_run_state(run.id, state, force=True)
    reaper.end_dead_flow_runs()
    found = client.read_task_run(tasks["Crashed"].id)
    assert found.state.name == "Running"  # its last event may still come
    monkeypatch.setattr(reaper, "LAST_EVENTS", timedelta(0))
    reaper.end_dead_flow_runs()
    found = {name: client.read_task_run(each.id).state.name for name, each in tasks.items()}
    assert found == {"Crashed": "Crashed", "Running": "Running"}


def test_a_deployment_unscheduled_in_mid_run_is_deleted_when_that_has_ended(
    client, deployment
) -> None:
    from prefect.states import Completed, Running

    from torchyard.pipelines.commands.arguments import preset_config
    from torchyard.pipelines.services import reaper
    from torchyard.pipelines.services.scheduling import deployments
    from torchyard.pipelines.services.scheduling.schedules import parse_schedule

    run = client.create_flow_run_from_deployment(deployment.id, parameters=deployment.parameters)
    client.set_flow_run_state(run.id, Running(), force=True)
    assert not deployments.remove("reaped")
    hourly = parse_schedule(None, "1h", None, "UTC")
    deployments.schedule(preset_config("digits", []), "reaped", hourly, "reaped")
    assert not client.read_deployment(deployment.id).paused  # scheduled again, it starts again
    assert not deployments.remove("reaped")
    assert "reaped" not in [row["name"] for row in deployments.overview()]
    reaper.delete_retired()
    assert client.read_deployment(deployment.id).schedules == []
    client.set_flow_run_state(run.id, Completed(), force=True)
    reaper.delete_retired()
    assert deployment.id not in [each.id for each in client.read_deployments()]


def test_scheduled_runs_that_were_missed_are_cancelled(client, deployment, plan_runs) -> None:
    from prefect.client.schemas.filters import FlowRunFilter
    from prefect.states import Scheduled

    from torchyard.pipelines.services import reaper

    now = datetime.now(UTC)
    plan_runs(deployment.id)

    def planned() -> list[Any]:
        mine = FlowRunFilter(deployment_id={"any_": [deployment.id]})
        return list(client.read_flow_runs(flow_run_filter=mine))

    # One that was suspended waits for a process, too.
    missed = min(planned(), key=lambda run: run.expected_start_time)
    for name, becomes in (("Resuming", "Resuming"), ("Late", "Cancelled")):
        state = Scheduled(name=name, scheduled_time=missed.expected_start_time)
        client.set_flow_run_state(missed.id, state, force=True)
        reaper.skip_missed("reaped")
        assert client.read_flow_run(missed.id).state.name == becomes
    runs = planned()
    states = {run.state.name for run in runs if run.expected_start_time < now - reaper.MISSED}
    assert states == {"Cancelled"}
    states = {run.state.name for run in runs if run.expected_start_time > now - reaper.MISSED}
    assert states == {"Scheduled"}
