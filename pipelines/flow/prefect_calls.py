"""How a run calls Prefect, which may be away, hang or talk nonsense: the run never depends on it.

MLflow records what a run did. Prefect is told as well, for as long as it is willing to listen.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import FlowRunCreate
from prefect.client.schemas.objects import FlowRun
from prefect.flow_engine import run_flow
from prefect.states import Pending, to_state_create

from torchyard.pipelines.services.reaper import owner_labels
from torchyard.pipelines.services.server.answer import patience

logger = logging.getLogger(__name__)

Leave = Callable[[BaseException | None], None]


@dataclass(eq=False)  # of two runs of this process
class End:
    """How the stages of a run ended, whatever Prefect says afterwards.

    Attributes:
        recorded: whether they have ended, and MLflow has been told.
        error: what ended them early.
    """

    recorded: bool = False
    error: BaseException | None = None


def tell(what: str, call: Callable[[], Any]) -> None:
    """Make a call to Prefect; one that fails, or takes longer than `patience()`, is a warning."""
    failures: list[Exception] = []

    def attempt() -> None:
        try:
            call()
        except Exception as error:  # an HTML page is a parser's error, and so on
            failures.append(error)

    # In its own thread, with this one's flow run: Prefect's client tries again for minutes.
    context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=[attempt], daemon=True)
    thread.start()
    thread.join(patience())
    if thread.is_alive():
        logger.warning("Prefect has no %s of this run: no answer for %g seconds.", what, patience())
    elif failures:
        logger.warning("Prefect has no %s of this run: %s", what, failures[0])


_watched: list[tuple[End, Leave]] = []


@contextlib.contextmanager
def limited_end(leave: Leave) -> Iterator[End]:
    """Watch the run in the body: its end is `recorded`; yields how it ended.

    Args:
        leave: called in another thread, with what ended the run early, if Prefect has not let go
            of the recorded run after `patience()` seconds; it ends the process.
    """
    end = End()
    _watched.append((end, leave))
    try:
        yield end
    finally:
        _watched.remove((end, leave))


@contextlib.contextmanager
def recorded() -> Iterator[None]:
    """Everything in the body is recorded at its end, and Prefect has `patience()` from then on."""
    error: BaseException | None = None
    try:
        yield
    except BaseException as raised:
        error = raised
        raise
    finally:
        _limit(error)


def _limit(error: BaseException | None) -> None:
    watched = bool(_watched)
    if watched:
        end, leave = _watched[-1]
    elif os.environ.get("PREFECT__FLOW_RUN_ID"):  # a process that a Prefect worker started
        end, leave = End(), _leave_prefects_process
    else:
        return
    end.recorded, end.error = True, error

    def expire() -> None:
        if not watched or (end, leave) in _watched:
            leave(error)

    timer = threading.Timer(patience(), expire)
    timer.daemon = True
    timer.start()


def _leave_prefects_process(error: BaseException | None) -> None:
    print(f"MLflow has the run, but Prefect has not answered for {patience():g} seconds.")
    sys.stdout.flush()
    os._exit(0 if error is None else 1)


def call_flow(called: Flow[..., Any], parameters: dict[str, Any]) -> None:
    """Call a flow whose flow run has labels that name this process from its beginning.

    Raises:
        As the flow does.
    """
    with get_client(sync_client=True) as client:
        wanted = FlowRunCreate(
            flow_id=client.create_flow(called),
            flow_version=called.version,
            parameters=called.serialize_parameters(parameters),
            state=to_state_create(Pending()),
            labels=owner_labels(),
        )
        # Prefect's own `create_flow_run` takes no labels.
        answer = client.request(
            "POST", "/flow_runs/", json=wanted.model_dump(mode="json", exclude_unset=True)
        )
    run_flow(called, FlowRun.model_validate(answer.json()), parameters)
