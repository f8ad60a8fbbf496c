"""The run that a person means: by its id or name, the latest, the best, a champion."""

from __future__ import annotations

import difflib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from torchyard.core.errors import UserError, suggestion
from torchyard.core.tracking.queries.runs import NEWEST, RECENT, quoted, search, shown
from torchyard.core.tracking.store import if_there, run_experiments

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion


LATEST, BEST, CHAMPION = "latest", "best", "champion"
ACCEPTED = "an id, a name, latest, best, best:DATASET, champion, MODEL@ALIAS, MODEL/3"
ACCURACY = "test/accuracy"
PATH = "dataset.path"  # parameter of a run on data of the user's own; "null" where it has none
VALIDATED = "best/val/accuracy"  # of the epoch whose weights were kept; with a validation part

_TESTED = f"attributes.status = 'FINISHED' and metrics.`{ACCURACY}` >= 0"


def find_run(client: MlflowClient, wanted: str) -> Run:
    """The run a person means.

    Args:
        client: of the store.
        wanted: a run's id or its name (of runs of one name the newest), or `latest`; `best`,
            the finished run with the greatest validation accuracy, or test accuracy where no
            run has a validation part, `best:DATASET` where there are runs on several data sets:
            a plugin's name, or the path of the user's own;
            `NAME@ALIAS` or `NAME/3`, the run that a version of a registered model is from,
            `champion` alone where one model has that alias.

    Raises:
        UserError: there is none, or more than one is meant; the message names the nearest.
    """
    experiments = run_experiments(client)
    if wanted == BEST or wanted.startswith(f"{BEST}:"):
        return _best(client, experiments, wanted.partition(":")[2])
    if wanted == CHAMPION:
        return _aliased(client, only_champion(client), CHAMPION)
    name, at, alias = wanted.rpartition("@")
    if at and not _named(client, experiments, wanted):
        return _aliased(client, name, alias)
    name, slash, number = wanted.rpartition("/")
    if slash and number.isdecimal() and not _named(client, experiments, wanted):
        version = if_there(client.get_model_version, name, number)
        if version is None:
            raise UserError(f"'{wanted}': no version {number} of a registered model '{name}'.")
        return _run_of(client, version, wanted)
    newest = _search(client, experiments)
    if not newest:
        raise UserError(f"no run '{wanted}': there is no run yet.")
    if wanted == LATEST:
        return newest[0]
    if found := if_there(client.get_run, wanted) or _named(client, experiments, wanted):
        return found
    recent = _search(client, experiments, count=RECENT)
    known = {run.info.run_name: run for run in reversed(recent)}
    known |= {run.info.run_id: run for run in recent}
    matches = [name for name in known if wanted and name.startswith(wanted)]
    near = matches or difflib.get_close_matches(wanted, known, n=1)
    hint = f"The last one is {shown(newest[0])}."
    if near:
        hint = f"Did you mean {shown(known[near[0]])}?"
    raise UserError(f"no run with the id or name '{wanted}'. {hint}  (accepts: {ACCEPTED})")


def _search(
    client: MlflowClient,
    experiments: list[str],
    chosen: str = "",
    order: str = NEWEST,
    count: int = 1,
) -> list[Run]:
    return list(client.search_runs(experiments, chosen, max_results=count, order_by=[order]))


def _named(client: MlflowClient, experiments: list[str], name: str) -> Run | None:
    text = quoted(name)
    found = _search(client, experiments, f"attributes.run_name = {text}") if text else []
    return found[0] if found else None


def _best(client: MlflowClient, experiments: list[str], wanted: str) -> Run:
    """The finished run of the greatest accuracy; on which data set must be clear.

    It is that of the validation where a run on the data set has one: the test is for judging.
    Runs of one plugin on different paths, such as two folders of photos, are on two data sets,
    unless their digest is the same.
    """
    found = _best_of_each(client, experiments)
    if not found:
        raise UserError("best: no run has finished yet.")
    several = Counter(_dataset(run) for run in found)
    called = {
        (_path(run) if several[_dataset(run)] > 1 else "") or _dataset(run): run for run in found
    }
    meant = [run for run in found if not wanted or _is_called(run, wanted)]
    if len(meant) == 1:
        return meant[0]
    if not meant:
        raise UserError(f"best: no finished run on '{wanted}'.{suggestion(wanted, [*called])}")
    names = " or ".join(f"{BEST}:{name}" for name, run in called.items() if run in meant)
    on = f"'{wanted}' is {len(meant)} data sets" if wanted else f"{len(meant)} data sets"
    raise UserError(f"best: there are runs on {on}: use {names}")


def _best_of_each(client: MlflowClient, experiments: list[str]) -> list[Run]:
    """The best run on each data set; one query for each, so that a store may hold many runs."""
    found: list[Run] = []
    for metric in (VALIDATED, ACCURACY):
        order = f"metrics.`{metric}` DESC"
        judged = others = f"{_TESTED} and metrics.`{metric}` >= 0"
        while runs := _search(client, experiments, others, order):
            if (name := quoted(_dataset(runs[0]))) is None:
                _add_other_data(found, runs[0])
                break
            others += f" and tags.dataset != {name}"
            same = f"{judged} and tags.dataset = {name}"
            while runs:
                _add_other_data(found, runs[0])
                if (path := quoted(_path(runs[0]))) is None or not _path(runs[0]):
                    break
                same += f" and params.`{PATH}` != {path}"
                runs = _search(client, experiments, same, order)
    return found


def _add_other_data(found: list[Run], run: Run) -> None:
    if not any(_on_same_data(run, other) for other in found):
        found.append(run)


def _on_same_data(first: Run, second: Run) -> bool:
    return _dataset(first) == _dataset(second) and (
        _path(first) == _path(second) or bool(_digests(first) & _digests(second))
    )


def _dataset(run: Run) -> str:
    return str(run.data.tags.get("dataset", ""))


def _path(run: Run) -> str:
    return str(run.data.params.get(PATH, ""))


def _digests(run: Run) -> set[str]:
    inputs = run.inputs.dataset_inputs if run.inputs else []
    return {each.dataset.digest for each in inputs}


def _is_called(run: Run, wanted: str) -> bool:
    """Whether a name or a path, whole or its last part, means the data set of a run."""
    path = _path(run)
    whole = str(Path(wanted).expanduser().absolute())
    return (
        wanted == _dataset(run)
        or (bool(path) and path in (wanted, whole, f"{whole}/"))
        or ("/" in path and wanted == Path(path).name)
    )


def chosen_among(client: MlflowClient, best: Run) -> int:
    """Of how many runs the test samples chose the best; 1 where the validation did."""
    if VALIDATED in best.data.metrics:
        return 1
    experiments = [found.experiment_id for found in client.search_experiments()]
    runs = search(client, experiments, _TESTED, (NEWEST,))
    return sum(_on_same_data(run, best) for run in runs)


def only_champion(client: MlflowClient) -> str:
    """The name of the registered model that has the alias, where one has.

    Raises:
        UserError: none has, or several have.
    """
    models = list(client.search_registered_models())
    names: list[str] = [model.name for model in models if CHAMPION in model.aliases]
    if not names:
        raise UserError("champion: no registered model has the alias 'champion' yet.")
    if len(names) > 1:
        each = " or ".join(f"{name}@{CHAMPION}" for name in names)
        raise UserError(f"champion: {len(names)} registered models have one: use {each}")
    return names[0]


def _aliased(client: MlflowClient, name: str, alias: str) -> Run:
    """The run that a registered model's version is from."""
    version = if_there(client.get_model_version_by_alias, name, alias)
    if version is None:
        models = {model.name: list(model.aliases) for model in client.search_registered_models()}
        if name in models:
            has = suggestion(alias, models[name])
            raise UserError(f"the registered model '{name}' has no alias '{alias}'.{has}")
        known = suggestion(name, list(models))
        raise UserError(f"'{name}@{alias}': no registered model '{name}'.{known}")
    return _run_of(client, version, f"{name}@{alias}")


def _run_of(client: MlflowClient, version: ModelVersion, wanted: str) -> Run:
    if not version.run_id:
        raise UserError(f"'{wanted}' (version {version.version}) is not from a run.")
    return client.get_run(version.run_id)
