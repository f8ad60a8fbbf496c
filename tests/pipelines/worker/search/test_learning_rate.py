"""The range test: the same twice, rates that grow, and a rate from where the loss falls."""

import itertools
import math

import pytest

from tests.pipelines.worker.conftest import config
from torchyard.pipelines.worker import stages
from torchyard.pipelines.worker.search.learning_rate import HIGHEST, LOWEST, suggested_rate
from torchyard.pipelines.worker.stages import preparation


@pytest.fixture(scope="module")
def find(tmp_path_factory):
    cache = str(tmp_path_factory.mktemp("cache"))

    def find(*overrides, steps=40):
        settings = config("model=linear", "device=cpu", *overrides)
        data = preparation.prepare(settings, cache, lambda event: None)["folder"]
        return stages.find_learning_rate(settings, data, steps, lambda event: None)

    return find


def test_rates_grow_evenly_and_the_test_repeats_itself(find):
    first, second = (find("optimizer=sgd", "optimizer.lr=0.3") for _ in range(2))
    assert first == second
    rates = first["rates"]
    assert rates[0] == pytest.approx(LOWEST)
    growth = [after / before for before, after in itertools.pairwise(rates)]
    assert growth == pytest.approx([(HIGHEST / LOWEST) ** (1 / 39)] * len(growth))
    assert LOWEST < first["suggestion"] < HIGHEST
    assert min(first["losses"]) < first["losses"][0]
    assert find("optimizer=sgd", "optimizer.lr=7")["rates"] == pytest.approx(rates)


def test_it_suggests_the_middle_of_the_longest_fall():
    rates = [10.0**exponent for exponent in range(-8, 2)]
    losses = [2.3, 2.3, 2.3, 2.2, 2.0, 1.5, 1.2, 1.1, 4.0, 9.0]
    assert suggested_rate(rates, losses) == pytest.approx(1e-4)
    assert math.isfinite(suggested_rate(rates, [1.0] * 10))
