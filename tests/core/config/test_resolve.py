"""The configuration: what it accepts, and that every mistake is named, all at once."""

import json
import re
import string
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import field_validator

from torchyard import ModelParams, hookimpl
from torchyard.core.config.parsing import is_secret
from torchyard.core.config.resolve import preset_names, read_config, resolve, unavailable
from torchyard.core.errors import UserError
from torchyard.core.hosting.manager import Host, host
from torchyard.core.hosting.sources import Source, builtin_sources

PRESETS = Path(__file__).parents[3] / "pipelines" / "presets"

SMALL = """\
dataset: {name: cifar10, normalize: [0.5, 0.25]}
model: {name: mlp, hidden: [8], dropout: 0.1}
optimizer: {name: sgd, lr: 0.05, momentum: 0.9}
train: {epochs: 2}
"""


@pytest.fixture
def small(tmp_path):
    file = tmp_path / "small.yaml"
    file.write_text(SMALL)
    return str(file)


def read(source, *overrides):
    return read_config(source, overrides, PRESETS, host())


def problems(source, *overrides):
    with pytest.raises(UserError) as caught:
        read(source, *overrides)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return caught.value.problems


def only_problem(source, *overrides):
    [problem] = problems(source, *overrides)
    return problem


# ---- presets and files


def test_presets_resolve_and_only_they_are_listed():
    assert preset_names(PRESETS) == sorted(file.stem for file in PRESETS.glob("*.yaml"))
    assert {"digits", "cifar10", "cifar10-fast"} <= set(preset_names(PRESETS))
    for name in preset_names(PRESETS):
        assert read(name).config.dataset.name == name.removesuffix("-fast")


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
        "freeze": [],
        "hidden": [8],
        "activation": "relu",
        "dropout": 0.1,
    }
    assert config["optimizer"] == {
        "name": "sgd",
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


def test_a_preset_wins_over_a_file_of_its_name_unless_the_path_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("digits.yaml").write_text(SMALL)
    assert read("digits").config.dataset.name == "digits"
    assert read("digits.yaml").config.dataset.name == "cifar10"


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


# ---- every kind of problem


def test_unknown_preset_and_file_name_the_nearest(tmp_path, small):
    assert only_problem("digit") == (
        "no preset named 'digit'. Did you mean 'digits'?  (accepts: cifar10, cifar10-fast, digits)"
    )
    wrong = str(tmp_path / "smal.yaml")
    assert only_problem(wrong) == f"{wrong}: no such file. Did you mean '{small}'?"


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
        ("model.activation=rleu", "model.activation: must be 'relu', 'gelu' or 'tanh'"),
        ("train.patience=3", "train: patience needs a validation split"),
        (
            "precision=int8",
            "precision: must be 'auto', 'float32', 'bfloat16' or 'float16', not 'int8'",
        ),
        ("device=gpu", "device: "),
        ("dataset.normalize=[0.5, 0]", "dataset.normalize: must be 'statistics', or [mean, std]"),
        ("dataset.normalize=half", "dataset.normalize: must be 'statistics', or [mean, std]"),
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


def test_an_unknown_parameter_lists_those_there_are(small):
    assert only_problem(small, "model.width=9").endswith("(accepts: hidden, activation, dropout)")
    assert only_problem(small, "model=lenet", "model.width=9").endswith("(accepts: none)")


def test_a_missing_parameter_is_named(small):
    assert only_problem(small, "dataset=image_folder") == "dataset.path: is missing"


@pytest.mark.skipif(unavailable("cuda") is None, reason="there is a CUDA GPU")
@pytest.mark.parametrize("wanted", ["cuda", "cuda:1"])
def test_cuda_where_there_is_none(small, wanted):
    assert only_problem(small, f"device={wanted}") == (
        f"device: {wanted}: this machine has no CUDA GPU (device=cpu and device=auto run here)"
    )


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


def test_a_file_without_a_data_set_says_so(tmp_path):
    file = tmp_path / "none.yaml"
    file.write_text("model: lenet\n")
    assert only_problem(str(file)) == "dataset: is missing"


def test_keys_that_are_no_text_are_problems_too(tmp_path):
    file = tmp_path / "odd.yaml"
    file.write_text("dataset: digits\ntrain: {1: 2}\n")
    assert only_problem(str(file)).startswith("train.1: ")


def test_malformed_overrides_and_wrong_settings_come_at_once(small):
    assert len(problems(small, "epochs", "train.epochs=0")) == 2


def test_a_seed_that_torch_cannot_take_is_refused(small):
    assert problems(small, f"train.seed={2**64}")


@pytest.mark.parametrize("setting", ["optimizer.lr", "train.clip_norm"])
def test_an_infinite_setting_is_refused(small, setting):
    assert problems(small, f"{setting}=inf")


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
    optional={"max_steps": counts, "seed": counts, "threads": counts},
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


def test_a_configuration_taken_up_elsewhere_says_which_plugins_it_had(tmp_path, monkeypatch):
    text = (
        "from torchyard import LossParams, hookimpl\n\n"
        'class Odd(LossParams):\n    """A loss."""\n\n'
        "    def build(self, num_classes): ...\n\n"
        '@hookimpl\ndef register_losses(register):\n    register("odd", Odd)\n'
    )
    written = {"here": text, "there": f"{text}# changed\n", "nowhere": ""}

    def taken_up(config, place):
        (tmp_path / place).mkdir(exist_ok=True)
        (tmp_path / place / "mine.py").write_text(written[place])
        monkeypatch.setenv("TORCHYARD_PLUGINS", str(tmp_path / place))
        host.cache_clear()
        return resolve(config, host())

    try:
        first = taken_up({"dataset": "digits", "loss": "odd"}, "here")
        [(plugin, before)] = first.config.plugins.items()
        assert plugin == "loss odd"
        assert re.fullmatch(r"sha256:[0-9a-f]{64} \(mine\.py\)", before)
        recorded = first.config.model_dump(mode="json")
        assert taken_up(recorded, "here").changed == first.changed == []
        second = taken_up(recorded, "there")
        now = second.config.plugins["loss odd"]
        assert second.changed == [f"loss odd was of {before}, and is of {now} here"]
        with pytest.raises(UserError) as caught:
            taken_up(recorded, "nowhere")
        [problem] = caught.value.problems
        assert problem.startswith("loss: no loss named 'odd'.")
        assert problem.endswith(f"This configuration had it from {before}.")
        # Another plugin in its stead needs nothing of it.
        other = {**recorded, "loss": {"name": "cross_entropy"}}
        assert taken_up(other, "nowhere").config.plugins == {}
    finally:
        host.cache_clear()


# ---- secrets


class Guarded(ModelParams):
    """A model behind a token."""

    hub_token: str = ""
    tokens: int = 3

    @field_validator("hub_token")
    @classmethod
    def _long(cls, value):
        if value and len(value) < 8:
            raise ValueError("is too short")
        return value

    def build(self, input_shape, num_classes):
        return self.hub_token


def guarded(**settings):
    own = Host()
    for source, find in builtin_sources():
        own.load(source, find, builtin=True)
    plugin = type(
        "Plugin",
        (),
        {"register_models": hookimpl(staticmethod(lambda register: register("guarded", Guarded)))},
    )
    own.load(Source("mine", "mine 1.0", "mine==1.0"), lambda: plugin)
    return resolve({"dataset": "digits", "model": {"name": "guarded", **settings}}, own)


def test_a_secret_reaches_the_plugin_and_nothing_that_is_recorded(monkeypatch):
    monkeypatch.setenv("HUB_TOKEN", "hunter2hunter2")
    resolved = guarded(hub_token="env:HUB_TOKEN", tokens=5)
    assert resolved.model.build((1,), 2) == "hunter2hunter2"
    assert resolved.config.model.model_dump()["hub_token"] == "env:HUB_TOKEN"
    assert "hunter2" not in resolved.config.model_dump_json()
    # What was recorded is resolved again, as in the trainer, when resumed and when deployed.
    again = guarded(**resolved.config.model.model_dump(exclude={"name"}))
    assert again.model.build((1,), 2) == "hunter2hunter2"


def test_a_secret_that_is_written_down_is_refused_without_repeating_it(monkeypatch):
    for given_settings, says in (
        ({"hub_token": "hunter2hunter2"}, "model.hub_token: is a secret"),
        ({"hub_token": "env:NO_SUCH_ONE"}, "the environment variable NO_SUCH_ONE is not set"),
    ):
        with pytest.raises(UserError, match=says) as caught:
            guarded(**given_settings)
        assert "hunter2" not in str(caught.value)
    monkeypatch.setenv("HUB_TOKEN", "hunter2")
    with pytest.raises(UserError, match=r"^model.hub_token: is too short$"):
        guarded(hub_token="env:HUB_TOKEN")
    assert guarded().config.model.model_dump()["hub_token"] == ""


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("token", True),
        ("hub_token", True),
        ("API_KEY", True),
        ("apikey", True),
        ("password", True),
        ("tokens", False),
        ("token_count", False),
        ("secretary", False),
        ("keys", False),
    ],
)
def test_which_names_are_secrets(name, secret):
    assert is_secret(name) is secret


def test_a_promotion_is_named_short_or_whole_and_its_gates_beside(small):
    gates = "promote.gates=[{name: min_accuracy, threshold: 0.5}]"
    for short in ("promote=digits", "promote.model=digits"):
        promote = read(small, short, gates).config.promote
        assert (promote.model, promote.gates[0].name) == ("digits", "min_accuracy")
    assert [gate.name for gate in read(small, "promote=m").config.promote.gates] == [
        "beats_champion"
    ]
    assert read(small).config.promote is None
