"""`torchyard.sweep`: a study, for Python programs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchyard.core.hosting.host import host
from torchyard.core.study.plan import StudyPlan, has_study
from torchyard.core.tracking import store
from torchyard.pipelines.commands.arguments import PRESETS
from torchyard.pipelines.display import PrintableConsole
from torchyard.pipelines.study.display import StudyDisplay
from torchyard.pipelines.study.local import begun_before, run_study

if TYPE_CHECKING:
    from torchyard.pipelines.study.flow import StudyOutcome


def sweep(
    source: str | Path | Mapping[str, Any],
    *assignments: str | Mapping[str, Any],
    quiet: bool = False,
    **options: Any,
) -> StudyOutcome:
    """Run a study, or go on with one, as `torchyard sweep` does.

        study = torchyard.sweep(
            "digits", {"optimizer.lr": "log(1e-4,1e-1)", "model": ["lenet", "mlp"]}, trials=40
        )
        study.values, study.value, study.best_run

    Args:
        source: a preset, a YAML file, or what is in one.
        assignments: "key=domain" or "key=value", or mappings from keys to these.
        quiet: print nothing while it runs.
        options: trials, sampler, pruner, workers, engine, address, name, minimize and maximize,
            as the command's.

    Raises:
        UserError: with everything that is wrong, before any trial begins; or it is done already.
        RunError: it was started and could not be finished.
        KeyboardInterrupt: it was interrupted; the same call goes on with it.
    """
    given = dict(source) if isinstance(source, Mapping) else str(source)
    plan = StudyPlan.read(given, assignments, options, PRESETS, host())
    store.check_writable(store.tracking_uri())
    console = None if quiet else PrintableConsole(highlight=False, force_jupyter=False)
    shown = StudyDisplay(console)
    for note in plan.notes:
        shown.line("note:", note)
    run_id = begun_before(plan, lambda text: shown.line("study", text))
    alone = isinstance(given, str) and not has_study(given, PRESETS)
    run_study(plan, str(given) if alone else None, run_id, shown, lambda error: None)
    outcome: StudyOutcome = shown.outcome
    return outcome
