"""The command `torchyard verify`: train again from a run's record, and compare the weights."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.markup import escape

from torchyard.core.config.resolve import ResolvedConfig, resolve
from torchyard.core.data.dataset import PreparedDataset
from torchyard.core.data.files import cache_folder
from torchyard.core.errors import RunError, UserError
from torchyard.core.hosting.host import host
from torchyard.core.tracking.lookup import recorded_config
from torchyard.core.tracking.store import open_existing, store_errors, tracking_uri
from torchyard.pipelines.commands.arguments import RunName, chosen_run
from torchyard.pipelines.display import Display, print_table, stdout
from torchyard.pipelines.worker.process import shared_worker

if TYPE_CHECKING:
    from mlflow.entities import Run

DIGEST = "weights_digest"
VERIFIED = "torchyard.verified"  # tag of a run

commands = typer.Typer()


@commands.command()
def verify(run: RunName) -> None:
    """Train again from a run's record alone, and compare the weights bit for bit.

    Exit status 0 if they are equal; 1 if not, with everything recorded that differs.
    """
    uri = tracking_uri()
    worker = shared_worker()  # torch's import overlaps MLflow's
    client = open_existing(uri)
    with store_errors(uri):
        found = chosen_run(client, run)
        recorded = found.data.tags.get(DIGEST)
        if recorded is None:
            raise UserError(f"run {found.info.run_name} is {found.info.status} and has no weights.")
        resolved = resolve(recorded_config(client, found), host())
    shown = Display(stdout)
    config = resolved.config.model_dump(mode="json")
    with shown.bars(), tempfile.TemporaryDirectory() as folder:
        with shown.stage("prepare", resolved.config.dataset.name):
            prepared = worker.call(
                "prepare", shown.event, config=config, cache=str(cache_folder())
            )["folder"]
        with shown.stage("train", resolved.config.model.name):
            trained = worker.call("train", shown.event, config=config, data=prepared, folder=folder)
    digest = PreparedDataset.open(Path(prepared)).digest
    differing = differences(found, resolved, digest, trained["placement"])
    named = escape(f"{found.info.run_name}  {found.info.run_id}")
    if trained[DIGEST] == recorded:
        with store_errors(uri):
            client.set_tag(found.info.run_id, VERIFIED, recorded)
        stdout.print(f"[green]Reproduced.[/] {named} trained again has the same weights:")
        stdout.print(f"sha256 {recorded}", soft_wrap=True)
        return
    if differing:
        rows = [(what, *values) for what, values in differing.items()]
        print_table(("", "recorded", "now"), rows)
    known = "the above differs" if differing else "nothing that is recorded differs"
    raise RunError(
        f"{found.info.run_name} trained again has other weights; {known}. "
        f"Recorded sha256 {recorded}, now {trained[DIGEST]}."
    )


def differences(
    run: Run, resolved: ResolvedConfig, data_digest: str, placement: dict[str, Any]
) -> dict[str, tuple[str, str]]:
    """What is recorded of a run and differs now, as (recorded, now).

    That is the data, the plugins, the files that their parameters name, and the placement.
    """
    now = {f"plugin.{slot}": used.source.identity for slot, used in resolved.plugins.items()}
    now |= {key: str(value) for key, value in placement.items()}
    tags = run.data.tags
    differing = {
        key: (tags[key], value) for key, value in now.items() if tags.get(key, value) != value
    }
    differing |= {what: pair for what, pair in resolved.changes.items() if " " not in what}
    digests = [each.dataset.digest for each in run.inputs.dataset_inputs] if run.inputs else []
    if digests and not any(data_digest.startswith(digest) for digest in digests):
        differing["data set"] = (digests[0], data_digest[: len(digests[0])])
    return differing
