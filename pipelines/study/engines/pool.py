"""The engine of a Prefect work pool: each trial is a flow run that a Prefect worker picks up."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun, State
from prefect.client.schemas.sorting import FlowRunSort
from prefect.states import Cancelled

from torchyard.core.errors import UserError, suggestion
from torchyard.pipelines.services.manager import pool_name
from torchyard.pipelines.services.prefect_server import TRIAL_FLOW, all_pages
from torchyard.pipelines.services.scheduling.deployments import local_environment
from torchyard.pipelines.services.scheduling.job_variables import fit_variables
from torchyard.pipelines.study.engines.elsewhere import Order
from torchyard.pipelines.study.engines.exchange import Exchange
from torchyard.pipelines.study.engines.runners import ATTEMPTS, POLL_SECONDS, STOP_SECONDS
from torchyard.pipelines.study.trial import RunningStudy, TrialEnd

ENTRYPOINT = "torchyard.pipelines.study.engines.elsewhere.trial_flow"
ASK_SECONDS = 1.0  # between two questions to Prefect's server


class PoolEngine:
    """Trials as flow runs of a deployment in a work pool."""

    def __init__(self, study: RunningStudy) -> None:
        self._study = study
        self._runs: dict[int, UUID] = {}
        self._attempts: dict[int, int] = {}
        self._client: SyncPrefectClient = get_client(sync_client=True)
        self._asked = 0.0

    def __enter__(self) -> PoolEngine:
        self._client.__enter__()
        chosen = work_pool(self._client, self._study.plan.settings.address)
        self._exchange = Exchange.open(self._study.record.folder)
        self._deployment = self._client.create_deployment(
            flow_id=self._client.create_flow_from_name(TRIAL_FLOW),
            name=f"{self._study.plan.name}-{self._study.record.run_id[:8]}",
            entrypoint=ENTRYPOINT,
            work_pool_name=chosen.name,
            job_variables=_job_variables(chosen),
            pull_steps=[],
            description=f"Trials of {self._study.record.name}.",
        )
        return self

    def __exit__(self, *raised: Any) -> None:
        self._exchange.close()
        deadline = time.monotonic() + STOP_SECONDS
        while self._runs and time.monotonic() < deadline:
            for number, run in self._states().items():
                if run is None or run.state is None or run.state.is_final():
                    del self._runs[number]
                elif run.state.is_scheduled():
                    state: State[Any] = Cancelled(message="the study was stopped")
                    self._client.set_flow_run_state(run.id, state, force=True)
            time.sleep(ASK_SECONDS)
        if not self._runs:
            self._client.delete_deployment(self._deployment)
        self._client.__exit__(*raised)

    def submit(self, number: int) -> None:  # noqa: D102 - as the protocol's
        self._exchange.forget(number)
        self._attempts[number] = self._attempts.get(number, 0) + 1
        self._study.prepare_for(number)
        order, data = Order.of(self._study, self._exchange.session), self._study.prepared
        run = self._client.create_flow_run_from_deployment(
            self._deployment,
            parameters={"number": number, "order": order, "data": dict(data)},
            name=f"trial {number}",
        )
        self._runs[number] = run.id

    def next_end(self) -> tuple[int, TrialEnd]:  # noqa: D102 - as the protocol's
        while True:
            for number in list(self._runs):
                if (end := self._exchange.end_of(number)) is not None:
                    del self._runs[number]
                    return number, end
            if time.monotonic() - self._asked > ASK_SECONDS:
                if lost := self._lost():
                    return lost
                self._asked = time.monotonic()
            time.sleep(POLL_SECONDS)

    def _lost(self) -> tuple[int, TrialEnd] | None:
        """Begin trials again whose process has died; returns one that was begun too often."""
        for number, run in self._states().items():
            state = run.state if run is not None else None
            if state is not None and not state.is_final() and not self._exchange.is_dead(number):
                continue
            if self._exchange.end_of(number) is not None:
                continue
            if self._attempts[number] >= ATTEMPTS:
                del self._runs[number]
                message = state.message if state else "Prefect no longer has its flow run"
                return number, TrialEnd("failed", reason=f"its process ended: {message}")
            self.submit(number)  # it goes on from its checkpoint
        return None

    def _states(self) -> dict[int, FlowRun | None]:
        chosen = FlowRunFilter.model_validate({"id": {"any_": list(self._runs.values())}})
        asked = {"flow_run_filter": chosen, "sort": FlowRunSort.ID_DESC}
        runs = all_pages(self._client.read_flow_runs, len(self._runs), **asked)
        found = {run.id: run for run in runs}
        return {number: found.get(identity) for number, identity in self._runs.items()}


def work_pool(client: SyncPrefectClient, name: str | None) -> Any:
    """The pool of that name; by default that of `torchyard up`.

    Raises:
        UserError: there is none.
    """
    pools = {each.name: each for each in client.read_work_pools()}
    chosen = name or pool_name(str(client.api_url))
    if chosen not in pools:
        known = suggestion(chosen, [*pools])
        made = f"`prefect work-pool create {chosen} --type process` creates one"
        if name is None:
            known, made = "", "`torchyard up` makes it, or name another with --address"
        raise UserError(f"study.address: there is no work pool '{chosen}'.{known}  {made}.")
    return pools[chosen]


def _job_variables(pool: Any) -> dict[str, Any]:
    """How a flow run starts: on this machine with this process's Python and folder."""
    here: dict[str, Any] = {"env": local_environment()}
    if pool.type == "process":
        # -P: nothing in the working folder may shadow a module.
        here["command"] = f"{sys.executable} -P -m prefect.engine"
        here["working_dir"] = str(Path.cwd())
        here["stream_output"] = False
        return here
    return fit_variables(here, pool.base_job_template)
