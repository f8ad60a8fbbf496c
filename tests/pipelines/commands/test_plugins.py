"""`torchyard plugins`, `plugins show` and `plugins check`: what they print, the exit status."""

import json
import os
import subprocess
import sys

from tests.pipelines.command_line import at_once, refused
from torchyard.core.hosting.hookspecs import HOOKS

HEAVY = {"torch", "mlflow", "prefect", "numpy"}


def check(folder, **environment):
    kept = {key: value for key, value in os.environ.items() if key != "TORCHYARD_PLUGINS"}
    done = subprocess.run(
        [
            sys.executable,
            "-X",
            "importtime",
            "-m",
            "torchyard",
            "plugins",
            "check",
        ],
        cwd=folder,
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    lines = done.stderr.splitlines()
    times = [line for line in lines if line.startswith("import time:")]
    assert [line for line in lines if line not in times] == []
    assert not HEAVY & {line.rpartition("|")[2].strip().partition(".")[0] for line in times}
    return done.returncode, done.stdout.splitlines()


def test_all_is_right(tmp_path):
    status, [line] = check(tmp_path)
    assert status == 0
    assert line.startswith("Valid: ")


def test_what_is_wrong_is_printed_and_is_exit_status_1(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("\nimport no_such_module")
    missing = tmp_path / "missing"
    folders = os.pathsep.join(map(str, (tmp_path, missing)))
    assert check(tmp_path, TORCHYARD_PLUGINS=folders) == (
        1,
        [
            f"{file}:2: failed to load: ModuleNotFoundError: No module named 'no_such_module'",
            f"{missing}: failed to load: no such folder (TORCHYARD_PLUGINS)",
        ],
    )


def test_an_interruption_that_a_plugin_raises_is_its_own_fault(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("raise KeyboardInterrupt")
    assert check(tmp_path, TORCHYARD_PLUGINS=str(tmp_path)) == (
        1,
        [f"{file}:1: failed to load: KeyboardInterrupt:"],
    )


def test_what_fails_at_a_step_on_two_samples_is_printed_too(tmp_path):
    folder = tmp_path / "torchyard_plugins"
    folder.mkdir()
    (folder / "broken.py").write_text("1 / 0")
    file = folder / "mine.py"
    file.write_text(
        "from torchyard import OptimizerParams, hookimpl\n\n"
        'class Lbfgs(OptimizerParams):\n    """Needs a closure."""\n'
        "    def build(self, parameters):\n"
        "        import torch\n        return torch.optim.LBFGS(parameters)\n\n"
        '@hookimpl\ndef register_optimizers(register):\n    register("lbfgs", Lbfgs)\n'
    )
    status, [first, second] = check(tmp_path)
    assert status == 1
    assert first.endswith("broken.py:1: failed to load: ZeroDivisionError: division by zero")
    assert second.startswith(f"{file}:3: optimizer 'lbfgs': its step(), called without a closure")


def test_the_folder_torchyard_plugins_is_loaded_by_itself_and_only_once(tmp_path):
    folder = tmp_path / "torchyard_plugins"
    folder.mkdir()
    (folder / "mine.py").write_text("1 / 0")
    for name in ("test_mine.py", "conftest.py"):  # tests are no plugins
        (folder / name).write_text("raise SystemExit")
    expected = [f"{folder / 'mine.py'}:1: failed to load: ZeroDivisionError: division by zero"]
    assert check(tmp_path) == (1, expected)
    assert check(tmp_path, TORCHYARD_PLUGINS=str(folder)) == (1, expected)


# ---- plugins, plugins show


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
    assert rows["test_fraction"].startswith("test_fraction float > 0 and < 1 0.2 fraction of each")
    assert (
        "integer > 0, or (integer > 0, integer > 0), or none none size to scale to"
        in rows["image_size"]
    )
    done, _ = at_once(tmp_path, "plugins", "model", "resnet18")
    assert "torchvision.models.resnet18" in done.stdout
    assert "no parameters" in done.stdout


def test_plugins_help_tells_of_listing_and_showing(tmp_path):
    done, _ = at_once(tmp_path, "plugins", "--help")
    assert "torchyard plugins model" in done.stdout
    assert "torchyard plugins model mlp" in done.stdout
    assert "[bold]" not in done.stdout
