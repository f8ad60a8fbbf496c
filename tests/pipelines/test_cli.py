"""The command line as a whole: its help, and what it refuses at once."""

import errno
import sys

import pytest

from tests.pipelines.command_line import at_once, refused
from torchyard.core.hosting.hookspecs import HOOKS
from torchyard.pipelines import cli


def test_help_names_the_commands_and_the_presets(tmp_path):
    done, _ = at_once(tmp_path, "--help")
    assert done.returncode == 0
    for command in ("run", "check", "plugins", "inspect", "inspect-model", "predict"):
        assert f" {command} " in done.stdout
    done, _ = at_once(tmp_path, "run", "--help")
    assert done.returncode == 0
    assert "cifar10, cifar10-fast, digits, or a file" in done.stdout
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
            ["inspect-model", "mlp", "--shape", "3,x"],
            ["--shape: '3,x' is neither C,H,W (e.g. 3,32,32) nor C,L nor one length"],
        ),
    ],
)
def test_what_only_looks_is_refused_at_once_too(tmp_path, words, problems):
    assert sorted(refused(tmp_path, *words)) == sorted(problems)


def test_an_unknown_command_is_no_traceback(tmp_path):
    done, said = at_once(tmp_path, "chek")
    assert done.returncode == 2
    assert "No such command 'chek'" in "\n".join(said)


def test_a_deleted_working_folder_and_a_missing_home_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["torchyard", "runs"])

    def message() -> str:
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 2
        return capsys.readouterr().err

    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert message() == "error: The working folder is deleted: change to another one with `cd`.\n"
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    assert "has no home folder: set HOME to a folder" in message()


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "mlruns/a.db"), "mlruns/a.db: Perm"),
        (OSError(errno.EROFS, "Read-only file system", "mlruns/a.db"), "mlruns/a.db: Read-only"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
    ],
)
def test_what_the_system_does_not_let_a_command_do_is_a_line(monkeypatch, capsys, raised, said):
    def refuse():
        raise raised

    monkeypatch.setattr(cli, "_call", refuse)
    monkeypatch.setattr("sys.argv", ["torchyard", "runs"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {said}")
