"""The page of a study: plots of its trials, and no file or network but itself."""

import re

import optuna
import pytest

from torchyard.core.report.study_page import study_page

HOSTILE = "</script><b>bold"


@pytest.fixture(scope="module")
def study():
    study = optuna.create_study()
    distributions = {
        "optimizer.lr": optuna.distributions.FloatDistribution(1e-4, 1e-1, log=True),
        "model": optuna.distributions.CategoricalDistribution(["lenet", HOSTILE]),
        "fixed": optuna.distributions.CategoricalDistribution(["one"]),
    }
    for number in range(6):
        trial = study.ask(distributions)
        for epoch in (1, 2):
            trial.report(trial.params["optimizer.lr"] / epoch, epoch)
        study.tell(trial, trial.params["optimizer.lr"] if number else None,
                   None if number else optuna.trial.TrialState.FAIL)  # fmt: skip
    return study


def page(study):
    rows = [{"trial": "0", "model": HOSTILE, "val/loss": float("nan")}]
    facts = {"trials": HOSTILE}
    return study_page(study, title="mine", figure="val/loss", facts=facts, trials=rows, links={})


def test_it_has_the_plots_and_plotly_itself_once(study):
    text = page(study)
    headings = re.findall("<h2>(.*?)</h2>", text)
    assert headings[:4] == ["History", "Importances", "Parallel coordinates", "Epochs"]
    assert len(re.findall(r"Plotly\.newPlot\(\s*\"", text)) == 4
    assert not re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=", text)


def test_a_name_cannot_end_a_script(study):
    assert HOSTILE not in page(study)


def test_one_trial_has_a_history_alone():
    study = optuna.create_study()
    study.tell(study.ask({"x": optuna.distributions.FloatDistribution(0, 1)}), 1.0)
    assert re.findall("<h2>(.*?)</h2>", page(study))[0] == "History"
    assert "Importances" not in page(study)


def test_one_setting_alone_makes_all_of_the_difference():
    study = optuna.create_study()
    for number in range(4):
        study.tell(study.ask({"x": optuna.distributions.FloatDistribution(0, 1)}), number)
    headings = re.findall("<h2>(.*?)</h2>", page(study))
    assert headings == ["History", "Parallel coordinates", "Trials, the best first"]
