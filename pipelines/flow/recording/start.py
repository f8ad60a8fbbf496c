"""How a run's record begins: its name, its tags, its link with Prefect, its configuration."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

import yaml
from prefect.artifacts import create_link_artifact
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run
from prefect.utilities.urls import url_for

from torchyard.core.config.files import file_identity
from torchyard.core.config.resolve import ResolvedConfig
from torchyard.core.config.schema import SINGLE_KINDS, RunConfig
from torchyard.core.data.dataset import PreparedDataset
from torchyard.core.errors import RunError
from torchyard.core.hosting.host import host
from torchyard.core.tracking import provenance
from torchyard.core.tracking.location.address import database_of
from torchyard.core.tracking.location.errors import store_errors
from torchyard.core.tracking.queries.runs import PARENT, run_tagged
from torchyard.core.tracking.record import RunRecord
from torchyard.core.tracking.store import load_mlflow, open_store, tracking_uri
from torchyard.pipelines.display import display
from torchyard.pipelines.flow.failures import ended_as, is_deployed
from torchyard.pipelines.flow.prefect_calls import tell
from torchyard.pipelines.services.manager import served_url
from torchyard.pipelines.services.reaper import FLOW_RUN_ID
from torchyard.pipelines.services.scheduling.deployments import DEPLOYED_AS
from torchyard.pipelines.worker.process import abort_shared_worker

INPUTS = "torchyard.inputs"  # tag of a run: a digest of all that its weights depend on
MOST_OF_A_NAME = 60  # characters of a folder's name in a run's


class FinishedError(Exception):
    """Nothing is left to do: Prefect suspended the flow run, or lost it, after its run's end."""


def load_libraries() -> None:
    """Import what recording needs: seconds of work that can overlap the worker's."""
    import pandas  # noqa: F401

    load_mlflow()
    if database_of(tracking_uri()):
        import mlflow.store.tracking.sqlalchemy_store  # noqa: F401


def start_record(
    resolved: ResolvedConfig, run_id: str | None, parent: str | None = None
) -> RunRecord:
    """Start or resume the MLflow run, with one name in MLflow and Prefect and links both ways.

    A flow run that Prefect retries, or had suspended, resumes its MLflow run.

    Args:
        run_id: of the run to resume; None starts a new one.
        parent: of the run that it is a child of, if any.

    Raises:
        FinishedError: it is the flow run of a run that has finished.
    """
    config = resolved.config
    tags = chosen_plugins(resolved)
    if parent is not None:
        tags[PARENT] = parent
    if flow_run.id is not None:
        # Prefect does not count a start after a suspension.
        again = run_id is None and (is_deployed() or flow_run.run_count > 1)
        if again and (before := run_tagged(FLOW_RUN_ID, flow_run.id)):
            run_id = before.info.run_id
            if before.info.status == "FINISHED":
                raise FinishedError(f"{before.info.run_name}: it had finished.")
        tags |= flow_run_tags()
    record = open_record(config, tags, run_id)
    record.sender.on_taken_over = abort_shared_worker
    record.sender.on_unavailable = functools.partial(display.get().line, "record")
    try:
        record_configuration(record, config, tags, resumed=run_id is not None)
        name_flow_run(record)
    except BaseException as error:
        record.finish(ended_as(error), str(error))
        raise
    return record


def open_record(config: RunConfig, tags: Mapping[str, str], run_id: str | None) -> RunRecord:
    """Resume a run, or start one of that configuration.

    Raises:
        UserError, RunError: as `RunRecord.start` and `RunRecord.resume` raise them.
    """
    if run_id is not None:
        return RunRecord.resume(run_id)
    return RunRecord.start(name_stem=name_stem(config), parameters=parameters(config), tags=tags)


def record_configuration(
    record: RunRecord, config: RunConfig, tags: Mapping[str, str], *, resumed: bool
) -> None:
    """Record what a run trains with; of one that is resumed also what it may have ended before."""
    settings = parameters(config)
    if resumed:
        record.set_tags(tags)
        record.log_parameters(settings)
    # A metric sorts as a number; parameters are texts to MLflow, where 1e-05 comes after 0.1.
    if isinstance(rate := settings["optimizer"].get("lr"), int | float):
        record.log_metrics({"train/base_learning_rate": rate}, step=0)
    record.log_config(config_text(config))


def parameters(config: RunConfig) -> dict[str, Any]:
    """The configuration as it is recorded: all of it but where the plugins were from."""
    return config.model_dump(mode="json", exclude={"plugins"})


def flow_run_tags() -> dict[str, str]:
    """The tags of a run that say which flow run it is; none outside of one."""
    if flow_run.id is None:
        return {}
    tags = {FLOW_RUN_ID: flow_run.id, "prefect.flow_run_url": flow_run_url()}
    if is_deployed() and (name := os.environ.get(DEPLOYED_AS)):
        tags["schedule"] = name
    return tags


def name_flow_run(record: RunRecord) -> None:
    """Give the flow run the name of its MLflow run, and a link to it."""
    if flow_run.id is not None:
        tell("name", lambda: _rename_flow_run(record.name))
    link, name = served_url(record.url), record.name
    tell("link", lambda: create_link_artifact(link, link_text=name, key="mlflow-run"))


def chosen_plugins(resolved: ResolvedConfig) -> dict[str, str]:
    """The tags of a run that say which plugins it uses."""
    tags = {kind: resolved.plugins[kind].name for kind in SINGLE_KINDS}
    names = [choice.name for choice in resolved.config.augmentations]
    tags["augmentations"] = ", ".join(names) or "none"
    tags |= {f"plugin.{slot}": found.source.identity for slot, found in resolved.plugins.items()}
    if resolved.changed:
        tags["plugins_changed"] = "; ".join(resolved.changed)
    return tags


def name_stem(config: RunConfig) -> str:
    """The name of a run without its number."""
    return "·".join((config.model.name, config.optimizer.name, data_name(config)))


def data_name(config: RunConfig) -> str:
    """What people call the data: where a plugin reads any folder or file, the name of that."""
    name = config.dataset.name
    path = host().find("dataset", name).params.model_fields.get("path")
    if path is None or not path.is_required():
        return name
    given = Path(str(config.dataset.model_dump()["path"]))
    return given.name.partition(".")[0][:MOST_OF_A_NAME] or name


def ending_note(record: RunRecord, status: str, recorded: bool) -> str:
    """What to tell of a run that ended early."""
    run = f"{record.name}  {record.run_id}"
    if recorded:
        return f"Recorded as {status}: {run}"
    if record.sender.taken_over:
        return f"Another process has the run now: {run}"
    return f"{status}, but MLflow does not have all of it yet; that waits on disk: {run}"


def with_drawn_seed(resolved: ResolvedConfig) -> ResolvedConfig:
    """The configuration with a number for `train.seed=per_run`.

    One flow run has one number, however often Prefect starts it.
    """
    config = resolved.config
    if config.train.seed != "per_run":
        return resolved
    source = str(flow_run.id or uuid4()).encode()
    seed = int.from_bytes(hashlib.sha256(source).digest()[:4])
    drawn = config.model_copy(update={"train": config.train.model_copy(update={"seed": seed})})
    return dataclasses.replace(resolved, config=drawn)


def with_weights(resolved: ResolvedConfig, file: str | None) -> ResolvedConfig:
    """The configuration with the digest of the weights of the run that `model.weights` names."""
    if file is None:
        return resolved
    plugins = resolved.config.plugins | {"model.weights": file_identity(Path(file))}
    config = resolved.config.model_copy(update={"plugins": plugins})
    return dataclasses.replace(resolved, config=config)


def repeated_run(record: RunRecord, config: RunConfig, prepared: PreparedDataset) -> str | None:
    """The name of a finished run with the same configuration, seed, data and code, if there is one.

    The run gets the tag by which later ones are compared with it.
    """
    settings = config.model_dump(mode="json", exclude={"train": {"skip_repeats"}})
    commit = provenance.git_tags().get("mlflow.source.git.commit")
    code = [version("torchyard"), version("torch"), commit]
    inputs = json.dumps([settings, prepared.digest, code], sort_keys=True)
    digest = hashlib.sha256(inputs.encode()).hexdigest()
    chosen = f"attributes.status = 'FINISHED' and tags.`{INPUTS}` = '{digest}'"
    client, earlier = open_store(tracking_uri()), None
    with suppress(RunError), store_errors(client.tracking_uri):  # it does not answer: train
        found = client.search_runs([record.experiment_id], chosen, max_results=1)
        earlier = found[0].info.run_name if found else None
    record.set_tags({INPUTS: digest})
    return earlier


def config_text(config: RunConfig) -> str:
    """The whole configuration as YAML."""
    settings = config.model_dump(mode="json")
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)


def _rename_flow_run(name: str) -> None:
    with get_client(sync_client=True) as client:
        client.update_flow_run(flow_run.id, name=name)


def flow_run_url() -> str:
    """The flow run's page in Prefect."""
    return url_for("flow-run", obj_id=flow_run.id) or ""
