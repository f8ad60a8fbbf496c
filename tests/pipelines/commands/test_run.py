"""The command line as a user meets it: a process, its exit status and what it prints."""

import json
import os
import subprocess
import sys

import pytest

from torchyard.core.hosting.hookspecs import HOOKS

HEAVY = {"torch", "torchvision", "mlflow", "prefect", "numpy", "sklearn", "pandas", "matplotlib"}
SETTINGS = ("TORCHYARD_PLUGINS", "MLFLOW_TRACKING_URI", "PREFECT_API_URL")


def torchyard(folder, *words, options=(), **environment):
    kept = {key: value for key, value in os.environ.items() if key not in SETTINGS}
    return subprocess.run(
        [sys.executable, *options, "-m", "torchyard", *words],
        cwd=folder,
        env=kept | {"TORCHYARD_CACHE": str(folder / "cache"), "COLUMNS": "200"} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def imported(stderr):
    """Split what `-X importtime` prints: the packages imported, and what else was said."""
    lines = stderr.splitlines()
    times = [line for line in lines if line.startswith("import time:")]
    packages = {line.rpartition("|")[2].strip().partition(".")[0] for line in times}
    return packages, [line for line in lines if line not in times]


def at_once(folder, *words, **environment):
    """Run a command that must answer without a heavy import and leave nothing behind."""
    done = torchyard(folder, *words, options=("-X", "importtime"), **environment)
    packages, said = imported(done.stderr)
    assert {"core", "plugins"} & packages  # so the imports were seen
    assert not HEAVY & packages
    assert list(folder.iterdir()) == []
    assert "Traceback" not in done.stderr
    return done, said


def refused(folder, *words, **environment):
    done, said = at_once(folder, *words, **environment)
    assert done.returncode == 2
    assert done.stdout == ""
    assert all(line.startswith("error: ") for line in said)
    return [line.removeprefix("error: ") for line in said]


# ---- what answers at once


def test_help_names_the_commands_and_the_presets(tmp_path):
    done, _ = at_once(tmp_path, "--help")
    assert done.returncode == 0
    for command in ("run", "check", "plugins", "inspect", "inspect-model", "predict"):
        assert f" {command} " in done.stdout
    done, _ = at_once(tmp_path, "run", "--help")
    assert done.returncode == 0
    assert "cifar10, cifar10-fast, digits, or a file" in done.stdout
    assert "[bold]" not in done.stdout


def test_plugins_are_listed_with_what_they_are_and_where_from(tmp_path):
    done, said = at_once(tmp_path, "plugins")
    assert (done.returncode, said) == (0, [])
    rows = {tuple(line.split()[:2]): line for line in done.stdout.splitlines()}
    for kind, name in (
        ("dataset", "cifar10"),
        ("model", "resnet18"),
        ("loss", "mse"),
        ("optimizer", "gradient_descent"),
        ("scheduler", "one_cycle"),
    ):
        assert "torchyard" in rows[kind, name]
    assert "(torch.optim.Adam; Kingma and Ba" in rows["optimizer", "adam"]


def test_plugins_of_one_kind_for_machines(tmp_path):
    done, said = at_once(tmp_path, "plugins", "model", "--json")
    assert (done.returncode, said) == (0, [])
    answer = json.loads(done.stdout)
    assert answer["broken"] == []
    models = {row["name"]: row for row in answer["plugins"]}
    assert {"lenet", "linear", "mlp", "vit_b_16"} <= models.keys()
    assert {row["kind"] for row in answer["plugins"]} == {"model"}
    assert models["lenet"]["origin"].endswith("(torchyard.plugins.models.basic)")
    assert models["lenet"]["summary"].startswith("The 60-minute blitz's network")


def test_a_broken_plugin_is_shown_and_hinders_nothing(tmp_path):
    plugins, folder = tmp_path / "plugins", tmp_path / "folder"
    for each in (plugins, folder):
        each.mkdir()
    file = plugins / "mine.py"
    file.write_text("import no_such_module")
    reason = "ModuleNotFoundError: No module named 'no_such_module'"
    done, said = at_once(folder, "plugins", "loss", "--load", TORCHYARD_PLUGINS=str(plugins))
    assert done.returncode == 0
    assert "cross_entropy" in done.stdout
    assert said == [f"failed to load: {file}: {reason}"]
    done, said = at_once(folder, "plugins", "--load", "--json", TORCHYARD_PLUGINS=str(plugins))
    assert (done.returncode, said) == (0, [])
    assert json.loads(done.stdout)["broken"] == [{"source": str(file), "reason": reason}]


def test_an_unknown_kind_is_answered_with_those_there_are(tmp_path):
    assert refused(tmp_path, "plugins", "modle") == [
        f"no kind named 'modle'. Did you mean 'model'?  (accepts: {', '.join(HOOKS)})"
    ]


def test_one_plugin_is_shown_with_what_its_parameters_accept(tmp_path):
    done, said = at_once(tmp_path, "plugins", "show", "dataset", "image_folder")
    assert (done.returncode, said) == (0, [])
    assert done.stdout.startswith("image_folder  dataset, from torchyard ")
    assert "The class folders lie at the top" in done.stdout
    rows = {line.partition(" ")[0]: " ".join(line.split()) for line in done.stdout.splitlines()}
    assert rows["path"] == "path path required the folder or archive"
    assert rows["test_fraction"].startswith("test_fraction float > 0 and < 1 0.2 share of each")
    assert "integer > 0, or (integer > 0, integer > 0), or none none side, or" in rows["image_size"]
    done, _ = at_once(tmp_path, "plugins", "show", "model", "resnet18")
    assert "torchvision.models.resnet18" in done.stdout
    assert "no parameters" in done.stdout


def test_plugins_help_tells_of_listing_and_showing(tmp_path):
    done, _ = at_once(tmp_path, "plugins", "--help")
    assert "torchyard plugins model" in done.stdout
    assert "torchyard plugins show model mlp" in done.stdout
    assert "[bold]" not in done.stdout


@pytest.mark.parametrize(
    ("words", "problems"),
    [
        (
            ["plugins", "show", "model", "resnet81"],
            ["model: no model named 'resnet81'. Did you mean 'resnet18'?"],
        ),
        (
            ["plugins", "show", "modle", "mlp"],
            [f"no kind named 'modle'. Did you mean 'model'?  (accepts: {', '.join(HOOKS)})"],
        ),
        (
            ["inspect", "digits", "imagesize=9", "seed=-1"],
            [
                "dataset.imagesize: unknown parameter of 'digits'. Did you mean "
                "'dataset.image_size'?  (accepts: image_size, test_fraction, seed)",
                "dataset.seed: must be greater than or equal to 0, not '-1'",
            ],
        ),
        (["inspect", "digit"], ["dataset: no dataset named 'digit'. Did you mean 'digits'?"]),
        (["inspect", "digits", "seed"], ["'seed' is not of the form key=value"]),
        (
            ["inspect", "digits", "--picture", "a.txt"],
            ["--picture: a.txt: its name must end with .png"],
        ),
        (
            ["inspect", "digits", "--picture", "no/a.png"],
            ["--picture: no/a.png: there is no such folder"],
        ),
        (
            ["inspect-model", "lenett", "--dataset", "digit"],
            [
                "dataset: no dataset named 'digit'. Did you mean 'digits'?",
                "model: no model named 'lenett'. Did you mean 'lenet'?",
            ],
        ),
        (
            ["inspect-model", "mlp", "--shape", "3,32"],
            ["--shape: '3,32' is neither C,H,W (e.g. 3,32,32) nor one length"],
        ),
    ],
)
def test_what_only_looks_is_refused_at_once_too(tmp_path, words, problems):
    assert sorted(refused(tmp_path, *words)) == sorted(problems)


def test_predicting_without_any_run_leaves_no_store_behind(tmp_path):
    [said] = refused(tmp_path, "predict", "abc", "image.png")
    assert said == f"There is no run yet: {tmp_path}/mlruns/mlflow.db is not there."


def test_an_unknown_command_is_no_traceback(tmp_path):
    done, said = at_once(tmp_path, "chek")
    assert done.returncode == 2
    assert "No such command 'chek'" in "\n".join(said)


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


def test_without_a_preset_the_first_word_is_an_override(tmp_path):
    assert refused(tmp_path, "check", "model=lenett") == [
        "model: no model named 'lenett'. Did you mean 'lenet'?"
    ]


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (
            "cifar",
            "no preset named 'cifar'. Did you mean 'cifar10'?  "
            "(accepts: cifar10, cifar10-fast, digits)",
        ),
        ("mine.yaml", "mine.yaml: no such file."),
    ],
)
def test_a_missing_preset_or_file(tmp_path, source, problem):
    assert refused(tmp_path, "run", source) == [problem]


def test_malformed_yaml_and_brackets_are_shown_as_they_are(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    file = tmp_path / "broken[red].yaml"
    file.write_text("train: {epochs: 3\nmodel: lenet\n")
    [said] = refused(folder, "run", str(file))
    assert said.startswith(f"{file}: cannot be read:")
    assert "line 2" in said
    [said] = refused(folder, "run", "model=[bold]")
    assert "['bold']" in said


def test_a_missing_data_folder_is_said_before_any_work(tmp_path):
    [said] = refused(tmp_path, "run", "dataset=image_folder", "dataset.path=nowhere")
    assert said.startswith("dataset.path: no such file or folder: ")


# ---- what asks torch: a worker is started


def test_check_of_a_right_configuration_runs_and_records_nothing(tmp_path):
    done = torchyard(tmp_path, "check", "digits", "train.epochs=2", "device=cpu")
    assert (done.returncode, done.stderr) == (0, "")
    assert "lenet: 61,706 parameters on samples of 1x32x32" in done.stdout
    assert "Right. It would run on cpu." in done.stdout
    assert "epochs=2" in done.stdout
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_check_tells_every_problem_that_only_building_shows(tmp_path):
    words = ("model=alexnet", "loss.weight=[1, 2]", "scheduler=cosine", "train.max_steps=5")
    done = torchyard(tmp_path, "check", "digits", *words, "scheduler.warmup_steps=5")
    assert done.returncode == 2
    model, loss, scheduler = done.stderr.splitlines()
    assert model.startswith("error: model: 'alexnet' cannot take samples of 1x32x32: ")
    assert loss == "error: loss: weight has 2 values, the data has 10 classes"
    assert scheduler == "error: scheduler: warmup_steps=5, but the whole run has 5 steps"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
