"""One trial in another process than the one that leads the study, on any machine."""

from __future__ import annotations

import functools
import json
import os
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State

from torchyard.core.errors import RunError, UserError
from torchyard.core.hosting.host import host
from torchyard.core.redaction import redact_logs
from torchyard.core.study.plan import StudyPlan
from torchyard.core.tracking import store
from torchyard.core.tracking.location.errors import store_errors
from torchyard.core.tracking.ownership.orphans import settle_owner
from torchyard.core.tracking.record import RunRecord
from torchyard.pipelines.display import Display, display
from torchyard.pipelines.flow.recording.start import load_libraries
from torchyard.pipelines.services.prefect_server import TRIAL_FLOW
from torchyard.pipelines.services.scheduling.deployments import local_environment
from torchyard.pipelines.study import recording
from torchyard.pipelines.study.engines.engine import prefect_state
from torchyard.pipelines.study.engines.exchange import Exchange
from torchyard.pipelines.study.search import Search
from torchyard.pipelines.study.trial import RunningStudy, TrialEnd, known_end
from torchyard.pipelines.worker.process import shared_worker, worker_of


@dataclass(frozen=True)
class Order:
    """What a process needs to know to run trials of a study: plain values.

    Attributes:
        study: as a file has it.
        run_id: of the study's MLflow run.
        folder, session: of its `Exchange`.
        seed, epochs: of its `Search`.
        figure: by which its trials are judged.
        environment, working_folder: as they are where the study was begun.
    """

    study: dict[str, Any]
    run_id: str
    folder: str
    session: str
    seed: int
    epochs: int
    figure: str
    environment: dict[str, str | None]
    working_folder: str

    @classmethod
    def of(cls, study: RunningStudy, session: str) -> dict[str, Any]:
        """The order for trials of a study, as its parts."""
        order = cls(
            study.plan.document,
            study.record.run_id,
            str(study.record.folder),
            session,
            study.seed,
            study.search.epochs,
            study.plan.settings.figure,
            local_environment(),
            str(Path.cwd()),
        )
        return asdict(order)


@task(name="trial", task_run_name="trial {number}", cache_policy=NO_CACHE, persist_result=False)
def trial(number: int, order: dict[str, Any], data: dict[str, str]) -> State[Any]:
    """Run a trial as a task, on a worker of Dask or Ray.

    Args:
        number: of the trial.
        order: the study, as `Order` has it.
        data: folders of prepared data sets, by their settings.
    """
    return _run(number, order, data)


@flow(name=TRIAL_FLOW, flow_run_name="trial {number}", persist_result=False)
def trial_flow(number: int, order: dict[str, Any], data: dict[str, str]) -> State[Any]:
    """Run a trial as a flow run of its own, in a work pool; arguments as `trial` has them."""
    return _run(number, order, data)


def _run(number: int, order: Mapping[str, Any], data: Mapping[str, str]) -> State[Any]:
    """Run a trial, or go on with it; its end is in the study's folder."""
    exchange = Exchange(Path(order["folder"]), order["session"])
    if (end := exchange.end_of(number)) is None:  # the worker that had its result may have died
        end = TrialEnd("stopped", reason="interrupted")
        if exchange.is_open:
            exchange.begin(number)
            end = _end(number, order, data, exchange)
            exchange.end(number, end)
    return prefect_state(end, order["figure"])


def _end(
    number: int, order: Mapping[str, Any], data: Mapping[str, str], exchange: Exchange
) -> TrialEnd:
    try:
        study = _opened(json.dumps(order))
        study.goes_on = lambda: exchange.is_open
        study.prepared.update(data)
        if (found := _begun(study, number)) is not None:
            if (end := known_end(study.plan, found)) is not None:
                return end
            study.begun = {**study.begun, number: found.info.run_id}
    except (UserError, RunError) as error:
        return TrialEnd("stopped", reason=str(error), error=error)
    token = display.set(Display())
    try:
        with worker_of(threading.get_ident()):  # a worker of Dask may run several trials
            return study.run_trial(number)
    finally:
        display.reset(token)


def _begun(study: RunningStudy, number: int) -> Any:
    """The run of a trial that another process began, once it is known that that has ended."""
    found = recording.runs_begun(study.record.run_id, [number]).get(number)
    if found is not None:
        uri = store.tracking_uri()
        with store_errors(uri):
            settle_owner(store.open_existing(uri), found, force=False, say=lambda text: None)
    return found


@functools.lru_cache(maxsize=1)
def _opened(order_text: str) -> RunningStudy:
    """The study, in this process: its trials here share imports, plugins and worker processes."""
    order = Order(**json.loads(order_text))
    if not Path(order.folder).is_dir():
        raise UserError(
            f"there is no {order.folder} where this worker of the study runs. Workers need a file "
            "system that they share with it."
        )
    _take_surroundings(order)
    redact_logs()
    load_libraries()
    plan = StudyPlan.read(order.study, (), {}, Path(), host())
    search = Search.joined(plan, Path(order.folder), order.seed, order.epochs)
    return RunningStudy(plan, search, RunRecord.open(order.run_id), order.seed)


def _take_surroundings(order: Order) -> None:
    """Find what the study's own process finds: plugins, data, the store."""
    before = dict(os.environ), Path.cwd()
    for name, value in order.environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    if Path(order.working_folder).is_dir():
        os.chdir(order.working_folder)
    if before != (dict(os.environ), Path.cwd()):
        host.cache_clear()
        with worker_of(threading.get_ident()):
            shared_worker().close()
