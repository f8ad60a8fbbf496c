"""Finding runs: the one a person means, what it recorded, and those of dead processes."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torchyard.core.data.remote.shared import SHARED
from torchyard.core.errors import UserError, suggestion
from torchyard.core.tracking.checkpoints import fetch_checkpoint
from torchyard.core.tracking.delivery import SET_ASIDE, LogDelivery, end_run
from torchyard.core.tracking.ownership import lease
from torchyard.core.tracking.ownership.process import described_owner, owner_lives
from torchyard.core.tracking.store import (
    RUNS,
    chosen_experiment,
    if_there,
    locked_store,
    run_experiments,
    run_folder,
    store_lock,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion


CONFIG = "torchyard.config"  # tag of a run that has just started
DIGEST = "weights_digest"  # tag of a run that has trained
SEEDS = "torchyard.seeds"  # tag of a run whose children are one configuration's seeds: how many
MOST_SEEDS = 1000
PAGE = 1000  # runs that a search asks for at once
PARENT = "mlflow.parentRunId"  # tag of a run, by which MLflow's UI shows it below its parent
EXACT = "torchyard.as_one_run"  # tag of a run that extends another: "true", or why it is not
STUDY = "torchyard.study"  # tag of a study's own run: its name
TRIAL_STATE = "torchyard.trial_state"  # tag of a trial that has ended: complete, pruned or failed
SILENT_SECONDS = 600.0  # without a renewed lease: its machine is cut off, suspended or gone
RECENT = 200  # runs among which the nearest name is looked for
LATEST, BEST, CHAMPION = "latest", "best", "champion"
ACCEPTED = "an id, a name, latest, best, best:DATASET, champion, MODEL@ALIAS, MODEL/3"
NEWEST = "attributes.start_time DESC"
ACCURACY = "test/accuracy"
PATH = "dataset.path"  # parameter of a run on data of the user's own; "null" where it has none
VALIDATED = "best/val/accuracy"  # of the epoch whose weights were kept; with a validation part

_TESTED = f"attributes.status = 'FINISHED' and metrics.`{ACCURACY}` >= 0"


def end_orphans(client: MlflowClient, *experiment_ids: str) -> None:
    """Set to KILLED every run that a dead process of this machine left RUNNING.

    What is pending in its log is delivered first; its true end may be in there.
    """
    for run in client.search_runs(list(experiment_ids), "attributes.status = 'RUNNING'"):
        folder = run_folder(client.tracking_uri, run)
        if owner_lives(run.data.tags, folder) is not False:
            continue
        reason, pending = "its process ended without reporting why", "what its log has"
        try:
            delivery = LogDelivery(client, run)
            if count := len(delivery):
                pending = f"{count} lines in {delivery.log.path}"
                delivery.deliver("skip")
                if client.get_run(run.info.run_id).info.status != "RUNNING":
                    continue
                if delivery.set_aside:
                    reason += f"; {delivery.set_aside} entries are in {delivery.folder / SET_ASIDE}"
        except Exception as error:  # of one run: the others go on
            reason += f"; {pending} cannot be delivered: {error}"
        end_run(client, run.info.run_id, "KILLED", reason)


def silent_runs(client: MlflowClient, *experiment_ids: str) -> list[Run]:
    """The runs that are RUNNING by what a store says, of whose machine nothing is heard."""
    return [
        run
        for run in client.search_runs(list(experiment_ids), "attributes.status = 'RUNNING'")
        if lease.silent_seconds(run) > SILENT_SECONDS
        and owner_lives(run.data.tags, run_folder(client.tracking_uri, run)) is None
    ]


def progress_of(run: Run, client: MlflowClient) -> str:
    """How far a run is that trains: `epoch 3/10`, the last one that it has done."""
    done = client.get_metric_history(run.info.run_id, "train/loss")
    if not done:
        return "running"
    epochs = run.data.params.get("train.epochs")
    return f"epoch {max(each.step for each in done)}{f'/{epochs}' if epochs else ''}"


def sync_run(client: MlflowClient, run: Run) -> Run:
    """Deliver what is pending of a run whose process is dead; returns the updated run."""
    with store_lock(client.tracking_uri):
        run = client.get_run(run.info.run_id)
        alive = owner_lives(run.data.tags, run_folder(client.tracking_uri, run))
        if run.info.status == "RUNNING" and alive is not False:
            return run
        LogDelivery(client, run).deliver("skip")
        return client.get_run(run.info.run_id)


def settle_owner(
    client: MlflowClient, run: Run, *, force: bool, say: Callable[[str], None]
) -> None:
    """Make sure that no process trains a run that is to be resumed.

    Args:
        client: of the store.
        run: to be resumed.
        force: whether one of which that cannot be known is taken over.
        say: is told why this takes a while.

    Raises:
        UserError: its process lives; or that cannot be known, and it is not forced.
    """
    if run.info.status != "RUNNING":
        return
    folder = run_folder(client.tracking_uri, run)
    alive = owner_lives(run.data.tags, folder)
    if alive is None:
        begun = f"{run.info.run_name} was begun by {described_owner(run.data.tags)}"
        say(f"{begun}: looking for {lease.WATCH_SECONDS:g} s whether that still runs.")
        alive = lease.is_renewed(client, run)
    lease.check_resumable(run, alive, force=force)
    if alive is None:
        reason = f"taken over: {described_owner(run.data.tags)} was said to run no more"
        end_run(client, run.info.run_id, "KILLED", reason)


def check_checkpoint(run: Run, folder: Path) -> None:
    """Refuse to begin a run again that was trained, where nothing of that is here.

    What is at an address that machines share is fetched.

    Raises:
        UserError: it was trained on another machine, or its folder was deleted.
        UnreachableError: the address does not answer.
    """
    trained = {key for key in run.data.metrics if key.startswith("train/")}
    if not trained - {"train/base_learning_rate"} or folder.exists():
        return
    fetch_checkpoint(run.info.run_id, folder)
    if not folder.exists():
        raise UserError(
            f"run {shown(run)} was trained by {described_owner(run.data.tags)}, and its "
            f"checkpoint is not here: there is no {folder}. Resume it on that machine; or let both "
            f"use one folder, named in {RUNS}, or one address, in {SHARED}; or begin again at "
            "epoch 1 with --from-start."
        )


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


def shown(run: Run) -> str:
    """A run as messages name it."""
    return f"{run.info.run_id} ({run.info.run_name})"


def _named(client: MlflowClient, experiments: list[str], name: str) -> Run | None:
    text = quoted(name)
    found = _search(client, experiments, f"attributes.run_name = {text}") if text else []
    return found[0] if found else None


def quoted(text: str) -> str | None:
    """A text as MLflow's filters take it; None for one with both quotes: they know no escape."""
    quote = '"' if "'" in text else "'"
    return None if quote in text else f"{quote}{text}{quote}"


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
