"""What goes wrong in a run: what the user reads, what MLflow keeps, what is left on disk."""

import contextlib
import hashlib
import os
import tarfile
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image

from tests.faults.killing import workers_of
from torchyard.core.config.schema import RunConfig
from torchyard.core.errors import RunError, UnreachableError, UserError

PLUGIN = '''
"""Plugins that misbehave, and one data set of vectors."""
from torchyard import ArraySplit, DatasetParams, LossParams, ModelParams, OptimizerParams
from torchyard import RawData, SchedulerParams, hookimpl


class Vectors(DatasetParams):
    """Five-dimensional vectors of three classes."""

    def build(self, downloads):
        import numpy as np

        rng = np.random.default_rng(0)
        labels = rng.integers(0, 3, 120)
        samples = (rng.normal(size=(120, 5)) + 4 * labels[:, None]).astype(np.float32)
        split = ArraySplit(samples[:90], labels[:90])
        return RawData(["low", "middle", "high"], split, ArraySplit(samples[90:], labels[90:]))


class Raises(ModelParams):
    """Raises in the middle of training."""

    def build(self, input_shape, num_classes):
        from torch import nn

        class Network(nn.Sequential):
            calls = 0

            def forward(self, samples):
                self.calls += 1
                if self.training and samples.device.type != "meta" and self.calls > 20:
                    raise RuntimeError("boom in the plugin")
                return super().forward(samples)

        return Network(nn.Flatten(), nn.Linear(1024, num_classes))


class RaisesOnce(ModelParams):
    """Raises in its third epoch, the first time."""

    marker: str

    def build(self, input_shape, num_classes):
        from pathlib import Path

        from torch import nn

        marker = Path(self.marker)

        class Network(nn.Sequential):
            calls = 0

            def forward(self, samples):
                self.calls += self.training and samples.device.type != "meta"
                if self.calls > 100 and not marker.exists():
                    marker.touch()
                    raise RuntimeError("boom, once")
                return super().forward(samples)

        return Network(nn.Flatten(), nn.Linear(1024, num_classes))


def late(calls, what):
    """Raise in the third of four epochs of 45 steps, as the marker's file asks."""
    import os
    from pathlib import Path

    file = Path(os.environ["TORCHYARD_CACHE"]) / "late"
    if calls > 100 and file.exists() and file.read_text() == what:
        raise RuntimeError(f"boom in the {what}, late")


class LateOptimizer(OptimizerParams):
    """SGD whose step, or whose state when it is read again, raises late."""

    def build(self, parameters):
        import torch

        class Late(torch.optim.SGD):
            calls = 0

            def step(self, closure=None):
                self.calls += 1
                late(self.calls, "step")
                return super().step(closure)

            def load_state_dict(self, state):
                late(1000 * (not self.state), "state")  # not in the check, which has done a step
                super().load_state_dict(state)

        return Late(parameters, lr=0.1, momentum=0.9)


class LateSchedule(SchedulerParams):
    """A constant rate whose step raises late."""

    def build(self, optimizer, total_steps):
        import torch

        class Late(torch.optim.lr_scheduler.LambdaLR):
            def step(self, epoch=None):
                late(self.last_epoch, "schedule")
                super().step(epoch)

        return Late(optimizer, lambda step: 1.0)


class LateLoss(LossParams):
    """Cross-entropy that raises late."""

    def build(self, num_classes):
        from itertools import count

        from torch.nn.functional import cross_entropy

        calls = count()

        def loss(logits, targets):
            late(next(calls), "loss")
            return cross_entropy(logits, targets)

        return loss


class Untraceable(ModelParams):
    """Looks at its data's values, which torch.export cannot follow."""

    def build(self, input_shape, num_classes):
        from torch import nn

        class Network(nn.Sequential):
            def forward(self, samples):
                if samples.device.type != "meta" and samples.sum().item() > 1e9:
                    samples = samples / 2
                return super().forward(samples)

        return Network(nn.Flatten(), nn.Linear(1024, num_classes))


@hookimpl
def register_datasets(register):
    register("vectors", Vectors)


@hookimpl
def register_models(register):
    register("raises", Raises)
    register("raises_once", RaisesOnce)
    register("untraceable", Untraceable)


@hookimpl
def register_optimizers(register):
    register("late_optimizer", LateOptimizer)


@hookimpl
def register_schedulers(register):
    register("late_schedule", LateSchedule)


@hookimpl
def register_losses(register):
    register("late_loss", LateLoss)
'''


@pytest.fixture(scope="module", autouse=True)
def plugins(workspace):
    with workspace.plugin_file("misbehaving", PLUGIN):
        yield


def train(dataset="digits", model="linear", retries=0, **settings):
    from torchyard.pipelines.flow.pipeline import train_pipeline

    config = {
        "dataset": dataset if isinstance(dataset, dict) else {"name": dataset},
        "model": model if isinstance(model, dict) else {"name": model},
        "optimizer": {"name": "adam", "lr": 0.01},
        "train": {"epochs": 1, "log_every": 5, **settings},
    }
    return train_pipeline.with_options(retries=retries)(RunConfig(**config))


def newest():
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{Path('mlruns/mlflow.db').absolute()}")
    experiment = client.get_experiment_by_name("torchyard")
    (run,) = client.search_runs([experiment.experiment_id], max_results=1)
    return client, run


@pytest.mark.slow
def test_vectors_run_from_data_to_model():
    outcome = train("vectors", epochs=30)
    assert outcome.accuracy > 0.9
    client, run = newest()
    assert run.info.status == "FINISHED"
    names = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    assert "per_class.csv" in names
    assert "test_images.png" not in names
    assert len(run.outputs.model_outputs) == 1


def test_a_plugin_that_raises_fails_the_run_which_goes_on_once_it_is_mended(workspace, tmp_path):
    file = workspace.folder / "plugins_misbehaving" / "misbehaving.py"
    text = file.read_text()
    line = text.splitlines().index('                    raise RuntimeError("boom, once")') + 1
    with pytest.raises(RunError) as caught:
        train(model={"name": "raises_once", "marker": str(tmp_path / "marker")}, epochs=4)
    where = f"misbehaving ({file}, line {line})"
    assert str(caught.value) == f"'train' failed in {where}: RuntimeError: boom, once"
    assert 'raise RuntimeError("boom, once")' in caught.value.details
    client, run = newest()
    assert run.info.status == "FAILED"
    assert "boom, once" in run.data.tags["torchyard.reason"]
    assert Path(f"mlruns/runs/{run.info.run_id}/last.pt").exists()
    before = run.data.tags["plugin.model"]
    assert before == f"sha256:{hashlib.sha256(text.encode()).hexdigest()} (misbehaving.py)"
    assert not any(name.startswith("plugins") for name in run.data.params)

    (tmp_path / "empty").mkdir()
    with workspace.plugins(tmp_path / "empty"), pytest.raises(UserError) as caught:
        workspace.invoke("resume", run.info.run_id)
    assert "model: no model named 'raises_once'." in str(caught.value)
    assert str(caught.value).endswith(f"This configuration had it from {before}.")

    (tmp_path / "mended").mkdir()
    (tmp_path / "mended" / "misbehaving.py").write_text(f"{text}# mended")
    with workspace.plugins(tmp_path / "mended"):
        workspace.invoke("resume", run.info.run_id)
    run = client.get_run(run.info.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["plugin.model"] != before
    assert run.data.tags["plugins_changed"] == (
        f"model raises_once was of {before}, and is of {run.data.tags['plugin.model']} here"
    )
    losses = client.get_metric_history(run.info.run_id, "train/loss")
    assert [metric.step for metric in losses] == [1, 2, 3, 4]


@pytest.fixture
def late():
    """The file that says what raises late."""
    file = Path(os.environ["TORCHYARD_CACHE"]) / "late"
    yield file
    file.unlink(missing_ok=True)


LATE = {
    "optimizer": "late_optimizer",
    "scheduler": "late_schedule",
    "loss": "late_loss",
    "model": "linear",
    "train.epochs": 4,
}


def late_run(workspace, call):
    """The message of a run that a plugin fails, its record, and the file of its traceback."""
    with pytest.raises(RunError) as caught:
        call()
    client, run = newest()
    assert run.info.status == "FAILED"
    reason = run.data.tags["torchyard.reason"]
    assert reason == str(caught.value)
    flow = httpx.get(
        f"{workspace.api_url}/flow_runs/{run.data.tags['prefect.flow_run_id']}",
        headers=workspace.headers,
        timeout=60,
    ).json()
    assert flow["state"]["type"] == "FAILED"
    kept = client.download_artifacts(run.info.run_id, caught.value.kept)
    return reason, run, Path(kept).read_text()


@pytest.mark.parametrize("what", ["step", "schedule", "loss"])
def test_a_plugin_that_raises_late_is_one_message_and_its_traceback_an_artifact(
    workspace, late, what
):
    file = workspace.folder / "plugins_misbehaving" / "misbehaving.py"
    lines = file.read_text().splitlines()
    line = lines.index('        raise RuntimeError(f"boom in the {what}, late")') + 1
    settings = [f"{name}={value}" for name, value in LATE.items()]

    late.write_text(what)
    where = f"misbehaving ({file}, line {line})"
    message, run, kept = late_run(workspace, lambda: workspace.invoke("run", "digits", *settings))
    assert message == f"'train' failed in {where}: RuntimeError: boom in the {what}, late"
    assert "Traceback" in kept
    assert f"line {line}, in late" in kept

    if what == "step":
        late.write_text("state")  # read by the resumed run, before its first step
        message, *_ = late_run(workspace, lambda: workspace.invoke("resume", run.info.run_id))
        assert message == f"'train' failed in {where}: RuntimeError: boom in the state, late"

    late.unlink()
    workspace.invoke("resume", run.info.run_id)
    client, run = newest()
    assert run.info.status == "FINISHED"
    losses = client.get_metric_history(run.info.run_id, "train/loss")
    assert [metric.step for metric in losses] == [1, 2, 3, 4]


@pytest.mark.slow
def test_the_terminal_has_the_message_of_a_plugin_that_raises_late_and_no_traceback(
    workspace, late
):
    late.write_text("schedule")
    settings = [f"{name}={value}" for name, value in LATE.items()]
    folders = {"TORCHYARD_PLUGINS": os.environ["TORCHYARD_PLUGINS"]}
    done = workspace.torchyard("run", "digits", *settings, "--quiet", env=folders)
    _, run = newest()
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"failed: {run.data.tags['torchyard.reason']}",
        "Where that was raised, in full: failure.txt of the run.",
        f"Recorded as FAILED: {run.info.run_name}  {run.info.run_id}",
        "`torchyard resume latest` resumes it.",
    ]


@pytest.mark.slow
def test_a_flow_tried_again_continues_its_run_from_the_checkpoint(tmp_path):
    outcome = train(
        model={"name": "raises_once", "marker": str(tmp_path / "marker")}, retries=1, epochs=4
    )
    client, run = newest()
    assert (run.info.run_id, run.info.status) == (outcome.run_id, "FINISHED")
    flow_id = run.data.tags["prefect.flow_run_id"]
    chosen = f"tags.`prefect.flow_run_id` = '{flow_id}'"
    assert len(client.search_runs([run.info.experiment_id], chosen)) == 1
    losses = client.get_metric_history(run.info.run_id, "train/loss")
    assert [metric.step for metric in losses] == [1, 2, 3, 4]


def test_a_model_that_cannot_be_exported_keeps_everything_else():
    outcome = train(model="untraceable")
    client, run = newest()
    assert run.info.status == "FINISHED"
    assert "cannot be exported" in run.data.tags["model_not_logged"]
    assert run.data.metrics["test/accuracy"] == outcome.accuracy
    assert "report.md" in {artifact.path for artifact in client.list_artifacts(run.info.run_id)}


@pytest.mark.slow
def test_a_worker_that_dies_fails_the_run_and_the_next_one_has_a_new_worker():
    from torchyard.pipelines.worker.process import shared_worker

    shared_worker()

    def kill():
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline:
            time.sleep(0.05)
            for checkpoint in Path("mlruns/runs").glob("*/last.pt"):
                if checkpoint.stat().st_mtime > started:
                    kill_workers()
                    return

    started = time.time()
    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(RunError, match="'train' died \\(SIGKILL"):
        train(epochs=5_000)
    killer.join()
    _, run = newest()
    assert run.info.status == "FAILED"
    assert train().accuracy > 0.2


@pytest.mark.slow
def test_a_data_parallel_process_that_raises_fails_the_run_with_its_traceback():
    with pytest.raises(
        RunError, match=r"training failed in misbehaving \(.*\): RuntimeError: boom in the plugin"
    ):
        train(model="raises", epochs=30, parallel="ddp", processes=2)
    _, run = newest()
    assert run.info.status == "FAILED"
    assert all_gone()


@pytest.mark.slow
def test_no_data_parallel_process_outlives_its_worker():
    from torchyard.pipelines.worker.process import shared_worker

    shared_worker()

    def kill():
        deadline = time.monotonic() + 600
        while len(members()) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(3)  # in the middle of training
        kill_workers()

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(RunError, match="'train' died \\(SIGKILL"):
        train(epochs=5_000, parallel="ddp", processes=2)
    killer.join()
    assert all_gone()


def kill_workers():
    for worker in workers_of(os.getpid()):
        worker.kill()


def all_gone():
    deadline = time.monotonic() + 120
    while (left := members()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not left


def members():
    """The processes of teams: torch's launcher starts them with multiprocessing's spawn.

    Those of this folder's runs: tests that run beside these ones have teams, too.
    """
    found, home = [], os.environ["PREFECT_HOME"]
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any("spawn_main" in word for word in process.cmdline()) and (
                process.environ().get("PREFECT_HOME") == home
            ):
                found.append(process)
    return found


def images(folder: Path, names=("ant", "bee"), count=12, test=()):
    rng = np.random.default_rng(0)
    for part, classes in (("train", names), ("test", test)):
        for shade, name in enumerate(names):
            if name in classes:
                target = folder / part / name
                target.mkdir(parents=True)
                for index in range(count):
                    pixels = rng.integers(0, 60, (20, 20, 3), dtype=np.uint8) + 90 * (shade % 3)
                    Image.fromarray(pixels.astype(np.uint8)).save(target / f"{index:02}.png")


@pytest.mark.slow
def test_a_class_without_test_images_says_so_and_divides_nothing(tmp_path):
    names = ("ant", 'say "bee", 蜂', "<b>cat|dog")
    images(tmp_path, names, test=names[:2])
    outcome = train({"name": "image_folder", "path": str(tmp_path)}, batch_size=4)
    empty = [row for row in outcome.per_class if row["images"] == 0]
    assert [row["class"] for row in empty] == ["<b>cat|dog"]
    assert empty[0]["accuracy"] is None
    client, run = newest()
    recalls = [key for key in run.data.metrics if key.startswith("test/recall/")]
    assert len(recalls) == 2
    report = Path(client.download_artifacts(run.info.run_id, "report.md")).read_text()
    assert "Without a test sample" in report


@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_a_truncated_archive_is_one_message_and_leaves_nothing(tmp_path, keep):
    images(tmp_path / "data", test=("ant", "bee"))
    with tarfile.open(tmp_path / "data.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "data", ".")
    content = (tmp_path / "data.tar.gz").read_bytes()
    (tmp_path / "data.tar.gz").write_bytes(content[: int(len(content) * keep)])
    cache = Path(os.environ["TORCHYARD_CACHE"])
    before, (_, last) = sorted(cache.glob("prepared/*")), newest()
    with pytest.raises(UserError, match=r"data\.tar\.gz is damaged or cut short"):
        train({"name": "image_folder", "path": str(tmp_path / "data.tar.gz")})
    assert sorted(cache.glob("prepared/*")) == before
    _, run = newest()
    assert run.info.run_id == last.info.run_id  # a mistake in the data leaves no run


def test_no_connection_names_what_failed_and_the_three_ways_on():
    with pytest.raises(UnreachableError) as caught:
        train({"name": "cifar10", "mirror": "http://127.0.0.1:9/"}, model="lenet")
    message = str(caught.value)
    assert "127.0.0.1:9" in message
    for way in ("dataset.mirror=", "dataset.path=", "digits"):
        assert way in message


def test_a_wrong_configuration_records_nothing():
    _, before = newest()
    with pytest.raises(UserError, match="'alexnet' cannot take samples of 1x32x32"):
        train(model="alexnet")
    _, after = newest()
    assert after.info.run_id == before.info.run_id


def test_mlruns_that_cannot_be_written_is_said_before_any_work(workspace, tmp_path):
    (tmp_path / "mlruns").write_text("a file")
    done = workspace.torchyard("run", "digits", cwd=tmp_path)
    assert done.returncode == 2
    assert "mlruns" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mlruns"]


@pytest.mark.slow
def test_a_full_disk_is_one_message_and_the_record_stays_whole(workspace, disk):
    small = disk("6m")
    done = workspace.torchyard("run", "digits", "model=mlp", "model.hidden=[1024]", cwd=small)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "last.pt cannot be written: no space left on the disk" in done.stderr
    assert not list(small.glob("mlruns/runs/*/*.pt"))
