"""The commands `torchyard promote`, `rollback` and `models`: champions and their history."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.markup import escape

from torchyard.core.config.resolve import read_config
from torchyard.core.errors import RunError, UserError
from torchyard.core.hosting.host import host
from torchyard.core.tracking.location.errors import store_errors
from torchyard.core.tracking.queries.lookup import chosen_among
from torchyard.core.tracking.queries.recorded import recorded_config
from torchyard.core.tracking.registry.asks import asks
from torchyard.core.tracking.registry.champions import promote, roll_back
from torchyard.core.tracking.registry.versions import champion_of, history
from torchyard.core.tracking.store import open_existing, tracking_uri
from torchyard.pipelines.commands.arguments import (
    DEFAULT_PRESET,
    PRESETS,
    AsJson,
    RunName,
    chosen_run,
    is_best,
)
from torchyard.pipelines.display import print_json, stderr, stdout
from torchyard.pipelines.services.manager import registry_server

commands = typer.Typer()


@commands.command(name="promote")
def promote_run(
    run: RunName,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="model=NAME, gates=[…]; default: the promote section of the run",
        ),
    ] = None,
) -> None:
    r"""Make a run's model the champion of a registered model, if every gate passes.

    Example: [bold]torchyard promote latest model=digits
    'gates=\[beats_champion, {name: min_accuracy, threshold: 0.95}]'[/]
    """
    from torchyard.pipelines.worker.judging import judge_in_worker
    from torchyard.pipelines.worker.process import shared_worker

    uri = tracking_uri()
    shared_worker()  # its imports overlap MLflow's
    client = open_existing(uri)
    with store_errors(uri):
        found = chosen_run(client, run)
        own = recorded_config(client, found).get("promote")
    settings = [f"promote={json.dumps(own)}"] if own else []
    settings += [f"promote.{override}" for override in overrides or []]
    # The rest of the run's configuration is not needed, and its plugins may be missing here.
    resolved = read_config(DEFAULT_PRESET, settings, PRESETS, host())
    name, chosen = found.info.run_name, resolved.config.promote
    if chosen is None:
        raise UserError(f"promote.model: {name} names no registered model: add model=NAME")
    champion = champion_of(client, chosen.model)
    if champion is not None and champion.run_id == found.info.run_id:
        raise UserError(f"{name} is the champion of {chosen.model} already.")
    judge = judge_in_worker(chosen.gate_seconds)
    among = 1
    if is_best(run, found):
        with store_errors(uri):
            among = chosen_among(client, found)
        if among > 1:
            stderr.print(
                f"The test samples chose it among {among:,} runs, which counts as asking them as "
                "often: with train.validation they are asked once.",
                soft_wrap=True,
            )
    server = registry_server(uri)
    judged = promote(client, found, chosen.model, resolved.named_gates, judge, among, server)
    for line in judged.lines:
        stdout.print(escape(line), soft_wrap=True)
    if judged.version is None:
        raise RunError(judged.outcome)
    stdout.print(escape(f"{name} is now {judged.outcome}"), soft_wrap=True)


@commands.command()
def rollback(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="a registered model's name")],
) -> None:
    """Make the previous champion of a model the champion again."""
    client = open_existing(uri := tracking_uri())
    before, now = roll_back(client, model, registry_server(uri))
    stdout.print(escape(f"{model}: version {now} is the champion again, version {before} is not."))


@commands.command()
def models(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="a registered model's name")
    ] = None,
    refused: Annotated[
        bool, typer.Option("--refused", help="list the runs that were refused, too")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show the history of champions: which run, its accuracy, when, by whom, and why."""
    from torchyard.pipelines.terminal.models import print_models

    uri = tracking_uri()
    client = open_existing(uri)
    rows = history(client, model)
    if as_json:
        print_json(rows, indent=1)
        return
    if not rows:
        stdout.print("No model is registered yet: `torchyard promote RUN model=NAME` does that.")
        return
    with store_errors(uri):
        asked = {name: asks(client, name) for name in {row["model"] for row in rows}}
    print_models(rows, asked, refused)
