"""The command line as a whole: its help, and what it refuses at once."""

import pytest

from tests.pipelines.command_line import at_once, refused
from torchyard.core.hosting.hookspecs import HOOKS


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
            ["inspect-model", "mlp", "--shape", "3,32"],
            ["--shape: '3,32' is neither C,H,W (e.g. 3,32,32) nor one length"],
        ),
    ],
)
def test_what_only_looks_is_refused_at_once_too(tmp_path, words, problems):
    assert sorted(refused(tmp_path, *words)) == sorted(problems)


def test_an_unknown_command_is_no_traceback(tmp_path):
    done, said = at_once(tmp_path, "chek")
    assert done.returncode == 2
    assert "No such command 'chek'" in "\n".join(said)
