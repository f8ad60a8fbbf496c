"""The whole pipeline on the digits, as a user runs it, and what it leaves in MLflow and Prefect."""

import csv
import io
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import psutil
import pytest
from mlflow.entities import ViewType
from PIL import Image

from tests.faults.killing import workers_of
from torchyard.core.data.predictions import PredictionTable
from torchyard.core.errors import DivergedError
from torchyard.core.evaluation.paired_test import compare


@pytest.fixture(scope="module")
def finished(workspace):
    """`torchyard run digits`, with a validation split."""
    done = workspace.torchyard("run", "digits", "train.validation=0.1", "train.clip_norm=5")
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def run(finished, client):
    run_id = re.search(r"\b[0-9a-f]{32}\b", finished.stdout)[0]
    return client.get_run(run_id)


def artifact(client, run, name):
    return Path(client.download_artifacts(run.info.run_id, name)).read_bytes()


def test_it_ends_with_the_table_the_accuracy_the_run_and_the_way_to_look(finished, run):
    lines = finished.stdout.splitlines()
    rows = [line for line in lines if re.match(r"│ \d ", line)]
    assert len(rows) == 10
    assert "accuracy" in finished.stdout
    assert "precision" in finished.stdout
    accuracy = float(re.search(r"([\d.]+)% of 359 test samples right", finished.stdout)[1])
    assert accuracy > 93
    assert f"MLflow run:  {run.info.run_name}" in finished.stdout
    assert lines[-1].startswith("Look at it:  ")  # no address: who knows what is served there
    assert lines[-1].endswith("torchyard ui latest")
    assert finished.stderr == ""


def test_one_run_with_the_whole_configuration(run, client):
    assert run.info.status == "FINISHED"
    assert re.fullmatch(r"lenet·adam·digits #\d+", run.info.run_name)
    params = run.data.params
    assert params["dataset.name"] == "digits"
    assert params["optimizer.lr"] == "0.005"
    assert params["optimizer.betas"] == "[0.9, 0.999]"  # a default, recorded all the same
    assert params["train.validation"] == "0.1"
    assert params["scheduler.pct_start"] == "0.3"
    assert params["device"] == "auto"


def test_metrics_of_every_epoch_and_of_the_loss_within_it(run, client):
    for name in ("train/loss", "train/accuracy", "val/loss", "val/accuracy", "train/learning_rate",
                 "train/images_per_second", "train/epoch_seconds"):  # fmt: skip
        history = client.get_metric_history(run.info.run_id, name)
        assert [metric.step for metric in history] == [1, 2, 3, 4, 5], name
    running = client.get_metric_history(run.info.run_id, "train/running_loss")
    steps = [metric.step for metric in running]
    assert len(steps) == len(set(steps)) >= 10
    assert running[-1].value < 0.3 * running[0].value


def test_the_epoch_whose_weights_are_kept_has_metrics_of_its_own(run, client):
    history = client.get_metric_history(run.info.run_id, "val/loss")
    kept = min(history, key=lambda metric: metric.value)
    assert run.data.metrics["best/val/loss"] == kept.value
    assert run.data.metrics["train/best_epoch"] == kept.step
    assert "best/train/accuracy" in run.data.metrics


def test_final_metrics_overall_and_of_each_class(run):
    metrics = run.data.metrics
    assert metrics["test/accuracy"] > 0.93
    for name in ("recall", "precision", "f1"):
        values = [metrics[f"test/{name}/{digit}"] for digit in range(10)]
        assert all(0.5 < value <= 1 for value in values)
    assert metrics["system/peak_memory_mib"] > 100
    assert {f"time/{stage}_seconds" for stage in ("prepare", "train", "evaluate", "report")} <= set(
        metrics
    )


def test_device_placement_plugins_and_commit_are_tags(run):
    tags = run.data.tags
    assert tags["device"] == tags["model_device"] == tags["normalization_device"]
    assert tags["data_device"]
    assert tags["device_name"]
    assert tags["precision"] == "float32"
    assert int(tags["threads"]) >= 1
    assert tags["torch_version"].startswith("2.")
    assert tags["plugin.model"].startswith("torchyard==")
    assert tags["model"] == "lenet"
    assert re.fullmatch(r"[0-9a-f]{64}", tags["weights_digest"])


def test_the_data_set_is_an_input_with_its_digest(run):
    inputs = {entry.dataset.name: entry.dataset for entry in run.inputs.dataset_inputs}
    assert set(inputs) == {"digits train", "digits test"}
    profile = json.loads(inputs["digits test"].profile)
    assert profile["rows"] == 359
    assert profile["sha256"].startswith(inputs["digits test"].digest)


def test_tables_pictures_and_report_are_artifacts(run, client):
    table = list(csv.DictReader(io.StringIO(artifact(client, run, "per_class.csv").decode())))
    assert [row["class"] for row in table] == [str(digit) for digit in range(10)]
    assert json.loads(artifact(client, run, "per_class.json"))[3]["class"] == "3"
    for picture in ("confusion_matrix.png", "test_images.png", "confident_mistakes.png"):
        assert artifact(client, run, picture).startswith(b"\x89PNG")
    report = artifact(client, run, "report.md").decode()
    assert report.startswith("# lenet on digits: ")
    assert "Prefect flow run" in report
    assert run.data.tags["mlflow.note.content"] == report


def test_the_report_is_a_page_that_needs_no_other_file(run, client):
    page = artifact(client, run, "report.html").decode()
    assert run.info.run_name in page
    assert f"{100 * run.data.metrics['test/accuracy']:.1f} %" in page
    assert page.count("<svg") == 4  # two learning curves, confusion matrix, calibration
    assert "validation" in page
    assert "pct_start: 0.3" in page
    for stage in ("prepare", "train", "evaluate"):
        assert f"<th>{stage}</th>" in page
    wrong = round(359 * (1 - run.data.metrics["test/accuracy"]))
    assert len(re.findall(r'<li><img [^>]*alt="test image', page)) == min(24, wrong)


def test_what_explains_mistakes_and_the_model_card_are_artifacts(run, client):
    found = json.loads(artifact(client, run, "nearest.json"))
    wrong = round(359 * (1 - run.data.metrics["test/accuracy"]))
    assert len(found["samples"]) == min(24, wrong)
    page = artifact(client, run, "report.html").decode()
    assert page.count('alt="training image ') == sum(map(len, found["samples"].values()))
    assert "How it was trained" in page
    assert "lenet on digits" in artifact(client, run, "model_card.md").decode()


def test_what_was_predicted_of_each_sample_is_an_artifact(run, client):
    path = Path(client.download_artifacts(run.info.run_id, "predictions.parquet"))
    table = pd.read_parquet(path)
    assert (table["true"] == table["predicted"]).mean() == run.data.metrics["test/accuracy"]
    assert table.attrs["run"] == run.info.run_name
    same = compare(PredictionTable.read(path), PredictionTable.read(path))
    assert (same.overall.images, same.overall.difference) == (359, 0)


def test_the_recorded_configuration_is_the_same_run_again(run, client, workspace):
    from torchyard.core.config.resolve import read_config
    from torchyard.core.hosting.host import host

    path = client.download_artifacts(run.info.run_id, "config.yaml")
    resolved = read_config(path, [], Path(), host())
    assert resolved.config.model_dump(mode="json")["train"]["validation"] == 0.1
    assert resolved.config.optimizer.lr == 0.005


LOAD = """
import json, sys
import mlflow, numpy as np
from torchyard.core.data.dataset import PreparedDataset
from pathlib import Path
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
(folder,) = [p.parent for p in Path(sys.argv[3]).glob("prepared/*/manifest.json")
             if json.loads(p.read_text())["shape"] == [1, 32, 32]]
test = PreparedDataset.open(folder).test.samples
outputs = np.concatenate([model.predict(np.array(test[:1])), model.predict(np.array(test[1:8])),
                          model.predict(np.array(test[8:]))])
np.save(sys.argv[4], outputs)
print(json.dumps({"classes": model.metadata.metadata["classes"],
                  "signature": str(model.metadata.signature)}))
"""


def test_the_model_takes_raw_pixels_and_predicts_what_was_evaluated(
    run, client, workspace, tmp_path
):
    (output,) = run.outputs.model_outputs
    done = subprocess.run(
        [sys.executable, "-c", LOAD, f"sqlite:///{workspace.folder}/mlruns/mlflow.db",
         f"models:/{output.model_id}", str(workspace.folder / "cache"), str(tmp_path / "out.npy")],
        env=workspace.environment, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    described = json.loads(done.stdout)
    assert described["classes"] == [str(digit) for digit in range(10)]
    assert "uint8" in described["signature"]
    stored = workspace.folder / "mlruns" / "runs" / run.info.run_id / "predictions.parquet"
    evaluated = PredictionTable.read(stored).predictions
    outputs = np.load(tmp_path / "out.npy")
    assert np.array_equal(outputs.argmax(1), evaluated.predicted)
    assert np.allclose(outputs, evaluated.logits, atol=1e-4)


def prefect(workspace, path, **body):
    answer = httpx.post(
        f"{workspace.api_url}/{path}", json=body, headers=workspace.headers, timeout=60
    )
    answer.raise_for_status()
    return answer.json()


def test_prefect_has_the_flow_its_tasks_artifacts_and_the_link(run, workspace):
    flow_id = run.data.tags["prefect.flow_run_id"]
    flow = httpx.get(
        f"{workspace.api_url}/flow_runs/{flow_id}", headers=workspace.headers, timeout=60
    ).json()
    assert flow["name"] == run.info.run_name
    assert flow["state"]["type"] == "COMPLETED"
    assert flow["parameters"]["config"]["model"]["name"] == "lenet"
    assert run.data.tags["prefect.flow_run_url"].endswith(f"/runs/flow-run/{flow_id}")
    mine = {"flow_runs": {"id": {"any_": [flow_id]}}}
    tasks = {each["name"] for each in prefect(workspace, "task_runs/filter", **mine)}
    assert tasks == {"prepare_data: digits", "train_model: lenet, adam", "evaluate_model: lenet",
                     "report_per_class: digits"}  # fmt: skip
    artifacts = {each["key"]: each for each in prefect(workspace, "artifacts/filter", **mine)}
    assert set(artifacts) == {"per-class", "report", "mlflow-run"}
    assert len(json.loads(artifacts["per-class"]["data"])) == 10
    assert run.info.run_id in artifacts["mlflow-run"]["data"]
    assert artifacts["report"]["data"].startswith("# lenet on digits")


@pytest.mark.slow
def test_what_is_left_out_of_the_data_is_in_the_record_of_every_run(
    workspace, client, finished, tmp_path
):
    for part in ("train", "val", "test"):
        for shade, label in enumerate(("dark", "light")):
            (tmp_path / part / label).mkdir(parents=True)
            for number in range(3):
                image = Image.new("RGB", (8, 8), (200 * shade + number, 3 * number, 9 * number))
                image.save(tmp_path / part / label / f"{number}.png")
    (tmp_path / "train/dark/notes.txt").touch()
    left_out = "1 of 19 files are not images of a class and are left out: 1 .txt; in train/dark 1"
    own = "its own validation split is used, and train.validation=0.1 is not"
    for found in ("prepared", "found prepared"):
        done = workspace.torchyard(
            *("run", "digits", "dataset=image_folder", f"dataset.path={tmp_path}"),
            *("model=linear", "train.epochs=1", "train.validation=0.1"),
        )
        assert f"6 training, 6 validation and 6 test samples of 3x8x8, 2 classes, {found}" in (
            done.stdout
        )
        assert f"prepare   {left_out}\nprepare   {own}\n" in done.stdout
        run = client.get_run(re.search(r"\b[0-9a-f]{32}\b", done.stdout)[0])
        assert run.data.tags["data_notes"] == f"{left_out}\n{own}"
        assert left_out in artifact(client, run, "report.md").decode()
        assert left_out in artifact(client, run, "report.html").decode()
        inputs = {each.dataset.name for each in run.inputs.dataset_inputs}
        assert inputs == {f"image_folder {part}" for part in ("train", "validation", "test")}


def test_ctrl_c_leaves_a_killed_run_and_no_process(workspace, client, finished):
    running = subprocess.Popen(
        workspace.command("run", "digits", "train.epochs=100000"),
        cwd=workspace.folder, env=workspace.environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        # As on a terminal: what a shell starts in the background ignores Ctrl-C, and so would
        # every process that these tests start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    for line in running.stdout:
        if "epoch 3" in line:
            break
    workers = workers_of(running.pid)
    assert len(workers) == 1
    running.send_signal(signal.SIGINT)
    try:
        for _ in range(10):  # whoever is impatient presses it again, while the end is recorded
            time.sleep(0.05)
            running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=150)
    finally:
        running.kill()
    assert running.returncode == 130
    said = errors.splitlines()
    assert said[0] == "Interrupted."
    assert said[1].startswith("Recorded as KILLED: ")
    assert said[2:] == ["`torchyard resume latest` resumes it."]
    (newest,) = client.search_runs(["1"], max_results=1)
    assert newest.info.status == "KILLED"
    assert newest.data.metrics["train/loss"] > 0
    _gone, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive
    default = workspace.folder / "mlruns" / "runs" / newest.info.run_id
    checkpoint = Path(newest.data.tags.get("checkpoints") or default) / "last.pt"
    assert checkpoint.is_file()


def test_a_diverging_loss_fails_the_run_with_epoch_and_step(workspace, client, finished):
    settings = ("optimizer=sgd", "optimizer.lr=1e20", "scheduler=constant")
    with pytest.raises(
        DivergedError, match=r"^The loss became (nan|inf) in epoch 1 at step \d+"
    ) as raised:
        workspace.invoke("run", "digits", *settings)
    assert raised.value.details == ""  # no traceback
    (newest,) = client.search_runs(["1"], max_results=1)
    assert newest.info.status == "FAILED"
    assert "The loss became" in newest.data.tags["torchyard.reason"]
    flow = httpx.get(
        f"{workspace.api_url}/flow_runs/{newest.data.tags['prefect.flow_run_id']}",
        headers=workspace.headers,
        timeout=60,
    ).json()
    assert flow["state"]["type"] == "FAILED"


@pytest.mark.slow
def test_data_that_are_refused_leave_no_run_and_no_advice_that_cannot_help(
    workspace, client, finished, tmp_path
):
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for number in "12":
            (tmp_path / label / f"{number}.png").write_bytes(b"no image")
    before = client.search_runs(["1"])
    done = workspace.torchyard("run", "digits", "dataset=image_folder", f"dataset.path={tmp_path}")
    assert done.returncode == 2
    said = done.stderr.splitlines()
    assert re.search(rf"error: dataset image_folder: {tmp_path}/cat/\d.png: not an image", said[0])
    assert said[-1].endswith("set dataset.broken=skip to leave out images that cannot be read")
    assert "resume" not in done.stderr
    after = client.search_runs(["1"], run_view_type=ViewType.ALL)
    assert {run.info.status for run in after} <= {"FINISHED", "FAILED", "KILLED"}
    assert [run.info.run_id for run in client.search_runs(["1"])] == [
        run.info.run_id for run in before
    ]


@pytest.mark.slow
def test_two_runs_at_once_have_their_own_records(workspace, client, finished):
    before = {run.info.run_id for run in client.search_runs(["1"])}
    both = [
        subprocess.Popen(
            workspace.command("run", "digits", "train.epochs=1", f"train.seed={seed}"),
            cwd=workspace.folder,
            env=workspace.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for seed in (1, 2)
    ]
    outputs = [each.communicate(timeout=200)[0] for each in both]
    assert [each.returncode for each in both] == [0, 0], outputs
    new = [run for run in client.search_runs(["1"]) if run.info.run_id not in before]
    assert {run.info.status for run in new} == {"FINISHED"}
    assert {run.data.params["train.seed"] for run in new} == {"1", "2"}
    assert len({run.info.run_name for run in new}) == 2


@pytest.mark.long  # the C++ compiler works for a quarter of a minute
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
def test_a_compiled_run_says_so_and_keeps_what_it_compiled(workspace, client, finished):
    arguments = ["run", "digits", "train.batch_size=4", "train.epochs=1", "train.compile=true"]
    first, second = workspace.torchyard(*arguments), workspace.torchyard(*arguments)
    assert re.search(r"float32, 1 thread, compiled in \d+\.\d s", first.stdout)
    newest, before = client.search_runs(["1"], max_results=2)
    assert newest.data.tags["compiled"].startswith("in ")
    assert newest.data.tags["weights_digest"] == before.data.tags["weights_digest"]
    cache = Path(workspace.environment["TORCHYARD_CACHE"])
    assert any((cache / "compiled").rglob("*.so"))
    assert second.returncode == 0


def test_a_run_that_can_only_repeat_another_says_so_and_is_skipped_if_asked(
    workspace, client, finished
):
    settings = ["train.validation=0.1", "train.clip_norm=5", "train.skip_repeats=true"]
    printed = workspace.invoke("run", "digits", *settings)
    assert "had the same configuration, seed, data and code" in printed
    assert "epoch 1" not in printed
    skipped = client.search_runs(["1"], max_results=1)[0]
    assert skipped.info.status == "KILLED"
    assert skipped.data.tags["torchyard.reason"].startswith("skipped: ")
