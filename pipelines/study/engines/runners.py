"""The engines Dask and Ray: trials are tasks of one of Prefect's task runners."""

from __future__ import annotations

import os
import tempfile
import time
from typing import Any

from prefect.task_runners import TaskRunner

from torchyard.core.study.plan import StudySettings
from torchyard.pipelines.study.engines.elsewhere import Order, trial
from torchyard.pipelines.study.engines.exchange import Exchange
from torchyard.pipelines.study.trial import RunningStudy, TrialEnd

POLL_SECONDS = 0.1
STOP_SECONDS = 20.0  # how long trials have to stop after an epoch
ATTEMPTS = 4  # at a trial whose worker dies


class TaskRunnerEngine:
    """Trials as tasks of a task runner whose workers are other processes."""

    def __init__(self, study: RunningStudy) -> None:
        self._study = study
        # Short, for Ray's sockets, and outside of the study's folder, which may be a network's.
        self._scratch = tempfile.TemporaryDirectory(prefix="torchyard-", dir="/tmp")
        self._runner = task_runner(study.plan.settings, self._scratch.name)
        self._futures: dict[int, Any] = {}
        self._attempts: dict[int, int] = {}

    def __enter__(self) -> TaskRunnerEngine:
        self._exchange = Exchange.open(self._study.record.folder)
        self._runner.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._exchange.close()
        deadline = time.monotonic() + STOP_SECONDS
        while self._futures and time.monotonic() < deadline:
            self._futures = {
                number: future for number, future in self._futures.items() if not _done(future)
            }
            time.sleep(POLL_SECONDS)
        self._runner.__exit__(*raised)
        self._scratch.cleanup()

    def submit(self, number: int) -> None:  # noqa: D102 - as the protocol's
        self._exchange.forget(number)
        self._attempts[number] = self._attempts.get(number, 0) + 1
        self._study.prepare_for(number)
        order, data = Order.of(self._study, self._exchange.session), self._study.prepared
        parameters = {"number": number, "order": order, "data": dict(data)}
        self._futures[number] = self._runner.submit(trial, parameters)

    def next_end(self) -> tuple[int, TrialEnd]:  # noqa: D102 - as the protocol's
        while True:
            for number, future in list(self._futures.items()):
                if (end := self._exchange.end_of(number)) is not None:
                    del self._futures[number]
                    return number, end
                if not _done(future) or self._exchange.end_of(number) is not None:
                    continue
                reason = _failure(future)
                if self._attempts[number] >= ATTEMPTS:
                    del self._futures[number]
                    return number, TrialEnd("failed", reason=reason)
                self.submit(number)  # it goes on from its checkpoint
            time.sleep(POLL_SECONDS)


def task_runner(settings: StudySettings, scratch: str) -> TaskRunner[Any]:
    """Prefect's task runner for a study: on the cluster at its address, or one of its own.

    Args:
        settings: of the study.
        scratch: a folder for the files of a cluster of its own.
    """
    if settings.engine == "dask":
        from prefect_dask.task_runners import DaskTaskRunner

        if settings.address is not None:
            return DaskTaskRunner(address=settings.address)
        cluster = {
            "n_workers": settings.workers,
            "threads_per_worker": 1,
            "dashboard_address": "127.0.0.1:0",  # any free port
            # Certificates for its processes alone: whoever speaks to a scheduler has code run.
            "security": True,
            "local_directory": scratch,
            "memory_limit": 0,  # what a trial takes is in a process of its own
        }
        return DaskTaskRunner(cluster_kwargs=cluster)
    from prefect_ray.task_runners import RayTaskRunner

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    own = {"num_cpus": settings.workers, "include_dashboard": False, "_temp_dir": scratch}
    init = quiet if settings.address is not None else quiet | own
    runner: TaskRunner[Any] = RayTaskRunner(address=settings.address, init_kwargs=init)
    return runner


def _done(future: Any) -> bool:
    """Whether a task has ended, or its worker has."""
    wrapped = future.wrapped_future
    if hasattr(wrapped, "done"):  # Dask's
        return bool(wrapped.done())
    import ray

    ready, _ = ray.wait([wrapped], timeout=0)
    return bool(ready)


def _failure(future: Any) -> str:
    """Why a task ended without a word of its trial."""
    try:
        future.result(timeout=1, raise_on_failure=False)
    except Exception as error:
        return f"its worker ended: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
    message = future.state.message
    return f"its worker ended: {message or 'without a word'}"
