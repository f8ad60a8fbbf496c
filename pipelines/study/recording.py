"""What a study and its trials record in MLflow: a parent run, and a child for each trial."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from torchyard.core.config.resolve import ResolvedConfig
from torchyard.core.data.files import atomic_write
from torchyard.core.errors import UserError
from torchyard.core.formatting import natural
from torchyard.core.report.study_page import study_page
from torchyard.core.study.plan import StudyPlan
from torchyard.core.tracking.mlflow_format import BEST
from torchyard.core.tracking.ownership.orphans import sync_run
from torchyard.core.tracking.queries.lookup import ACCURACY
from torchyard.core.tracking.queries.runs import PARENT, STUDY, children_of, quoted
from torchyard.core.tracking.record import RunRecord
from torchyard.core.tracking.store import chosen_experiment, locked_store, run_folder
from torchyard.pipelines.flow.recording.start import (
    chosen_plugins,
    flow_run_tags,
    name_flow_run,
    open_record,
    record_configuration,
)
from torchyard.pipelines.study.search import JOURNAL, Search

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

DIGEST = "torchyard.study_digest"  # tag of a study's run: of all that its trials depend on
SOURCE = "torchyard.study_source"  # tag of a study's run: the preset or file it began with
TRIALS = "study/trials"  # metric of a study's run that is finished: how many
SHARED_STEPS = "train/shared_steps"  # metric of a trial's run: how many others had trained for it
TRIAL = "torchyard.trial"  # tag of a trial's run: its number


def begun_study(client: MlflowClient, plan: StudyPlan) -> Run | None:
    """The own run of the study of that name, if there is one.

    Raises:
        UserError: it is another study, or it has all its trials.
    """
    experiment = chosen_experiment(client, client.tracking_uri)
    if (name := quoted(plan.name)) is None:
        raise UserError(f"study.name: {plan.name!r}: MLflow finds no text with both quotes")
    chosen = f"tags.`{STUDY}` = {name}"
    found = client.search_runs([experiment.experiment_id], chosen, max_results=1)
    if not found:
        return None
    [run] = found
    if run.data.tags.get(DIGEST) != plan.digest:
        raise UserError(
            f"study.name: there is a study '{plan.name}' ({run.info.run_name}) with another "
            "space, other settings or another sampler: choose another name"
        )
    trials = int(run.data.metrics.get(TRIALS, 0))
    if run.info.status == "FINISHED" and trials >= plan.trials:
        raise UserError(
            f"study '{plan.name}' ({run.info.run_name}) has its {trials} trials: a greater "
            "--trials adds some, --name begins another. Its best one is run "
            f"{run.data.tags.get('best_run')}."
        )
    return run


def start_study(plan: StudyPlan, source: str | None, run_id: str | None) -> RunRecord:
    """Start or resume the study's own run.

    Raises:
        UserError: it may still run, its folder is gone, or another process began it meanwhile.
        RunError: the store is out of reach.
    """
    tags = {STUDY: plan.name, DIGEST: plan.digest, SOURCE: source or ""}
    tags |= flow_run_tags()
    if run_id is None:
        record = RunRecord.start(
            name_stem=f"study·{plan.name.removeprefix('study-')}",
            parameters=plan.document,
            tags=tags,
            may_begin=lambda client: _refuse_a_second(client, plan),
        )
    else:
        with locked_store() as client:
            run = client.get_run(run_id)
            journal = run_folder(client.tracking_uri, run) / JOURNAL
            if not journal.exists() and trial_runs(client, run):
                raise UserError(
                    f"study '{plan.name}': what is known of its trials is not here: there is no "
                    f"{journal}"
                )
            if run.info.status == "FINISHED":  # it is given more trials
                client.set_terminated(run_id, "KILLED")
        record = RunRecord.resume(run_id)
        record.set_tags(tags)
    text = yaml.safe_dump(plan.document, sort_keys=False, allow_unicode=True)
    record.log_config(text)
    name_flow_run(record)
    return record


def _refuse_a_second(client: MlflowClient, plan: StudyPlan) -> None:
    if run := begun_study(client, plan):
        raise UserError(
            f"study '{plan.name}': another process has just begun it ({run.info.run_name}): the "
            "same command goes on with it once that has ended, --name begins another"
        )


def trial_runs(client: MlflowClient, study: Run) -> dict[int, Run]:
    """The runs of a study's trials, by number."""
    numbered = ((natural(run.data.tags.get(TRIAL, "")), run) for run in children_of(client, study))
    return {number: run for number, run in numbered if number is not None}


def recorded_trials(study: RunRecord) -> dict[int, Run]:
    """The runs of a study's trials, by number."""
    with locked_store() as client:
        return trial_runs(client, client.get_run(study.run_id))


@dataclass(frozen=True)
class Steps:
    """Steps of training: of all trials, each by itself, and those that were trained."""

    all: int
    trained: int

    def __str__(self) -> str:
        return f"{self.trained:,} of {self.all:,}; trials share the others"


def steps_of(trials: Iterable[Run]) -> Steps:
    """How many steps trials have, and how many of them were trained."""
    metrics = [run.data.metrics for run in trials]
    steps = sum(int(each.get("train/steps", 0)) for each in metrics)
    shared = sum(int(each.get(SHARED_STEPS, 0)) for each in metrics)
    return Steps(steps, steps - shared)


def runs_begun(study_id: str, numbers: Sequence[int]) -> dict[int, Run]:
    """The runs of these trials of a study, with all that their dead processes left to send."""
    if not numbers:
        return {}
    with locked_store() as client:
        study = client.get_run(study_id)
        found = trial_runs(client, study)
    return {number: sync_run(client, found[number]) for number in numbers if number in found}


def start_trial(
    parent: RunRecord, number: int, resolved: ResolvedConfig, run_id: str | None
) -> RunRecord:
    """Start or resume the run of a trial.

    Raises:
        RunError: the store is out of reach.
    """
    tags = chosen_plugins(resolved) | {PARENT: parent.run_id, TRIAL: str(number)}
    record = open_record(resolved.config, tags, run_id)
    record_configuration(record, resolved.config, tags, resumed=run_id is not None)
    return record


def recorded_value(run: Run, figure: str) -> float | None:
    """A trial's figure in the epoch whose weights were kept, from its run."""
    value = run.data.metrics.get(f"{BEST}{figure}")
    return None if value is None else float(value)


def record_report(
    record: RunRecord,
    plan: StudyPlan,
    search: Search,
    best_run: Run,
    command: str,
    counts: Mapping[str, int],
    steps: Steps,
) -> None:
    """Write the study's page, and which trial is its best.

    Args:
        best_run: of the best trial.
        command: what runs that by itself.
        counts: of the trials by how they ended.
        steps: of their training.
    """
    figure, best = plan.settings.figure, search.best()
    assert best is not None
    assert best.value is not None
    sign = -1 if plan.settings.maximize else 1
    record.log_metrics({f"{BEST}{figure}": best.value}, step=best.number)
    if (accuracy := best_run.data.metrics.get(ACCURACY)) is not None:
        record.log_metrics({"study/accuracy": accuracy}, step=best.number)
    record.log_metrics({TRIALS: len(search.finished())}, step=0)
    record.log_metrics({"study/steps": steps.all, "study/trained_steps": steps.trained}, step=0)
    record.set_tags({"best_trial": str(best.number), "best_run": best_run.info.run_id})
    ranked = sorted(
        search.finished(),
        key=lambda each: (each.state != "complete", sign * (each.value or 0.0), each.number),
    )
    rows = [
        {
            "trial": str(each.number),
            figure: math.nan if each.value is None else each.value,
            "ended": each.state,
            **{key: each.values.get(key, math.nan) for key in plan.space.domains},
        }
        for each in ranked
    ]
    page = study_page(
        search.study,
        title=record.name,
        figure=figure,
        facts={
            "best trial": f"{best.number}, {figure} {best.value:.4f}",
            "its run": str(best_run.info.run_name),
            "to run it": command,
            "trials": "; ".join(f"{count} {state}" for state, count in counts.items() if count),
            **({"steps trained": str(steps)} if steps.trained < steps.all else {}),
            "sampler": plan.settings.sampler,
            "pruner": plan.settings.pruner,
            **{key: str(domain) for key, domain in plan.space.domains.items()},
        },
        trials=[{name: _cell(value) for name, value in row.items()} for row in rows],
        links={"MLflow run": record.url},
    )
    file = record.folder / "report.html"
    with atomic_write(file) as opened:
        opened.write(page.encode())
    record.log_file(file)
    record.describe(f"The best of {len(ranked)} trials:\n\n    {command}\n")


def _cell(value: Any) -> str | float:
    return value if isinstance(value, str | float | int) else json.dumps(value)
