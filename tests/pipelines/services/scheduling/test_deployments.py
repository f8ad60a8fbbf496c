"""Deployments: their environment and form, schedules that fire, and workers of other machines."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient

from tests.pipelines.services.sandbox import LONG, OFTEN, Sandbox, eventually
from torchyard.core.errors import UserError
from torchyard.core.training.run_log import RunLog
from torchyard.pipelines.commands.arguments import preset_config
from torchyard.pipelines.services.scheduling.deployments import (
    deploy,
    form,
    local_environment,
    overview,
    remove,
    schedule,
)
from torchyard.pipelines.services.scheduling.schedules import parse_schedule

ROOT = Path(__file__).parents[4]


def test_a_scheduled_run_gets_what_this_shell_has_and_no_password(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "PYTHONPATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCHYARD_PLUGINS", "mine:/else/where")
    monkeypatch.setenv("TORCHYARD_RUNS", "runs")
    found = local_environment()
    assert found["TORCHYARD_PLUGINS"] == f"{tmp_path}/mine:/else/where"
    assert found["MLFLOW_TRACKING_URI"] == f"sqlite:///{tmp_path}/mlruns/mlflow.db"
    assert found["TORCHYARD_RUNS"] == f"{tmp_path}/runs"
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


def test_what_was_made_otherwise_is_not_replaced(workspace):
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.client.schemas.schedules import CronSchedule

    def plan():
        resolved = preset_config("digits", [])
        return schedule(resolved, "night", parse_schedule(None, "1h", None, "UTC"), "local")

    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="others", type="process"))
        client.create_deployment(client.create_flow_from_name("train_pipeline"), "night")
        for make in (plan, lambda: deploy(preset_config("digits", []), "night", "others", {})):
            with pytest.raises(UserError, match=r"'night' is not from torchyard\. Give another"):
                make()
        remove("night")
        assert not plan()[1]
        assert plan()[1]
        with pytest.raises(UserError, match="'night' is scheduled already, in the pool 'local'"):
            deploy(preset_config("digits", []), "night", "others", {})
        remove("night")
        deploy(preset_config("digits", []), "night", "others", {})
        with pytest.raises(UserError, match="'night' is deployed already, in the pool 'others'"):
            plan()
        # A schedule that was added in Prefect's UI stays.
        [night] = [each for each in client.read_deployments() if each.name == "night"]
        client.create_deployment_schedules(night.id, [(CronSchedule(cron="0 3 * * *"), True)])
        assert deploy(preset_config("digits", []), "night", "others", {})[1]
        [kept] = client.read_deployment(night.id).schedules
        assert kept.schedule.cron == "0 3 * * *"
        remove("night")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_is_wrong_registers_nothing(sandbox: Sandbox) -> None:
    sandbox.clear()
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


@pytest.mark.long  # how the server plans is among the fast tests
@pytest.mark.timeout(900)
def test_prefects_scheduler_plans_every_kind_of_schedule(sandbox: Sandbox) -> None:
    """It only logs what it cannot plan."""
    sandbox.clear()
    kinds = {"cron": "0 3 * * *", "interval": "12h", "rrule": "FREQ=DAILY;BYHOUR=3"}
    for kind, when in kinds.items():
        sandbox.torchyard("schedule", "digits", f"--{kind}", when, "--name", kind)

    def planned() -> set[str]:
        return {row["name"] for row in sandbox.plan() if row["next"]}

    assert eventually(lambda: planned() == set(kinds))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_schedule_fires_here_and_a_run_that_would_overlap_is_skipped(sandbox: Sandbox) -> None:
    sandbox.clear()
    both = [sandbox.start(*OFTEN), sandbox.start(*OFTEN)]
    printed = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], printed
    [deployment] = sandbox.post("deployments/filter")
    assert len(deployment["schedules"]) == 1
    fields = deployment["parameter_openapi_schema"]["definitions"]["chosen_optimizer"]
    assert fields["properties"]["lr"]["type"] == "number"
    flow_run, record = eventually(sandbox.training)
    assert record["plugin.model"].startswith("sha256:")  # the plugin of the working folder
    assert Path(psutil.Process(sandbox.processes("standby.engine")[0].pid).cwd()) == (
        sandbox.folder / "work"
    )
    # The link that Prefect shows leads to the MLflow that `up` serves.
    mine = {
        "flow_runs": {"id": {"any_": [flow_run]}},
        "artifacts": {"key": {"any_": ["mlflow-run"]}},
    }
    [artifact] = eventually(lambda: sandbox.post("artifacts/filter", **mine))
    served = sandbox.services()["MLflow"]["address"]
    assert f"({served}/#/experiments/" in artifact["data"]
    assert record["id"] in artifact["data"]

    def skipped() -> bool:  # others may be cancelled because they are late
        messages = [run["state"]["message"] for run in sandbox.runs("CANCELLED")]
        return any("concurrency limit" in message for message in messages)

    assert eventually(skipped)
    assert len(sandbox.runs("RUNNING")) == 1
    plan = sandbox.plan()
    assert [(row["name"], row["schedule"]) for row in plan] == [("often", "every 15 seconds")]
    assert plan[0]["next"]

    sandbox.cancel(flow_run)  # what Prefect's UI does
    assert eventually(lambda: sandbox.run(flow_run)["state_type"] == "CANCELLED")
    record = eventually(lambda: sandbox.ended(flow_run))
    assert (record["status"], record["torchyard.reason"]) == ("KILLED", "cancelled in Prefect")
    assert list(sandbox.folder.glob(f"work/mlruns/runs/{record['id']}/last.pt"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_suspended_in_prefect_and_resumed_there_it_is_the_same_run(sandbox: Sandbox) -> None:
    sandbox.clear()
    sandbox.torchyard("schedule", "digits", *LONG, "--interval", "52w", "--name", "yearly")
    [deployment] = sandbox.post("deployments/filter")
    identity = sandbox.post(f"deployments/{deployment['id']}/create_flow_run")["id"]
    assert eventually(sandbox.training)
    suspended = {"type": "PAUSED", "name": "Suspended", "state_details": {"pause_reschedule": True}}
    sandbox.post(f"flow_runs/{identity}/set_state", state=suspended)  # what Prefect's UI does
    record = eventually(lambda: sandbox.ended(identity))
    assert record["status"] == "KILLED"
    assert record["torchyard.reason"] == "suspended in Prefect, which can resume it"
    assert sandbox.run(identity)["state_name"] == "Suspended"
    checkpoint = sandbox.folder / "work" / "mlruns" / "runs" / record["id"] / "last.pt"
    before = checkpoint.stat().st_mtime

    sandbox.post(f"flow_runs/{identity}/resume")
    flow_run, again = eventually(lambda: checkpoint.stat().st_mtime > before and sandbox.training())
    assert flow_run == identity
    assert again["id"] == record["id"]  # and there is no other: `record` expects one
    assert "torchyard.reason" not in again
    sandbox.cancel(identity)
    assert eventually(lambda: sandbox.ended(identity))["torchyard.reason"] == "cancelled in Prefect"


@pytest.mark.long  # on another host: tests/production/test_shared_record.py
@pytest.mark.timeout(900)
def test_a_worker_of_a_pool_runs_what_was_deployed_or_says_what_it_lacks(sandbox: Sandbox) -> None:
    """The worker is in an empty folder, as on another machine."""
    sandbox.clear()
    elsewhere = sandbox.folder / "elsewhere"
    elsewhere.mkdir()
    environment = sandbox.environment | {
        "PREFECT_API_URL": sandbox.api,
        "PREFECT_API_AUTH_STRING": sandbox.password,
    }

    def prefect(*arguments: str, **more: str) -> None:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "prefect", "--no-prompt", *arguments],
            cwd=ROOT if arguments[0] == "deploy" else elsewhere, env=environment | more,
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    def worked(name: str, **more: str) -> dict[str, Any]:
        [found] = [each for each in sandbox.post("deployments/filter") if each["name"] == name]
        flow_run = sandbox.post(f"deployments/{found['id']}/create_flow_run")["id"]
        prefect("worker", "start", "--pool", "elsewhere", "--run-once", **more)
        ends = ("COMPLETED", "FAILED", "CRASHED")
        assert eventually(lambda: sandbox.run(flow_run)["state_type"] in ends)
        return dict(sandbox.run(flow_run)["state"])

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

    prefect(
        "deploy",
        "-n",
        "digits-from-prefect-yaml",
        MLFLOW_TRACKING_URI="sqlite:////nowhere/mlflow.db",
    )
    names = {found["name"] for found in sandbox.post("deployments/filter")}
    assert names == {"bare", "digits-from-prefect-yaml"}
    for name in names:
        sandbox.torchyard("unschedule", name)


@pytest.mark.long  # with another host: tests/production/test_shared_record.py
@pytest.mark.timeout(900)
def test_a_run_whose_worker_died_with_it_goes_on_where_its_folder_is_shared(
    sandbox: Sandbox,
) -> None:
    """As where a machine of the pool is gone, and another has its disk."""
    sandbox.clear()
    shared, there, here = (sandbox.folder / name for name in ("shared", "there", "here"))
    for folder in (shared, there, here):
        folder.mkdir()
    places = {
        "MLFLOW_TRACKING_URI": f"sqlite:///{sandbox.folder}/work/mlruns/mlflow.db",
        "TORCHYARD_RUNS": str(shared),
        "TORCHYARD_PLUGINS": str(sandbox.folder / "work" / "torchyard_plugins"),
    }
    environment = sandbox.environment | {
        "PREFECT_API_URL": sandbox.api,
        "PREFECT_API_AUTH_STRING": sandbox.password,
    }
    prefect = [sys.executable, "-P", "-m", "prefect", "--no-prompt"]

    def called(*command: str, **options: Any) -> None:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=800, **options
        )
        assert done.returncode == 0, done.stdout + done.stderr

    called(*prefect, "work-pool", "create", "far", "--type", "process", cwd=there)
    variables = [f"--job-variable=env.{name}={value}" for name, value in places.items()]
    long = ("digits", "model=straight", "train.epochs=800", "train.batch_size=256")
    sandbox.torchyard("deploy", *long, "--pool", "far", "--name", "far", *variables)
    [deployment] = [each for each in sandbox.post("deployments/filter") if each["name"] == "far"]
    flow_run = sandbox.post(f"deployments/{deployment['id']}/create_flow_run")["id"]
    with subprocess.Popen(
        [*prefect, "worker", "start", "--pool", "far"], cwd=there, env=environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as worker:  # fmt: skip
        try:
            [checkpoint] = eventually(lambda: list(shared.glob("*/last.pt")))
        finally:
            family = [worker.pid, *(each.pid for each in psutil.Process(worker.pid).children(True))]
            for process in family:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
    run_id = checkpoint.parent.name
    assert eventually(lambda: sandbox.run(flow_run)["state_type"] == "CRASHED")
    log = RunLog(shared / run_id)
    before = [line.values["epoch"] for line in log.read() if line.kind == "EpochDone"]
    assert 1 <= len(before) < 800
    environment |= places
    called(sys.executable, "-m", "torchyard", "resume", run_id, cwd=here)
    epochs = [line.values["epoch"] for line in log.read() if line.kind == "EpochDone"]
    assert epochs[: len(before)] == before
    assert before[-1] <= epochs[len(before)] <= before[-1] + 1  # not from the first on
    assert epochs[-1] == 800
    client = MlflowClient(places["MLFLOW_TRACKING_URI"])
    assert client.get_run(run_id).info.status == "FINISHED"
    assert not any(here.iterdir())
