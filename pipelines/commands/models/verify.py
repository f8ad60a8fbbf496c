"""The commands `verify` and `bundle`: a run is trained again from its record, here or elsewhere."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import ValidationError
from rich.markup import escape

from torchyard.core.config.messages import explain
from torchyard.core.config.parsing import read_overridden
from torchyard.core.config.resolve import resolve
from torchyard.core.config.schema import RunConfig
from torchyard.core.errors import RunError, UserError
from torchyard.core.hosting import host as plugins
from torchyard.core.tracking.location.errors import store_errors
from torchyard.core.tracking.store import open_existing, tracking_uri
from torchyard.core.tracking.weights import recorded_weights
from torchyard.pipelines.commands.arguments import PRESETS, RunName, chosen_run
from torchyard.pipelines.display import Display, print_table, stdout
from torchyard.pipelines.worker.process import shared_worker

if TYPE_CHECKING:
    from torchyard.pipelines.proof.claim import Claim
    from torchyard.pipelines.proof.rebuilding import Rebuilt

VERIFIED = "torchyard.verified"  # tag of a run
# What another machine may have elsewhere, and what it is compared with by digest all the same.
MOVABLE = ("dataset.", "device=", "model.weights=")

commands = typer.Typer()


@commands.command()
def verify(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN|FILE.zip", help="a run, or a bundle that `torchyard bundle` wrote"
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="of a bundle: where things are here, e.g. dataset.path=~/data",
        ),
    ] = None,
    digest: Annotated[
        str | None,
        typer.Option(metavar="SHA256", help="of a bundle: what `torchyard bundle` said it is"),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="of a bundle: the public key of who must have signed it"),
    ] = None,
    run_plugins: Annotated[
        bool,
        typer.Option("--run-plugins", help="of a bundle: run the plugin files that it brings"),
    ] = False,
) -> None:
    """Train again from a run's record alone, and compare the weights bit for bit.

    Exit status 0 if they are equal; 1 if not, with everything recorded that differs, and why that
    may matter; 1 as well for a bundle that is not as it was written, with what was changed.
    """
    if run.endswith(".zip"):
        _verify_bundle(Path(run), overrides or [], digest, key, run_plugins)
        return
    bundled = overrides, digest, key, run_plugins
    options = "KEY=VALUE", "--digest", "--key", "--run-plugins"
    given = dict(zip(options, bundled, strict=True))
    if odd := [name for name, value in given.items() if value]:
        raise UserError(f"{odd[0]}: is for a bundle, and {run} is no .zip file")
    _verify_run(run)


@commands.command()
def bundle(
    run: RunName,
    to: Annotated[
        Path | None, typer.Option(metavar="FILE.zip", help="\\[default: named after the run]")
    ] = None,
    sign: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="sign it with this private key of Ed25519"),
    ] = None,
) -> None:
    """Write a run's record as one file, from which anybody can train it again and compare.

    It holds the configuration, the plugin files, the versions of all packages, and the digests of
    the data and the weights; neither of these themselves.
    Example: [bold]torchyard bundle champion --to champion.zip[/]
    """
    from torchyard.pipelines.proof.bundle import write_bundle
    from torchyard.pipelines.proof.claim import Claim, portable

    if to is not None and (to.suffix != ".zip" or not to.absolute().parent.is_dir()):
        raise UserError(f"--to: {to}: must be a .zip in a folder that there is")
    uri = tracking_uri()
    client = open_existing(uri)
    with store_errors(uri):
        found = chosen_run(client, run)
        claim = Claim.of_run(client, found)
    to = to or Path(re.sub(r"[^\w.-]+", "-", claim.name).strip("-") + ".zip")
    digest = write_bundle(to, portable(claim), sign)
    line = f"{claim.name} is in {to}. `torchyard verify {to}` proves it."
    stdout.print(escape(line), soft_wrap=True)
    stdout.print(f"sha256 {digest}", soft_wrap=True)


def _verify_run(wanted: str) -> None:
    uri = tracking_uri()
    worker = shared_worker()  # torch's import overlaps MLflow's
    client = open_existing(uri)
    from torchyard.pipelines.proof import rebuilding
    from torchyard.pipelines.proof.claim import Claim

    with store_errors(uri):
        found = chosen_run(client, wanted)
        claim = Claim.of_run(client, found)
        resolved = resolve(claim.config, plugins.host())
    config, shown = resolved.config.model_dump(mode="json"), Display(stdout)
    weights = recorded_weights(resolved)
    with shown.bars(), tempfile.TemporaryDirectory() as folder:
        rebuilt = rebuilding.rebuild(worker, config, Path(folder), shown, weights)
    now = {f"plugin.{slot}": each.source.identity for slot, each in resolved.plugins.items()}
    origins = {key: (found.data.tags.get(key, value), value) for key, value in now.items()}
    # A plugin's own change is in its tag.
    origins |= {what: pair for what, pair in resolved.changes.items() if " " not in what}
    _compare(claim, rebuilt, origins, f"{claim.name}  {found.info.run_id}")
    with store_errors(uri):
        client.set_tag(found.info.run_id, VERIFIED, claim.weights)


def _verify_bundle(
    path: Path, overrides: list[str], digest: str | None, key: Path | None, run_code: bool
) -> None:
    from torchyard.pipelines.proof import rebuilding
    from torchyard.pipelines.proof.bundle import read_bundle, unpacked

    if odd := [each for each in overrides if not each.startswith(MOVABLE)]:
        raise UserError(
            f"{odd[0]}: would train something else  (accepts: dataset.…, device, model.weights)"
        )
    claim = read_bundle(path, digest, key)
    if claim.plugins and not run_code:
        names = ", ".join(sorted(claim.plugins))
        raise UserError(
            f"{path}: brings code, {names}: read it first (`unzip {path} 'plugins/*'`), and add "
            "--run-plugins if it may run here"
        )
    config, problems = read_overridden(claim.settled(), overrides, PRESETS)
    if problems:
        raise UserError(problems)
    try:
        RunConfig.model_validate(config)
    except ValidationError as error:
        raise UserError(f"{path}: {problem}" for problem in explain(error, RunConfig)) from error
    shown = Display(stdout)
    with shown.bars(), tempfile.TemporaryDirectory() as scratch:
        folders = unpacked(claim, Path(scratch, "plugins"), path)
        training = Path(scratch, "training")
        training.mkdir()
        worker = rebuilding.worker_with(folders, shown) if folders else shared_worker()
        try:
            rebuilt = rebuilding.rebuild(worker, dict(config), training, shown)
        finally:
            if folders:
                worker.close()
    origins = rebuilding.files_here(config, claim)
    _compare(claim, rebuilt, origins, f"{claim.name}, of {path},")


def _compare(
    claim: Claim, rebuilt: Rebuilt, origins: Mapping[str, tuple[str, str]], named: str
) -> None:
    """Say that the weights are equal.

    Raises:
        RunError: they are not; all that differs has been printed.
    """
    from torchyard.pipelines.proof.rebuilding import differences, parting, unexplained

    if rebuilt.weights == claim.weights:
        stdout.print(f"[green]Reproduced.[/] {escape(named)} trained again has the same weights:")
        stdout.print(f"sha256 {claim.weights}", soft_wrap=True)
        if not rebuilt.data.startswith(claim.data):
            warning = f"its data are {rebuilt.data}, and {claim.data} is what was recorded"
            stdout.print(f"[yellow]warning:[/] {escape(warning)}", soft_wrap=True)
        return
    differing = differences(claim, rebuilt, origins)
    if differing:
        print_table(("", "recorded", "now", "why that may matter"), differing)
    known = "the above differs" if differing else "nothing that is recorded differs"
    parts = [known, parting(claim, rebuilt)]
    parts += [] if differing else [unexplained(claim, rebuilt)]
    raise RunError(
        f"{claim.name} trained again has other weights; {'; '.join(filter(None, parts))}. "
        f"Recorded sha256 {claim.weights}, now {rebuilt.weights}."
    )
