"""What stands in the registry: versions of models, which is the champion, what became of each."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from torchyard.core.errors import UserError, suggestion
from torchyard.core.tracking.location.errors import store_errors
from torchyard.core.tracking.queries.lookup import ACCURACY, CHAMPION, only_champion
from torchyard.core.tracking.queries.runs import quoted
from torchyard.core.tracking.store import if_there

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

OUTCOME = "torchyard.promotion"  # tag of a run: "champion of m, version 3", "refused by a, b"
AT, BY, WHY = "torchyard.promoted_at", "torchyard.promoted_by", "torchyard.why"
REPLACED = "torchyard.replaced"  # tag of a version: the champion it replaced
PENDING = "torchyard.pending"  # tag of a version whose promotion is not complete
ROLLED_BACK = "torchyard.rolled_back"  # tag of a version: when, and by whom
NEVER = "never the champion"
SHOWN_REFUSALS = 10_000  # the newest


def history(client: MlflowClient, model: str | None = None) -> list[dict[str, Any]]:
    """The versions of the registered models that torchyard promoted, of each the newest first.

    Each is a row of model, version, status, run, accuracy, data (what it was trained on: `digits,
    digest 5ee1d6e0a1c3f4e2`), promoted_at, by and why. The runs that were refused are rows without
    a version.
    """
    with store_errors(client.tracking_uri):
        names = [found.name for found in client.search_registered_models()]
        if model is not None and model not in names:
            raise UserError(f"no registered model named '{model}'.{suggestion(model, names)}")
        experiments = [found.experiment_id for found in client.search_experiments()]
        rows = []
        for name in names if model is None else [model]:
            for found, status in statuses(client, name):
                run = if_there(client.get_run, str(found.run_id))  # None: deleted for good
                made = datetime.fromtimestamp(found.creation_timestamp / 1000, UTC).isoformat()
                rows.append(_row(name, int(found.version), status, run, {AT: made, **found.tags}))
        for run in client.search_runs(
            experiments, f"tags.`{OUTCOME}` LIKE 'refused%'", max_results=SHOWN_REFUSALS
        ):
            name = run.data.tags.get(f"{OUTCOME}.model", "")
            if model in (None, name):
                rows.append(_row(name, None, run.data.tags[OUTCOME], run, run.data.tags))
    rows.sort(key=lambda row: row["promoted_at"], reverse=True)
    return sorted(rows, key=lambda row: row["model"])


def champion_of(client: MlflowClient, model: str) -> ModelVersion | None:
    """The version that has the alias."""
    return if_there(client.get_model_version_by_alias, model, CHAMPION)


def champions_by_run(client: MlflowClient) -> dict[str, str]:
    """What runs are the champions of, by their ids: `digits v3`."""
    found: dict[str, str] = {}
    for model in client.search_registered_models():
        if CHAMPION in model.aliases and (version := champion_of(client, model.name)):
            named = f"{model.name} v{version.version}"
            run_id = str(version.run_id)
            found[run_id] = f"{found[run_id]}, {named}" if run_id in found else named
    return found


def versions_of(client: MlflowClient, model: str) -> list[ModelVersion]:
    """Every version of a registered model, whatever another program may have named it."""
    name = quoted(model)
    found = client.search_model_versions(f"name = {name}" if name else None)
    return [version for version in found if version.name == model]


def registered_version(client: MlflowClient, wanted: str) -> ModelVersion | None:
    """The version that a person names: NAME, which is its champion, NAME/3, NAME@ALIAS, champion.

    None: what is named is no registered model.

    Raises:
        UserError: the model has no such version, or no champion.
    """
    registered = [found.name for found in client.search_registered_models()]
    if wanted in registered:
        if (champion := champion_of(client, wanted)) is None:
            raise UserError(f"{wanted}: it has no champion; name a version: {wanted}/1")
        return champion
    if wanted == CHAMPION:
        wanted = f"{only_champion(client)}@{CHAMPION}"
    name, at, alias = wanted.rpartition("@")
    if at and name in registered:  # None: the run's own lookup says which aliases there are
        return if_there(client.get_model_version_by_alias, name, alias)
    name, slash, number = wanted.rpartition("/")
    if not slash or name not in registered:
        return None
    versions = {str(found.version): found for found in versions_of(client, name)}
    if number not in versions:
        raise UserError(
            f"{wanted}: no such version.{suggestion(number, sorted(versions, key=int))}"
        )
    return versions[number]


def number_of(version: ModelVersion | None) -> int | None:
    """A version's number, if there is a version."""
    return None if version is None else int(version.version)


def _row(
    model: str, version: int | None, status: str, run: Run | None, tags: Mapping[str, str]
) -> dict[str, Any]:
    return {
        "model": model,
        "version": version,
        "status": status,
        "run": run.info.run_name if run else None,
        "run_id": run.info.run_id if run else None,
        "accuracy": run.data.metrics.get(ACCURACY) if run else None,
        "data": _data_of(run) if run else None,
        "promoted_at": tags.get(AT, ""),
        "by": tags.get(BY, ""),
        "why": tags.get(WHY, ""),
    }


def _data_of(run: Run) -> str | None:
    """The data set of a run, the file it is in, and the beginning of its digest, where known."""
    inputs = run.inputs.dataset_inputs if run.inputs else []
    name, path = run.data.tags.get("dataset"), run.data.params.get("dataset.path", "null")
    if name and path != "null":
        name = f"{name} ({PurePath(path).name})"
    digests = {each.dataset.digest for each in inputs}
    return f"{name}, digest {' or '.join(sorted(digests))}" if name and digests else name


def statuses(client: MlflowClient, model: str) -> list[tuple[ModelVersion, str]]:
    """Every version, and what became of it."""
    champion = number_of(champion_of(client, model))
    versions = versions_of(client, model)
    replaced: dict[str, ModelVersion] = {}
    for found in sorted(versions, key=lambda each: int(each.version)):
        earlier = found.tags.get(REPLACED)
        stayed = ROLLED_BACK not in found.tags
        if earlier and PENDING not in found.tags and (stayed or earlier not in replaced):
            replaced[earlier] = found
    statuses = []
    for found in versions:
        status = NEVER
        if int(found.version) == champion:
            status = CHAMPION
        elif ROLLED_BACK in found.tags:
            status = f"rolled back {found.tags[ROLLED_BACK]}"
        elif str(found.version) in replaced:
            status = f"replaced by version {replaced[str(found.version)].version}"
        statuses.append((found, status))
    return statuses
