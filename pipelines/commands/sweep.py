"""The command `torchyard sweep`: a study of many trials."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from torchyard.core.errors import UserError
from torchyard.core.hosting.host import host
from torchyard.core.study.plan import StudyPlan, has_study
from torchyard.core.tracking import store
from torchyard.core.tracking.location.errors import store_errors
from torchyard.core.tracking.ownership.orphans import settle_owner
from torchyard.core.tracking.queries.recorded import recorded_config
from torchyard.pipelines.commands.arguments import (
    PRESETS,
    JsonLines,
    PresetOrFile,
    Quiet,
    chosen_display,
    preset_or_file,
)
from torchyard.pipelines.commands.outcome import leave_prefect, print_outcome, with_outcome
from torchyard.pipelines.display import Display, stderr
from torchyard.pipelines.local_run import quiet_prefect
from torchyard.pipelines.study.display import QuietStudyDisplay, StudyDisplay
from torchyard.pipelines.study.local import begun_before, run_study

if TYPE_CHECKING:
    from mlflow.entities import Run

commands = typer.Typer()


@commands.command()
def sweep(
    source: PresetOrFile = None,
    assignments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=DOMAIN|KEY=VALUE]...",
            help="e.g. 'optimizer.lr=log(1e-4,1e-1)' 'model=\\[lenet,resnet18]' train.epochs=3",
        ),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(help="how many \\[default: 20, or all of a grid]")
    ] = None,
    sampler: Annotated[
        str | None, typer.Option(help="tpe, random, grid or cmaes \\[default: tpe]")
    ] = None,
    pruner: Annotated[
        str | None, typer.Option(help="none, median or hyperband \\[default: none]")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="trials at a time \\[default: 1]")] = None,
    engine: Annotated[
        str | None,
        typer.Option(help="that spreads trials: local, pool, dask or ray \\[default: local]"),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="of a Dask scheduler or Ray cluster; the work pool's name"),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="of the study, by which it goes on \\[default: from it all]")
    ] = None,
    minimize: Annotated[
        str | None,
        typer.Option(help="figure by which trials compare \\[default: train.monitor's]"),
    ] = None,
    maximize: Annotated[str | None, typer.Option(help="such as val/accuracy")] = None,
    quiet: Quiet = False,
    as_json: JsonLines = False,
) -> None:
    """Run a study: trials of one configuration, some of whose settings are searched by Optuna.

    A domain is log(LOW,HIGH), uniform(LOW,HIGH), int(LOW,HIGH), int(LOW,HIGH,log) or a list of
    choices. The same command goes on with a study that was stopped or killed.

    Example: [bold]torchyard sweep digits 'optimizer.lr=log(1e-4,1e-1)' --trials 40[/]
    """
    shown = chosen_display(quiet, as_json, QuietStudyDisplay, StudyDisplay)
    words = [*([source] if source else []), *(assignments or [])]
    start = preset_or_file(source)
    options: dict[str, Any] = {
        **{"trials": trials, "sampler": sampler, "pruner": pruner, "workers": workers},
        **{"engine": engine, "address": address},
        **{"name": name, "minimize": minimize, "maximize": maximize},
    }
    plan = StudyPlan.read(start, words[start == source :], options, PRESETS, host())
    store.check_writable(store.tracking_uri())
    for note in plan.notes:
        stderr.print(f"[yellow]note:[/] {escape(note)}", soft_wrap=True)
    run_id = begun_before(plan, lambda text: shown.line("study", text))
    _run_study(plan, None if has_study(start, PRESETS) else start, run_id, shown)


def resume_study(
    run: Run, overrides: Sequence[str], *, force: bool, quiet: bool, as_json: bool
) -> None:
    """Go on with a study.

    Args:
        run: its own.
        overrides: there may be none.
        force: whether one is taken over that may still run on another machine.
        quiet, as_json: how it is shown.

    Raises:
        UserError: it is finished, still runs, or is to have other settings.
        RunError: the store is out of reach.
    """
    quiet_prefect()  # which is imported now
    from torchyard.pipelines.study.recording import SOURCE

    named = f"run {run.info.run_id} ({run.info.run_name}) is a study"
    if overrides:
        raise UserError(f"{named}, which has one space: `torchyard sweep` with another begins one.")
    if run.info.status == "FINISHED":
        raise UserError(
            f"{named} that is finished: the command that began it, with a greater --trials, adds "
            "some."
        )
    uri = store.tracking_uri()
    client = store.open_existing(uri)
    with store_errors(uri):
        settle_owner(client, run, force=force, say=stderr.print)
        plan = StudyPlan.read(recorded_config(client, run), (), {}, PRESETS, host())
    source = run.data.tags.get(SOURCE) or None
    _run_study(
        plan,
        source,
        run.info.run_id,
        chosen_display(quiet, as_json, QuietStudyDisplay, StudyDisplay),
    )


def _run_study(plan: StudyPlan, source: str | None, run_id: str | None, shown: Display) -> None:
    """Run a study in this process, and print its outcome."""
    leave = functools.partial(leave_prefect, shown=shown, several=False)
    with_outcome(lambda: run_study(plan, source, run_id, shown, leave), shown)
    print_outcome(shown, newest=False)  # its trials are newer
