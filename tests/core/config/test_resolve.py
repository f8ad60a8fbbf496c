"""Resolving a configuration: defaults, types, and every mistake named at once."""

import json
import re
import string

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import field_validator

from tests.core.config.reading import problems, read
from torchyard import ModelParams, hookimpl
from torchyard.core.config.resolve import resolve
from torchyard.core.errors import UserError
from torchyard.core.hosting.host import Host, host
from torchyard.core.hosting.sources import Source

# ---- names, defaults and types


def test_cifar10_is_the_tutorial_setting_for_setting():
    resolved = read("cifar10")
    config = resolved.config
    assert (config.model.name, config.loss.name) == ("lenet", "cross_entropy")
    assert (config.optimizer.name, resolved.optimizer.lr, resolved.optimizer.momentum) == (
        "sgd",
        0.001,
        0.9,
    )
    assert (config.train.epochs, config.train.batch_size) == (2, 4)
    assert config.scheduler.name == "constant"
    assert config.dataset.normalize == (0.5, 0.5)


def test_a_file_is_read_and_every_default_filled_in(small):
    config = read(small).config.model_dump(mode="json")
    assert config["model"] == {
        "name": "mlp",
        "weights": None,
        "freeze": [],
        "freeze_epochs": None,
        "freeze_statistics": False,
        "hidden": [8],
        "activation": "relu",
        "dropout": 0.1,
    }
    assert config["optimizer"] == {
        "name": "sgd",
        "groups": [],
        "layer_decay": None,
        "decay_norms": True,
        "lr": 0.05,
        "momentum": 0.9,
        "dampening": 0.0,
        "weight_decay": 0.0,
        "nesterov": False,
    }
    assert config["loss"]["name"] == "cross_entropy"
    assert config["scheduler"] == {"name": "constant", "warmup_steps": 0}
    assert (config["device"], config["precision"]) == ("auto", "auto")


def test_augmentations_are_a_list_of_names_or_of_settings(small):
    assert read(small).config.augmentations == ()
    resolved = read(small, "augmentations=[random_crop, {name: cutout, size: 6}]")
    assert resolved.config.model_dump(mode="json")["augmentations"] == [
        {"name": "random_crop", "padding": 4, "mode": "reflect"},
        {"name": "cutout", "size": 6, "fill": 128},
    ]
    assert [type(each).__name__ for each in resolved.augmentations] == ["RandomCrop", "Cutout"]
    assert read(small, "augmentations=cutout").config.augmentations[0].name == "cutout"
    again = resolve(resolved.config.model_dump(mode="json"), host())
    assert again.config == resolved.config
    assert problems(small, "augmentations=[random_corp, {name: cutout, sise: 6}]") == [
        "augmentations.0: no augmentation named 'random_corp'. Did you mean 'random_crop'?",
        "augmentations.1.sise: unknown parameter of 'cutout'. Did you mean 'size'?  "
        "(accepts: size, fill)",
    ]


def test_a_name_alone_stands_for_a_section(tmp_path):
    file = tmp_path / "short.yaml"
    file.write_text("dataset: digits\nmodel: linear\noptimizer: adam\n")
    resolved = read(str(file), "model.bias=false", "optimizer.lr=0.5")
    assert (resolved.config.model.name, resolved.model.bias) == ("linear", False)
    assert (resolved.config.optimizer.name, resolved.optimizer.lr) == ("adam", 0.5)


# ---- overrides


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("train.epochs=7", lambda r: r.config.train.epochs == 7),
        ("train.validation=1e-1", lambda r: r.config.train.validation == 0.1),
        ("train.clip_norm=2", lambda r: r.config.train.clip_norm == 2.0),
        ("device=cpu", lambda r: r.config.device == "cpu"),
        ("precision=bfloat16", lambda r: r.config.precision == "bfloat16"),
        ("optimizer.lr=3e-4", lambda r: r.optimizer.lr == 3e-4),
        ("optimizer.nesterov=true", lambda r: r.optimizer.nesterov is True),
        ("optimizer.nesterov=no", lambda r: r.optimizer.nesterov is False),
        ("model.hidden=[64, 32]", lambda r: r.model.hidden == (64, 32)),
        ("model.hidden=[]", lambda r: r.model.hidden == ()),
        ("model.activation=tanh", lambda r: r.model.activation == "tanh"),
        ("dataset.path=none", lambda r: r.dataset.path is None),
        ("dataset.normalize=statistics", lambda r: r.config.dataset.normalize == "statistics"),
        ("dataset.normalize=[0.1, 2]", lambda r: r.config.dataset.normalize == (0.1, 2.0)),
    ],
)
def test_an_override_gets_the_type_its_parameter_has(small, override, value):
    assert value(read(small, override))


def test_the_default_plugins_parameters_can_be_set_without_naming_it(small):
    resolved = read(small, "loss.weight=[1, 2.5]", "scheduler.warmup_steps=3")
    assert (resolved.config.loss.name, resolved.loss.weight) == ("cross_entropy", (1.0, 2.5))
    assert (resolved.config.scheduler.name, resolved.scheduler.warmup_steps) == ("constant", 3)


# ---- every kind of problem


def test_all_problems_come_at_once(small):
    said = problems(
        small,
        "trian.epochs=1",
        "train.epochs=0",
        "train.bach_size=3",
        "model=resnet81",
        "loss=cross_entropi",
        "optimizer.lrr=1",
        "optimizer.momentum=2",
        "scheduler=cosine",
        "scheduler.eta_min=-1",
        "precision=half",
    )
    beginnings = [problem.partition(": ")[0] for problem in said]
    assert sorted(beginnings) == [
        "loss",
        "model",
        "optimizer.lrr",
        "optimizer.momentum",
        "precision",
        "scheduler.eta_min",
        "train.bach_size",
        "train.epochs",
        "trian",
    ]


def test_malformed_overrides_and_wrong_settings_come_at_once(small):
    assert len(problems(small, "epochs", "train.epochs=0")) == 2


@pytest.mark.parametrize("raised", [KeyError("odd"), RuntimeError("odd")])
def test_a_plugin_whose_validator_breaks_is_a_problem(raised):
    class Odd(ModelParams):
        @field_validator("*", mode="before")
        @classmethod
        def _breaks(cls, value):
            raise raised

        width: int = 1

        def build(self, input_shape, num_classes):
            raise AssertionError("not built")

    @hookimpl
    def register_models(register):
        register("odd", Odd)

    own = Host()
    plugin = type("Given", (), {"register_models": staticmethod(register_models)})
    own.load(Source("odd", "odd 1.0", "odd==1.0"), lambda: plugin)
    with pytest.raises(UserError):
        resolve({"dataset": "digits", "model": {"name": "odd", "width": 2}}, own)


# ---- properties

words = st.text(string.ascii_letters + string.digits + "._=[]{}:,- '\"\n\0é", max_size=20)
names = st.sampled_from(
    [
        *("dataset", "model", "loss", "optimizer", "scheduler", "train", "device", "precision"),
        *("train.epochs", "train.seed", "train.patience", "train.x", "model.hidden"),
        *("model.name.x", "optimizer.lr", "optimizer.lr.x", "optimizer.betas"),
        *("dataset.normalize", "loss.weight"),
    ]
)
values = st.one_of(
    words,
    st.sampled_from(["", "none", "[1, 2]", "{a: 1}", "{1: 2}", "[[1]]", "{name: lenet}", "1e400"]),
    st.integers().map(str),
    st.floats().map(str),
)


@settings(deadline=None)
@given(st.lists(st.one_of(words, st.tuples(names, values).map("=".join)), max_size=5))
def test_no_override_raises_anything_but_a_user_error(overrides):
    resolved, said = None, []
    try:
        resolved = read("digits", *overrides)
    except UserError as error:
        said = error.problems
    if resolved:
        assert resolve(resolved.config.model_dump(mode="json"), host()).config == resolved.config
    else:
        assert said
        assert all(said)


shares = st.floats(0, 0.9)
rates = st.floats(1e-9, 1e3)
counts = st.integers(1, 10**6)
OPTIMIZERS = st.one_of(
    st.fixed_dictionaries({"name": st.just("sgd"), "lr": rates, "momentum": shares}),
    st.fixed_dictionaries({"name": st.just("adamw"), "betas": st.tuples(shares, shares)}),
    st.fixed_dictionaries({"name": st.just("rmsprop"), "centered": st.booleans()}),
)
MODELS = st.one_of(
    st.just({"name": "lenet"}),
    st.just({"name": "resnet18"}),
    st.fixed_dictionaries({"name": st.just("mlp"), "hidden": st.lists(counts, max_size=4)}),
)
SCHEDULERS = st.one_of(
    st.fixed_dictionaries({"name": st.just("cosine"), "warmup_steps": st.integers(0, 99)}),
    st.fixed_dictionaries({"name": st.just("step"), "step_size": st.none() | counts}),
    st.fixed_dictionaries({"name": st.just("one_cycle"), "max_lr": st.none() | rates}),
)
DATASETS = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["digits", "cifar10", "mnist"]),
        "normalize": st.just("statistics") | st.tuples(st.floats(-9, 9), rates),
    }
)
TRAIN = st.fixed_dictionaries(
    {"epochs": counts, "validation": shares, "clip_norm": st.none() | rates},
    optional={"max_steps": counts, "seed": counts, "threads": st.integers(1, 4096)},
)
CONFIGS = st.fixed_dictionaries(
    {"dataset": DATASETS},
    optional={
        "model": MODELS,
        "optimizer": OPTIMIZERS,
        "scheduler": SCHEDULERS,
        "train": TRAIN,
        "precision": st.sampled_from(["float32", "bfloat16"]),
    },
)


@settings(deadline=None)
@given(CONFIGS)
def test_a_resolved_configuration_survives_being_written_down(raw):
    resolved = resolve(raw, host())
    for again in (
        json.loads(json.dumps(resolved.config.model_dump(mode="json"))),
        json.loads(resolved.config.model_dump_json()),
        yaml.safe_load(yaml.safe_dump(resolved.config.model_dump(mode="json"))),
        resolved.config.model_dump(),
    ):
        repeated = resolve(again, host())
        assert repeated.config == resolved.config
        assert repeated.optimizer == resolved.optimizer
        assert repeated.model == resolved.model


# ---- where the plugins are from


def test_a_configuration_resolved_elsewhere_says_which_plugins_it_had(tmp_path, monkeypatch):
    text = (
        "from torchyard import LossParams, hookimpl\n\n"
        'class Odd(LossParams):\n    """A loss."""\n\n'
        "    def build(self, num_classes): ...\n\n"
        '@hookimpl\ndef register_losses(register):\n    register("odd", Odd)\n'
    )
    written = {"here": text, "there": f"{text}# changed\n", "nowhere": ""}

    def resolved_at(config, place):
        (tmp_path / place).mkdir(exist_ok=True)
        (tmp_path / place / "mine.py").write_text(written[place])
        monkeypatch.setenv("TORCHYARD_PLUGINS", str(tmp_path / place))
        host.cache_clear()
        return resolve(config, host())

    try:
        first = resolved_at({"dataset": "digits", "loss": "odd"}, "here")
        [(plugin, before)] = first.config.plugins.items()
        assert plugin == "loss odd"
        assert re.fullmatch(r"sha256:[0-9a-f]{64} \(mine\.py\)", before)
        recorded = first.config.model_dump(mode="json")
        assert resolved_at(recorded, "here").changed == first.changed == []
        second = resolved_at(recorded, "there")
        now = second.config.plugins["loss odd"]
        assert second.changed == [f"loss odd was of {before}, and is of {now} here"]
        with pytest.raises(UserError) as caught:
            resolved_at(recorded, "nowhere")
        [problem] = caught.value.problems
        assert problem.startswith("loss: no loss named 'odd'.")
        assert problem.endswith(f"This configuration had it from {before}.")
        # Another plugin in its stead needs nothing of it.
        other = {**recorded, "loss": {"name": "cross_entropy"}}
        assert resolved_at(other, "nowhere").config.plugins == {}
    finally:
        host.cache_clear()


def test_a_promotion_is_named_short_or_whole_and_its_gates_beside(small):
    gates = "promote.gates=[{name: min_accuracy, threshold: 0.5}]"
    for short in ("promote=digits", "promote.model=digits"):
        promote = read(small, short, gates).config.promote
        assert (promote.model, promote.gates[0].name) == ("digits", "min_accuracy")
    assert [gate.name for gate in read(small, "promote=m").config.promote.gates] == [
        "beats_champion"
    ]
    assert read(small).config.promote is None
