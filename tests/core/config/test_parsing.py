"""Presets, files and overrides as they are written, and what is wrong with them."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.config.reading import PRESETS, SMALL, only_problem, problems, read
from torchyard.core.config.parsing import MOST_BYTES, preset_names, read_settings
from torchyard.core.config.resolve import resolve
from torchyard.core.errors import UserError
from torchyard.core.hosting.host import host


def test_presets_resolve_and_only_they_are_listed():
    assert preset_names(PRESETS) == sorted(file.stem for file in PRESETS.glob("*.yaml"))
    assert {"digits", "cifar10", "cifar10-fast"} <= set(preset_names(PRESETS))
    for name in preset_names(PRESETS):
        assert read(name).config.dataset.name == name.removesuffix("-fast")


def test_a_preset_wins_over_a_file_of_its_name_unless_the_path_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("digits.yaml").write_text(SMALL)
    assert read("digits").config.dataset.name == "digits"
    assert read("digits.yaml").config.dataset.name == "cifar10"


def test_a_file_may_write_its_settings_as_the_command_line_does(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("dataset: digits\noptimizer: adamw\noptimizer.lr: 0.25\ntrain.epochs: 3\n")
    config = read(str(file), "train.epochs=4").config
    assert (config.optimizer.name, config.optimizer.lr, config.train.epochs) == ("adamw", 0.25, 4)
    file.write_text("dataset: digits\ntrain.epoch: 3\n")
    assert "train.epoch: unknown setting. Did you mean 'train.epochs'?" in only_problem(str(file))


def test_an_empty_value_is_not_none(small):
    assert problems(small, "train.max_steps=")


def test_none_takes_a_setting_back(small):
    for word in ("none", "None", "null"):
        taken = read(small, "train.max_steps=5", f"train.max_steps={word}")
        assert taken.config.train.max_steps is None


def test_the_last_of_two_overrides_counts(small):
    assert read(small, "train.epochs=3", "train.epochs=4").config.train.epochs == 4
    assert read(small, "model=lenet", "model=linear").config.model.name == "linear"


def test_a_value_may_hold_an_equals_sign_and_text_yaml_would_change(tmp_path, small):
    for odd in ("a=b", "no", "1e3", "0x10"):
        (tmp_path / odd).mkdir()
        resolved = read(small, f"dataset.path={tmp_path / odd}")
        assert resolved.dataset.path == tmp_path / odd


def test_order_on_the_line_does_not_matter(small):
    words = ["optimizer=adam", "optimizer.lr=0.1", "model=linear", "model.bias=false"]
    assert read(small, *words).config == read(small, *reversed(words)).config


def test_another_plugin_drops_the_replaced_ones_parameters_only(small):
    resolved = read(small, "model=linear", "optimizer=adam", "dataset=mnist")
    assert resolved.optimizer.lr == 1e-3  # adam's own, not the file's 0.05
    assert resolved.config.dataset.name == "mnist"
    assert resolved.config.dataset.normalize == (0.5, 0.25)  # the host's, so it stays
    assert resolved.config.train.epochs == 2


def test_the_same_plugin_by_name_keeps_its_parameters(small):
    assert read(small, "optimizer=sgd").optimizer.momentum == 0.9
    assert read(small, "optimizer.name=sgd").optimizer.lr == 0.05


def test_unknown_preset_and_file_name_the_nearest(tmp_path, small):
    assert only_problem("digit") == (
        "no preset named 'digit'. Did you mean 'digits'?  (accepts: cifar10, cifar10-fast, digits)"
    )
    wrong = str(tmp_path / "smal.yaml")
    assert only_problem(wrong) == f"{wrong}: no such file. Did you mean '{small}'?"
    another = str(tmp_path / "quite-another.yaml")  # in the same folder, and no nearer for that
    assert only_problem(another) == f"{another}: no such file."


def test_a_plugins_name_in_the_place_of_a_preset_is_told_how_to_write():
    assert only_problem("image_folder") == (
        "'image_folder' is the name of a dataset, not of a preset: choose it in one, such as "
        "cifar10 dataset=image_folder dataset.path=…"
    )
    assert only_problem("resnet18").endswith("such as cifar10 model=resnet18")
    assert problems("mnist", "epochs")[1].startswith("'epochs' is not of the form")


def test_all_malformed_overrides_and_the_missing_preset_come_at_once():
    said = problems("digit", "epochs", "a b=1", "train.epochs=2")
    assert [line.partition(" ")[0] for line in said] == ["no", "'epochs'", "'a"]


def test_malformed_yaml_says_where(tmp_path):
    file = tmp_path / "broken.yaml"
    file.write_text("dataset: digits\ntrain: {epochs: 3\nmodel: lenet\n")
    said = only_problem(str(file))
    assert said.startswith(f"{file}: cannot be read:")
    assert "line 3" in said


def test_what_a_file_sets_twice_is_named_by_line(tmp_path):
    file = tmp_path / "twice.yaml"
    file.write_text(
        "dataset: {name: digits, seed: 1, seed: 2}\n"
        "train:\n  epochs: 1\n  seed: 3\n  epochs: 5\n"
        "augmentations:\n  - {name: cutout,\n     name: cutout}\n"
        "dataset: digits\n"
    )
    assert problems(str(file)) == [
        f"{file}, line 1: 'dataset.seed' is set already, in line 1",
        f"{file}, line 5: 'train.epochs' is set already, in line 3",
        f"{file}, line 8: 'augmentations.0.name' is set already, in line 7",
        f"{file}, line 9: 'dataset' is set already, in line 1",
    ]


@pytest.mark.parametrize("text", ["", "[1, 2]", "lenet", "3"])
def test_a_file_of_something_else_is_refused(tmp_path, text):
    file = tmp_path / "odd.yaml"
    file.write_text(text)
    assert "must hold settings" in only_problem(str(file))


def test_a_file_that_is_no_text_is_refused(tmp_path):
    file = tmp_path / "odd.yaml"
    file.write_bytes(b"\xff\xfe\x00\x80")
    assert "cannot be read" in only_problem(str(file))


BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{now}: &{now} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, now in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "said"),
    {
        "aliases of aliases": (BOMB + "dataset: *i\n", "more than 20,000 values"),
        "unused aliases": (BOMB + "dataset: digits\n", "more than 20,000 values"),
        "huge": ("dataset: {name: digits, a: [" + "1," * 30_000 + "]}", "more than 20,000 values"),
        "holds itself": ("dataset: &a [*a]\n", "more than 30 levels deep"),
        "deep": ("dataset: " + "[" * 40 + "]" * 40, "more than 30 levels deep"),
        "deeper": ("dataset: " + "[" * 999, "cannot be read"),
        "deep by aliases": (
            "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 200)),
            "more than 30 levels deep",
        ),
        "large": ("dataset: " + "x" * (1 << 20), "more than 1,048,576 bytes"),
        "several documents": ("dataset: digits\n---\ndataset: digits\n", "another document"),
        "tag": ("dataset: !!python/name:os.system {}\n", "tag"),
        "bytes": ("dataset: {name: !!binary aGVsbG8=}\n", "binary"),
        "set": ("dataset: !!set {digits}\n", "set"),
        "list as a key": ("{[1]: 2}\n", "unhashable key"),
        "control character": ("dataset: \7\n", "unacceptable character"),
        "number as a key": ("dataset: digits\n1: 2\n", "1: unknown setting."),
        "none as a key": ("dataset: digits\ntrain: {null: 2}\n", "train.null: unknown setting."),
        "word as a key": ("dataset: digits\nno: 2\n", "no: unknown setting."),
        "number as a parameter": (
            "dataset: {name: digits, 1: 2}\n",
            "dataset.1: unknown parameter",
        ),
        "date": (
            "dataset: {name: digits, seed: 2020-01-01}\n",
            "dataset.seed: must be a valid integer, not '2020-01-01'",
        ),
        "not a number": ("dataset: digits\noptimizer: {name: sgd, lr: .nan}\n", "not nan"),
        "long": ("dataset: {name: digits, seed: '" + "9" * 5000 + "'}\n", "9…"),
    }.values(),
)
def test_whatever_a_file_holds_is_one_line(tmp_path, text, said):
    file = tmp_path / "odd.yaml"
    file.write_text(text)
    problem = only_problem(str(file))
    assert said in problem
    assert "\n" not in problem
    assert len(problem) < 600


def test_anchors_and_merged_keys_are_understood(tmp_path):
    file = tmp_path / "merged.yaml"
    file.write_text(
        "dataset: {name: digits, seed: &seed 3}\n"
        "optimizer: &rate {name: sgd, lr: 0.5}\n"
        "train: {seed: *seed}\n"
        "model: {<<: *rate, name: linear, lr: 1}\n"
    )
    settings = read_settings(file)
    assert settings["train"] == {"seed": 3}
    assert settings["model"] == {"name": "linear", "lr": 1}


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["lenet", "x"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["name", "gates", "model", "lr", "x"]), inner)
        ),
        max_leaves=6,
    ),
    st.sampled_from(
        ["dataset", "model", "optimizer", "augmentations", "promote", "plugins", "train", "device"]
    ),
)
def test_whatever_a_setting_is_set_to_it_is_taken_or_refused(value, setting):
    with contextlib.suppress(UserError):
        resolve({"dataset": "digits", setting: value}, host())


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("[2001-99-99]", id="no such day"),
        pytest.param("[!!int x]", id="no such number"),
        pytest.param("[" * 3000, id="too deep"),
        pytest.param("[" + "9" * 5000 + "]", id="too many digits"),
    ],
)
def test_a_list_that_yaml_cannot_read_is_a_user_error(value):
    assert problems("digits", "model=mlp", f"model.hidden={value}")


def test_a_list_that_the_shell_took_apart_is_said_once_with_what_to_write():
    split = ("optimizer.groups=[{match:", "fc*,", "lr:", "0.1}]", "train.epochs=3")
    assert only_problem("digits", *split) == (
        "optimizer.groups: the shell split it at its spaces: quote it, "
        "'optimizer.groups=[{match: fc*, lr: 0.1}]'"
    )


def test_a_file_is_read_up_to_a_megabyte(tmp_path):
    file = tmp_path / "large.yaml"
    text = "dataset: digits\n#"
    file.write_text(text.ljust(MOST_BYTES, "x"))
    assert read_settings(file) == {"dataset": "digits"}
    file.write_text(text.ljust(MOST_BYTES + 1, "x"))
    with pytest.raises(UserError, match="has more than 1,048,576 bytes"):
        read_settings(file)
