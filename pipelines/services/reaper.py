"""Cleans up after dead processes: MLflow runs, flow runs, task runs, late runs, old deployments.

The supervisor calls it every few seconds, so nothing stays RUNNING until the next command. Without
services the next run ends the flow runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowFilter, FlowRunFilter, TaskRunFilter, WorkPoolFilter
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.sorting import FlowRunSort, TaskRunSort
from prefect.exceptions import PrefectException
from prefect.states import Cancelled, Completed, Crashed, Failed

from torchyard.core.tracking.delivery import REASON
from torchyard.core.tracking.location.address import database_of
from torchyard.core.tracking.ownership.orphans import end_orphans
from torchyard.core.tracking.ownership.process import owner_lives, owner_tags
from torchyard.core.tracking.store import load_mlflow, open_store, store_lock
from torchyard.pipelines.services.prefect_server import FLOW, STUDY_FLOW, all_pages
from torchyard.pipelines.services.scheduling.deployments import has_active_run, list_deployments

if TYPE_CHECKING:
    from mlflow.entities import Run

OUR_FLOWS = FlowFilter.model_validate({"name": {"any_": [FLOW, STUDY_FLOW]}})
MISSED = timedelta(minutes=10)  # a run that is later than this is cancelled instead of started
SILENT = timedelta(minutes=10)  # a started run names its process within seconds
LAST_EVENTS = timedelta(minutes=1)  # the states of tasks reach the server after the flow run's
FLOW_RUN_ID = "prefect.flow_run_id"  # tag of an MLflow run
STATE = "torchyard.state"  # label: the id of the Running state that the labels belong to

ENDED = "Its process ended without reporting why."
NEVER_BEGAN = f"No process has taken it up within {SILENT.seconds // 60} minutes."


def end_dead_runs(tracking_uri: str) -> None:
    """Set the MLflow runs of a store whose process on this machine has died to KILLED."""
    load_mlflow()
    with store_lock(tracking_uri):  # a run that is being resumed briefly has no owner
        client = open_store(tracking_uri)
        end_orphans(client, *(each.experiment_id for each in client.search_experiments()))


def owner_labels(state: State[Any] | None = None) -> dict[str, str]:
    """Labels by which `end_dead_flow_runs` knows that this process runs a flow run.

    Args:
        state: that the flow run is in, if it has started.
    """
    return owner_tags() | ({STATE: str(state.id)} if state else {})


def end_dead_flow_runs(pool: str | None = None, stores: Iterable[str] = ()) -> None:
    """End the flow runs whose process has died, and the task runs of all that have ended.

    They end as MLflow has recorded: the process may have outlived Prefect's server. Where nothing
    is recorded they become Crashed; those that were being cancelled, or paused where Prefect
    cannot resume them, become Cancelled.

    Args:
        pool: of this machine. What waits there for a process, or began without naming one, has
            ten minutes.
        stores: addresses of the MLflow stores in which the runs may be recorded.
    """
    with get_client(sync_client=True) as client:
        running = _flow_runs(
            client, StateType.RUNNING, StateType.CANCELLING, StateType.PENDING, StateType.PAUSED
        )
        dead = {run.id: (run, why) for run in running if (why := _reason_to_end(run, pool))}
        recorded = _recorded(dead, stores)
        for identity, (run, why) in dead.items():
            state = _last_state(run, why, recorded.get(identity))
            # The server's failure to end one run must not keep the others RUNNING.
            with contextlib.suppress(httpx.HTTPError, PrefectException):
                client.set_flow_run_state(identity, state, force=True)
        if dead:
            _end_tasks(client, {"id": {"any_": [*dead]}})
        _end_tasks(client, {"end_time": {"before_": datetime.now(UTC) - LAST_EVENTS}})


def _recorded(flow_runs: Collection[UUID], stores: Iterable[str]) -> dict[UUID, Run]:
    """The MLflow runs of flow runs whose processes have died, as far as the stores answer."""
    found: dict[UUID, Run] = {}
    for uri in stores if flow_runs else ():
        database = database_of(uri)
        if database and not database.exists():
            continue
        # A store that does not answer must not keep the flow runs RUNNING.
        with contextlib.suppress(Exception):
            end_dead_runs(uri)  # a run's log may have its true end
            client = open_store(uri)
            experiments = [each.experiment_id for each in client.search_experiments()]
            for flow_run in flow_runs:
                chosen = f"tags.`{FLOW_RUN_ID}` = '{flow_run}'"
                for run in client.search_runs(experiments, chosen, max_results=1):
                    found[flow_run] = run
    return found


def _last_state(run: FlowRun, reason: str, record: Run | None) -> State[None]:
    if record and record.info.status == "FINISHED":
        name = record.info.run_name
        return Completed(message=f"{name} is finished, as MLflow has recorded.")
    if record:
        reason = record.data.tags.get(REASON, reason)
    if record and record.info.status == "FAILED":
        return Failed(message=reason)
    crashed = run.state_type in (StateType.RUNNING, StateType.PENDING)
    return (Crashed if crashed else Cancelled)(message=reason)


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


def _flow_runs(client: SyncPrefectClient, *states: StateType) -> list[FlowRun]:
    chosen = FlowRunFilter.model_validate({"state": {"type": {"any_": states}}})
    asked = {"flow_filter": OUR_FLOWS, "flow_run_filter": chosen, "sort": FlowRunSort.ID_DESC}
    return all_pages(client.read_flow_runs, **asked)


def _end_tasks(client: SyncPrefectClient, chosen: dict[str, Any]) -> None:
    """End what still runs of the chosen flow runs, if they have ended."""
    active = [StateType.RUNNING, StateType.PENDING, StateType.SCHEDULED]
    for end, over in (
        (Completed, [StateType.COMPLETED]),
        (Crashed, [StateType.CRASHED, StateType.FAILED, StateType.CANCELLED]),
    ):
        of = chosen | {"state": {"type": {"any_": over}}}
        asked = {
            "flow_filter": OUR_FLOWS,
            "flow_run_filter": FlowRunFilter.model_validate(of),
            "task_run_filter": TaskRunFilter.model_validate({"state": {"type": {"any_": active}}}),
            "sort": TaskRunSort.ID_DESC,
        }
        for task in all_pages(client.read_task_runs, **asked):
            state: State[None] = end(message="Its flow run has ended.")
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
        asked = {
            "work_pool_filter": WorkPoolFilter.model_validate({"name": {"any_": [pool]}}),
            "flow_run_filter": FlowRunFilter.model_validate(late),
            "sort": FlowRunSort.ID_DESC,
        }
        for run in all_pages(client.read_flow_runs, **asked):
            if run.auto_scheduled:
                message = "Skipped: torchyard was not up at its time."
                client.set_flow_run_state(run.id, Cancelled(message=message), force=True)


def delete_retired() -> None:
    """Delete the deployments that were unscheduled during a run, once that run has ended."""
    with get_client(sync_client=True) as client:
        for deployment in list_deployments(client, retired=True):
            if not has_active_run(client, deployment.id):
                client.delete_deployment(deployment.id)
