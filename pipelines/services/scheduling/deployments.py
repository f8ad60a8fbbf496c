"""Prefect deployments: runs that start on a schedule, or by hand on a Prefect worker.

A deployment holds the whole checked configuration as its parameter `config`. Its form in
Prefect's UI has a typed field for every setting and every parameter of the chosen plugins.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas import actions, objects
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterKey,
    DeploymentFilter,
    FlowFilter,
    FlowRunFilter,
)
from prefect.client.schemas.objects import ConcurrencyLimitStrategy, FlowRun, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.sorting import DeploymentSort, FlowRunSort
from prefect.exceptions import ObjectAlreadyExists
from prefect.utilities.urls import url_for

from torchyard.core.config.resolve import ResolvedConfig
from torchyard.core.config.schema import SINGLE_KINDS, RunConfig
from torchyard.core.data.files import CACHE, cache_folder
from torchyard.core.data.remote.shared import SHARED
from torchyard.core.errors import UserError, suggestion
from torchyard.core.hosting.sources import PLUGIN_FOLDERS
from torchyard.core.tracking.store import RUNS, tracking_uri
from torchyard.pipelines.services.prefect_server import FLOW, all_pages
from torchyard.pipelines.services.scheduling.heartbeat import watch_heartbeats
from torchyard.pipelines.services.scheduling.job_variables import fit_variables
from torchyard.pipelines.services.scheduling.schedules import Schedule
from torchyard.pipelines.services.scheduling.wording import described, zone_of

ENTRYPOINT = "torchyard.pipelines.flow.pipeline.train_pipeline"
ENGINE = "torchyard.pipelines.services.standby.engine"
OUR_FLOW = FlowFilter.model_validate({"name": {"any_": [FLOW]}})
TAG = "torchyard"
DEPLOYED_AS = "TORCHYARD_SCHEDULE"  # in the environment of a deployed run: the name of that
TRAINING = ArtifactFilter(key=ArtifactFilterKey(any_=["training"]))  # pipelines/flow/progress.py
KEPT = {"schedule", "active", "max_scheduled_runs", "parameters", "slug"}  # of a schedule
RETIRED = "torchyard:retired"  # tag of a deployment to be deleted once its last run has ended
ACTIVE = {"state": {"type": {"any_": [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]}}}
RECENT = 50  # runs among which the last is looked for that was not skipped
NEEDS = "TORCHYARD_NEEDS"  # in the environment of a deployed run: its plugins and their sources


def schedule(resolved: ResolvedConfig, name: str, when: Schedule, pool: str) -> tuple[str, bool]:
    """Schedule runs on this machine with the Prefect server in use.

    They start as a run would here and now: in this working folder, with this virtual environment,
    these plugins and this tracking store.

    Returns:
        The deployment's page in Prefect's UI, and whether it replaces one of that name.

    Raises:
        UserError: one of that name was made otherwise.
    """
    from prefect.workers.process import ProcessWorker  # slow to import

    template = ProcessWorker.get_default_base_job_template()
    with get_client(sync_client=True) as client:
        with contextlib.suppress(ObjectAlreadyExists):
            made = actions.WorkPoolCreate(name=pool, type="process", base_job_template=template)
            client.create_work_pool(made)
        return _register(
            client,
            resolved,
            name,
            pool,
            job_variables={
                # -P: nothing in the working folder may shadow a module.
                "command": f"{sys.executable} -P -m {ENGINE}",
                "working_dir": str(Path.cwd()),
                "env": local_environment() | {DEPLOYED_AS: name},
                # Otherwise a run whose Prefect worker was killed fails at its next print.
                "stream_output": False,
            },
            schedules=[
                actions.DeploymentScheduleCreate(
                    schedule=when.prefect,
                    slug=in_words(when.prefect),  # what Prefect's pages show
                )
            ],
        )


def in_words(schedule: Any) -> str:
    """When a schedule starts runs, with its time zone: `every day at 03:00, Asia/Shanghai`."""
    return ", ".join(filter(None, (described(schedule), zone_of(schedule))))


def deploy(
    resolved: ResolvedConfig, name: str, pool: str, job_variables: Mapping[str, Any]
) -> tuple[str, bool]:
    """Register the flow for a work pool whose Prefect workers have torchyard installed.

    Returns:
        As `schedule`.

    Raises:
        UserError: there is no such pool, it does not take these variables, or a deployment of
            that name was made otherwise.
    """
    with get_client(sync_client=True) as client:
        pools = {each.name: each for each in client.read_work_pools()}
        if pool not in pools:
            raise UserError(
                f"--pool: there is no work pool '{pool}'.{suggestion(pool, [*pools])}  "
                f"`prefect work-pool create {pool} --type process` creates one."
            )
        job_variables = fit_variables(job_variables, pools[pool].base_job_template)
        needs = {path: plugin.source.origin for path, plugin in resolved.plugins.items()}
        own = {NEEDS: json.dumps(needs), DEPLOYED_AS: name}
        environment = own | job_variables.get("env", {})
        watch_heartbeats(client)
        return _register(
            client, resolved, name, pool, job_variables={**job_variables, "env": environment}
        )


def _register(
    client: SyncPrefectClient,
    resolved: ResolvedConfig,
    name: str,
    pool: str,
    job_variables: Mapping[str, Any],
    schedules: Sequence[actions.DeploymentScheduleCreate] = (),
) -> tuple[str, bool]:
    known = {each.name: each for each in _deployments(client)}
    before = known.get(name)
    retired = before is not None and RETIRED in before.tags
    if before is not None and not retired:
        _check_replaceable(before, scheduled=bool(schedules))
        # Those of a deployment were added in Prefect's UI.
        schedules = schedules or [
            actions.DeploymentScheduleCreate(**each.model_dump(include=KEPT))
            for each in before.schedules
        ]
    # A run that would overlap with another is skipped: they never pile up.
    skip = objects.ConcurrencyOptions(collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW)
    deployment_id = client.create_deployment(
        flow_id=client.create_flow_from_name(FLOW),
        name=name,
        entrypoint=ENTRYPOINT,
        work_pool_name=pool,
        job_variables=dict(job_variables),
        parameters={"config": resolved.config.model_dump(mode="json")},
        parameter_openapi_schema=form(resolved),
        enforce_parameter_schema=True,
        schedules=list(schedules),
        concurrency_limit=1,
        concurrency_options=skip,
        tags=[TAG],
        paused=False if retired else None,
        pull_steps=[],
        description=_description(resolved, [each.schedule for each in schedules]),
    )
    return url_for("deployment", obj_id=deployment_id) or "", before is not None and not retired


def _description(resolved: ResolvedConfig, schedules: Sequence[Any]) -> str:
    """What the runs of a deployment do, and when, in Markdown."""
    config = resolved.config
    when = "; ".join(map(in_words, schedules)) or "when it is started by hand"
    text = (
        f"Trains **{config.model.name}** on **{config.dataset.name}** with "
        f"{config.optimizer.name}, {config.train.epochs} epochs, {when}."
    )
    if config.promote:
        gates = ", ".join(name for name, _ in resolved.named_gates) or "no gate"
        text += f" The model becomes the champion of **{config.promote.model}** if {gates} let it."
    return f"{text}\n\nEvery setting is in the parameter `config`."


def _check_replaceable(before: DeploymentResponse, scheduled: bool) -> None:
    """Refuse to replace a deployment that something else than this command made.

    Raises:
        UserError: `prefect deploy` did, or `torchyard schedule` and not `deploy`, or vice versa.
    """
    name, known = before.name, (before.parameter_openapi_schema or {}).get("definitions", {})
    if f"chosen_{SINGLE_KINDS[0]}" not in known:  # our form is not there
        raise UserError(
            f"--name: the deployment '{name}' is not from torchyard. Give another name, or delete "
            f"that one: `prefect deployment delete {FLOW}/{name}`"
        )
    # A schedule that was added in Prefect's UI has no slug.
    if scheduled != any(each.slug is not None for each in before.schedules):
        how = "deployed" if scheduled else "scheduled"
        raise UserError(
            f"--name: '{name}' is {how} already, in the pool '{before.work_pool_name}'. Give "
            f"another name, or remove that one: `torchyard unschedule {name}`"
        )


def remove(name: str) -> bool:
    """Delete a deployment and its schedule; False if it has a run that must end first.

    With the deployment Prefect's server deletes the concurrency slot that the run holds, and then
    cannot end the run. So such a deployment is only marked; the reaper deletes it after the run.

    Raises:
        UserError: there is none of that name; the message has the nearest name.
    """
    with get_client(sync_client=True) as client:
        known = {each.name: each for each in list_deployments(client)}
        if name not in known:
            raise UserError(
                f"no schedule or deployment named '{name}'.{suggestion(name, [*known])}"
            )
        deployment = known[name]
        if not has_active_run(client, deployment.id):
            client.delete_deployment(deployment.id)
            return True
        for each in deployment.schedules:
            client.delete_deployment_schedule(deployment.id, each.id)
        client.update_deployment(
            deployment.id, actions.DeploymentUpdate(paused=True, tags=[RETIRED])
        )
        return False


def has_active_run(client: SyncPrefectClient, deployment_id: UUID) -> bool:
    """Whether a run of a deployment has started and not ended."""
    return bool(_find_runs(client, deployment_id, ACTIVE))


def list_deployments(client: SyncPrefectClient, retired: bool = False) -> list[DeploymentResponse]:
    """torchyard's deployments on a Prefect server: those in use, or those to be deleted."""
    return [each for each in _deployments(client) if (RETIRED in each.tags) == retired]


def _deployments(client: SyncPrefectClient) -> list[DeploymentResponse]:
    by_name = DeploymentSort.NAME_ASC
    return all_pages(client.read_deployments, flow_filter=OUR_FLOW, sort=by_name)


def overview() -> list[dict[str, Any]]:
    """The deployments: name, pool, schedule, next run, how the last is or ended, what was skipped.

    The last run is the one that has started and not ended, or else the last that did start.
    """
    scheduled, unscheduled = (
        {"state": {"type": {key: [StateType.SCHEDULED]}}} for key in ("any_", "not_any_")
    )
    rows = []
    with get_client(sync_client=True) as client:
        for each in list_deployments(client):
            coming = _find_runs(client, each.id, scheduled, FlowRunSort.EXPECTED_START_TIME_ASC)
            recent = _find_runs(
                client, each.id, unscheduled, FlowRunSort.EXPECTED_START_TIME_DESC, RECENT
            )
            started = _find_runs(client, each.id, ACTIVE) or [r for r in recent if r.run_count]
            last, newest = next(iter([*started, *recent]), None), next(iter(recent), None)
            skipped = newest and newest != last and not newest.run_count and newest.state
            times = [one.schedule for one in each.schedules]
            rows.append(
                {
                    "name": each.name,
                    "pool": each.work_pool_name,
                    "schedule": "; ".join(map(described, times)) or None,
                    "timezone": next(filter(None, map(zone_of, times)), None),
                    "paused": each.paused,
                    "next": _start_time(next(iter(coming), None), each),
                    "last": _start_time(last, each),
                    "last_state": last.state_name if last else None,
                    "last_message": last.state.message if last and last.state else None,
                    "progress": _progress(client, last) if last and _runs(last) else None,
                    "skipped_since": skipped.message if skipped else None,
                }
            )
    return rows


def _find_runs(
    client: SyncPrefectClient,
    deployment_id: UUID,
    chosen: dict[str, Any],
    sort: FlowRunSort | None = None,
    limit: int = 1,
) -> list[FlowRun]:
    return client.read_flow_runs(
        deployment_filter=DeploymentFilter.model_validate({"id": {"any_": [deployment_id]}}),
        flow_run_filter=FlowRunFilter.model_validate(chosen),
        sort=sort,
        limit=limit,
    )


def _runs(run: FlowRun) -> bool:
    return run.state is not None and run.state.is_running()


def _progress(client: SyncPrefectClient, run: FlowRun) -> str | None:
    """How far a training is: `epoch 3 of 10, 2 min left`; None before its first report."""
    of_run = FlowRunFilter.model_validate({"id": {"any_": [run.id]}})
    found = client.read_artifacts(artifact_filter=TRAINING, flow_run_filter=of_run)
    return max(found, key=lambda each: str(each.updated)).description if found else None


def _start_time(run: FlowRun | None, deployment: Any) -> str | None:
    if run is None or run.expected_start_time is None:
        return None
    zones = [each.schedule.timezone for each in deployment.schedules]
    zone = ZoneInfo(zones[0]) if zones else None
    start: datetime = run.expected_start_time.astimezone(zone)
    return start.isoformat(timespec="seconds")


def local_environment() -> dict[str, str | None]:
    """The variables with which a scheduled run finds what a command in this shell finds.

    None unsets a variable: the Prefect worker was started in another shell.
    """
    environment = {CACHE: str(cache_folder().absolute())} | {
        name: os.environ.get(name)
        for name in ("MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID", SHARED)
    }
    for name in (PLUGIN_FOLDERS, RUNS, "PYTHONPATH"):
        folders = filter(None, os.environ.get(name, "").split(os.pathsep))
        whole = (str(Path(folder).expanduser().absolute()) for folder in folders)
        environment[name] = os.pathsep.join(whole) or None
    if "@" not in (uri := tracking_uri()):  # a password must not reach Prefect's database
        environment["MLFLOW_TRACKING_URI"] = uri
    return environment


def form(resolved: ResolvedConfig) -> dict[str, Any]:
    """The JSON schema of the form in Prefect's UI, which its server also validates runs against.

    `RunConfig`'s own schema does not have the plugins' parameters: they are extra fields to it.
    """
    template = "#/definitions/{model}"
    schema = RunConfig.model_json_schema(ref_template=template)
    definitions, properties = schema.pop("$defs"), schema["properties"]
    whole = resolved.config.model_dump(mode="json")
    for kind in SINGLE_KINDS:
        plugin = resolved.plugins[kind]
        own = plugin.params.model_json_schema(ref_template=template)
        base = definitions[properties[kind]["$ref"].rpartition("/")[2]]
        definitions |= own.pop("$defs", {})
        definitions[f"chosen_{kind}"] = {
            "title": f"{kind}: {plugin.name}",
            "type": "object",
            "description": plugin.summary,
            "properties": base["properties"] | own.get("properties", {}),
            "required": ["name"],
            # Another plugin may be named instead: then the run checks its parameters.
            "additionalProperties": True,
        }
        properties[kind] = {"$ref": f"#/definitions/chosen_{kind}"}
    for position, (name, field) in enumerate(properties.items()):
        field |= {"default": whole[name], "position": position, "title": name}
    definitions["RunConfig"] = schema
    run_id = {
        "title": "run_id",
        "anyOf": [{"type": "string"}, {"type": "null"}],
        "default": None,
        "description": "an MLflow run that ended early, to resume from its last checkpoint",
        "position": 1,
    }
    config = {"$ref": "#/definitions/RunConfig", "title": "config", "position": 0}
    return {
        "title": "Parameters",
        "type": "object",
        "properties": {"config": config, "run_id": run_id},
        "required": ["config"],
        "definitions": definitions,
    }
