"""`torchyard.run`, `runs` and `load`: what commands do, for Python."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchyard.core.errors import RunError
from torchyard.core.tracking import store
from torchyard.core.tracking.location.errors import store_errors
from torchyard.pipelines.commands.arguments import preset_config
from torchyard.pipelines.display import Display, PrintableConsole
from torchyard.pipelines.local_run import local_pipeline
from torchyard.pipelines.python.run_result import RunResult
from torchyard.pipelines.resumption import Resumption
from torchyard.pipelines.seeds import check_seeds, run_seeds

if TYPE_CHECKING:
    import pandas as pd

INTERRUPT_SECONDS = 0.5  # between two attempts to interrupt a run that is between two stages
_one_at_a_time = threading.Lock()


def run(
    source: str | Path | Mapping[str, Any] | None = None,
    *overrides: str | Mapping[str, Any],
    seeds: int | None = None,
    quiet: bool = False,
) -> RunResult:
    """Run the whole pipeline, recorded in Prefect and MLflow, as `torchyard run` does.

        run = torchyard.run("digits", "optimizer.lr=0.01", {"train": {"epochs": 2}})

    It may be called in a notebook, whose event loop it leaves alone. An interrupt ends the run
    as Ctrl-C does in a terminal: `resume` resumes it.

    Args:
        source: a preset, a YAML file, or a mapping with the whole configuration; the digits by
            default.
        overrides: "key=value", or mappings: {"optimizer.lr": 0.01, "train": {"epochs": 2}}.
        seeds: run it with so many seeds from train.seed on, and summarize them.
        quiet: print nothing while it runs.

    Raises:
        UserError: with everything that is wrong, before any work begins.
        RunError: it was started and could not be finished; its notes say where it is recorded.
        KeyboardInterrupt: it was interrupted.
    """
    named = str(source) if isinstance(source, Path) else source
    resolved = preset_config(named, overrides)
    if seeds is not None:
        check_seeds(resolved, seeds)
    store.check_writable(store.tracking_uri())
    return _run(Resumption(resolved, None, None, seeds), _shown(quiet))


def resume(
    wanted: str | RunResult, *overrides: str | Mapping[str, Any], quiet: bool = False
) -> RunResult:
    """Resume a run that did not finish, or train a finished one on, as `torchyard resume` does.

        longer = torchyard.resume(run, "train.epochs=20")

    Args:
        wanted: the run, or what `load` takes.
        overrides: of a finished run, as `run` takes them: a new run begins with its last weights.
        quiet: print nothing while it runs.

    Raises:
        As `run` does; UserError also where nothing is left to do, or it still trains.
    """
    shown = _shown(quiet)
    name = wanted.run_id if isinstance(wanted, RunResult) else wanted
    found = Resumption.find(name, overrides, say=lambda text: shown.line("resume", text))
    if isinstance(found, str):
        shown.line("resume", found)
        return RunResult.find(name)
    return _run(found, shown)


def _shown(quiet: bool) -> _FollowedRun:
    # Plain text, as a script prints it: rich would make an HTML element of each line.
    return _FollowedRun(None if quiet else PrintableConsole(highlight=False, force_jupyter=False))


def _run(asked: Resumption, shown: _FollowedRun) -> RunResult:
    for change in asked.resolved.changed:
        shown.line("note:", change)
    with _one_at_a_time:
        _run_in_thread(asked, shown)
    return RunResult.find(shown.run_id).or_repeated()


class _FollowedRun(Display):
    """Knows the id of the run."""

    run_id = ""

    def began(self, run_id: str, name: str) -> None:
        self.run_id = run_id


def _run_in_thread(asked: Resumption, shown: _FollowedRun) -> None:
    """Run in a thread of its own, which has no event loop and gets no signals.

    Raises:
        As `run` does.
    """
    ended = threading.Event()
    errors: list[BaseException] = []

    def leave(error: BaseException | None) -> None:
        """Go on without Prefect, which does not answer: the thread tries for minutes."""
        if error is None and asked.seeds:  # others may be left
            error = RunError("Prefect does not answer: resume goes on with the seeds that are left")
        if error is not None:
            errors.append(error)
        ended.set()

    def work() -> None:
        try:
            resumed = asked.run_id is not None and not asked.seeds
            with local_pipeline(
                asked.resolved, shown, leave, own_process=False, resumed=resumed
            ) as call:
                if asked.seeds:
                    shown.run_id = run_seeds(
                        call, asked.resolved, asked.seeds, shown, asked.run_id
                    ).run_id
                else:
                    call(asked.resolved, asked.run_id, asked.parent)
        except BaseException as error:
            recorded = shown.outcome is not None and not asked.seeds
            if not recorded or not isinstance(error, Exception):
                errors.append(error)
        ended.set()

    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=[work], daemon=True, name="torchyard").start()
    try:
        ended.wait()
    except KeyboardInterrupt as interrupt:
        _interrupt(ended)
        for error in errors:
            for note in getattr(error, "__notes__", []):
                interrupt.add_note(note)
        raise
    if errors:
        raise _for_callers(errors[0])


def _interrupt(ended: threading.Event) -> None:
    """End the run in the thread, as Ctrl-C does: at once in a stage, else with the next one."""
    from torchyard.pipelines.worker.process import abort_shared_worker

    while not ended.is_set():
        abort_shared_worker(KeyboardInterrupt())
        ended.wait(INTERRUPT_SECONDS)


def _for_callers(error: BaseException) -> BaseException:
    """A cancellation in Prefect as a RunError, which is what callers know; others as they are."""
    from prefect.exceptions import CancelledRun

    return RunError(str(error)) if isinstance(error, CancelledRun) else error


def runs(
    *conditions: str, sort: str = "started", reverse: bool = False, limit: int = 20
) -> pd.DataFrame:
    """The runs in MLflow, the newest first, as `torchyard runs` lists them; with all settings.

        torchyard.runs("dataset=cifar10", "accuracy>=60%", sort="accuracy")

    Raises:
        UserError: a condition or a key is none, or there is no store yet.
        RunError: the store is out of reach.
    """
    from torchyard.core.tracking.queries.table import RunQuery

    query = RunQuery.parse(conditions, sort, reverse)
    uri = store.tracking_uri()
    client = store.open_existing(uri)
    with store_errors(uri):
        table = query.table(client, limit, settings=True)
        if table.empty:
            query.check_names(client)
    return table


def load(wanted: str) -> RunResult:
    """A run that is recorded, or the one that a registered model's version is from.

        torchyard.load("digits@champion").model.predict("seven.png")

    Args:
        wanted: an id, a name, latest, best, champion, MODEL@ALIAS, MODEL/3, or MODEL alone,
            which is its champion.

    Raises:
        UserError: there is no such thing; the message names the nearest.
        RunError: the store is out of reach.
    """
    return RunResult.find(wanted)
