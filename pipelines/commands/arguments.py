"""What commands share: presets or files, `key=value` overrides, runs, how a run is followed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from torchyard.core.config.parsing import preset_names
from torchyard.core.config.resolve import ResolvedConfig, read_config
from torchyard.core.errors import UserError
from torchyard.core.formatting import percent
from torchyard.core.hosting.hookspecs import HOOKS
from torchyard.core.hosting.host import host
from torchyard.core.tracking.queries.lookup import ACCURACY, BEST, VALIDATED, find_run
from torchyard.pipelines.display import Display, JsonDisplay, stderr, stdout

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

PRESETS = Path(__file__).parents[1] / "presets"
DEFAULT_PRESET = "digits"

PresetOrFile = Annotated[
    str | None,
    typer.Argument(
        metavar="[PRESET|FILE.yaml]",
        help=f"{', '.join(preset_names(PRESETS))}, or a file. \\[default: digits]",
    ),
]
RunName = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="an id, a name, latest, best, champion, MODEL@ALIAS, MODEL/3"
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="print the run's id and nothing else")]
JsonLines = Annotated[bool, typer.Option("--json", help="print one JSON object per line")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="e.g. model=resnet18 optimizer.lr=0.01"),
]


def chosen_run(client: MlflowClient, wanted: str) -> Run:
    """The run that a person means; of `best` it is said what it was chosen by.

    Raises:
        UserError: there is none, or more than one is meant.
    """
    run = find_run(client, wanted)
    if is_best(wanted, run):
        validated = VALIDATED in run.data.metrics
        kind, metric = ("validation", VALIDATED) if validated else ("test", ACCURACY)
        accuracy = percent(run.data.metrics.get(metric))
        named = escape(f"{wanted}: {run.info.run_name}")
        stderr.print(f"{named} has the greatest {kind} accuracy, {accuracy}.", soft_wrap=True)
    return run


def is_best(wanted: str, run: Run) -> bool:
    """Whether a run was found as the best of all, and not by its name."""
    return wanted.partition(":")[0] == BEST and run.info.run_name != wanted


def preset_config(
    source: str | Mapping[str, Any] | None, overrides: Sequence[str | Mapping[str, Any]] | None
) -> ResolvedConfig:
    """Read and resolve a configuration; a first argument with '=' is an override."""
    if isinstance(source, Mapping):
        return read_config(source, overrides or (), PRESETS, host())
    arguments = [*([source] if source else []), *(overrides or [])]
    start = preset_or_file(source)
    return read_config(start, arguments[start == source :], PRESETS, host())


def preset_or_file(source: str | None) -> str:
    """What the first argument names; the default preset where it is an override."""
    return source if source and "=" not in source else DEFAULT_PRESET


def plugin_config(kind: str, name: str, parameters: list[str] | None, *more: str) -> ResolvedConfig:
    """Resolve the default preset with one plugin, whose parameters need no prefix.

    Args:
        kind, name: of the plugin.
        parameters: `key=value`; a key that begins with a kind ("dataset.path") has its prefix.
        more: whole overrides, which come first.

    Raises:
        UserError: with every problem found.
    """
    overrides = [*more, f"{kind}={name}"]
    for parameter in parameters or []:
        first, dot, _ = parameter.partition("=")[0].partition(".")
        if "=" not in parameter:
            raise UserError(f"'{parameter}' is not of the form key=value")
        overrides.append(parameter if dot and first in HOOKS else f"{kind}.{parameter}")
    return read_config(DEFAULT_PRESET, overrides, PRESETS, host())


def chosen_display(
    quiet: bool, as_json: bool, silent: Callable[[], Display], shown: Callable[[Console], Display]
) -> Display:
    """What follows a run: JSON lines, or `silent`, or `shown` on the terminal.

    Raises:
        UserError: both others are asked for.
    """
    if quiet and as_json:
        raise UserError("--quiet and --json cannot be combined")
    return JsonDisplay() if as_json else silent() if quiet else shown(stdout)
