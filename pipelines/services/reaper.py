"""The server's own watch: what dead processes left behind is set right without a next command.

It runs in the process that keeps a yard up (`pipelines/services/manager.py`), every few seconds.
"""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import PrefectException
from prefect.states import Cancelled, Crashed

from torchyard.core.tracking.lookup import end_orphans
from torchyard.core.tracking.provenance import owner_lives
from torchyard.core.tracking.store import load_mlflow, one_at_a_time, open_store
from torchyard.pipelines.services.deployments import deployed, under_way
from torchyard.pipelines.services.prefect_server import FLOW

MISSED = timedelta(minutes=10)  # a run that was to begin longer ago does not begin any more


def end_dead_runs(tracking_uri: str) -> None:
    """Set to KILLED what a dead process of this machine left RUNNING in an MLflow store."""
    load_mlflow()
    client = open_store(tracking_uri)
    with one_at_a_time(tracking_uri):  # a run that is being taken up has no owner for a moment
        end_orphans(client, *(found.experiment_id for found in client.search_experiments()))


def end_dead_flow_runs() -> None:
    """Set to Crashed, or Cancelled where that was wanted, the flow runs of dead processes."""
    with get_client(sync_client=True) as client:
        for run in _flow_runs(client, StateType.RUNNING, StateType.CANCELLING):
            if owner_lives({key: str(value) for key, value in run.labels.items()}) is False:
                wanted = run.state_type == StateType.CANCELLING
                ended = Cancelled if wanted else Crashed
                state: State[None] = ended(message="Its process ended without a word.")
                # A server that cannot end one run now must not keep this from the others.
                with contextlib.suppress(httpx.HTTPError, PrefectException):
                    client.set_flow_run_state(run.id, state, force=True)


def skip_missed(pool: str) -> None:
    """Cancel what a schedule wanted begun at a time when nothing was here to begin it."""
    before = datetime.now(UTC) - MISSED
    with get_client(sync_client=True) as client:
        missed = client.read_flow_runs(
            work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[pool])),
            flow_run_filter=FlowRunFilter(
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
                expected_start_time=FlowRunFilterExpectedStartTime(before_=before),
            ),
        )
        for run in missed:
            if run.auto_scheduled:
                message = "Skipped: torchyard was not up at its time."
                client.set_flow_run_state(run.id, Cancelled(message=message), force=True)


def delete_forgotten() -> None:
    """Delete the deployments that were unscheduled while a run of theirs was under way."""
    with get_client(sync_client=True) as client:
        for found in deployed(client, forgotten=True):
            if not under_way(client, found.id):
                client.delete_deployment(found.id)


def _flow_runs(client: SyncPrefectClient, *states: StateType) -> list[FlowRun]:
    return client.read_flow_runs(
        flow_filter=FlowFilter(name=FlowFilterName(any_=[FLOW])),
        flow_run_filter=FlowRunFilter(
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(states)))
        ),
    )
