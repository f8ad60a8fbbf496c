"""Cleans up after dead processes: MLflow runs, flow runs, late runs, old deployments.

The supervisor calls it every few seconds, so nothing stays RUNNING until the next command.
"""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, WorkPoolFilter
from prefect.client.schemas.objects import State, StateType
from prefect.exceptions import PrefectException
from prefect.states import Cancelled, Crashed

from torchyard.core.tracking.lookup import end_orphans
from torchyard.core.tracking.provenance import owner_lives
from torchyard.core.tracking.store import load_mlflow, open_store, store_lock
from torchyard.pipelines.services.deployments import OUR_FLOW, has_active_run, list_deployments

MISSED = timedelta(minutes=10)  # a run that is later than this is cancelled instead of started


def end_dead_runs(tracking_uri: str) -> None:
    """Set the MLflow runs of a store whose process on this machine has died to KILLED."""
    load_mlflow()
    client = open_store(tracking_uri)
    with store_lock(tracking_uri):  # a run that is being resumed briefly has no owner
        end_orphans(client, *(each.experiment_id for each in client.search_experiments()))


def end_dead_flow_runs() -> None:
    """Set the flow runs whose process has died to Crashed; to Cancelled those being cancelled."""
    active = {"state": {"type": {"any_": [StateType.RUNNING, StateType.CANCELLING]}}}
    with get_client(sync_client=True) as client:
        for run in client.read_flow_runs(
            flow_filter=OUR_FLOW, flow_run_filter=FlowRunFilter.model_validate(active)
        ):
            if owner_lives({key: str(value) for key, value in run.labels.items()}) is False:
                cancelling = run.state_type == StateType.CANCELLING
                ended = Cancelled if cancelling else Crashed
                state: State[None] = ended(message="Its process ended without reporting why.")
                # The server's failure to end one run must not keep the others RUNNING.
                with contextlib.suppress(httpx.HTTPError, PrefectException):
                    client.set_flow_run_state(run.id, state, force=True)


def skip_missed(pool: str) -> None:
    """Cancel the scheduled runs of a pool whose time passed while nothing was up to start them."""
    late = {
        "state": {"type": {"any_": [StateType.SCHEDULED]}},
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
