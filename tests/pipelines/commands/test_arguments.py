"""Presets, files and overrides as arguments of a command."""

import pytest

from tests.pipelines.command_line import refused


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
