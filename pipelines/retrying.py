"""Which failures of a task are worth another try: those that pass by themselves."""

from __future__ import annotations

from typing import Any

from prefect.client.schemas.objects import State, TaskRun
from prefect.runtime import deployment
from prefect.tasks import Task

from core.errors import StoreAwayError, UnreachableError

RETRY_SECONDS = [5.0, 30.0]


def may_pass(failed: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Whether a task that failed is tried again; a wrong configuration never is."""
    error = state.result(raise_on_failure=False)
    if isinstance(error, UnreachableError):
        # Whoever began the run by hand would rather know at once, and name another place.
        return deployment.id is not None
    return isinstance(error, StoreAwayError)


RETRIED: dict[str, Any] = {
    "retries": len(RETRY_SECONDS),
    "retry_delay_seconds": RETRY_SECONDS,
    "retry_condition_fn": may_pass,
}
