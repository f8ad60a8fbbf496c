"""The commands `run` and `check`: what they refuse, and what a check finds."""

import pytest

from tests.pipelines.command_line import HEAVY, imported, refused, torchyard

# ---- what is refused at once


@pytest.mark.parametrize("command", ["run", "check"])
def test_every_mistake_comes_at_once_and_nothing_is_left_behind(tmp_path, command):
    said = refused(
        tmp_path,
        command,
        "cifar10",
        "model=resnet81",
        "optimizer.lrr=1",
        "train.epochs=0",
        "trian.seed=1",
        "precision=int8",
    )
    assert sorted(line.partition(": ")[0] for line in said) == [
        "model",
        "optimizer.lrr",
        "precision",
        "train.epochs",
        "trian",
    ]
    assert "model: no model named 'resnet81'. Did you mean 'resnet18'?" in said


def test_a_missing_data_folder_is_said_before_any_work(tmp_path):
    [said] = refused(tmp_path, "run", "dataset=image_folder", "dataset.path=nowhere")
    assert said.startswith("dataset.path: no such file or folder: ")


def test_a_finished_run_is_not_resumed_and_that_is_known_at_once(recorded, tmp_path):
    store = recorded.client.tracking_uri
    for name in ("lenet·sgd·cifar10 #3", recorded.ids["better"]):
        done = torchyard(
            *(tmp_path, "resume", name), options=("-X", "importtime"), MLFLOW_TRACKING_URI=store
        )
        packages, [said] = imported(done.stderr)
        assert done.returncode == 2
        assert "is finished: there is nothing left to do" in said
        assert not HEAVY & packages


# ---- what needs torch: a worker is started


def test_check_of_a_right_configuration_runs_and_records_nothing(tmp_path):
    done = torchyard(tmp_path, "check", "digits", "train.epochs=2", "device=cpu")
    assert (done.returncode, done.stderr) == (0, "")
    assert "lenet: 61,706 parameters on samples of 1x32x32" in done.stdout
    assert "Valid. It would run on cpu.\nThe data are not prepared yet" in done.stdout
    assert "epochs=2" in done.stdout
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.slow
def test_check_needs_no_proxy_and_says_which_cannot_be_used(tmp_path):
    done = torchyard(tmp_path, "check", "digits", "device=cpu", all_proxy="socks5://127.0.0.1:9")
    [note] = done.stderr.splitlines()
    assert note.startswith("note: all_proxy=socks5://127.0.0.1:9 cannot be used: SOCKS needs")
    assert done.returncode == 0
    assert "Valid. It would run on cpu." in done.stdout


def test_check_names_a_cache_that_cannot_be_one(tmp_path):
    (tmp_path / "taken").write_text("a file")
    done = torchyard(tmp_path, "check", "digits", TORCHYARD_CACHE=str(tmp_path / "taken"))
    [said] = done.stderr.splitlines()
    assert said.startswith("error: ")
    assert str(tmp_path / "taken") in said
    assert "TORCHYARD_CACHE" in said
    assert done.returncode == 2


def test_check_tells_every_problem_that_only_building_shows(tmp_path):
    words = ("model=alexnet", "loss.weight=[1, 2]", "scheduler=cosine", "train.max_steps=5")
    done = torchyard(tmp_path, "check", "digits", *words, "scheduler.warmup_steps=5")
    assert done.returncode == 2
    model, loss, scheduler = done.stderr.splitlines()
    assert model.startswith("error: model: 'alexnet' cannot take samples of 1x32x32: ")
    assert loss == "error: loss: weight has 2 values, the data has 10 classes"
    assert scheduler == "error: scheduler: warmup_steps=5, but the whole run has 5 steps"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
