"""How a run ends early: cancelled or suspended in Prefect, failed, or failed and tried again."""

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
from prefect.context import FlowRunContext
from prefect.exceptions import CancelledRun, Pause, PrefectException, TerminationSignal
from prefect.runtime import flow_run
from prefect.states import Cancelled
from prefect.tasks import Task

from torchyard.core.errors import RunError, StoreUnavailableError, UnreachableError, UserError
from torchyard.core.tracking.store import tracking_uri
from torchyard.pipelines.services.reaper import end_dead_flow_runs, owner_labels
from torchyard.pipelines.worker.process import abort_shared_worker

R = TypeVar("R")

CANCELLED = "cancelled in Prefect"
PAUSED = "paused in Prefect"
NO_ANSWER = (httpx.HTTPError, PrefectException, ValueError)  # or one that Prefect did not give
POLL_SECONDS = 3.0
# A Prefect worker cancels the runs that it started; a run waits so long before it does so itself.
PREFECT_WORKER_SECONDS = 20.0


class SuspendedError(Exception):
    """The run ends with a checkpoint; when Prefect resumes it, another process goes on."""

    def __init__(self, state: State[Any] | None) -> None:
        super().__init__("suspended in Prefect, which can resume it")
        self.state = state


def run_cancellable(pipeline: Callable[[], R]) -> R:
    """Run the body of a flow; end it, its stage stopped, when Prefect cancels or suspends it.

    The flow run also gets labels that name this process, by which the reaper finds the flow
    runs of dead processes.

    Raises:
        Pause: it was suspended; for Prefect, which then leaves the flow run suspended.
    """
    ended = threading.Event()
    if flow_run.id is not None:  # otherwise it is called without Prefect, as in tests
        polled = [UUID(flow_run.id), ended]  # also of a run that no Prefect worker started
        threading.Thread(target=_poll_state, args=polled, daemon=True).start()
    try:
        return pipeline()
    except SuspendedError as error:
        raise Pause(state=error.state) from error
    except CancelledRun as error:
        message = ". ".join([str(error), *getattr(error, "__notes__", [])])
        # Returning a state is how a flow chooses its own; the caller gets a CancelledRun.
        return Cancelled(message=message)  # type: ignore[return-value]
    finally:
        ended.set()


def is_deployed() -> bool:
    """Whether the flow run is one of a deployment; known without asking Prefect's server."""
    context = FlowRunContext.get()
    return bool(context and context.flow_run and context.flow_run.deployment_id)


def ended_as(error: BaseException) -> Literal["KILLED", "FAILED"]:
    """How a run that an exception ended is recorded: Ctrl-C and a cancellation killed it."""
    killed = isinstance(error, CancelledRun | SuspendedError) or not isinstance(error, Exception)
    return "KILLED" if killed else "FAILED"


def is_mistake(error: BaseException) -> bool:
    """Whether its user has to correct something first: to try again is of no use."""
    return isinstance(error, UserError) and not isinstance(error, UnreachableError)


def reason_of(error: BaseException) -> str:
    """Why a run ended, in one or a few lines."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, TerminationSignal):
        return CANCELLED if flow_run.id and _cancelled(UUID(flow_run.id)) else "terminated"
    if isinstance(error, SuspendedError | Pause):  # between two tasks Prefect itself raises
        return str(SuspendedError(error.state))
    if isinstance(error, SystemExit):
        return f"some code in it called exit({error.code})"
    text = str(error).strip()
    if isinstance(error, UserError | RunError | CancelledRun | SuspendedError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _cancelled(run: UUID) -> bool:
    with (
        contextlib.suppress(*NO_ANSWER),
        get_client(sync_client=True) as client,
    ):
        state = client.read_flow_run(run).state
        return state is not None and (state.is_cancelling() or state.is_cancelled())
    return False


def _poll_state(run: UUID, ended: threading.Event) -> None:
    has_worker = os.environ.get("PREFECT__ENABLE_CANCELLATION_AND_CRASHED_HOOKS") == "false"
    patience = PREFECT_WORKER_SECONDS if has_worker else 0.0
    labelled = False
    with get_client(sync_client=True) as client:
        while True:
            with contextlib.suppress(*NO_ANSWER):
                found = client.read_flow_run(run)
                if not labelled:
                    client.update_flow_run_labels(run, {**owner_labels(found.state)})
                    labelled = True
                    end_dead_flow_runs(stores=[tracking_uri()])
                if end := _end_of(found.state):
                    if isinstance(end, CancelledRun) and ended.wait(patience):
                        return
                    patience = 0.0
                    # In every round: the run may have been between two stages.
                    abort_shared_worker(end)
            if ended.wait(POLL_SECONDS):
                return


def _end_of(state: State[Any] | None) -> Exception | None:
    """What ends the run, if it is not to go on in that state of its flow run."""
    if state is None or state.is_running():
        return None
    if state.is_cancelling() or state.is_cancelled():
        return CancelledRun(CANCELLED)
    # Scheduled: suspended, and resumed before this process noticed that.
    if state.state_details.pause_reschedule or state.is_scheduled():
        return SuspendedError(state)
    return CancelledRun(PAUSED) if state.is_paused() else None


RETRY_SECONDS = [5.0, 30.0]


def should_retry(failed: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Whether to retry a task that failed; a wrong configuration is an error at once."""
    error = state.result(raise_on_failure=False)
    if isinstance(error, UnreachableError):
        # Whoever started a run by hand wants to know at once, to name another source.
        return is_deployed()
    return isinstance(error, StoreUnavailableError)


RETRIED: dict[str, Any] = {
    "retries": len(RETRY_SECONDS),
    "retry_delay_seconds": RETRY_SECONDS,
    "retry_condition_fn": should_retry,
}
