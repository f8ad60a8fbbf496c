"""Runs that Prefect begins: at their time on this machine, or by the workers of a pool.

A deployment holds the whole configuration, checked. Its form in Prefect's UI has a typed field
for every setting and every parameter of the chosen plugins.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import yaml

from torchyard.core.config.resolve import ResolvedConfig
from torchyard.core.config.schema import SINGLE, RunConfig
from torchyard.core.data.files import CACHE, cache_folder
from torchyard.core.errors import UserError, suggestion
from torchyard.core.hosting.sources import PLUGIN_FOLDERS
from torchyard.core.tracking.store import tracking_uri
from torchyard.pipelines.services.prefect_server import FLOW
from torchyard.pipelines.services.schedules import Times, said

ENTRYPOINT = "torchyard.pipelines.flow.pipeline.train_pipeline"
TAG, FORGOTTEN = "torchyard", "torchyard:forgotten"
NEEDS = "TORCHYARD_NEEDS"  # in the environment of a deployed run: its plugins, and where from


@dataclass(frozen=True)
class Registered:
    """A deployment as it is now.

    Attributes:
        name: without the flow's.
        url: its page in Prefect's UI.
        replaced: whether there was one of that name.
    """

    name: str
    url: str
    replaced: bool


def read_variables(assignments: Sequence[str]) -> dict[str, Any]:
    """Job variables from `key=value`; a dot leads into a section, as in `env.NAME`.

    Raises:
        UserError: with all that is wrong.
    """
    found: dict[str, Any] = {}
    problems = []
    for assignment in assignments:
        key, separator, value = assignment.partition("=")
        *sections, last = key.split(".")
        inner = found
        for section in sections:
            inner = inner.setdefault(section, {}) if isinstance(inner, dict) else inner
        if not separator or not all([*sections, last]) or not isinstance(inner, dict):
            problems.append(f"--job-variable: '{assignment}' is not of the form key=value")
        else:
            inner[last] = yaml.safe_load(value) if value.startswith(("[", "{")) else value
    if problems:
        raise UserError(problems)
    return found


def schedule(resolved: ResolvedConfig, name: str, times: Times, pool: str) -> Registered:
    """Have a run begun on this machine at its times; speaks to the Prefect server in use.

    It is begun as it would be here and now: in this working folder, with this virtual
    environment, these plugins and this store.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists
    from prefect.workers.process import ProcessWorker

    template = ProcessWorker.get_default_base_job_template()
    with get_client(sync_client=True) as client:
        with contextlib.suppress(ObjectAlreadyExists):
            client.create_work_pool(
                WorkPoolCreate(name=pool, type="process", base_job_template=template)
            )
        return _register(
            client,
            resolved,
            name,
            pool,
            job_variables={
                # -P: nothing in the working folder may stand in for a module.
                "command": f"{sys.executable} -P -m prefect.engine",
                "working_dir": str(Path.cwd()),
                "env": local_environment(),
                # Else a run whose worker was killed could not print any more.
                "stream_output": False,
            },
            schedules=[DeploymentScheduleCreate(schedule=times.schedule, slug="torchyard")],
        )


def deploy(
    resolved: ResolvedConfig, name: str, pool: str, job_variables: Mapping[str, Any]
) -> Registered:
    """Register the flow for a work pool, whose workers have torchyard installed.

    Raises:
        UserError: there is no such pool.
    """
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        pools = [found.name for found in client.read_work_pools()]
        if pool not in pools:
            raise UserError(
                f"--pool: there is no work pool '{pool}'.{suggestion(pool, pools)}  "
                f"`prefect work-pool create {pool} --type process` makes one."
            )
        needs = {place: found.source.origin for place, found in resolved.plugins.items()}
        environment = {NEEDS: json.dumps(needs), **job_variables.get("env", {})}
        return _register(
            client, resolved, name, pool, job_variables={**job_variables, "env": environment}
        )


def _register(
    client: Any,
    resolved: ResolvedConfig,
    name: str,
    pool: str,
    job_variables: Mapping[str, Any],
    schedules: Sequence[Any] = (),
) -> Registered:
    from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions
    from prefect.exceptions import ObjectNotFound
    from prefect.utilities.urls import url_for

    try:
        client.read_deployment_by_name(f"{FLOW}/{name}")
        replaced = True
    except ObjectNotFound:
        replaced = False
    # A run that is late, or would overlap with another, is skipped: they never pile up.
    skip = ConcurrencyOptions(collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW)
    identity = client.create_deployment(
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
        pull_steps=[],
        description="The configuration of the run is the parameter `config`.",
    )
    return Registered(name, url_for("deployment", obj_id=identity) or "", replaced)


def remove(name: str) -> bool:
    """Forget a deployment and what it would begin; False if a run of it is under way.

    Prefect's server deletes the slot that the run holds with the deployment, and then cannot end
    the run. So this is only marked, and deleted by the reaper after the run.

    Raises:
        UserError: there is none of that name; the message names the nearest.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import DeploymentUpdate

    with get_client(sync_client=True) as client:
        known = {found.name: found for found in deployed(client)}
        if name not in known:
            near = suggestion(name, [*known])
            raise UserError(f"no schedule or deployment named '{name}'.{near}")
        if not under_way(client, known[name].id):
            client.delete_deployment(known[name].id)
            return True
        for each in known[name].schedules:
            client.delete_deployment_schedule(known[name].id, each.id)
        client.update_deployment(known[name].id, DeploymentUpdate(paused=True, tags=[FORGOTTEN]))
        return False


def under_way(client: Any, deployment_id: UUID) -> bool:
    """Whether a run of a deployment has begun and not ended."""
    from prefect.client.schemas.filters import (
        DeploymentFilter,
        DeploymentFilterId,
        FlowRunFilter,
        FlowRunFilterState,
        FlowRunFilterStateType,
    )
    from prefect.client.schemas.objects import StateType

    begun = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
    state = FlowRunFilterState(type=FlowRunFilterStateType(any_=begun))
    runs = client.read_flow_runs(
        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment_id])),
        flow_run_filter=FlowRunFilter(state=state),
        limit=1,
    )
    return bool(runs)


def deployed(client: Any, forgotten: bool = False) -> list[Any]:
    """torchyard's deployments on a Prefect server, or those that are to be deleted."""
    from prefect.client.schemas.filters import FlowFilter, FlowFilterName

    flow = FlowFilter(name=FlowFilterName(any_=[FLOW]))
    found = client.read_deployments(flow_filter=flow)
    return [each for each in found if (FORGOTTEN in each.tags) == forgotten]


def planned() -> list[dict[str, Any]]:
    """The deployments with their times: name, pool, times, next run, and how the last run ended."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import (
        DeploymentFilter,
        DeploymentFilterId,
        FlowRunFilter,
        FlowRunFilterState,
        FlowRunFilterStateType,
    )
    from prefect.client.schemas.objects import StateType
    from prefect.client.schemas.sorting import FlowRunSort

    coming = FlowRunFilterStateType(any_=[StateType.SCHEDULED])
    begun = FlowRunFilterStateType(not_any_=[StateType.SCHEDULED])
    rows = []
    with get_client(sync_client=True) as client:
        for found in deployed(client):
            mine = DeploymentFilter(id=DeploymentFilterId(any_=[found.id]))

            def first(state: Any, sort: Any, mine: Any = mine) -> Any:
                chosen = FlowRunFilter(state=FlowRunFilterState(type=state))
                runs = client.read_flow_runs(
                    deployment_filter=mine, flow_run_filter=chosen, sort=sort, limit=1
                )
                return runs[0] if runs else None

            coming_run = first(coming, FlowRunSort.EXPECTED_START_TIME_ASC)
            last = first(begun, FlowRunSort.EXPECTED_START_TIME_DESC)
            rows.append(
                {
                    "name": found.name,
                    "pool": found.work_pool_name,
                    "times": "; ".join(said(each.schedule) for each in found.schedules) or None,
                    "paused": found.paused,
                    "next": _when(coming_run, found),
                    "last": _when(last, found),
                    "last_state": last.state_name if last else None,
                    "last_message": last.state.message if last else None,
                }
            )
    return rows


def _when(run: Any, deployment: Any) -> str | None:
    if run is None or run.expected_start_time is None:
        return None
    zones = [each.schedule.timezone for each in deployment.schedules]
    zone = ZoneInfo(zones[0]) if zones else None
    when: datetime = run.expected_start_time.astimezone(zone)
    return when.isoformat(timespec="seconds")


def local_environment() -> dict[str, str | None]:
    """What a run begun here by somebody else needs to find what a command finds here.

    What is not set here is unset there: the worker was started in another shell.
    """
    environment = {CACHE: str(cache_folder().absolute())} | {
        name: os.environ.get(name) for name in ("MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID")
    }
    for name in (PLUGIN_FOLDERS, "PYTHONPATH"):
        folders = filter(None, os.environ.get(name, "").split(os.pathsep))
        whole = (str(Path(folder).expanduser().absolute()) for folder in folders)
        environment[name] = os.pathsep.join(whole) or None
    if "@" not in (uri := tracking_uri()):  # a password is not for Prefect's database
        environment["MLFLOW_TRACKING_URI"] = uri
    return environment


def form(resolved: ResolvedConfig) -> dict[str, Any]:
    """The JSON schema that Prefect's UI makes a form of, and by which its server judges a run.

    `RunConfig` alone would leave out the plugins' parameters, which are no fields of its own.
    """
    template = "#/definitions/{model}"
    schema = RunConfig.model_json_schema(ref_template=template)
    definitions, properties = schema.pop("$defs"), schema["properties"]
    whole = resolved.config.model_dump(mode="json")
    for kind in SINGLE:
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
            # Another plugin may be named instead: the run judges its parameters.
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
        "description": "of an MLflow run that ended early, to go on with from its last checkpoint",
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
