"""`torchyard plugins new`: what it writes is listed, is right, and passes its own test."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from torchyard.core.config.schema import SINGLE_KINDS
from torchyard.core.errors import UserError
from torchyard.core.hosting.hookspecs import HOOKS
from torchyard.core.hosting.host import Host, host
from torchyard.core.hosting.lint import problems
from torchyard.core.hosting.neighbours import import_file
from torchyard.core.hosting.sources import file_source
from torchyard.pipelines.scaffold.new_plugin import new_plugin, write


def process(folder, *arguments):
    kept = {key: value for key, value in os.environ.items() if key != "TORCHYARD_PLUGINS"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=kept | {"TORCHYARD_CACHE": str(folder / "cache"), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A working folder with one plugin of each kind, in the folder that is loaded by itself."""
    working = tmp_path_factory.mktemp("working")
    for kind in HOOKS:
        write(kind, f"my_{kind}", working / "torchyard_plugins")
    return working


@pytest.mark.parametrize("kind", HOOKS)
def test_what_is_written_is_right_and_registered(written, kind):
    file = written / "torchyard_plugins" / f"my_{kind}.py"
    own = Host()
    own.load(file_source(file), lambda: import_file(file))
    assert problems(own) == []
    [(name, found)] = own.registrations(kind)
    assert (name, found.params.__name__) == (f"my_{kind}", f"My{kind.capitalize()}")
    assert found.summary.endswith(".")
    text = file.read_text()
    assert text.startswith(f'"""The {"data set" if kind == "dataset" else kind} `my_{kind}`: ')
    assert not {"NewThing", "new_thing"} & set(re.findall(r"\w+", text))


@pytest.mark.slow
def test_what_is_written_passes_its_own_tests(written):
    done = process(written, "-m", "pytest", "-q", "-p", "no:cacheprovider", "torchyard_plugins")
    assert done.returncode == 0, done.stdout
    assert f"{len(HOOKS)} passed" in done.stdout


def test_what_is_written_is_found_and_fits_together(written):
    chosen = [f"{kind}=my_{kind}" for kind in SINGLE_KINDS]
    chosen += ["augmentations=[my_augmentation]", "metrics=[my_metric]", "train.epochs=1"]
    chosen += ["promote.model=digits", "promote.gates=[my_gate]"]
    done = process(written, "-m", "torchyard", "check", "digits", *chosen)
    assert done.returncode == 0, done.stderr
    assert "my_model: " in done.stdout
    assert "Valid." in done.stdout


def test_what_is_written_keeps_to_the_style(written):
    for command in (["check", "--select", "E,F,UP,B,D1"], ["format", "--check"]):
        files = sorted(map(str, (written / "torchyard_plugins").glob("my_*.py")))
        done = process(written, "-m", "ruff", *command, "--line-length", "100", *files)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("kind", "name", "class_name"),
    [
        ("dataset", "array_split", "ArraySplitDataset"),
        ("model", "model_params", "ModelParamsModel"),
        ("optimizer", "my_sgd2", "MySgd2"),
    ],
)
def test_a_class_is_named_after_the_plugin_and_hides_nothing(tmp_path, kind, name, class_name):
    file, _ = write(kind, name, tmp_path)
    own = Host()
    own.load(file_source(file), lambda: import_file(file))
    assert own.broken == []
    assert own.find(kind, name).params.__name__ == class_name


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("modle", "mine", "no kind named 'modle'. Did you mean 'model'?  (accepts: dataset, "),
        ("model", "My Net", "'My Net' is not a plugin name. Did you mean 'my_net'?"),
        ("model", "test_net", "'test_net' is not a plugin name. Did you mean 'net'?"),
        ("loss", "lambda", "'lambda' is not a plugin name. Did you mean 'lambda_loss'?"),
        ("model", "../net", "'../net' is not a plugin name. Did you mean 'net'?"),
        ("model", "", "'' is not a plugin name. Did you mean 'my_model'?"),
        ("model", "json", "'json' is the name of a Python module. Did you mean 'json_model'?"),
        ("model", "lenet", "there is a model named 'lenet' already: choose another name"),
    ],
)
def test_names_that_are_refused(tmp_path, kind, name, message):
    with pytest.raises(UserError) as caught:
        write(kind, name, tmp_path)
    assert str(caught.value).startswith(message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("there", ["mine.py", "test_mine.py"])
def test_nothing_is_overwritten(tmp_path, there):
    (tmp_path / there).write_text("x = 1\n")
    with pytest.raises(UserError, match=f"{there} exists already, and is not changed"):
        write("model", "mine", tmp_path)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [(there, "x = 1\n")]


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write into .*: "):
        write("model", "mine", tmp_path / "file" / "folder")


def test_the_next_commands_are_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    host.cache_clear()
    new_plugin("model", "mine", Path("torchyard_plugins"))
    assert [line.strip() for line in capsys.readouterr().out.splitlines()[2:]] == [
        "torchyard plugins check",
        "python -m pytest torchyard_plugins/test_mine.py",
        "torchyard run digits model=mine",
    ]
    new_plugin("augmentation", "mine", Path("my plugins"))
    assert [line.strip() for line in capsys.readouterr().out.splitlines()[2:]] == [
        "TORCHYARD_PLUGINS='my plugins' torchyard plugins check",
        "python -m pytest 'my plugins/test_mine.py'",
        "TORCHYARD_PLUGINS='my plugins' torchyard run digits 'augmentations=[mine]'",
    ]
    host.cache_clear()


def test_the_command_refuses_with_exit_status_2(tmp_path):
    done = process(
        tmp_path,
        "-X",
        "importtime",
        "-m",
        "torchyard",
        "plugins",
        "new",
        "x",
        "y",
    )
    packages = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert done.returncode == 2
    assert "error: no kind named 'x'." in done.stderr
    assert not {"torch", "mlflow", "prefect"} & packages
