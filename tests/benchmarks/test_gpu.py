"""The GPU benchmark tried on the CPU with a few images: that it runs, not what it measures."""

import importlib
import io
import json
import os
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.gpu import accuracy, data, execution
from benchmarks.gpu.__main__ import ROOT, SECTIONS
from benchmarks.gpu.job import Job
from benchmarks.gpu.report import Report
from torchyard.core.hosting.host import host
from torchyard.core.training import loop

pytestmark = pytest.mark.slow

# What a machine that is lent for an hour has not: an import of it fails the run.
ABSENT = ("mlflow", "prefect", "pandas", "sqlalchemy", "sklearn", "matplotlib")
AIRBENCH = """
print("|  run     |  epoch  |  train_acc  |  val_acc  |  tta_val_acc  |  time_seconds  |")
def main(run):
    print("|  %s  |      1  |     0.5000  |   0.5000  |               |        1.0000  |" % run)
    print("|          |   eval  |     0.6000  |   0.6100  |       0.6200  |        2.0000  |")
sum([main(run) or 0 for run in range(200)])
"""


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "images.tar.gz"
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w:gz") as tar:
        for part, count in (("train", 12), ("test", 3)):
            for label in "abcdefghij":
                for number in range(count):
                    picture = Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8))
                    file = io.BytesIO()
                    picture.save(file, "JPEG")
                    member = tarfile.TarInfo(f"{part}/{label}/{number:04}.jpg")
                    member.size = file.tell()
                    file.seek(0)
                    tar.addfile(member, file)
    return path


@pytest.fixture(scope="module")
def packed(archive):
    target = archive.with_name("packed.npz")
    data.pack(archive, target)
    return target


@pytest.fixture(scope="module")
def job(packed, tmp_path_factory):
    """A section's job in this process, whose settings are put back at the end."""
    work = tmp_path_factory.mktemp("work")
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHYARD_PLUGINS", str(ROOT / "benchmarks" / "gpu" / "plugins"))
        patch.setattr(loop, "CHECKPOINT_SECONDS", loop.CHECKPOINT_SECONDS)
        host.cache_clear()
        torch.set_num_threads(1)
        job = Job(
            device=torch.device("cpu"),
            source=packed,
            work=work,
            report=Report(work / "figures.json"),
            ends=time.monotonic() + 1000,
            tiny=True,
        )
        data.prepare(job)
        yield job
    host.cache_clear()
    execution._set_up(execution.Way())
    torch.set_num_threads(threads)
    torch.backends.mkldnn.enabled = True


def test_the_file_of_images_holds_the_archives(archive, packed, job):
    with tarfile.open(archive) as tar:
        first = tar.extractfile("train/a/0000.jpg").read()
    jpegs, labels, classes = data.unpack(packed, "train")
    assert classes == list("abcdefghij")
    assert np.bincount(labels).tolist() == [12] * 10
    assert labels[jpegs.index(first)] == 0
    assert "error" not in json.dumps(job.report.figures)
    stored = job.data.train.samples[jpegs.index(first)]
    np.testing.assert_array_equal(stored, data.pixels(first))


@pytest.mark.parametrize("name", [name for name in SECTIONS if name not in ("prepare", "airbench")])
def test_every_section_has_figures_and_no_error(job, name):
    job.report.figures.clear()
    module, function = SECTIONS[name][0].split(":")
    getattr(importlib.import_module(f"benchmarks.gpu.{module}"), function)(job)
    figures = json.loads((job.work / "figures.json").read_text())
    assert figures
    assert '"error"' not in json.dumps(figures), figures
    if name == "devices":
        assert figures["against the CPU"]["float32"]["within_tolerance"]
    if name == "resume":
        assert figures["lenet"]["deterministic"]["resumed_equal"]
        assert figures["lenet"]["deterministic"]["resumed_from_step"] == 2
    if name == "graphs":
        assert all(each["losses_differ_by"] == 0 for each in figures["lenet at 16"].values())


def test_a_section_that_fails_leaves_the_others_and_is_told(job):
    job.report.figures.clear()
    with job.report.attempt("lenet", "on fire"):
        job.report.add(1, "lenet", "first")
        raise RuntimeError("out of memory")
    assert job.report.figures == {
        "lenet": {"first": 1, "on fire": {"error": "RuntimeError: out of memory"}}
    }


def test_airbench_runs_ten_times_on_our_images(tmp_path):
    file = tmp_path / "airbench94.py"
    file.write_text(AIRBENCH)
    folder = tmp_path / "work"
    folder.mkdir()
    found = accuracy._airbench(file, folder, 200)
    assert (found["status"], found["repetitions_replaced"], found["runs"]) == (0, 1, 9)
    assert (found["seconds"]["median"], found["mean_accuracy"]) == (2.0, pytest.approx(0.62))
    file.write_text(AIRBENCH + "\nimport time; time.sleep(100)")
    found = accuracy._airbench(file, folder, 6)
    assert (found["status"], found["runs"]) == ("stopped after 6 s", 9)


def test_it_needs_neither_prefect_nor_mlflow_and_keeps_what_it_has(packed, tmp_path):
    absent = tmp_path / "absent"
    absent.mkdir()
    for name in ABSENT:
        (absent / f"{name}.py").write_text(f"raise ImportError('{name} is not there')")
    out = tmp_path / "gpu.json"
    arguments = ["decoding", "--tiny", "--device", "cpu", "--data", packed, "--out", out]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *map(str, arguments), "--seconds", "200"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(absent), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    result = json.loads(out.read_text())
    assert result["facts"]["device"] == "cpu"
    assert {name: found["state"] for name, found in result["sections"].items()} == {
        "prepare": "done",
        "decoding": "done",
    }
    assert result["sections"]["prepare"]["own"]["images"] == 150
    assert result["sections"]["decoding"]["Pillow, one thread"]["greatest_difference"] == 0
    assert "--- decoding: done" in out.with_suffix(".log").read_text()
