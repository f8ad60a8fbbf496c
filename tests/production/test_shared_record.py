"""A team's record: MLflow and Prefect on PostgreSQL, artifacts in an S3 bucket."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from mlflow import MlflowClient
from PIL import Image

from tests.production.second_host import second_host
from tests.production.servers import LOCAL, PASSWORD, SECONDS, team
from tests.production.webhooks import CHAMPION_MOVED, receiver
from torchyard.core.tracking.store import load_mlflow

pytestmark = [pytest.mark.production, pytest.mark.timeout(1200)]

RUNS_AT_ONCE = 8
EPOCHS = 30
RUN = ("run", "digits", "model=mlp", f"train.epochs={EPOCHS}", "--quiet")


@pytest.fixture(scope="module")
def other():
    with second_host() as other:
        yield other


@pytest.fixture(scope="module")
def servers(tmp_path_factory, other):
    here = LOCAL if isinstance(other, str) else other.here
    with team(tmp_path_factory.mktemp("team"), here) as servers:
        yield servers


@pytest.fixture(scope="module")
def client(servers):
    load_mlflow()
    return MlflowClient(servers.environment["MLFLOW_TRACKING_URI"])


@pytest.fixture(scope="module")
def whole(servers):
    """The id of a run that nothing interrupted."""
    return done(servers.torchyard(*RUN))


def done(finished):
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout.strip()


def epochs_of(client, run_id, metric="train/loss"):
    return [each.step for each in client.get_metric_history(run_id, metric)]


def test_a_run_is_recorded_resumed_promoted_and_asked(servers, client, whole, tmp_path):
    killed = servers.begin(*RUN)
    run_id = wait_for_epochs(client, exclude={whole})
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert client.get_run(run_id).info.status == "RUNNING"  # nobody could say otherwise
    assert done(servers.torchyard("resume", run_id, "--quiet")).endswith(run_id)
    runs = {each: client.get_run(each) for each in (whole, run_id)}
    digests = {run.data.tags["weights_digest"] for run in runs.values()}
    assert len(digests) == 1  # as if it had never been killed
    for each, run in runs.items():
        assert run.info.status == "FINISHED"
        assert epochs_of(client, each) == list(range(1, EPOCHS + 1))
        assert run.info.artifact_uri.startswith("mlflow-artifacts:")
        names = {key.rpartition("/")[2] for key in servers.objects() if each in key}
        assert {"report.html", "config.yaml", "predictions.parquet"} <= names
    assert any(key.endswith("model.pt2") for key in servers.objects())
    with receiver() as told:
        client.create_webhook("told", told.address, [CHAMPION_MOVED])
        done(servers.torchyard("promote", run_id, "model=digits"))
        assert told.versions(1) == ["1"]
    Image.new("L", (8, 8), 99).save(tmp_path / "one.png")
    predicted = done(servers.torchyard("predict", "digits", str(tmp_path / "one.png"), "--json"))
    assert "probability" in predicted
    left = servers.torchyard("prune", "checkpoints", "runs", "--older-than", "0s", "--json")
    assert [row["key"] for row in json.loads(done(left))] == [whole, whole]


def test_eight_runs_at_once_while_the_mlflow_server_is_restarted(servers, client):
    before = {run.info.run_id for run in all_runs(client)}
    settings = ("model=mlp", f"train.epochs={EPOCHS}", "train.batch_size=256", "--quiet")
    begun = [
        servers.begin("run", "digits", f"train.seed={seed}", *settings)
        for seed in range(RUNS_AT_ONCE)
    ]
    wait_for_epochs(client, exclude=before, runs=RUNS_AT_ONCE)  # one cannot begin without a store
    servers.mlflow.kill()
    time.sleep(5)
    servers.mlflow.start()
    servers.mlflow.wait()
    outputs = [each.communicate(timeout=900) for each in begun]
    assert [each.returncode for each in begun] == [0] * RUNS_AT_ONCE, outputs
    ids = sorted(stdout.split()[-1] for stdout, _ in outputs)
    if any(client.get_run(each).info.status == "RUNNING" for each in ids):
        # The server was away longer than a run waits at its end: the next one here sends the rest.
        before.add(done(servers.torchyard("run", "digits", "train.epochs=1", "--quiet")))
    found = {run.info.run_id: run for run in all_runs(client) if run.info.run_id not in before}
    assert sorted(found) == ids
    assert {run.data.params["train.seed"] for run in found.values()} == {
        str(seed) for seed in range(RUNS_AT_ONCE)
    }
    assert len({run.info.run_name for run in found.values()}) == RUNS_AT_ONCE
    keys = servers.objects()
    for run_id, run in found.items():
        assert run.info.status == "FINISHED"
        assert epochs_of(client, run_id) == list(range(1, EPOCHS + 1))
        assert len(client.get_metric_history(run_id, "test/accuracy")) == 1
        names = {key.rpartition("/")[2] for key in keys if f"/{run_id}/" in key}
        assert {"report.html", "config.yaml", "predictions.parquet"} <= names
        assert len(run.outputs.model_outputs) == 1


def test_a_worker_on_another_host_and_its_run_goes_on_here_when_that_host_is_gone(
    servers, client, whole, other
):
    if isinstance(other, str):
        pytest.skip(other)
    before = {run.info.run_id for run in all_runs(client)}
    shared = servers.folder / "shared"
    # What that host has of its own; of this one it has the addresses of two servers, and a folder.
    there = {
        "PREFECT_HOME": str(servers.folder / "there" / "prefect"),
        "TORCHYARD_CACHE": str(servers.folder / "there" / "cache"),
        "XDG_DATA_HOME": str(servers.folder / "there" / "data"),
    }
    prefect = [sys.executable, "-m", "prefect"]
    pool = [*prefect, "work-pool", "create", "team", "--type", "process"]
    subprocess.run(pool, env=servers.environment, check=True, capture_output=True)
    for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
        assert other.here in servers.environment[name]
    variables = {
        "MLFLOW_TRACKING_URI": servers.environment["MLFLOW_TRACKING_URI"],
        "TORCHYARD_RUNS": str(shared),
    }
    jobs = [f"--job-variable=env.{name}={value}" for name, value in variables.items()]
    settings = ("digits", "model=mlp", f"train.epochs={EPOCHS}")
    done(servers.torchyard("deploy", *settings, "--pool", "team", *jobs))
    worker = subprocess.Popen(
        [*other.prefix, *prefect, "worker", "start", "--pool", "team"],
        env=servers.environment | there,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    start = [*prefect, "deployment", "run", "train_pipeline/digits"]
    subprocess.run(start, env=servers.environment, check=True, capture_output=True)
    run_id = wait_for_epochs(client, exclude=before)
    other.lose_power()
    worker.wait()
    resumed = servers.torchyard("resume", run_id, "--quiet", env={"TORCHYARD_RUNS": str(shared)})
    assert done(resumed).endswith(run_id)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert epochs_of(client, run_id) == list(range(1, EPOCHS + 1))
    expected = client.get_run(whole).data.tags["weights_digest"]
    assert run.data.tags["weights_digest"] == expected


def test_no_password_is_recorded(servers, client):
    for run in all_runs(client):
        assert PASSWORD not in str(run.to_dictionary())
    assert PASSWORD not in (servers.folder / "mlflow.log").read_text("utf-8", "replace")


def all_runs(client):
    experiment = client.get_experiment_by_name("torchyard")
    return list(client.search_runs([experiment.experiment_id])) if experiment else []


def wait_for_epochs(client, exclude, runs=1):
    """Wait until so many new runs have trained an epoch; returns the id of one that goes on."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        new = [run for run in all_runs(client) if run.info.run_id not in exclude]
        trained = [run for run in new if "train/loss" in run.data.metrics]
        running = [run.info.run_id for run in trained if run.info.status == "RUNNING"]
        if len(trained) >= runs and running:
            return running[0]
        time.sleep(0.1)
    raise AssertionError(f"not {runs} runs have trained an epoch")
