"""The runs of a store by their tags: searched, and those that belong together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from torchyard.core.tracking.store import chosen_experiment, if_there, locked_store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


CONFIG = "torchyard.config"  # tag of a run that has just started
DIGEST = "weights_digest"  # tag of a run that has trained
SEEDS = "torchyard.seeds"  # tag of a run whose children are one configuration's seeds: how many
PAGE = 1000  # runs that a search asks for at once
PARENT = "mlflow.parentRunId"  # tag of a run, by which MLflow's UI shows it below its parent
EXACT = "torchyard.as_one_run"  # tag of a run that extends another: "true", or why it is not
STUDY = "torchyard.study"  # tag of a study's own run: its name
TRIAL_STATE = "torchyard.trial_state"  # tag of a trial that has ended: complete, pruned or failed
RECENT = 200  # runs among which the nearest name is looked for
NEWEST = "attributes.start_time DESC"


def run_tagged(tag: str, value: str) -> Run | None:
    """The newest run of the experiment with that tag, if there is one.

    Raises:
        RunError: the store is out of reach.
    """
    with locked_store() as client:
        experiment = chosen_experiment(client, client.tracking_uri)
        chosen = f"tags.`{tag}` = '{value}'"
        found = client.search_runs([experiment.experiment_id], chosen, max_results=1)
    return found[0] if found else None


def unfinished_whole(client: MlflowClient, run: Run) -> Run | None:
    """The run of several seeds that a run is one of, if that has not finished."""
    parent = run.data.tags.get(PARENT)
    whole = if_there(client.get_run, parent) if parent else None
    if whole is None or SEEDS not in whole.data.tags or whole.info.status == "FINISHED":
        return None
    return whole


def seeds_of(client: MlflowClient, run: Run) -> dict[int, Run]:
    """The newest run of each seed, of a run that is several seeds."""
    return {int(each.data.params["train.seed"]): each for each in children_of(client, run)}


def children_of(client: MlflowClient, run: Run) -> Iterator[Run]:
    """The runs below a run, the oldest first."""
    chosen = f"tags.`{PARENT}` = '{run.info.run_id}'"
    return search(client, [run.info.experiment_id], chosen, ("attributes.start_time ASC",))


def search(
    client: MlflowClient,
    experiments: Sequence[str],
    chosen: str,
    order: Sequence[str],
    page: int = PAGE,
    *,
    deleted: bool = False,
) -> Iterator[Run]:
    """The runs that MLflow's filter chooses; read page by page, as they are taken.

    With `deleted` those in MLflow's trash.
    """
    from mlflow.entities import ViewType

    token = None
    while True:
        found = client.search_runs(
            list(experiments),
            chosen,
            ViewType.DELETED_ONLY if deleted else ViewType.ACTIVE_ONLY,
            max_results=min(page, PAGE),
            order_by=list(order),
            page_token=token,
        )
        yield from found
        page *= 4  # whoever looks further may look through all
        token = found.token
        if not token:
            return


def study_under_way(client: MlflowClient, run: Run, *, latest: bool) -> Run | None:
    """The own run of the unfinished study that a run is a trial of; None where there is none.

    Args:
        latest: whether any trial stands for its study; else one that has not ended does.
    """
    parent = run.data.tags.get(PARENT)
    if parent is None or (TRIAL_STATE in run.data.tags and not latest):
        return None
    study = if_there(client.get_run, parent)
    unfinished = study is not None and study.info.status != "FINISHED"
    return study if study is not None and unfinished and STUDY in study.data.tags else None


def shown(run: Run) -> str:
    """A run as messages name it."""
    return f"{run.info.run_id} ({run.info.run_name})"


def quoted(text: str) -> str | None:
    """A text as MLflow's filters take it; None for one with both quotes: they know no escape."""
    quote = '"' if "'" in text else "'"
    return None if quote in text else f"{quote}{text}{quote}"
