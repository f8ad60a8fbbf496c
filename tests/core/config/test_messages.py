"""Every problem of a configuration in one line, with the nearest right name."""

from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field, PositiveInt

from tests.core.config.reading import only_problem, read
from torchyard.core.config.messages import accepted
from torchyard.core.errors import UserError
from torchyard.core.hosting.params import ModelParams


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("trian.epochs=1", "trian: unknown setting. Did you mean 'train'?"),
        ("train.epoch=1", "train.epoch: unknown setting. Did you mean 'train.epochs'?"),
        ("epoch.x=1", "epoch: unknown setting. Did you mean 'train.epochs'?"),
        ("model=resnet81", "model: no model named 'resnet81'. Did you mean 'resnet18'?"),
        (
            "loss=hinge",
            "loss: no loss named 'hinge'.  (there are: bce_with_logits, cross_entropy, focal, ",
        ),
        (
            "optimizer.lrr=1",
            "optimizer.lrr: unknown parameter of 'sgd'. Did you mean 'optimizer.lr'?",
        ),
        ("train.epochs=two", "train.epochs: must be a valid integer"),
        ("train.epochs=0", "train.epochs: must be greater than 0, not '0'"),
        ("train.validation=1", "train.validation: must be less than 1, not '1'"),
        ("optimizer.lr=-1", "optimizer.lr: must be greater than 0, not '-1'"),
        ("optimizer.lr=nan", "optimizer.lr: must be "),
        ("optimizer.momentum=1", "optimizer.momentum: must be less than 1, not '1'"),
        ("model.hidden=[8, 0]", "model.hidden.1: must be greater than 0, not 0"),
        ("model.hidden=8", "model.hidden: must be a list, e.g. [1,2], not '8'"),
        ("train.seed=-1", "train.seed: must be integer ≥ 0 and < 4294967296, or per_run, not '-1'"),
        ("model.activation=rleu", "model.activation: must be 'relu', 'gelu' or 'tanh'"),
        (
            "precision=int8",
            "precision: must be 'auto', 'float32', 'bfloat16' or 'float16', not 'int8'",
        ),
        ("device=gpu", "device: "),
        ("dataset.normalize=[0.5, 0]", "dataset.normalize: must be 'auto', 'statistics', [mean,"),
        ("dataset.normalize=half", "dataset.normalize: must be 'auto', 'statistics', [mean, std]"),
        ("dataset.normalize=[[1,2],[1]]", "dataset.normalize: 2 means, but 1 deviations"),
        ("optimizer.groups=[{lr: 1}]", "optimizer.groups.0.match: is missing"),
        ("optimizer.groups=[{match: a, lrr: 1}]", "optimizer.groups.0.lrr: unknown parameter of"),
        ("optimizer.groups=[{match: a, lr: -1}]", "optimizer.groups.0.lr: must be greater than 0"),
        ("model.freeze_epochs=2", "model: freeze_epochs is for what model.freeze names: set that"),
        ("dataset=none", "dataset.name: must be a valid string, not None"),
        ("train=3", "train: must be a section of settings"),
        ("epochs", "'epochs' is not of the form key=value, e.g. train.epochs=3"),
        ("=3", "'=3' is not of the form key=value"),
        ("train..epochs=3", "'train..epochs=3' is not of the form key=value"),
        ("train.epochs.x=3", "train.epochs.x: 'epochs' is a single value, not a section"),
    ],
)
def test_a_problem_is_said_in_one_line(small, override, problem):
    said = only_problem(small, override)
    assert said.startswith(problem)
    assert "\n" not in said


@pytest.mark.parametrize("given", ["'0'", "'abc'", "[0, 3]", "[1, 2, 3]", "{'height': 3}"])
def test_a_setting_of_several_types_says_all_that_are_accepted(tmp_path, given):
    overrides = ("dataset.name=image_folder", f"dataset.path={tmp_path}")
    problem = only_problem("digits", *overrides, f"dataset.image_size={given.strip(chr(39))}")
    accepts = "integer > 0, or (integer > 0, integer > 0), or none"
    assert problem == f"dataset.image_size: must be {accepts}, not {given}"


def test_an_unknown_parameter_lists_those_there_are(small):
    assert only_problem(small, "model.width=9").endswith("(accepts: hidden, activation, dropout)")
    assert only_problem(small, "model=lenet", "model.width=9").endswith("(accepts: none)")


def test_patience_without_any_validation_is_refused_once_that_is_known():
    train = read("digits", "train.patience=3").config.train  # the data set may have its own
    train.check_validation(has_own=True)
    with pytest.raises(UserError, match=r"train\.patience: needs a validation split.* set train"):
        train.check_validation(has_own=False)
    read("digits", "train.patience=3", "train.validation=0.1").config.train.check_validation(False)


def test_a_missing_parameter_is_named(small):
    assert only_problem(small, "dataset=image_folder") == "dataset.path: is missing"


def test_a_file_without_a_data_set_says_so(tmp_path):
    file = tmp_path / "none.yaml"
    file.write_text("model: lenet\n")
    assert only_problem(str(file)) == "dataset: is missing"


def test_keys_that_are_no_text_are_problems_too(tmp_path):
    file = tmp_path / "odd.yaml"
    file.write_text("dataset: digits\ntrain: {1: 2}\n")
    assert only_problem(str(file)).startswith("train.1: ")


def test_types_and_bounds_in_words():
    class Given(ModelParams):
        plain: str
        share: float = Field(0.5, ge=0, lt=1)
        sides: PositiveInt | tuple[PositiveInt, float] | None = None
        many: tuple[PositiveInt, ...] = (1,)
        named: Literal["a", "b", "c"] = "a"
        some: list[Path] = Field([], max_length=3)
        yes: bool = True
        code: str = Field("a", pattern="^[a-z]$")
        maybe: int | None = Field(None, gt=2)

    assert {name: accepted(field) for name, field in Given.model_fields.items()} == {
        "plain": "text",
        "share": "float ≥ 0 and < 1",
        "sides": "integer > 0, or (integer > 0, float), or none",
        "many": "list of integer > 0",
        "named": "a, b or c",
        "some": "list of path of at most 3",
        "yes": "true or false",
        "code": "text matching ^[a-z]$",
        "maybe": "integer, or none: > 2",
    }
