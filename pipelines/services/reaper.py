"""Cleans up after dead processes: MLflow runs, flow runs, task runs, late runs, old deployments.

The supervisor calls it every few seconds, so nothing stays RUNNING until the next command. Without
services the next run ends the flow runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, TaskRunFilter, WorkPoolFilter
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import PrefectException
from prefect.states import Cancelled, Crashed

from torchyard.core.tracking.lookup import end_orphans
from torchyard.core.tracking.ownership.process import owner_lives, owner_tags
from torchyard.core.tracking.store import load_mlflow, open_store, store_lock
from torchyard.pipelines.services.deployments import OUR_FLOW, has_active_run, list_deployments

MISSED = timedelta(minutes=10)  # a run that is later than this is cancelled instead of started
SILENT = timedelta(minutes=10)  # a started run names its process within seconds
LAST_EVENTS = timedelta(minutes=1)  # the states of tasks reach the server after the flow run's
STATE = "torchyard.state"  # label: the id of the Running state that the labels belong to

ENDED = "Its process ended without reporting why."
NEVER_BEGAN = f"No process has taken it up within {SILENT.seconds // 60} minutes."


def end_dead_runs(tracking_uri: str) -> None:
    """Set the MLflow runs of a store whose process on this machine has died to KILLED."""
    load_mlflow()
    client = open_store(tracking_uri)
    with store_lock(tracking_uri):  # a run that is being resumed briefly has no owner
        end_orphans(client, *(each.experiment_id for each in client.search_experiments()))


def owner_labels(state: State[Any] | None = None) -> dict[str, str]:
    """Labels by which `end_dead_flow_runs` knows that this process runs a flow run.

    Args:
        state: that the flow run is in, if it has started.
    """
    return owner_tags() | ({STATE: str(state.id)} if state else {})


def end_dead_flow_runs(pool: str | None = None) -> None:
    """End the flow runs whose process has died, and the task runs of all that have ended.

    They become Crashed; those that were being cancelled, or paused where Prefect cannot resume
    them, become Cancelled.

    Args:
        pool: of this machine. What waits there for a process, or began without naming one, has
            ten minutes.
    """
    ended = []
    with get_client(sync_client=True) as client:
        for run in _flow_runs(client, StateType.RUNNING, StateType.CANCELLING,
                              StateType.PENDING, StateType.PAUSED):  # fmt: skip
            if reason := _reason_to_end(run, pool):
                crashed = run.state_type in (StateType.RUNNING, StateType.PENDING)
                state: State[None] = (Crashed if crashed else Cancelled)(message=reason)
                # The server's failure to end one run must not keep the others RUNNING.
                with contextlib.suppress(httpx.HTTPError, PrefectException):
                    client.set_flow_run_state(run.id, state, force=True)
                    ended.append(run.id)
        if ended:
            _end_tasks(client, {"id": {"any_": ended}})
        _end_tasks(client, {"end_time": {"before_": datetime.now(UTC) - LAST_EVENTS}})


def _reason_to_end(run: FlowRun, pool: str | None) -> str | None:
    """Why a flow run has no process any more; None if it has one, or nobody can know."""
    assert run.state is not None
    if run.state_type == StateType.PAUSED and run.deployment_id:
        return None  # suspended: Prefect starts another process
    labels = {key: str(value) for key, value in run.labels.items()}
    # While Prefect starts it anew it has the labels of the process before.
    restarting = run.deployment_id and (
        run.state_type == StateType.PENDING
        or (run.state_type == StateType.RUNNING and labels.get(STATE) != str(run.state.id))
    )
    if not restarting and (lives := owner_lives(labels)) is not None:
        return None if lives else ENDED
    ours = run.deployment_id is not None and run.work_pool_name == pool
    silent = datetime.now(UTC) - run.state.timestamp > SILENT
    return NEVER_BEGAN if ours and silent else None


def _flow_runs(client: SyncPrefectClient, *states: StateType) -> Iterable[FlowRun]:
    chosen = FlowRunFilter.model_validate({"state": {"type": {"any_": states}}})
    return client.read_flow_runs(flow_filter=OUR_FLOW, flow_run_filter=chosen)


def _end_tasks(client: SyncPrefectClient, chosen: dict[str, Any]) -> None:
    """Set what still runs of the chosen flow runs, if they have ended, to Crashed."""
    over = [StateType.CRASHED, StateType.FAILED, StateType.CANCELLED, StateType.COMPLETED]
    active = [StateType.RUNNING, StateType.PENDING, StateType.SCHEDULED]
    left = client.read_task_runs(
        flow_filter=OUR_FLOW,
        flow_run_filter=FlowRunFilter.model_validate(chosen | {"state": {"type": {"any_": over}}}),
        task_run_filter=TaskRunFilter.model_validate({"state": {"type": {"any_": active}}}),
    )
    for task in left:
        state: State[None] = Crashed(message="Its flow run has ended.")
        with contextlib.suppress(httpx.HTTPError, PrefectException):
            client.set_task_run_state(task.id, state, force=True)


def skip_missed(pool: str) -> None:
    """Cancel the scheduled runs of a pool whose time passed while nothing was up to start them."""
    late = {
        # Not one that was suspended, and now waits for a process again.
        "state": {"name": {"any_": ["Scheduled", "Late"]}},
        "expected_start_time": {"before_": datetime.now(UTC) - MISSED},
    }
    with get_client(sync_client=True) as client:
        missed = client.read_flow_runs(
            work_pool_filter=WorkPoolFilter.model_validate({"name": {"any_": [pool]}}),
            flow_run_filter=FlowRunFilter.model_validate(late),
        )
        for run in missed:
            if run.auto_scheduled:
                message = "Skipped: torchyard was not up at its time."
                client.set_flow_run_state(run.id, Cancelled(message=message), force=True)


def delete_retired() -> None:
    """Delete the deployments that were unscheduled during a run, once that run has ended."""
    with get_client(sync_client=True) as client:
        for deployment in list_deployments(client, retired=True):
            if not has_active_run(client, deployment.id):
                client.delete_deployment(deployment.id)
