"""The commands `torchyard runs` and `compare`: a table of runs, and how some differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from torchyard.core.data.files import atomic_write
from torchyard.core.errors import UserError
from torchyard.core.formatting import duration, printable
from torchyard.core.tracking.location.errors import store_errors
from torchyard.core.tracking.ownership.lease import silent_seconds
from torchyard.core.tracking.ownership.orphans import silent_runs
from torchyard.core.tracking.ownership.process import described_owner
from torchyard.core.tracking.queries.recorded import progress_of
from torchyard.core.tracking.queries.table import RunQuery
from torchyard.core.tracking.registry.versions import champions_by_run
from torchyard.core.tracking.store import open_existing, tracking_uri
from torchyard.pipelines.commands.arguments import AsJson, chosen_run
from torchyard.pipelines.display import print_json, stderr, stdout
from torchyard.pipelines.terminal.comparison import print_comparison
from torchyard.pipelines.terminal.runs import print_runs

commands = typer.Typer()

BY_VALIDATION = "val/accuracy"


@commands.command()
def runs(
    conditions: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="the runs to list; also != > >= < <= and ~ (contains)"
        ),
    ] = None,
    sort: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="column to sort by; numbers and times: the greatest first \\[default: started]",
        ),
    ] = None,
    reverse: Annotated[bool, typer.Option("--reverse", help="sort in the opposite order")] = False,
    best: Annotated[
        bool,
        typer.Option(
            "--best", help="the best first: by validation where a run has one, else by test"
        ),
    ] = False,
    limit: Annotated[int, typer.Option(min=1, help="how many at most")] = 20,
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="print CSV")] = False,
) -> None:
    """List the runs in MLflow, the newest first.

    A KEY is a column, a setting (optimizer.momentum) or a metric (test/recall/cat).
    Example: [bold]torchyard runs dataset=cifar10 'accuracy>=60%' --sort accuracy[/]
    """
    if as_json and as_csv:
        raise UserError("--json and --csv cannot be combined")
    if best and sort:
        raise UserError("--best and --sort cannot be combined")
    sort = BY_VALIDATION if best else sort or "started"
    query = RunQuery.parse(conditions or (), sort, reverse)
    uri = tracking_uri()
    client = open_existing(uri)
    with store_errors(uri):
        table = query.table(client, limit, settings=as_json or as_csv)
        if best and table.empty:
            sort = "accuracy"
            query = RunQuery.parse(conditions or (), sort, reverse)
            table = query.table(client, limit, settings=as_json or as_csv)
        if table.empty:
            query.check_names(client)
        left_out = len(table) < limit and query.leaves_out(client)
        every = (each.experiment_id for each in client.search_experiments())
        silent = silent_runs(client, *every)
        champions = champions_by_run(client)
        running = table["id"][table["status"] == "RUNNING"]
        progress = {run_id: progress_of(client.get_run(run_id), client) for run_id in running}
    if as_csv:
        text = table.to_csv(index=False)
        print(printable(text) if stdout.is_terminal else text, end="")
    elif as_json:
        print_json(json.loads(table.to_json(orient="records", date_format="iso")), indent=1)
    elif table.empty:
        met = conditions or left_out
        stdout.print("No run meets these conditions." if met else "There is no run yet.")
    else:
        print_runs(table, champions, progress)
    if best and not table.empty:
        none = "" if sort == BY_VALIDATION else ": none of these runs has a validation part"
        kind = "validation" if sort == BY_VALIDATION else "test"
        stderr.print(f"The best first, by {kind} accuracy{none}.")
    if left_out:
        stderr.print(f"Runs without {escape(sort)} are left out.")
    if not (as_csv or as_json):
        failed = table[(table["status"] == "FAILED") & table["reason"].notna()]
        for name, reason in zip(failed["run"], failed["reason"], strict=True):
            stderr.print(f"[dim]{escape(f'{name} failed: {reason}')}[/]", soft_wrap=True)
    for run in silent:
        stderr.print(
            f"{escape(run.info.run_name)} has not been heard of for "
            f"{duration(silent_seconds(run))}: {described_owner(run.data.tags)}. If that runs no "
            f"more, `torchyard resume {run.info.run_id} --force` goes on with it.",
            soft_wrap=True,
        )


@commands.command()
def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN RUN...", help="ids, names, latest, best, champion, MODEL@ALIAS, MODEL/3"
        ),
    ],
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="also write an HTML page with plots, which needs no other file"
        ),
    ] = None,
) -> None:
    """Show how runs differ: in settings, results and class by class, with intervals.

    Each is compared with the first, on the test samples of both.
    Example: [bold]torchyard compare champion latest --html difference.html[/]
    """
    if len(runs) < 2:
        raise UserError("compare: name two runs or more")
    if html is not None and not html.absolute().parent.is_dir():
        raise UserError(f"--html: {html}: there is no such folder")
    uri = tracking_uri()
    client = open_existing(uri)
    from torchyard.core.report import comparison

    with store_errors(uri):
        by_id = {run.info.run_id: run for run in (chosen_run(client, name) for name in runs)}
        if len(by_id) < 2:
            raise UserError(f"compare: {' and '.join(runs)} are the same run: {next(iter(by_id))}")
        compared = comparison.compare_runs(client, list(by_id.values()))
    print_comparison(compared)
    if html is not None:
        try:
            with atomic_write(html) as file:
                file.write(comparison.comparison_page(compared).encode())
        except OSError as error:
            raise UserError(f"--html: {html}: {error.strerror}") from error
        stdout.print(f"With plots: {escape(str(html))}", soft_wrap=True)
