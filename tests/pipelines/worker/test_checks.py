"""What is tried before any data are read, and that a configuration is resolved once."""

import pytest

from tests.pipelines.worker.conftest import config
from torchyard.core.errors import UserError
from torchyard.core.hosting.host import host
from torchyard.pipelines.worker import checks
from torchyard.pipelines.worker.checks import resolved_once


def test_a_users_mistake_arrives_whole_and_the_worker_lives_on(worker, cache):
    settings = config("model=alexnet", "loss.weight=[1,2]")
    with pytest.raises(UserError) as caught:
        worker.call("check", config=settings, cache=cache)
    assert len(caught.value.problems) == 2
    assert "'alexnet' cannot take samples of 1x32x32" in caught.value.problems[0]
    assert "weight has 2 values, the data has 10 classes" in caught.value.problems[1]
    assert worker.call("check", config=config(), cache=cache)["device"]


def test_a_configuration_is_resolved_once_and_anew_for_other_plugins(monkeypatch, tmp_path):
    calls, resolve = [], checks.resolve
    monkeypatch.setattr(checks, "resolve", lambda *given: calls.append(given) or resolve(*given))
    checks._resolved.cache_clear()
    settings = config()
    first = resolved_once(settings)
    checks.check(dict(reversed(settings.items())), str(tmp_path), print)
    assert resolved_once(settings) is first
    assert len(calls) == 1
    assert resolved_once(config("train.seed=3")) is not first
    host.cache_clear()
    assert resolved_once(settings) is not first
    assert len(calls) == 3


def test_a_configuration_that_is_wrong_is_wrong_again():
    for _ in range(2):
        with pytest.raises(UserError, match="no model named 'lenett'"):
            resolved_once({**config(), "model": {"name": "lenett"}})
