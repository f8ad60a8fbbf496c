"""A run whose machine is gone goes on at another, which has its store and TORCHYARD_SHARED."""

import contextlib
import json
import os
import shutil
import time
from collections import Counter

import psutil
import pytest

from tests.bucket import s3_bucket

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]
PATIENCE = 600.0
SETTINGS = (
    *("digits", "train.epochs=150", "train.batch_size=16", "train.validation=0.1"),
    *("train.log_every=7", "augmentations=[random_crop]", "optimizer=adam"),
)


def test_it_ends_with_the_same_weights_and_each_step_recorded_once(workspace, tmp_path):
    from mlflow import MlflowClient

    store = f"sqlite:///{tmp_path}/mlflow.db"
    with s3_bucket() as bucket:
        aws = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}

        def machine(name, **shared):
            folder = tmp_path / name
            folder.mkdir(exist_ok=True)
            return workspace.environment | {
                **aws,
                **shared,
                "MLFLOW_TRACKING_URI": store,
                "TORCHYARD_RUNS": str(folder / "runs"),
                "TORCHYARD_CACHE": str(folder / "cache"),
            }

        shared = {"TORCHYARD_SHARED": "s3://data/team"}
        whole = workspace.begin("run", *SETTINGS, "--quiet", cwd=tmp_path, env=machine("whole"))
        begun = workspace.begin(
            "run", *SETTINGS, "--json", cwd=tmp_path, env=machine("one", **shared)
        )
        wait = time.monotonic() + PATIENCE
        while not (there := [each for each in bucket.names("team/") if each.endswith(".pt")]):
            assert begun.poll() is None, begun.communicate()
            assert time.monotonic() < wait
            time.sleep(0.1)
        for process in (*psutil.Process(begun.pid).children(recursive=True), begun):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        begun.communicate()
        run_id = there[0].split("/")[2]
        shutil.rmtree(tmp_path / "one")

        resumed = workspace.begin(
            "resume", run_id, "--json", cwd=tmp_path, env=machine("two", **shared)
        )
        printed, error = resumed.communicate()
        assert resumed.returncode == 0, error
        events = [json.loads(line) for line in printed.splitlines()]
        expected, error = whole.communicate()
        assert whole.returncode == 0, error

        client = MlflowClient(store)
        run, reference = client.get_run(run_id), client.get_run(expected.strip())
        tags, last = run.data.tags, run.data.tags["torchyard.checkpoint"]
        assert tags["weights_digest"] == reference.data.tags["weights_digest"]
        assert run.data.metrics["test/accuracy"] == reference.data.metrics["test/accuracy"]
        for key in ("train/loss", "train/running_loss", "val/loss"):
            told, wanted = (
                {metric.step: metric.value for metric in client.get_metric_history(each, key)}
                for each in (run_id, expected.strip())
            )
            assert told == wanted
            count = Counter(metric.step for metric in client.get_metric_history(run_id, key))
            assert set(count.values()) == {1}
        first = next(event["epoch"] for event in events if event["event"] == "epoch")
        assert first > 1
        assert last.removeprefix("s3://data/") in bucket.names("team/checkpoints/")
