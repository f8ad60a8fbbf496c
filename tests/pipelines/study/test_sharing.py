"""Whole studies whose trials train once what they have in common, against each trial alone."""

from pathlib import Path

import pytest

from torchyard.core.config.resolve import resolve
from torchyard.core.hosting.host import host
from torchyard.pipelines.worker.process import shared_worker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # eighteen trainings

COMMAND = (
    *("sweep", "digits", "model=mlp", "optimizer=adam", "train.batch_size=128"),
    *("train.epochs=12", "scheduler=piecewise", "--sampler", "grid", "--name", "sharing"),
    "scheduler.milestones=[[0.75],[0.84],[0.92]]",
    "scheduler.factors=[[0.3],[0.1],[0.03]]",
)
# In a random order good rates come before bad ones and behind them.
PRUNED = (
    *("sweep", "digits", "dataset.name=random_vectors", "model=linear", "optimizer=sgd"),
    *("train.epochs=9", "scheduler=piecewise", "scheduler.milestones=[[0.5]]"),
    *("scheduler.factors=[[0.3],[0.03]]", "optimizer.lr=[1e-9,1e-7,0.1,0.2]"),
    *("--sampler", "grid", "--pruner", "hyperband", "--name", "sharing and pruned"),
)


@pytest.fixture
def store(workspace):
    return workspace.client


def study_of(client, name):
    """The study's own run and those of its trials."""
    experiments = [each.experiment_id for each in client.search_experiments()]
    [study] = client.search_runs(experiments, f"tags.`torchyard.study` = '{name}'")
    trials = client.search_runs(experiments, f"tags.`mlflow.parentRunId` = '{study.info.run_id}'")
    return study, trials


def digest_alone(workspace, client, run, folder, epochs=None):
    """The weights that a trial's settings give, in a training that shares nothing.

    Args:
        epochs: after which it is stopped, as a pruned trial is.
    """
    import yaml
    from mlflow import artifacts

    file = artifacts.download_artifacts(
        run_id=run.info.run_id, artifact_path="config.yaml", tracking_uri=client.tracking_uri,
        dst_path=str(folder),
    )  # fmt: skip
    config = resolve(yaml.safe_load(Path(file).read_text()), host()).config.model_dump(mode="json")
    place = folder / run.info.run_id
    place.mkdir()
    worker, cache = shared_worker(), workspace.environment["TORCHYARD_CACHE"]
    data = worker.call("prepare", config=config, cache=cache)["folder"]
    go_on = (lambda event: event.epoch < epochs) if epochs else None
    done = worker.call("train", go_on=go_on, config=config, data=data, folder=str(place))
    return done["weights_digest"]


def test_every_trial_ends_as_it_would_alone_with_a_third_of_the_steps(workspace, store, tmp_path):
    printed = workspace.invoke(*COMMAND)
    study, trials = study_of(store(), "sharing")
    assert len(trials) == 9
    steps, trained = (study.data.metrics[f"study/{key}"] for key in ("steps", "trained_steps"))
    assert f"{trained:,.0f} of {steps:,.0f} steps" in printed
    assert steps == sum(run.data.metrics["train/steps"] for run in trials)
    assert steps >= 3 * trained
    for run in trials:
        alone = digest_alone(workspace, store(), run, tmp_path)
        assert run.data.tags["weights_digest"] == alone


def test_where_hyperband_prunes_every_trial_ends_as_it_would_alone(workspace, store, tmp_path):
    workspace.invoke(*PRUNED)
    study, trials = study_of(store(), "sharing and pruned")
    assert len(trials) == 8
    steps, trained = (study.data.metrics[f"study/{key}"] for key in ("steps", "trained_steps"))
    assert trained < steps
    states = [run.data.tags["torchyard.trial_state"] for run in trials]
    assert set(states) == {"complete", "pruned"}
    went_on = []
    for run, state in zip(trials, states, strict=True):
        epochs = int(run.data.metrics["train/epochs"])
        if state == "complete":
            assert epochs == 9
            if run.data.metrics["train/shared_steps"]:
                went_on.append(run)
        if "weights_digest" in run.data.tags:  # not of one that only another has trained
            alone = digest_alone(workspace, store(), run, tmp_path, epochs)
            assert run.data.tags["weights_digest"] == alone
    assert went_on  # promoted over all rungs, from weights that another had
    # What was pruned goes on from its checkpoint, or from the beginning where it has none.
    for run in [run for run, state in zip(trials, states, strict=True) if state == "pruned"][:2]:
        workspace.invoke("resume", run.info.run_id, "--quiet")
        resumed = store().get_run(run.info.run_id)
        (tmp_path / "whole").mkdir(exist_ok=True)
        alone = digest_alone(workspace, store(), resumed, tmp_path / "whole")
        assert resumed.data.tags["weights_digest"] == alone
