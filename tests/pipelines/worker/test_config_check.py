"""What is checked before any data are read, and that a configuration is resolved once."""

import pytest

from tests.pipelines.worker.conftest import config
from torchyard.core.config import resolve as resolving
from torchyard.core.config.resolve import resolve_once
from torchyard.core.errors import UserError
from torchyard.core.hosting.host import host
from torchyard.pipelines.worker import config_check


def test_a_users_mistake_arrives_whole_and_the_worker_lives_on(worker, cache):
    settings = config("model=alexnet", "loss.weight=[1,2]")
    with pytest.raises(UserError) as caught:
        worker.call("check", config=settings, cache=cache)
    assert len(caught.value.problems) == 2
    assert "'alexnet' cannot take samples of 1x32x32" in caught.value.problems[0]
    assert "weight has 2 values, the data has 10 classes" in caught.value.problems[1]
    assert worker.call("check", config=config(), cache=cache)["device"]


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
