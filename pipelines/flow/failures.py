"""How a run ends early: cancelled in Prefect, failed, or failed in a task that is retried."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from typing import Any, Literal, TypeVar
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State, TaskRun
from prefect.exceptions import CancelledRun, PrefectException, TerminationSignal
from prefect.runtime import deployment, flow_run
from prefect.states import Cancelled
from prefect.tasks import Task

from torchyard.core.errors import StoreUnavailableError, UnreachableError
from torchyard.core.tracking.provenance import owner_tags
from torchyard.pipelines.worker.process import abort_shared_worker

R = TypeVar("R")

CANCELLED = "cancelled in Prefect"
POLL_SECONDS = 3.0
# A Prefect worker cancels the runs that it started; a run waits so long before it does so itself.
PREFECT_WORKER_SECONDS = 20.0


def run_cancellable(pipeline: Callable[[], R]) -> R:
    """Run the body of a flow; end as Cancelled, its stage stopped, when Prefect asks for that.

    The flow run also gets labels that name this process, by which the reaper finds the flow
    runs of dead processes.
    """
    ended = threading.Event()
    if flow_run.id is not None:  # otherwise it is called without Prefect, as in tests
        polled = [UUID(flow_run.id), ended]  # also of a run that no Prefect worker started
        threading.Thread(target=_poll_cancellation, args=polled, daemon=True).start()
    try:
        return pipeline()
    except CancelledRun as error:
        message = ". ".join([str(error), *getattr(error, "__notes__", [])])
        # Returning a state is how a flow chooses its own; the caller gets a CancelledRun.
        return Cancelled(message=message)  # type: ignore[return-value]
    finally:
        ended.set()


def ended_as(error: BaseException) -> Literal["KILLED", "FAILED"]:
    """How a run that an exception ended is recorded: Ctrl-C and a cancellation killed it."""
    killed = isinstance(error, CancelledRun | TerminationSignal) or not isinstance(error, Exception)
    return "KILLED" if killed else "FAILED"


def reason_of(error: BaseException) -> str:
    """Why a run ended, in one or a few lines."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, TerminationSignal):
        return CANCELLED if flow_run.id and _cancelled(UUID(flow_run.id)) else "terminated"
    return str(error).strip() or type(error).__name__


def _cancelled(run: UUID) -> bool:
    with (
        contextlib.suppress(httpx.HTTPError, PrefectException),  # no answer
        get_client(sync_client=True) as client,
    ):
        state = client.read_flow_run(run).state
        return state is not None and (state.is_cancelling() or state.is_cancelled())
    return False


def _poll_cancellation(run: UUID, ended: threading.Event) -> None:
    has_worker = os.environ.get("PREFECT__ENABLE_CANCELLATION_AND_CRASHED_HOOKS") == "false"
    patience = PREFECT_WORKER_SECONDS if has_worker else 0.0
    labelled = False
    with get_client(sync_client=True) as client:
        while True:
            with contextlib.suppress(httpx.HTTPError, PrefectException):  # no answer
                if not labelled:
                    client.update_flow_run_labels(run, {**owner_tags()})
                    labelled = True
                state = client.read_flow_run(run).state
                if state and (state.is_cancelling() or state.is_cancelled()):
                    if ended.wait(patience):
                        return
                    patience = 0.0
                    # In every round: the run may have been between two stages.
                    abort_shared_worker(CancelledRun(CANCELLED))
            if ended.wait(POLL_SECONDS):
                return


RETRY_SECONDS = [5.0, 30.0]


def should_retry(failed: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Whether to retry a task that failed; a wrong configuration is an error at once."""
    error = state.result(raise_on_failure=False)
    if isinstance(error, UnreachableError):
        # Whoever started a run by hand wants to know at once, to name another source.
        return deployment.id is not None
    return isinstance(error, StoreUnavailableError)


RETRIED: dict[str, Any] = {
    "retries": len(RETRY_SECONDS),
    "retry_delay_seconds": RETRY_SECONDS,
    "retry_condition_fn": should_retry,
}
