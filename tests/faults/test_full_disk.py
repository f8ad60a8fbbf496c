"""The disk fills up in a task: one message, nothing lost, and the run is resumed later."""

import contextlib
import re
import time

import pytest

pytestmark = pytest.mark.faults

SETTINGS = ("digits", "train.epochs=30", "train.batch_size=16", "promote=digits")
# What is printed last before each task.
BEFORE = {
    "prepare": "",
    "train": "prepare ",
    "evaluate": r"train .*steps\s+in",
    "report": "evaluate ",
}


def fill(folder):
    with (folder / "ballast").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


@pytest.mark.parametrize("task", BEFORE)
def test_a_disk_that_fills_up_in_a_task_loses_nothing(workspace, disk, task):
    small = disk("60m")
    environment = workspace.environment | {"TORCHYARD_CACHE": str(small / "cache")}
    process = workspace.begin("run", *SETTINGS, cwd=small, env=environment)
    if BEFORE[task]:
        for line in process.stdout:
            if re.match(BEFORE[task], line):
                break
    else:
        while not list(small.glob("mlruns/runs/*")):
            time.sleep(0.01)
    fill(small)
    _, errors = process.communicate(timeout=200)
    assert "Traceback" not in errors, errors
    assert process.returncode in (0, 1), errors  # it may have been quicker than the disk
    if process.returncode:
        assert re.search("[Nn]o space (is )?left", errors), errors
    (small / "ballast").unlink()

    from mlflow import MlflowClient

    resumed = workspace.torchyard(
        "resume", "latest", cwd=small, env={"TORCHYARD_CACHE": str(small / "cache")}
    )
    if process.returncode:
        assert resumed.returncode == 0, resumed.stderr
    client = MlflowClient(f"sqlite:///{small}/mlruns/mlflow.db")
    [run] = client.search_runs(["1"])
    assert run.info.status == "FINISHED"
    losses = client.get_metric_history(run.info.run_id, "train/loss")
    assert [point.step for point in losses] == list(range(1, 31))
    [output] = run.outputs.model_outputs
    assert client.get_logged_model(output.model_id).status == "READY"
    assert str(client.get_model_version_by_alias("digits", "champion").run_id) == run.info.run_id
    assert {"report.md", "report.html", "predictions.parquet", "config.yaml"} <= {
        found.path for found in client.list_artifacts(run.info.run_id)
    }
    assert not list((small / "mlruns" / "runs").rglob(".*"))
