"""A study in this process: what it needs starts side by side, then its flow is called."""

from __future__ import annotations

from collections.abc import Callable

from torchyard.core.errors import UserError
from torchyard.core.hosting.host import host
from torchyard.core.study.plan import StudyPlan
from torchyard.core.tracking import store
from torchyard.core.tracking.location.address import database_of
from torchyard.core.tracking.location.errors import store_errors
from torchyard.core.tracking.ownership.orphans import settle_owner
from torchyard.core.tracking.weights import recorded_weights
from torchyard.pipelines.display import Display
from torchyard.pipelines.local_run import Leave, local_services, quiet_prefect, until_its_end


def begun_before(plan: StudyPlan, say: Callable[[str], None]) -> str | None:
    """The id of the run of the study of that name, if it was begun before and has not all trials.

    Args:
        plan: the study.
        say: is told of it.

    Raises:
        UserError: it is another study, it may still run, or it has all its trials.
        RunError: the store is out of reach.
    """
    from torchyard.pipelines.worker.process import shared_worker

    uri = store.tracking_uri()
    database = database_of(uri)
    if database is not None and not database.exists():
        return None
    shared_worker()  # torch's import overlaps MLflow's
    client = store.open_existing(uri)
    quiet_prefect()  # which is imported now
    with store_errors(uri):
        from torchyard.pipelines.study.recording import begun_study

        if (run := begun_study(client, plan)) is None:
            return None
        settle_owner(client, run, force=False, say=say)
    say(f"{run.info.run_name}, study '{plan.name}', goes on")
    return str(run.info.run_id)


def run_study(
    plan: StudyPlan, source: str | None, run_id: str | None, shown: Display, leave: Leave
) -> None:
    """Run a study, or go on with one; the display gets its outcome.

    Args:
        plan: the study.
        source: the preset or file that runs a trial by itself.
        run_id: of its MLflow run, if it was begun before.
        shown: follows the study.
        leave: called in another thread, with what ended it early, where Prefect does not let go.

    Raises:
        UserError: a server cannot be used, or a plugin refuses a step of the training.
        RunError: there is no server, or the study could not be finished.
    """

    from torchyard.pipelines.study.engines.reach import check_reachable

    check_reachable(plan.settings)

    def load() -> None:
        from torchyard.pipelines.study import flow  # noqa: F401 - takes its time here

    with local_services(shown, load, own_process=True) as in_use:
        from torchyard.pipelines.study.flow import call_sweep

        _check_steps(plan)
        with in_use():
            if plan.settings.engine == "pool":
                _check_pool(plan.settings.address)
            until_its_end(lambda: call_sweep(plan, source, run_id), leave)


def _check_pool(name: str | None) -> None:
    from prefect.client.orchestration import get_client

    from torchyard.pipelines.study.engines.pool import work_pool

    with get_client(sync_client=True) as client:
        work_pool(client, name)


def _check_steps(plan: StudyPlan) -> None:
    """Check a step of the training with each combination of the plugins in the space.

    Raises:
        UserError: with every problem found.
    """
    from torchyard.pipelines.worker.process import check_config

    problems: list[str] = []
    for corner in plan.combinations():
        try:
            resolved = plan.resolved(corner, host())
            check_config(resolved.config, weights=recorded_weights(resolved))
        except UserError as error:
            problems += [each for each in error.problems if each not in problems]
    if problems:
        raise UserError(problems)
