"""The command `torchyard audit`: what is wrong with a data set, before anything is trained."""

from __future__ import annotations

import json
import tempfile
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from torchyard.core.config.parsing import preset_names
from torchyard.core.config.resolve import ResolvedConfig, resolve
from torchyard.core.data.dataset import PreparedDataset
from torchyard.core.data.files import cache_folder
from torchyard.core.errors import UserError, suggestion
from torchyard.core.formatting import percent
from torchyard.core.hosting.host import host
from torchyard.core.tracking import store
from torchyard.core.tracking.location.errors import store_errors
from torchyard.core.tracking.queries.recorded import recorded_config
from torchyard.core.tracking.weights import recorded_weights
from torchyard.pipelines.commands.arguments import (
    PRESETS,
    AsJson,
    Overrides,
    chosen_run,
    plugin_config,
    preset_config,
)
from torchyard.pipelines.display import Display, print_json, print_table, stdout
from torchyard.pipelines.worker.process import Worker

if TYPE_CHECKING:
    from torchyard.core.audit.findings import Audit

commands = typer.Typer()


@commands.command("audit")
def audit_dataset(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="[DATASET|PRESET|FILE.yaml]", help="which data set. \\[default: digits]"
        ),
    ] = None,
    overrides: Overrides = None,
    run: Annotated[
        str | None,
        typer.Option(
            metavar="RUN",
            help="have this run's model judge the labels of its data set: trains it three times",
        ),
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="even if these data have been audited before")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Find duplicates, leaks between the splits, and wrong labels in a data set.

    Exit status 0, whatever is found. The table and a page with the images are in MLflow.

    Example: [bold]torchyard audit image_folder path=photos/[/]
    """
    store.check_writable(store.tracking_uri())
    if run is None:
        resolved, of = _resolve(source, overrides), ""
    elif source is not None:
        raise UserError(f"--run: its data set is audited: leave out '{source}'")
    else:
        resolved, of = _of_run(run)
    config, name = resolved.config.model_dump(mode="json"), resolved.config.dataset.name
    weights = recorded_weights(resolved) if of else None
    shown = Display(None if as_json else stdout)
    with closing(Worker(shown.output)) as worker, shown.bars():
        with shown.stage("prepare", name):
            found = worker.call("prepare", shown.event, config=config, cache=str(cache_folder()))
        with shown.stage("audit", name):
            data = found["folder"]
            done = worker.call("audit_dataset", shown.event, data=data, again=again)
        if of:
            with shown.stage("train", of), tempfile.TemporaryDirectory() as folder:
                rest: dict[str, Any] = {"config": config, "folder": folder, "weights": weights}
                worker.call("judge_labels", shown.event, data=data, run=of, **rest)
    from torchyard.core.audit.exclusion import found_audit
    from torchyard.core.report.audit_page import audit_page
    from torchyard.core.tracking.queries.audits import record_audit
    from torchyard.pipelines.services.manager import served_url, ui_address

    prepared = PreparedDataset.open(Path(found["folder"]))
    audit = found_audit(prepared)
    settings = {f"dataset.{key}": _text(value) for key, value in config["dataset"].items()}
    page = audit_page(audit, prepared, name)
    run_id, url = record_audit(audit, prepared, page, settings)
    if as_json:
        print_json(_plain(audit, prepared) | {"run_id": run_id, "url": served_url(url)})
        return
    _print(audit, prepared, done["seconds"])
    stdout.print(f"MLflow run:  {run_id}, with audit.html and audit.parquet")
    stdout.print(f"Look at it:  torchyard ui {run_id}", soft_wrap=True)
    if ui_address(store.tracking_uri()) is not None:
        stdout.print(f"      then  {escape(served_url(url))}", soft_wrap=True)


def _resolve(source: str | None, overrides: list[str] | None) -> ResolvedConfig:
    """What the arguments name: a data set by its plugin's name, or that of a preset or a file."""
    if source is None or "=" in source:
        return preset_config(source, overrides)
    plugins, presets = list(dict(host().listed("dataset"))), preset_names(PRESETS)
    if source in plugins:
        return plugin_config("dataset", source, overrides)
    if source not in presets and not Path(source).suffix:
        known = sorted({*plugins, *presets})
        accepted = f"  (accepts: {', '.join(known)}, or a file.yaml)"
        raise UserError(
            f"no data set and no preset named '{source}'.{suggestion(source, known)}{accepted}"
        )
    return preset_config(source, overrides)


def _of_run(wanted: str) -> tuple[ResolvedConfig, str]:
    """The configuration of a run, and its name."""
    client = store.open_existing(uri := store.tracking_uri())
    with store_errors(uri):
        found = chosen_run(client, wanted)
        return resolve(recorded_config(client, found), host()), found.info.run_name


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _plain(audit: Audit, prepared: PreparedDataset) -> dict[str, Any]:
    """The whole audit as JSON values."""
    return {
        "dataset": prepared.name,
        "digest": prepared.digest,
        "samples": prepared.counts,
        "counts": audit.counts,
        "leaked": {split: len(indices) for split, indices in audit.leaked.items()},
        "facts": audit.facts,
        "findings": [asdict(finding) for finding in audit.findings],
    }


def _print(audit: Audit, prepared: PreparedDataset, seconds: float) -> None:
    from torchyard.core.audit.findings import KINDS

    stdout.print(
        f"{escape(prepared.name)}: {prepared.samples}, audited in {seconds:.1f} s", soft_wrap=True
    )
    rows = [
        (kind, f"{count:,}", KINDS[kind]) for kind, count in audit.counts.items()
    ] or [("nothing", "0", "no duplicates, leaks, or doubtful labels")]  # fmt: skip
    print_table(("finding", "number", "what it is"), rows, right=("number",))
    for split in ("test", "validation"):
        if split in audit.leaked:
            leaked, total = len(audit.leaked[split]), prepared.counts[split]
            share = percent(leaked / max(1, total))
            stdout.print(
                f"[bold]{leaked:,}[/] of {total:,} {split} samples ({share}) are in the "
                "training split, too, exactly or nearly.",
                soft_wrap=True,
            )
    if audit.leaked.get("train"):
        stdout.print(
            f"[bold]dataset.exclude=audit[/] trains without the {len(audit.leaked['train']):,} "
            "training samples that are in another split, too.",
            soft_wrap=True,
        )
    stdout.print(f"near duplicates: {audit.facts['near_duplicates']}", soft_wrap=True)
    stdout.print(f"wrong labels: {escape(audit.facts['labels'])}", soft_wrap=True)
