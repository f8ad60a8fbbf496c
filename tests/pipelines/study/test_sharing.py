"""A whole study whose trials train once what they have in common, against each trial alone."""

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


def test_every_trial_ends_as_it_would_alone_with_a_third_of_the_steps(workspace, tmp_path):
    import yaml
    from mlflow import MlflowClient, artifacts

    printed = workspace.invoke(*COMMAND)
    uri = f"sqlite:///{workspace.folder}/mlruns/mlflow.db"
    client = MlflowClient(uri)
    experiments = [each.experiment_id for each in client.search_experiments()]
    [study] = client.search_runs(experiments, "tags.`torchyard.study` = 'sharing'")
    trials = client.search_runs(experiments, f"tags.`mlflow.parentRunId` = '{study.info.run_id}'")
    assert len(trials) == 9
    steps, trained = (study.data.metrics[f"study/{key}"] for key in ("steps", "trained_steps"))
    assert f"{trained:,.0f} of {steps:,.0f} steps" in printed
    assert steps == sum(run.data.metrics["train/steps"] for run in trials)
    assert steps >= 3 * trained
    # Each trial's settings again, in a training that shares nothing.
    for run in trials:
        file = artifacts.download_artifacts(
            run_id=run.info.run_id, artifact_path="config.yaml", tracking_uri=uri,
            dst_path=str(tmp_path),
        )  # fmt: skip
        config = resolve(yaml.safe_load(Path(file).read_text()), host()).config
        config = config.model_dump(mode="json")
        folder = tmp_path / run.info.run_id
        folder.mkdir()
        worker, cache = shared_worker(), workspace.environment["TORCHYARD_CACHE"]
        data = worker.call("prepare", config=config, cache=cache)["folder"]
        alone = worker.call("train", config=config, data=data, folder=str(folder))
        assert run.data.tags["weights_digest"] == alone["weights_digest"]
