"""A finished run that is trained on ends as one long run does, or says why not."""

import contextlib
import signal

import psutil
import pytest

from torchyard.core.errors import UserError
from torchyard.pipelines.flow.recording.extension import EXACT

pytestmark = pytest.mark.slow

PLAIN = ("digits", "scheduler=constant", "train.batch_size=64")
SETTINGS = (*PLAIN, "train.validation=0.1", "augmentations=[random_crop]")


@pytest.fixture(scope="module")
def begin(workspace, client):
    """Make a run, and return it as MLflow has it."""

    def begin(*words):
        return client.get_run(workspace.invoke(*words, "--quiet").strip())

    return begin


@pytest.fixture(scope="module")
def short(begin):
    return begin("run", *SETTINGS, "train.epochs=2")


@pytest.fixture(scope="module")
def whole(begin):
    return begin("run", *SETTINGS, "train.epochs=4")


def digest(run):
    return run.data.tags["weights_digest"]


def history(client, run, key):
    points = client.get_metric_history(run.info.run_id, key)
    return {point.step: point.value for point in points}


def test_extended_it_has_the_weights_of_one_long_run(workspace, client, short, whole):
    printed = workspace.invoke("resume", short.info.run_id, "train.epochs=4")
    assert (
        f"extend    from epoch 3, where {short.info.run_name} ended: as one run of 4 epochs, "
        "with the same weights, bit for bit"
    ) in printed
    [run] = client.search_runs(["1"], order_by=["attributes.start_time DESC"], max_results=1)
    assert run.data.tags["mlflow.parentRunId"] == short.info.run_id
    assert run.data.tags[EXACT] == "true"
    assert digest(run) == digest(whole) != digest(short)
    assert run.data.metrics["test/accuracy"] == whole.data.metrics["test/accuracy"]
    assert run.data.metrics["train/epochs"] == 4
    for key in ("train/loss", "val/loss"):
        later = {step: value for step, value in history(client, whole, key).items() if step > 2}
        assert history(client, run, key) == later
    assert client.get_run(short.info.run_id).data.metrics == short.data.metrics
    # Again, from the run that extended.
    with pytest.raises(UserError, match=r"train.epochs: 4 epochs are trained already"):
        workspace.invoke("resume", run.info.run_id, "train.epochs=4")


def test_another_setting_is_named_and_takes_effect(begin, client, short, whole):
    run = begin("resume", short.info.run_id, "train.epochs=4", "optimizer.lr=0.0001")
    assert run.data.tags[EXACT] == "optimizer.lr is 0.0001 and was 0.005"
    assert digest(run) != digest(whole)
    assert set(history(client, run, "train/learning_rate").values()) == {0.0001}


def test_another_optimizer_begins_anew(begin, client, short):
    words = ("optimizer=sgd", "optimizer.lr=0.01", "model.freeze=[conv*]")
    run = begin("resume", short.info.run_id, "train.epochs=3", *words)
    assert "optimizer.name is sgd and was adam" in run.data.tags[EXACT]
    assert history(client, run, "train/learning_rate") == {3: 0.01}


def test_with_batches_of_another_size_all_its_epochs_are_trained(begin, client, short):
    run = begin("resume", short.info.run_id, "train.epochs=4", "train.batch_size=256")
    assert run.data.tags[EXACT] == "train.batch_size is 256 and was 64"
    assert run.data.metrics["train/epochs"] == 4
    assert run.data.metrics["train/steps"] == 4 * 6  # of 1,294 samples


def test_a_schedule_that_knows_the_end_goes_on_as_that_of_the_long_run(begin, client):
    words = (*PLAIN, "scheduler=cosine")
    long, short = (begin("run", *words, f"train.epochs={epochs}") for epochs in (4, 2))
    run = begin("resume", short.info.run_id, "train.epochs=4")
    assert run.data.tags[EXACT].startswith("the schedule 'cosine' depends on the length of the run")
    assert digest(run) != digest(long)
    rates = history(client, long, "train/learning_rate")
    assert history(client, run, "train/learning_rate") == {step: rates[step] for step in (3, 4)}


def test_a_run_that_ended_within_an_epoch_is_no_part_of_a_long_one(begin):
    cut = begin("run", *PLAIN, "train.epochs=2", "train.max_steps=30")
    run = begin("resume", cut.info.run_id, "train.max_steps=none", "train.epochs=3")
    assert run.data.tags[EXACT] == "its last epoch ended early, by train.max_steps"


def test_what_cannot_be_extended_is_refused_before_there_is_a_run(workspace, client, short):
    before = len(client.search_runs(["1"]))
    run_id, name = short.info.run_id, short.info.run_name
    with pytest.raises(UserError, match="it must be greater than 2, not 2"):
        workspace.invoke("resume", run_id, "optimizer.lr=0.1")
    with pytest.raises(UserError, match=r"optimizer.lrr: unknown parameter"):
        workspace.invoke("resume", run_id, "optimizer.lrr=0.1", "train.epochs=3")
    with pytest.raises(UserError, match=r"is finished.*To train it on, set train.epochs"):
        workspace.invoke("resume", run_id)
    folder = workspace.folder / "mlruns" / "runs" / run_id
    folder.rename(folder.with_name("elsewhere"))
    try:
        with pytest.raises(UserError, match=f"there is no checkpoint of it in {folder}"):
            workspace.invoke("resume", name, "train.epochs=3")
    finally:
        folder.with_name("elsewhere").rename(folder)
    client.set_terminated(run_id, "KILLED")
    with pytest.raises(UserError, match="is KILLED: only a finished run is trained on"):
        workspace.invoke("resume", run_id, "train.epochs=3")
    client.set_terminated(run_id, "FINISHED")
    assert len(client.search_runs(["1"])) == before


def test_weights_that_do_not_fit_are_refused(workspace, short):
    with pytest.raises(UserError, match="model: the weights of the finished run do not fit it"):
        workspace.invoke("resume", short.info.run_id, "train.epochs=3", "model=mlp")


@pytest.mark.slow
def test_killed_and_resumed_an_extension_is_the_long_run(workspace, client, begin, short):
    settings = ("train.epochs=14",)
    whole = begin("run", *SETTINGS, *settings)
    process = workspace.begin(
        *("resume", short.info.run_id, *settings),
        cwd=workspace.folder,
        env=workspace.environment,
    )
    for line in process.stdout:
        if "epoch 5:" in line:
            break
    for child in psutil.Process(process.pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):
            child.send_signal(signal.SIGKILL)
    process.kill()
    process.communicate()
    [run] = client.search_runs(["1"], order_by=["attributes.start_time DESC"], max_results=1)
    resumed = begin("resume", run.info.run_id)
    assert digest(resumed) == digest(whole)
    assert resumed.data.tags[EXACT] == "true"
