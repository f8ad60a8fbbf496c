"""Optuna's part of a study: what trials get does not depend on when the process dies."""

from pathlib import Path

import pytest

from torchyard.core.hosting.host import host
from torchyard.core.study.plan import StudyPlan
from torchyard.pipelines.study.search import JOURNAL, Search

PRESETS = Path(__file__).parents[3] / "pipelines" / "presets"
SPACE = ("optimizer.lr=log(1e-4,1e-1)", "model=[lenet,mlp]", "train.batch_size=int(16,128)")
GRID = ("model=[lenet,mlp]", "train.batch_size=int(16,22)")


def plan(sampler, **options):
    given = {"sampler": sampler, "trials": 14, "name": "test"} | options
    return StudyPlan.read("digits", GRID if sampler == "grid" else SPACE, given, PRESETS, host())


def value_of(values):
    return float(values["train.batch_size"])


@pytest.mark.parametrize("sampler", ["random", "tpe", "grid", "cmaes"])
def test_a_study_whose_process_dies_anywhere_has_the_same_trials(tmp_path, sampler):
    def run(name, dies):
        folder = tmp_path / name
        folder.mkdir()
        study = plan(sampler)

        def opened(search=None):
            return Search(study, folder, 0, 5) if dies or search is None else search

        drawn = []
        search = opened()
        while search.asked < study.trials:
            number = search.ask()
            search = opened(search)
            if dies:
                assert search.unfinished() == [number]
            drawn.append(search.values(number))
            search = opened(search)
            search.unfinished()
            search.report(number, 1, value_of(drawn[-1]))
            search.tell(number, "complete", value_of(drawn[-1]))
            search = opened(search)
        assert len(search.finished()) == study.trials
        assert [each.number for each in search.finished()] == list(range(study.trials))
        return drawn

    drawn = run("whole", dies=False)
    assert drawn == run("dying", dies=True)
    assert len({tuple(values.items()) for values in drawn}) == 14


@pytest.mark.parametrize("sampler", ["random", "grid"])
def test_what_trials_get_does_not_depend_on_how_many_run_at_a_time(tmp_path, sampler):
    one, four = (Search(plan(sampler), tmp_path / name, 0, 5) for name in _made(tmp_path, 2))
    alone = {}
    for number in range(14):
        assert one.ask() == number
        alone[number] = one.values(number)
        one.tell(number, "complete", 1.0)
    together = {}
    for first in range(0, 14, 7):
        numbers = [four.ask() for _ in range(7)]
        assert numbers == list(range(first, first + 7))
        together |= {number: four.values(number) for number in numbers}
        for number in reversed(numbers):
            four.tell(number, "failed" if number == 3 else "complete", 1.0)
    assert together == alone


def _made(folder, count):
    for number in range(count):
        (folder / str(number)).mkdir()
        yield str(number)


def test_a_process_that_joins_sees_the_trials_and_what_it_reports_is_seen(tmp_path):
    study = plan("random", pruner="median")
    leader = Search(study, tmp_path, 0, 9)
    for number in range(6):
        assert leader.ask() == number
        values = leader.values(number)
        joined = Search.joined(study, tmp_path, 0, 9)
        assert joined.values(number) == values
        pruned = [joined.report(number, epoch, float(number)) for epoch in (1, 2)]
        assert leader.pruned_after(number) == joined.pruned_after(number)
        assert bool(joined.pruned_after(number)) == any(pruned)
        leader.tell(number, "pruned" if any(pruned) else "complete", float(number))
    assert {each.state for each in joined.finished()} == {"complete", "pruned"}


def test_cmaes_goes_where_the_trials_are_good(tmp_path):
    space = ("optimizer.lr=uniform(1e-9,1)", "optimizer.momentum=uniform(0,0.9)", "optimizer=sgd")
    study = StudyPlan.read("digits", space, {"sampler": "cmaes", "name": "c"}, PRESETS, host())
    search, values = Search(study, tmp_path, 0, 5), []
    for number in range(40):
        drawn = search.values(search.ask())
        values.append((drawn["optimizer.lr"] - 0.3) ** 2 + (drawn["optimizer.momentum"] - 0.6) ** 2)
        search.tell(number, "complete", values[-1])
    assert sum(values[-10:]) < sum(values[:10]) / 2
    for line in (
        (tmp_path / JOURNAL).read_text("utf-8").splitlines()
    ):  # no pickle, nor another state
        assert "system_attr" not in line


@pytest.mark.parametrize("written", ["int(1,64)", "int(1,64,log)", "uniform(1,64)", "log(1,64)"])
def test_cmaes_stays_within_the_space_and_comes_to_its_ends(tmp_path, written):
    space = (f"train.batch_size={written}",) if "int" in written else (f"optimizer.lr={written}",)
    options = {"sampler": "cmaes", "name": "c", "maximize": "val/accuracy"}
    study = StudyPlan.read("digits", space, options, PRESETS, host())
    search, drawn = Search(study, tmp_path, 0, 5), []
    for _ in range(48):
        [value] = search.values(number := search.ask()).values()
        drawn.append(value)
        search.tell(number, "complete", float(value))
    assert all(1 <= value <= 64 for value in drawn)
    assert isinstance(drawn[0], int if "int" in written else float)
    assert max(drawn) > 60


def test_the_best_is_the_first_of_the_least_or_greatest(tmp_path):
    for name, goal, best in (("0", {}, 1), ("1", {"maximize": "val/accuracy"}, 2)):
        (tmp_path / name).mkdir()
        search = Search(plan("random", **goal), tmp_path / name, 0, 5)
        assert search.best() is None
        assert search.is_best(0, 0.5)
        for value in (None, 0.1, 0.9, 0.1, 0.9):
            number = search.ask()
            search.values(number)
            search.tell(number, "failed" if value is None else "complete", value)
        assert search.best().number == best
        assert search.is_best(0, 0.9) == bool(goal)
        assert not search.is_best(9, 0.9)
        assert not search.is_best(9, 0.1)


@pytest.mark.parametrize("pruner", ["median", "hyperband"])
def test_a_bad_trial_is_pruned_and_that_is_known_after_a_restart(tmp_path, pruner):
    search = Search(plan("random", pruner=pruner), tmp_path, 0, 9)
    ended = []
    for number in range(14):
        search.ask()
        search.values(number)
        pruned = any(search.report(number, epoch, float(number)) for epoch in range(1, 10))
        if pruned:
            search = Search(plan("random", pruner=pruner), tmp_path, 0, 9)
            assert search.unfinished() == [number]
            ended.append(search.pruned_after(number))
        search.tell(number, "pruned" if pruned else "complete", float(number))
    assert ended
    assert all(ended)
    assert {each.state for each in search.finished()} == {"complete", "pruned"}


def test_a_line_that_a_killed_process_left_unfinished_does_no_harm(tmp_path):
    search = Search(plan("random"), tmp_path, 0, 5)
    search.values(search.ask())
    with (tmp_path / JOURNAL).open("a") as journal:
        journal.write('{"op_code": 5, "work')
    (tmp_path / f"{JOURNAL}.lock").symlink_to(tmp_path / JOURNAL)  # of a process that was killed
    again = Search(plan("random"), tmp_path, 0, 5)
    assert again.unfinished() == [0]
    again.tell(0, "complete", 1.0)
    assert again.ask() == 1
