"""A run killed with SIGKILL and resumed ends as if nothing had happened."""

import contextlib
import json
import signal
import subprocess
from collections import Counter
from pathlib import Path

import httpx
import psutil
import pytest

from torchyard.core.errors import UserError

SETTINGS = (
    "digits",
    "train.epochs=8",
    "train.batch_size=16",
    "train.log_every=7",
    "train.validation=0.1",
    "train.log_gradients=true",
    "augmentations=[random_crop]",
)


@pytest.fixture(scope="module")
def client(workspace):
    return workspace.client


def prefect(workspace, path, **body):
    answer = httpx.post(
        f"{workspace.api_url}/{path}", json=body, headers=workspace.headers, timeout=60
    )
    answer.raise_for_status()
    return answer.json()


def steps(client, run):
    """How often each step of each metric of the training was recorded."""
    found = {}
    for key in run.data.metrics:
        if key.startswith(("train/", "val/", "gradient_norm/")):
            found[key] = Counter(m.step for m in client.get_metric_history(run.info.run_id, key))
    return found


def values(client, run, key):
    history = client.get_metric_history(run.info.run_id, key)
    return [metric.value for metric in sorted(history, key=lambda metric: metric.step)]


def killed_run(workspace, after_epochs):
    """Start a run and kill it with everything it started, once that many epochs are trained."""
    before = set(Path(workspace.folder, "mlruns/runs").glob("*"))
    process = subprocess.Popen(
        workspace.command("run", *SETTINGS),
        cwd=workspace.folder,
        env=workspace.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    for line in process.stdout:
        if f"epoch {after_epochs}:" in line:
            break
    for child in psutil.Process(process.pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):
            child.send_signal(signal.SIGKILL)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    [folder] = set(Path(workspace.folder, "mlruns/runs").glob("*")) - before
    return folder.name


@pytest.fixture(scope="module")
def events(workspace):
    """What a run that is not killed prints for a machine."""
    return [json.loads(line) for line in workspace.invoke("run", *SETTINGS, "--json").splitlines()]


@pytest.fixture(scope="module")
def whole(client, events):
    return client().get_run(events[-1]["run_id"])


def test_a_machine_gets_each_stage_epoch_and_the_result(events, whole):
    assert [event["event"] for event in (events[0], events[-1])] == ["run", "result"]
    assert events[0]["run_id"] == whole.info.run_id
    stages = [
        event["stage"] for event in events if event["event"] == "stage" and "seconds" in event
    ]
    assert stages == ["prepare", "train", "evaluate", "report"]
    epochs = [event for event in events if event["event"] == "epoch"]
    assert [event["epoch"] for event in epochs] == list(range(1, 9))
    assert epochs[-1]["loss"] == whole.data.metrics["train/loss"]
    assert events[-1]["accuracy"] == whole.data.metrics["test/accuracy"]
    assert len(events[-1]["per_class"]) == 10


def test_killed_and_resumed_it_is_the_run_that_was_never_killed(workspace, client, whole):
    run_id = killed_run(workspace, after_epochs=4)
    killed = client().get_run(run_id)
    assert killed.info.status == "RUNNING"  # nobody could say otherwise
    printed = workspace.invoke("resume", run_id)
    assert run_id in printed
    assert "epoch 3:" not in printed  # what was trained is not trained again
    resumed = client().get_run(run_id)
    assert resumed.info.status == "FINISHED"
    assert resumed.data.tags["weights_digest"] == whole.data.tags["weights_digest"]
    assert resumed.data.metrics["test/accuracy"] == whole.data.metrics["test/accuracy"]
    assert steps(client(), resumed) == steps(client(), whole)
    for key in ("train/loss", "train/running_loss", "val/loss", "gradient_norm/fc1"):
        assert values(client(), resumed, key) == values(client(), whole, key)
    assert set(steps(client(), whole)["train/loss"].values()) == {1}
    assert len(resumed.outputs.model_outputs) == 1
    assert resumed.data.params == whole.data.params

    # The run after it has ended what Prefect had of the killed process.
    mine = {"flow_runs": {"id": {"any_": [killed.data.tags["prefect.flow_run_id"]]}}}
    assert [run["state_type"] for run in prefect(workspace, "flow_runs/filter", **mine)] == [
        "CRASHED"
    ]
    tasks = prefect(workspace, "task_runs/filter", **mine)
    assert {task["name"]: task["state_type"] for task in tasks} == {
        "prepare_data: digits": "COMPLETED",
        "train_model: lenet, adam": "CRASHED",
    }


@pytest.mark.slow
def test_a_dead_process_leaves_no_run_running_once_another_begins(workspace, client, whole):
    run_id = killed_run(workspace, after_epochs=1)
    workspace.invoke("run", "digits", "train.epochs=1")
    run = client().get_run(run_id)
    assert run.info.status == "KILLED"
    assert run.data.tags["torchyard.reason"] == "its process ended without reporting why"
    assert workspace.invoke("resume", run.info.run_name, "--quiet") == f"{run_id}\n"
    run = client().get_run(run_id)
    assert (run.info.status, "torchyard.reason" in run.data.tags) == ("FINISHED", False)
    assert run.data.tags["weights_digest"] == whole.data.tags["weights_digest"]


def test_a_flow_run_that_prefect_starts_again_after_its_end_is_done(workspace, client, whole):
    """As when it is suspended while its last task ends, and resumed."""
    from prefect.client.orchestration import get_client
    from prefect.flow_engine import run_flow
    from prefect.states import Scheduled

    from torchyard.pipelines.flow.pipeline import train_pipeline

    before = len(client().search_runs(["1"]))
    with get_client(sync_client=True) as prefect_client:
        identity = whole.data.tags["prefect.flow_run_id"]
        prefect_client.set_flow_run_state(identity, Scheduled(), force=True)
        state = run_flow(
            train_pipeline, prefect_client.read_flow_run(identity), return_type="state"
        )
        assert state.message == f"{whole.info.run_name}: it had finished."
        assert prefect_client.read_flow_run(identity).state.is_completed()
    assert len(client().search_runs(["1"])) == before
    assert client().get_run(whole.info.run_id).info.status == "FINISHED"


def test_what_cannot_be_resumed_is_refused(workspace, client, whole):
    from torchyard.core.tracking.ownership.process import ProcessIdentity
    from torchyard.core.tracking.record import RunRecord

    named = rf"run {whole.info.run_id} \({whole.info.run_name}\)"
    flow_runs = len(prefect(workspace, "flow_runs/filter"))
    with pytest.raises(UserError, match=named + " is finished: there is nothing left to do"):
        workspace.invoke("resume", whole.info.run_id)
    assert len(prefect(workspace, "flow_runs/filter")) == flow_runs  # not one that Failed
    with pytest.raises(UserError, match=f"Did you mean {whole.info.run_id}"):
        workspace.invoke("resume", whole.info.run_id[:-1] + "x")
    # A run whose process lives is left alone.
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        record = RunRecord.start(name_stem="alive", parameters={}, tags={})
        record.set_tags({"torchyard.process": str(ProcessIdentity.of(sleeper.pid))})
        with pytest.raises(UserError, match=f"is running, in process {sleeper.pid} on "):
            RunRecord.resume(record.run_id)
        assert client().get_run(record.run_id).info.status == "RUNNING"
    finally:
        sleeper.kill()
        sleeper.wait()
    again = RunRecord.resume(record.run_id)
    again.log_metrics({"train/loss": 1.0}, step=1)
    again.log_metrics({"train/loss": 2.0}, step=1)
    again.finish("FINISHED")
    assert [m.value for m in client().get_metric_history(record.run_id, "train/loss")] == [1.0]
