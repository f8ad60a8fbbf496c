"""Runs in this process: what they need starts side by side, then the flow is called for each."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
from collections.abc import Callable, Iterator
from typing import Protocol

from torchyard.core.config.resolve import ResolvedConfig
from torchyard.core.errors import RunError, UserError
from torchyard.core.tracking.weights import recorded_weights
from torchyard.pipelines.display import Display, display

Leave = Callable[[BaseException | None], None]


class CallFlow(Protocol):
    """Calls the flow for one run, and waits for its end."""

    def __call__(
        self, resolved: ResolvedConfig, run_id: str | None = None, parent: str | None = None
    ) -> None:
        """Raise what ended the run early; `run_id` and `parent` as `train_pipeline` takes them."""


@contextlib.contextmanager
def local_pipeline(
    resolved: ResolvedConfig,
    shown: Display,
    leave: Leave,
    *,
    own_process: bool,
    resumed: bool = False,
) -> Iterator[CallFlow]:
    """Start a Prefect server and a worker, import the flow, and check a configuration.

    Seconds of imports overlap: torch in the worker, Prefect's server in its process, Prefect and
    MLflow here.

    Args:
        resolved: is checked; yields what calls the flow for it, or for one that differs in seed.
        shown: follows the runs.
        leave: called in another thread, with what ended the run early, where Prefect does not
            let go of a run that has ended.
        own_process: whether this process is there for the run alone.
        resumed: whether there may be a checkpoint, which has the weights.

    Raises:
        UserError: the configuration is wrong, or a server cannot be used.
        RunError: there is no server.
    """

    def load() -> None:
        from torchyard.pipelines.flow import pipeline  # noqa: F401 - takes its time here

    with shown.bars(), local_services(shown, load, own_process=own_process) as in_use:
        from torchyard.pipelines.flow.pipeline import call_pipeline
        from torchyard.pipelines.worker.process import check_config

        weights = None if resumed else recorded_weights(resolved)
        check_config(resolved.config, weights=weights, resumed=resumed)

        def call(
            resolved: ResolvedConfig, run_id: str | None = None, parent: str | None = None
        ) -> None:
            # The flow compares the plugins with those of the record, and records what differs.
            origins = {"plugins": dict(resolved.recorded_origins)}
            config = resolved.config.model_copy(update=origins)
            until_its_end(lambda: call_pipeline(config, run_id, parent), leave)

        with in_use():
            yield call


@contextlib.contextmanager
def local_services(
    shown: Display, load: Callable[[], None], *, own_process: bool
) -> Iterator[Callable[[], contextlib.AbstractContextManager[None]]]:
    """Start a Prefect server and a worker, and import meanwhile what a flow needs.

    Args:
        shown: follows the flow.
        load: imports the flow.
        own_process: whether this process is there for the flow alone.

    Yields:
        What waits for the server, and makes it the one that flows are run with.

    Raises:
        UserError: a server cannot be used.
    """
    from torchyard.pipelines.services.prefect_server import PrefectServer, use, without_heartbeat
    from torchyard.pipelines.worker.process import shared_worker

    display.set(shown)
    quiet_prefect()
    if own_process:
        logging.raiseExceptions = False
    worker = shared_worker()
    with PrefectServer.connect() as server:

        @contextlib.contextmanager
        def in_use() -> Iterator[None]:
            quickly = without_heartbeat if server.managed else contextlib.nullcontext
            with use(server.wait()), quickly():
                yield

        if server.starting:
            worker.wait_for_stage()
        with _without_collector(own_process):
            from torchyard.pipelines.flow.recording.start import load_libraries

            load()
            load_libraries()
        yield in_use


def quiet_prefect() -> None:
    """Have Prefect print nothing of a run that has a display."""
    os.environ.setdefault("DO_NOT_TRACK", "1")  # else Prefect prints a notice on usage data
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    # A lost server is reported once, at the end, not for each event and log line.
    os.environ.setdefault("PREFECT_LOGGING_INTERNAL_LEVEL", "CRITICAL")


def until_its_end(call: Callable[[], None], leave: Leave) -> None:
    """Call a flow; what ended the run counts, whatever Prefect makes of it."""
    from torchyard.pipelines.flow.prefect_calls import limited_end

    with limited_end(leave) as end:
        try:
            call()
        except Exception:
            # Prefect may have failed at what ended the run.
            if isinstance(end.error, UserError | RunError):
                raise end.error from None
            raise


@contextlib.contextmanager
def _without_collector(own_process: bool) -> Iterator[None]:
    """Import without the garbage collector, which takes longer (`benchmarks/reasons/startup.md`).

    In a process of the run's own, what was imported is never looked at again.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if own_process:
            gc.freeze()
        if enabled:
            gc.enable()
