"""Deployments: their variables and form, schedules that fire, and workers of other machines."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.pipelines.services.sandbox import OFTEN, Sandbox, eventually
from torchyard.core.errors import UserError
from torchyard.pipelines.commands.arguments import preset_config
from torchyard.pipelines.services.deployments import (
    form,
    local_environment,
    overview,
    read_variables,
    remove,
    schedule,
)
from torchyard.pipelines.services.schedules import parse_schedule

ROOT = Path(__file__).parents[3]


def test_job_variables_have_sections():
    found = read_variables(["env.A=1", "env.B=x=y", "working_dir=/tmp", 'labels={"a": 1}'])
    assert found == {"env": {"A": "1", "B": "x=y"}, "working_dir": "/tmp", "labels": {"a": 1}}
    with pytest.raises(UserError) as caught:
        read_variables(["env", "=3", "a=1", "a.b=2"])
    assert len(caught.value.problems) == 3


def test_a_scheduled_run_gets_what_this_shell_has_and_no_password(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "PYTHONPATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCHYARD_PLUGINS", "mine:/else/where")
    found = local_environment()
    assert found["TORCHYARD_PLUGINS"] == f"{tmp_path}/mine:/else/where"
    assert found["MLFLOW_TRACKING_URI"] == f"sqlite:///{tmp_path}/mlruns/mlflow.db"
    assert found["PYTHONPATH"] is None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:secret@host/mlflow")
    assert "secret" not in str(local_environment())


def test_the_form_has_a_typed_field_for_every_setting_and_takes_the_configuration():
    from jsonschema import Draft202012Validator

    resolved = preset_config("cifar10", ["augmentations=[cutout]", "optimizer=adam"])
    schema = form(resolved)
    whole = {"config": resolved.config.model_dump(mode="json")}
    assert list(Draft202012Validator(schema).iter_errors(whole)) == []
    fields = schema["definitions"]["chosen_optimizer"]["properties"]
    assert fields["lr"]["type"] == "number"
    assert fields["lr"]["description"]
    assert (
        schema["definitions"]["RunConfig"]["properties"]["optimizer"]["default"]["lr"]
        == (resolved.config.optimizer.model_dump()["lr"])
    )
    whole["config"]["optimizer"]["lr"] = "fast"
    [error] = Draft202012Validator(schema).iter_errors(whole)
    assert list(error.absolute_path) == ["config", "optimizer", "lr"]


@pytest.mark.parametrize(
    "options",
    [("0 * * * *", None, None), (None, "1h", None), (None, None, "FREQ=HOURLY")],
    ids=["cron", "interval", "rule"],
)
def test_the_server_plans_runs_of_every_kind_of_schedule(workspace, plan_runs, options):
    from prefect.client.orchestration import get_client

    when = parse_schedule(*options, "Asia/Shanghai")
    schedule(preset_config("digits", []), "hourly", when, "hourly")
    with get_client(sync_client=True) as client:
        [deployment] = [each for each in client.read_deployments() if each.name == "hourly"]
    plan_runs(deployment.id)
    [row] = [row for row in overview() if row["name"] == "hourly"]
    assert row["next"]
    assert row["next"].endswith("+08:00")
    assert remove("hourly")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_is_wrong_registers_nothing(sandbox: Sandbox) -> None:
    sandbox.torchyard("up")
    printed = sandbox.torchyard(
        "schedule", "digits", "model=strait", "train.epochs=x", "--cron", "0 3", "--timezone",
        "Mars", status=2,
    )  # fmt: skip
    for problem in ("Did you mean 'straight'", "train.epochs", "--cron: '0 3'", "'Mars'"):
        assert problem in printed
    printed = sandbox.torchyard("deploy", "digits", "--pool", "torchyrd", status=2)
    assert "no work pool 'torchyrd'" in printed
    printed = sandbox.torchyard("unschedule", "nothing", status=2)
    assert "no schedule or deployment named 'nothing'" in printed
    assert sandbox.post("deployments/filter") == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_prefects_scheduler_plans_every_kind_of_schedule(sandbox: Sandbox) -> None:
    """It only logs what it cannot plan."""
    sandbox.torchyard("up")
    kinds = {"cron": "0 3 * * *", "interval": "12h", "rrule": "FREQ=DAILY;BYHOUR=3"}
    for kind, when in kinds.items():
        sandbox.torchyard("schedule", "digits", f"--{kind}", when, "--name", kind)

    def planned() -> set[str]:
        plan = json.loads(sandbox.torchyard("status", "--json"))["plan"]
        return {row["name"] for row in plan if row["next"]}

    assert eventually(lambda: planned() == set(kinds), 60)
    for kind in kinds:
        sandbox.torchyard("unschedule", kind)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_schedule_fires_here_and_a_run_that_would_overlap_is_skipped(sandbox: Sandbox) -> None:
    sandbox.torchyard("up")
    both = [
        sandbox.start(*OFTEN),
        sandbox.start(*OFTEN),
    ]
    printed = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], printed
    [deployment] = sandbox.post("deployments/filter")
    assert len(deployment["schedules"]) == 1
    fields = deployment["parameter_openapi_schema"]["definitions"]["chosen_optimizer"]
    assert fields["properties"]["lr"]["type"] == "number"
    flow_run, record = eventually(sandbox.training)
    assert record["plugin.model"].startswith("sha256:")  # the plugin of the working folder
    assert Path(psutil.Process(sandbox.processes("prefect.engine")[0].pid).cwd()) == (
        sandbox.folder / "work"
    )
    [skipped, *_] = eventually(lambda: sandbox.runs("CANCELLED"))
    assert "concurrency limit" in skipped["state"]["message"]
    assert len(sandbox.runs("RUNNING")) == 1
    plan = json.loads(sandbox.torchyard("status", "--json"))["plan"]
    assert [(row["name"], row["schedule"]) for row in plan] == [("often", "every 0:00:15")]
    assert plan[0]["next"]

    sandbox.cancel(flow_run)  # what Prefect's UI does
    assert eventually(lambda: sandbox.run(flow_run)["state_type"] == "CANCELLED")
    record = sandbox.record(flow_run)
    assert record
    assert (record["status"], record["torchyard.reason"]) == ("KILLED", "cancelled in Prefect")
    assert list(sandbox.folder.glob(f"work/mlruns/runs/{record['id']}/last.pt"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_worker_of_a_pool_runs_what_was_deployed_or_says_what_it_lacks(sandbox: Sandbox) -> None:
    """The worker is in an empty folder, as on another machine."""
    sandbox.torchyard("up")
    sandbox.unschedule_often()  # to have the machine's cores
    elsewhere = sandbox.folder / "elsewhere"
    elsewhere.mkdir()
    environment = sandbox.environment | {"PREFECT_API_URL": sandbox.api}

    def prefect(*arguments: str, **more: str) -> None:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "prefect", "--no-prompt", *arguments],
            cwd=ROOT if arguments[0] == "deploy" else elsewhere, env=environment | more,
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    def worked(deployment: str, **more: str) -> dict[str, Any]:
        prefect("deployment", "run", f"train_pipeline/{deployment}")
        prefect("worker", "start", "--pool", "elsewhere", "--run-once", **more)
        return sandbox.runs("COMPLETED", "FAILED", "CRASHED")[0]["state"]

    store = f"env.MLFLOW_TRACKING_URI=sqlite:///{sandbox.folder}/work/mlruns/mlflow.db"
    prefect("work-pool", "create", "elsewhere", "--type", "process")
    short = ("digits", "model=straight", "train.epochs=1")
    sandbox.torchyard("deploy", *short, "--pool", "elsewhere", "--name", "bare")
    assert "the record would be lost" in worked("bare")["message"]
    sandbox.torchyard(
        "deploy", *short, "--pool", "elsewhere", "--name", "bare", "--job-variable", store
    )
    message = worked("bare")["message"]
    assert "no model named 'straight'" in message
    assert "straight.py when this was deployed" in message
    plugins = str(sandbox.folder / "work" / "torchyard_plugins")
    assert worked("bare", TORCHYARD_PLUGINS=plugins)["type"] == "COMPLETED"

    prefect("deploy", "-n", "digits", MLFLOW_TRACKING_URI="sqlite:////nowhere/mlflow.db")
    names = {found["name"] for found in sandbox.post("deployments/filter")}
    assert {"bare", "digits"} <= names
    sandbox.torchyard("unschedule", "bare")
    sandbox.torchyard("unschedule", "digits")
