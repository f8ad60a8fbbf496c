"""What is checked before any data are read, and that a configuration is resolved once."""

import pytest

from tests.pipelines.worker.conftest import config
from torchyard.core.config import resolve as resolving
from torchyard.core.config.resolve import resolve_once
from torchyard.core.errors import UserError
from torchyard.core.hosting.host import host
from torchyard.pipelines.worker.checks import config_check


def test_a_users_mistake_arrives_whole_and_the_worker_lives_on(worker, cache):
    settings = config("model=alexnet", "loss.weight=[1,2]")
    with pytest.raises(UserError) as caught:
        worker.call("check", config=settings, cache=cache)
    assert len(caught.value.problems) == 2
    assert "'alexnet' cannot take samples of 1x32x32" in caught.value.problems[0]
    assert "weight has 2 values, the data has 10 classes" in caught.value.problems[1]
    assert worker.call("check", config=config(), cache=cache)["device"]


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["train.monitor=top_k/6"], "train.monitor: no figure 'top_k/6'. Did you mean 'top_k/5'?"),
        (["metrics=[top_k,top_k]"], "metrics.1: 'top_k': there is a figure 'top_k/5' already"),
        (["metrics=[{name: top_k, k: 10}]"], "metrics.0: 'top_k': k=10 must be less than the"),
        (["promote={model: m, gates: [{name: min_metric, metric: macro_f, threshold: 1}]}"],
         "promote.gates.0: 'min_metric': no figure 'macro_f'. Did you mean 'macro_f1'?"),
    ],
)  # fmt: skip
def test_figures_are_tried_and_those_that_will_not_be_there_are_named(cache, overrides, problem):
    settings = config("metrics=[top_k]", "train.validation=0.1", *overrides)
    with pytest.raises(UserError) as caught:
        config_check.check(settings, cache, print)
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(problem)


def test_the_figures_there_will_be_are_accepted(cache):
    gate = "{name: min_metric, metric: top_k/3, threshold: 1}"
    config_check.check(
        config("metrics=[{name: top_k, k: 3}]", "train.validation=0.1", "train.monitor=top_k/3",
               f"promote={{model: m, gates: [{gate}]}}"), cache, print,
    )  # fmt: skip


def test_a_configuration_is_resolved_once_and_anew_for_other_plugins(monkeypatch, tmp_path):
    settings, other = config(), config("train.seed=3")
    calls, resolve = [], resolving.resolve
    monkeypatch.setattr(resolving, "resolve", lambda *args: calls.append(args) or resolve(*args))
    resolving._resolved.cache_clear()
    first = resolve_once(settings, host())
    config_check.check(dict(reversed(settings.items())), str(tmp_path), print)
    assert resolve_once(settings, host()) is first
    assert len(calls) == 1
    assert resolve_once(other, host()) is not first
    host.cache_clear()
    assert resolve_once(settings, host()) is not first
    assert len(calls) == 3


def test_a_configuration_that_is_wrong_is_wrong_again():
    for _ in range(2):
        with pytest.raises(UserError, match="no model named 'lenett'"):
            resolve_once({**config(), "model": {"name": "lenett"}}, host())


def test_a_sampler_that_needs_weights_is_refused_where_there_are_none(worker, cache):
    settings = config("train.sampler=weighted", "dataset.image_size=8", "model=linear")
    worker.call("prepare", config=settings, cache=cache)
    with pytest.raises(UserError) as caught:
        worker.call("check", config=settings, cache=cache)
    assert caught.value.problems == [
        "train.sampler=weighted: the data set 'digits' gives its samples no weights"
    ]


def test_balanced_weights_are_tried(worker, cache):
    settings = config("loss.weight=balanced", "train.sampler=balanced")
    assert worker.call("check", config=settings, cache=cache)["device"]


UNDESCRIBED = """
from torchyard import DatasetParams, hookimpl

class Undescribed(DatasetParams):
    \"\"\"What it says of its samples is of no use.\"\"\"
    how: str
    def build(self, downloads):
        raise AssertionError("not built")
    def describe(self):
        return {"raises": lambda: 1 / 0, "exits": exit, "list": lambda: [1, 2]}[self.how]()

@hookimpl
def register_datasets(register):
    register("undescribed", Undescribed)
"""


@pytest.mark.parametrize(
    ("how", "problem"),
    [
        ("raises", "describe() raises ZeroDivisionError: division by zero"),
        ("exits", "describe() raises SystemExit: None"),
        ("list", "describe() returns a list, not a SampleSpec or None"),
    ],
)
def test_a_data_set_that_does_not_say_what_its_samples_are_is_named(
    monkeypatch, tmp_path, how, problem
):
    (tmp_path / "undescribed.py").write_text(UNDESCRIBED)
    monkeypatch.setenv("TORCHYARD_PLUGINS", str(tmp_path))
    host.cache_clear()
    try:
        settings = config("dataset=undescribed", f"dataset.how={how}", "optimizer.lr=3")
        with pytest.raises(UserError) as caught:
            config_check.check(settings, str(tmp_path), print)
    finally:
        host.cache_clear()
    assert caught.value.problems == [f"dataset undescribed: {problem}"]
