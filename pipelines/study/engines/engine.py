"""What a study asks of an engine, and the engine with workers of this process."""

from __future__ import annotations

import contextlib
import queue
from typing import Any, Protocol

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.states import Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from torchyard.pipelines.display import Display, display
from torchyard.pipelines.study.trial import RunningStudy, StoppedError, TrialEnd
from torchyard.pipelines.worker.process import abort_shared_worker, worker_of


class Engine(Protocol):
    """Runs trials; used in one thread, as a context manager."""

    def __enter__(self) -> Engine:
        """Get ready for trials.

        Raises:
            UserError: there is nothing at the address.
        """

    def __exit__(self, *raised: object) -> None:
        """Stop the trials under way, which can be gone on with, and wait for their ends."""

    def submit(self, number: int) -> None:
        """Run a trial; there are never more of them than the study has workers."""

    def next_end(self) -> tuple[int, TrialEnd]:
        """Wait until a trial has ended."""


class LocalEngine:
    """Trials in threads of this process, each with a worker process that stays."""

    def __init__(self, study: RunningStudy) -> None:
        workers = study.plan.settings.workers
        self._study = study
        self._runner: ThreadPoolTaskRunner[Any] = ThreadPoolTaskRunner(max_workers=workers)
        self._places = list(range(workers))[::-1]
        self._ends: dict[int, TrialEnd] = {}
        self._ended: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
        self._under_way = 0

    def __enter__(self) -> LocalEngine:
        self._runner.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._study.stopping.set()
        while self._under_way:
            abort_shared_worker(StoppedError("interrupted"))
            with contextlib.suppress(queue.Empty):
                self._ended.get(timeout=0.5)
                self._under_way -= 1
        self._runner.__exit__(*raised)

    def submit(self, number: int) -> None:  # noqa: D102 - as the protocol's
        study, ends, ended, place = self._study, self._ends, self._ended, self._places.pop()

        @task(name="trial", task_run_name="trial {number}", cache_policy=NO_CACHE)
        def trial(number: int) -> State[Any]:
            token = display.set(Display())  # a trial is a line of the study's
            try:
                with worker_of(place):
                    end = ends[number] = study.run_trial(number)
            finally:
                display.reset(token)
            return prefect_state(end, study.plan.settings.figure)

        def note(future: PrefectFuture[Any]) -> None:
            ended.put((number, place))

        self._under_way += 1
        self._runner.submit(trial, {"number": number}).add_done_callback(note)

    def next_end(self) -> tuple[int, TrialEnd]:  # noqa: D102 - as the protocol's
        number, place = self._ended.get()
        self._under_way -= 1
        self._places.append(place)
        return number, self._ends.pop(number, TrialEnd("stopped", reason="ended by Prefect"))


def prefect_state(end: TrialEnd, figure: str) -> State[Any]:
    """How a trial ended, as Prefect shows it."""
    if end.state == "complete":
        return Completed(message=f"{end.run}: {figure} {end.value:.4f}")
    if end.state == "pruned":
        return Completed(name="Pruned", message=f"{end.run}: {end.reason}")
    return Failed(message=f"{end.run}: {end.reason}")
