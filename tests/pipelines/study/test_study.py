"""Whole studies: recorded, pruned, failing, killed and gone on with, with the weights of a run."""

import json
import signal
import time
from pathlib import Path

import psutil
import pytest

from torchyard.core.errors import RunError, UserError

pytestmark = pytest.mark.slow  # each trains several networks

SMALL = ("dataset.name=random_vectors", "model=linear", "optimizer=sgd", "scheduler=constant")
SPACE = ("optimizer.lr=log(1e-3,1)", "train.batch_size=[16,32]")

TROUBLE = '''
from typing import Literal
from torchyard import ModelParams, hookimpl

class Trouble(ModelParams):
    """A linear model that fails in one way or another."""
    way: Literal["fine", "raises", "dies", "nan"] = "fine"

    def build(self, input_shape, num_classes):
        import os, signal, torch
        if self.way == "raises":
            raise ValueError("no such luck")
        if self.way == "dies":
            os.kill(os.getpid(), signal.SIGSEGV)
        linear = torch.nn.Linear(input_shape[0], num_classes)
        if self.way == "nan":
            torch.nn.init.constant_(linear.weight, float("nan"))
        return linear

@hookimpl
def register_models(register):
    register("trouble", Trouble)
'''


@pytest.fixture(scope="module")
def client(workspace):
    # Made when it is asked for: the first study makes the database.
    return workspace.client


def study_of(client, name):
    """A study's own run, and those of its trials by number."""
    [experiment] = [e.experiment_id for e in client().search_experiments() if e.name == "torchyard"]
    [study] = client().search_runs([experiment], f"tags.`torchyard.study` = '{name}'")
    found = client().search_runs(
        [experiment], f"tags.`mlflow.parentRunId` = '{study.info.run_id}'", max_results=500
    )
    trials = {int(run.data.tags["torchyard.trial"]): run for run in found}
    assert len(trials) == len(found)  # none twice
    return study, trials


def digests(trials):
    return {number: run.data.tags["weights_digest"] for number, run in trials.items()}


def settings(trials):
    return {
        number: (run.data.params["optimizer.lr"], run.data.params["train.batch_size"])
        for number, run in trials.items()
    }


def artifacts(client, run):
    return {found.path for found in client().list_artifacts(run.info.run_id)}


@pytest.fixture(scope="module")
def random_study(workspace, client):
    printed = workspace.invoke(
        *("sweep", "digits", *SMALL, *SPACE, "train.epochs=2"),
        *("--trials", "6", "--sampler", "random", "--name", "random"),
    )
    return printed, *study_of(client, "random")


def test_the_best_of_a_study_is_a_whole_run_and_its_command_repeats_it(
    workspace, client, random_study
):
    printed, study, trials = random_study
    assert study.info.status == "FINISHED"
    assert {run.info.status for run in trials.values()} == {"FINISHED"}
    losses = {number: run.data.metrics["best/val/loss"] for number, run in trials.items()}
    best = min(losses, key=lambda number: (losses[number], number))
    assert study.data.tags["best_run"] == trials[best].info.run_id
    assert {"report.html", "best.yaml", "config.yaml"} <= artifacts(client, study)
    whole = {"predictions.parquet", "config.yaml", "report.html", "confusion_matrix.png"}
    assert whole <= artifacts(client, trials[best])
    assert trials[best].outputs.model_outputs
    for number, run in trials.items():
        assert {"predictions.parquet", "config.yaml"} <= artifacts(client, run)
        assert 0 <= run.data.metrics["test/accuracy"] <= 1
        if not run.outputs.model_outputs:
            assert "best trial" in run.data.tags["model_not_logged"], number
    [line] = [line for line in printed.splitlines() if line.startswith("Run it:")]
    command = line.split("torchyard ")[1].split()
    run_id = workspace.invoke(*command, "--quiet").strip().splitlines()[-1]
    again = client().get_run(run_id)
    assert again.data.tags["weights_digest"] == trials[best].data.tags["weights_digest"]


def test_the_list_shows_the_accuracy_of_the_best_trial(workspace, random_study):
    _, study, trials = random_study
    best = trials[int(study.data.tags["best_trial"])].data.metrics["test/accuracy"]
    lines = workspace.invoke("runs", "--limit", "100").splitlines()
    [line] = [line for line in lines if line.startswith(study.info.run_name)]
    assert f" {100 * best:.1f}% best " in line
    assert "test/accuracy" not in study.data.metrics  # it is no candidate for `best`


def test_two_workers_give_the_same_trials_with_the_same_weights(workspace, client, random_study):
    workspace.invoke(
        *("sweep", "digits", *SMALL, *SPACE, "train.epochs=2", "--workers", "2"),
        *("--trials", "6", "--sampler", "random", "--name", "two-workers"),
    )
    _, trials = study_of(client, "two-workers")
    assert settings(trials) == settings(random_study[2])
    assert digests(trials) == digests(random_study[2])


def test_a_finished_study_says_so_and_takes_more_trials(workspace, client, random_study):
    command = ("sweep", "digits", *SMALL, *SPACE, "train.epochs=2", "--sampler", "random")
    with pytest.raises(UserError, match="has its 6 trials"):
        workspace.invoke(*command, "--trials", "6", "--name", "random")
    with pytest.raises(UserError, match="with another space"):
        workspace.invoke(*command, "train.log_every=50", "--trials", "6", "--name", "random")
    with pytest.raises(UserError, match="is a study that is finished"):
        workspace.invoke("resume", random_study[1].info.run_id)
    workspace.invoke(*command, "--trials", "7", "--name", "random")
    study, trials = study_of(client, "random")
    assert study.info.status == "FINISHED"
    assert sorted(trials) == list(range(7))


def test_a_trial_that_fails_is_recorded_and_the_study_goes_on(workspace, client):
    with workspace.plugin_file("trouble", TROUBLE):
        workspace.invoke(
            *("sweep", "digits", "dataset.name=random_vectors", "model=trouble", "optimizer=sgd"),
            *("scheduler=constant", "model.way=[fine,raises,dies,nan]", "train.epochs=1"),
            *("--sampler", "grid", "--name", "trouble"),
        )
        study, trials = study_of(client, "trouble")
    assert study.info.status == "FINISHED"
    ended = {run.data.params["model.way"]: run.info.status for run in trials.values()}
    assert ended == {"fine": "FINISHED", "raises": "FAILED", "dies": "FAILED", "nan": "FAILED"}
    why = {run.data.params["model.way"]: run.data.tags for run in trials.values()}
    assert "no such luck" in why["raises"]["torchyard.reason"]
    assert "SIGSEGV" in why["dies"]["torchyard.reason"]
    [complete] = [run for run in trials.values() if run.info.status == "FINISHED"]
    assert study.data.tags["best_run"] == complete.info.run_id


def test_a_study_whose_first_trials_all_fail_ends_early(workspace, client):
    with pytest.raises(RunError, match=r"first 5 trials failed, and none is complete\. The loss"):
        workspace.invoke(
            *("sweep", "digits", *SMALL, "optimizer.lr=uniform(1e38,2e38)", "train.epochs=1"),
            *("--sampler", "random", "--trials", "9", "--name", "hopeless"),
        )
    study, trials = study_of(client, "hopeless")
    assert study.info.status == "FAILED"
    assert [run.info.status for run in trials.values()] == ["FAILED"] * 5


def test_pruned_trials_end_as_such_and_the_best_is_a_whole_one(workspace, client):
    workspace.invoke(
        *("sweep", "digits", *SMALL, "optimizer.lr=[1e-9,1e-8,1e-7,1e-6,0.1,0.2,0.3,1e-5]"),
        *("train.epochs=9", "--sampler", "grid", "--pruner", "hyperband", "--name", "pruned"),
    )
    _, trials = study_of(client, "pruned")
    by_state = {}
    for run in trials.values():
        by_state.setdefault(run.data.tags["torchyard.trial_state"], []).append(run)
    assert set(by_state) == {"complete", "pruned"}
    for run in by_state["pruned"]:
        assert run.info.status == "KILLED"
        epochs = int(run.data.metrics["train/epochs"])
        assert epochs < 9
        assert run.data.tags["torchyard.reason"].startswith(f"pruned after epoch {epochs} of 9")
    assert {run.data.metrics["train/epochs"] for run in by_state["complete"]} == {9}
    # A pruned one goes on from its checkpoint, to the weights of one that was never pruned.
    pruned = by_state["pruned"][0]
    workspace.invoke("resume", pruned.info.run_id, "--quiet")
    resumed = client().get_run(pruned.info.run_id)
    lr = pruned.data.params["optimizer.lr"]
    whole = workspace.invoke(
        *("run", "digits", *SMALL, f"optimizer.lr={lr}", "train.epochs=9"),
        *("train.validation=0.1", "--quiet"),
    )
    again = client().get_run(whole.strip().splitlines()[-1])
    assert resumed.data.tags["weights_digest"] == again.data.tags["weights_digest"]


def killed(workspace, command, happened, process_signal=signal.SIGKILL):
    """Start a study and end it by a signal once something has happened; returns what it printed."""
    process = workspace.begin(*command, cwd=workspace.folder, env=workspace.environment)
    deadline = time.monotonic() + 300
    while not happened():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    children = psutil.Process(process.pid).children()
    process.send_signal(process_signal)
    if process_signal == signal.SIGKILL:
        for child in children:
            child.kill()
    return *process.communicate(timeout=200), process.returncode


STOPPED = ("sweep", "digits", "model=linear", "optimizer=sgd", *SPACE, "train.epochs=15")


@pytest.fixture(scope="module")
def undisturbed(workspace, client):
    """The trials of the study that is not stopped."""
    options = ("--trials", "4", "--name", "whole", "--json")
    printed = workspace.invoke(*STOPPED, *options).strip().splitlines()
    assert json.loads(printed[-1])["event"] == "result"
    return study_of(client, "whole")[1]


@pytest.mark.timeout(600)  # two starts of the whole program
@pytest.mark.parametrize(
    "way", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.long)]
)
def test_a_study_that_is_stopped_in_a_trial_ends_as_one_that_was_not(
    workspace, client, undisturbed, way
):
    command, options = STOPPED, ("--trials", "4", "--name")
    name, folder = f"stopped-{way.name}", Path(workspace.folder, "mlruns/runs")
    before = set(folder.glob("*"))

    def in_third_trial():
        trained = [run for run in set(folder.glob("*")) - before if (run / "previous.pt").exists()]
        return len(trained) == 3

    *_, status = killed(workspace, (*command, *options, name), in_third_trial, way)
    assert status == (-9 if way == signal.SIGKILL else 130)
    study, trials = study_of(client, name)
    assert len(trials) == 3
    third = trials[2].info.run_id
    if way == signal.SIGKILL:
        done = workspace.torchyard(*command, *options, name)
    else:
        assert study.info.status == "KILLED"
        assert trials[2].info.status == "KILLED"
        done = workspace.torchyard("resume", "latest")
    assert done.returncode == 0, done.stderr
    assert "4 trials: 4 complete, 0 pruned, 0 failed" in done.stdout
    study, trials = study_of(client, name)
    assert study.info.status == "FINISHED"
    assert sorted(trials) == [0, 1, 2, 3]
    assert trials[2].info.run_id == third
    for run in trials.values():
        history = client().get_metric_history(run.info.run_id, "val/loss")
        assert sorted(point.step for point in history) == list(range(1, 16))
    assert settings(trials) == settings(undisturbed)
    assert digests(trials) == digests(undisturbed)
