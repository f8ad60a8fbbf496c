"""Studies on Dask, Ray and a work pool, a worker killed in each: none lost, none doubled."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from torchyard.core.tracking.ownership.process import ProcessIdentity

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]  # clusters start, and their workers again

COMMAND = (
    *("sweep", "digits", "model=linear", "optimizer=sgd", "optimizer.lr=log(1e-3,1)"),
    *("train.epochs=12", "--trials", "3", "--sampler", "random"),
)


@pytest.fixture(scope="module")
def trials_of(workspace):

    def found(name):
        """The runs of a study's trials, in the order of their numbers, each once."""
        client = workspace.client()
        experiments = [each.experiment_id for each in client.search_experiments()]
        [study] = client.search_runs(experiments, f"tags.`torchyard.study` = '{name}'")
        runs = client.search_runs(
            experiments, f"tags.`mlflow.parentRunId` = '{study.info.run_id}'", max_results=500
        )
        assert study.info.status == "FINISHED"
        for run in runs:
            history = client.get_metric_history(run.info.run_id, "val/loss")
            assert [point.step for point in history] == list(range(1, 13))
        return sorted(runs, key=lambda run: int(run.data.tags["torchyard.trial"]))

    return found


@pytest.fixture(scope="module")
def alone(workspace, trials_of):
    """The digests of the trials of the study, without another engine."""
    workspace.invoke(*COMMAND, "--name", "alone")
    return [run.data.tags["weights_digest"] for run in trials_of("alone")]


@contextlib.contextmanager
def prefect_worker(workspace):
    """A Prefect worker for the work pool `study`."""
    program = [sys.executable, "-m", "prefect"]
    create = ["work-pool", "create", "study", "--type", "process"]
    subprocess.run([*program, *create], env=workspace.environment, check=True, capture_output=True)
    worker = subprocess.Popen(
        [*program, "worker", "start", "--pool", "study", "--type", "process", "--limit", "2"],
        env=workspace.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        worker.terminate()
        worker.wait(60)


def kill_one_in_a_trial(workspace, study, engine):
    """Kill the process that runs a trial, once it has a checkpoint; returns that trial's number."""
    runs, before = Path(workspace.folder, "mlruns/runs"), time.time()
    while study.poll() is None:
        assert time.time() - before < 400
        written = [file.stat().st_mtime for file in runs.glob("*/previous.pt")]
        trained = any(moment > before for moment in written)
        if engine == "local" and trained:
            [worker] = [
                child
                for child in psutil.Process(study.pid).children()
                if "torchyard.pipelines.worker.serve" in child.cmdline()
            ]
            worker.kill()
            return
        for file in runs.glob("*/trials/*.json"):
            if file.stat().st_mtime < before:
                continue
            told = json.loads(file.read_text())
            owner = ProcessIdentity.parse(told.get("process", ""))
            if owner and owner.lives() and trained:
                os.kill(owner.number, signal.SIGKILL)
                return
        time.sleep(0.02)
    raise AssertionError(study.stderr.read())


@pytest.mark.parametrize("engine", ["local", "dask", "ray", "pool"])
def test_a_study_is_the_same_whatever_runs_it_and_is_killed(workspace, alone, trials_of, engine):
    workers = "1" if engine == "local" else "2"
    options = ["--engine", engine, "--name", engine, "--workers", workers]
    servers = contextlib.nullcontext()
    if engine == "pool":
        options += ["--address", "study"]
        servers = prefect_worker(workspace)
    with servers:
        study = workspace.begin(*COMMAND, *options, cwd=workspace.folder, env=workspace.environment)
        kill_one_in_a_trial(workspace, study, engine)
        printed, errors = study.communicate(timeout=400)
    assert study.returncode == 0, errors
    assert "3 trials: 3 complete, 0 pruned, 0 failed" in printed
    assert [run.data.tags["weights_digest"] for run in trials_of(engine)] == alone
