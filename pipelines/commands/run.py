"""The commands `torchyard run`, `resume` and `check`: train, resume, or only validate."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from torchyard.core.config.resolve import ResolvedConfig
from torchyard.core.errors import UserError
from torchyard.core.formatting import dimensions
from torchyard.core.tracking import store
from torchyard.core.tracking.checkpoints import check_checkpoint
from torchyard.core.tracking.weights import recorded_weights
from torchyard.pipelines.commands.arguments import (
    JsonLines,
    Overrides,
    PresetOrFile,
    Quiet,
    RunName,
    chosen_display,
    preset_config,
)
from torchyard.pipelines.commands.outcome import leave_prefect, print_outcome, with_outcome
from torchyard.pipelines.commands.sweep import resume_study
from torchyard.pipelines.display import (
    Display,
    JsonDisplay,
    QuietDisplay,
    print_json,
    stderr,
    stdout,
)
from torchyard.pipelines.local_run import local_pipeline
from torchyard.pipelines.resumption import Resumption, check_unfinished, study_to_resume
from torchyard.pipelines.seeds import SeedsOutcome, check_seeds, run_seeds

if TYPE_CHECKING:
    from mlflow.entities import Run

commands = typer.Typer()


@commands.command()
def run(
    source: PresetOrFile = None,
    overrides: Overrides = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="run it with N seeds from train.seed on, and summarize them"
        ),
    ] = None,
    quiet: Quiet = False,
    as_json: JsonLines = False,
) -> None:
    """Run the whole pipeline, recorded in Prefect and MLflow.

    Examples: [bold]torchyard run digits[/]   [bold]torchyard run cifar10 model=resnet18
    optimizer=adam optimizer.lr=3e-4 train.epochs=10[/]
    """
    shown = chosen_display(quiet, as_json, QuietDisplay, Display)
    resolved = preset_config(source, overrides)
    if seeds is not None:
        check_seeds(resolved, seeds)
    store.check_writable(store.tracking_uri())
    _run_pipeline(resolved, shown, seeds=seeds)


@commands.command()
def resume(
    run: RunName,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="of a finished run: train it on, e.g. train.epochs=20; a new run, its child",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="even if it may still run on another machine")
    ] = False,
    from_start: Annotated[
        bool, typer.Option("--from-start", help="at epoch 1, where no checkpoint is found here")
    ] = False,
    quiet: Quiet = False,
    as_json: JsonLines = False,
) -> None:
    """Resume a run that was killed or failed from its last checkpoint; or train a finished one on.

    On a CPU a resumed run ends with the same weights, bit for bit, as one that was never
    interrupted. Whether one that is trained on ends as one long run would is said when it begins.
    """
    from torchyard.pipelines.worker.process import shared_worker

    shown = chosen_display(quiet, as_json, QuietDisplay, Display)
    if not overrides:
        check_unfinished(run)
    shared_worker()  # torch's import overlaps MLflow's
    if (study := study_to_resume(run)) is not None:
        resume_study(study, overrides or (), force=force, quiet=quiet, as_json=as_json)
        return
    found = Resumption.find(
        run,
        overrides or (),
        force=force,
        say=lambda text: stderr.print(escape(text), soft_wrap=True),
        check=functools.partial(_check_checkpoint, from_start=from_start),
    )
    if isinstance(found, str):
        stdout.print(escape(found))
    else:
        _run_pipeline(found.resolved, shown, found.run_id, found.parent, found.seeds)


def _check_checkpoint(found: Run, folder: Path, from_start: bool) -> None:
    """Ask before a run begins again at epoch 1, because its checkpoint is not here."""
    try:
        check_checkpoint(found, folder)
    except UserError as error:
        question = f"{error}\nBegin at epoch 1?"
        if not from_start and not (sys.stdin.isatty() and typer.confirm(question, err=True)):
            raise
        folder.mkdir(parents=True, mode=0o700)


@commands.command()
def check(source: PresetOrFile = None, overrides: Overrides = None) -> None:
    """Validate a configuration, its plugins by one step on two samples; nothing is recorded."""
    resolved = preset_config(source, overrides)
    store.check_writable(store.tracking_uri())
    from torchyard.pipelines.worker.process import check_config

    found = check_config(resolved.config, exports=True, weights=recorded_weights(resolved))
    stdout.print(_config_table(resolved.config.model_dump(mode="json")))
    if found["parameters"] is None:
        stdout.print("The model is checked once the data, whose shape is unknown, are prepared.")
    else:
        stdout.print(
            f"{resolved.config.model.name}: {found['parameters']:,} parameters "
            f"on samples of {dimensions(found['shape'])}"
        )
    stdout.print(f"[green]Valid.[/] It would run on {found['device']}.")
    if not found["prepared"]:
        stdout.print("The data are not prepared yet, so they were not tried.")


def _run_pipeline(
    resolved: ResolvedConfig,
    shown: Display,
    run_id: str | None = None,
    parent: str | None = None,
    seeds: int | None = None,
) -> None:
    outcome: SeedsOutcome | None = None
    for change in resolved.changed:
        stderr.print(f"[yellow]note:[/] {escape(change)}", soft_wrap=True)

    def call_flow() -> None:
        nonlocal outcome
        leave = functools.partial(leave_prefect, shown=shown, several=seeds is not None)
        resumed = run_id is not None and seeds is None
        with local_pipeline(resolved, shown, leave, own_process=True, resumed=resumed) as call:
            if seeds is None:
                call(resolved, run_id, parent)
            else:
                outcome = run_seeds(call, resolved, seeds, shown, run_id)

    with_outcome(call_flow, shown, several=seeds is not None)
    if outcome is not None:
        _print_seeds(outcome, shown)
    else:
        print_outcome(shown, newest=run_id is None)


def _print_seeds(outcome: SeedsOutcome, shown: Display) -> None:
    if isinstance(shown, QuietDisplay):
        print(outcome.run_id)
        return
    if isinstance(shown, JsonDisplay):
        summary = dataclasses.asdict(outcome.results.summary)
        named = {"run_id": outcome.run_id, "name": outcome.name, "url": outcome.url}
        print_json({"event": "seeds", **named, **summary})
        return
    for line in outcome.lines:
        stdout.print(line, soft_wrap=True)
    stdout.print(f"MLflow run:  [bold]{escape(outcome.name)}[/]  {outcome.run_id}")
    stdout.print(f"Look at it:  {outcome.url}", soft_wrap=True)


def _config_table(config: dict[str, Any]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    for section, value in config.items():
        if section == "plugins" and not value:
            continue
        if isinstance(value, dict):
            name = value.pop("name", "")
            settings = "  ".join(f"{key}={json.dumps(v)}" for key, v in value.items())
            value = f"{name}  {settings}".strip()
        table.add_row(section, escape(str(value)))
    return table
