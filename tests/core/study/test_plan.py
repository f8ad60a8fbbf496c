"""A study as it is asked for: read, refused, and what it is by its digest."""

from pathlib import Path

import pytest
import yaml

from torchyard.core.config.resolve import read_config
from torchyard.core.errors import UserError
from torchyard.core.hosting.host import host
from torchyard.core.study.plan import EXTRAS, StudyPlan

PRESETS = Path(__file__).parents[3] / "pipelines" / "presets"


def plan(*assignments, source="digits", **options):
    return StudyPlan.read(source, assignments, options, PRESETS, host())


def problems(*assignments, **options):
    with pytest.raises(UserError) as refused:
        plan(*assignments, **options)
    return refused.value.problems


def test_settings_without_a_domain_are_fixed_for_all_trials():
    study = plan("optimizer.lr=log(1e-4,1e-1)", "model=[lenet,mlp]", "train.epochs=2")
    config = study.resolved({"optimizer.lr": 0.5, "model": "mlp"}, host()).config
    assert (config.model.name, config.optimizer.lr, config.train.epochs) == ("mlp", 0.5, 2)


def test_a_fixed_setting_is_kept_whatever_plugin_is_chosen():
    study = plan("optimizer=[sgd,adam]", "optimizer.lr=0.25")
    for name in ("sgd", "adam"):
        assert study.resolved({"optimizer": name}, host()).config.optimizer.lr == 0.25


def test_trials_are_compared_by_a_validation_split():
    study = plan("optimizer.lr=log(1e-4,1e-1)")
    assert study.resolved({"optimizer.lr": 0.1}, host()).config.train.validation == 0.1
    assert "train.validation=0.1" in study.notes[0]
    own = plan("optimizer.lr=log(1e-4,1e-1)", "train.validation=0.3")
    assert own.resolved({"optimizer.lr": 0.1}, host()).config.train.validation == 0.3
    assert own.notes == ()
    assert plan("optimizer.lr=log(1e-4,1e-1)", minimize="train/loss").notes == ()


def test_more_workers_than_processors_are_warned_of():
    [note] = plan("optimizer.lr=log(1e-4,1e-1)", "train.validation=0.3", workers=10_000).notes
    assert note.startswith("10000 workers on ")


def test_workers_of_a_cluster_that_runs_already_are_not_counted_against_this_machine():
    settings = {"engine": "dask", "address": "scheduler:8786", "workers": 10_000}
    assert plan("optimizer.lr=log(1e-4,1e-1)", "train.validation=0.3", **settings).notes == ()


def test_an_engine_is_no_part_of_what_a_study_is():
    local, dask = (
        plan("optimizer.lr=log(1e-4,1e-1)", engine=engine, workers=workers)
        for engine, workers in (("local", 1), ("dask", 2))
    )
    assert local.name == dask.name
    assert dask.document["study"]["engine"] == "dask"


def test_an_engine_that_is_not_there_is_said_with_what_to_do(monkeypatch):
    lr = "optimizer.lr=log(1e-4,1e-1)"
    assert "Did you mean 'dask'?" in problems(lr, engine="dusk")[0]
    [said] = problems(lr, address="127.0.0.1:8786")
    assert said == "study.address: is for the engines pool, dask and ray"
    monkeypatch.setitem(EXTRAS, "ray", "not_installed_here")
    [said] = problems(lr, engine="ray")
    assert said == "study.engine: ray needs an extra: pip install 'torchyard[ray]'"
    [said] = problems("model=[lenet,mlp]", sampler="cmaes")
    assert "no setting is a range" in said


def test_what_trials_may_have_in_common_is_known_of_small_grids_alone():
    milestones = "scheduler.milestones=[[0.5],[0.75]]"
    fixed = ("scheduler=piecewise", "scheduler.factors=[[0.1]]")
    study = plan(milestones, "train.epochs=int(4,6)", *fixed)
    assert len(study.points) == 6
    assert study.points[0] == {
        **{"scheduler.milestones": [0.5], "scheduler.factors": [0.1], "train.epochs": 4}
    }
    assert plan(milestones, "optimizer.lr=log(1e-4,1e-1)", *fixed).points == []
    assert plan(milestones, "train.batch_size=int(1,501)", *fixed).points == []
    assert plan("model=[lenet,mlp]").points == []


def test_every_mistake_comes_at_once():
    said = problems(
        "model=[lenet,resnet81]",
        "optimizer.lrr=log(1e-4,1e-1)",
        "optimizer.lr=uniform(2,1)",
        "train.epochs=0",
        "train.batch_size",
        trials=-1,
        sampler="sobol",
    )
    for start in (
        "model: no model named 'resnet81'",
        "optimizer.lrr: unknown parameter of 'adam'",
        "optimizer.lr: uniform(2,1) is empty",
        "train.epochs: must be greater than 0",
        "'train.batch_size' is not of the form key=value",
        "study.trials: must be greater than 0",
        "study.sampler: must be ",
    ):
        assert sum(line.startswith(start) for line in said) == 1, start
    assert len(said) == 7


@pytest.mark.parametrize(
    ("assignments", "said"),
    [
        (["optimizer=[sgd,adam]", "optimizer.momentum=uniform(0.8,0.99)"], "(with optimizer=adam)"),
        (["optimizer.lr=uniform(-1,1)"], "(with optimizer.lr=-1.0)"),
        (["scheduler=constant", "scheduler.gamma=uniform(0,1)"], "unknown parameter of 'constant'"),
        (["train.epochs=int(1,3)", "train.epochs=2"], "train.epochs: is set twice"),
        (["train.epochs=3"], "a study needs a setting that differs"),
        (["optimizer.lr=log(1e-4,1)", "promote=digits"], "promote: trials are not promoted"),
    ],
)
def test_a_contradiction_is_said_with_where_it_is(assignments, said):
    [problem] = problems(*assignments)
    assert said in problem


def test_a_goal_is_one_figure_that_epochs_have():
    [said] = problems("optimizer.lr=log(1e-4,1)", minimize="val/los")
    assert "Did you mean 'val/loss'?" in said
    [said] = problems("optimizer.lr=log(1e-4,1)", minimize="val/loss", maximize="val/accuracy")
    assert "a study has one of them" in said


def test_the_goal_is_what_the_best_weights_are_chosen_by():
    space = ("optimizer.lr=log(1e-4,1)", "train.validation=0.2")
    assert plan(*space).settings.figure == "val/loss"
    chosen = plan(*space, "train.monitor=macro_f1").settings
    assert (chosen.maximize, chosen.minimize) == ("val/macro_f1", None)
    own = plan(*space, "train.monitor=macro_f1", minimize="train/loss").settings
    assert (own.maximize, own.figure) == (None, "train/loss")


def test_a_grid_is_of_what_can_be_listed_and_has_no_more_trials_than_points():
    space = ["model=[lenet,mlp]", "train.batch_size=int(30,32)"]
    assert plan(*space, sampler="grid").trials == 6
    assert plan(*space, sampler="grid", trials=4).trials == 4
    assert plan(*space, sampler="grid", trials=40).trials == 6
    [said] = problems("optimizer.lr=log(1e-4,1)", sampler="grid")
    assert "a grid needs a list of choices" in said


def test_a_study_is_the_same_from_its_own_document(tmp_path):
    study = plan("optimizer.lr=log(1e-4,1e-1)", "model=[lenet,mlp]", "train.epochs=2", trials=7)
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(study.document))
    again = plan(source=str(file))
    assert again.digest == study.digest
    assert again.name == study.name
    assert (again.trials, again.notes) == (7, ())


def test_a_study_is_another_one_by_what_its_trials_depend_on():
    space = "optimizer.lr=log(1e-4,1e-1)"
    study = plan(space)
    assert plan(space, trials=50, workers=2, name="mine").digest == study.digest
    for other in (
        plan("optimizer.lr=log(1e-4,1e-2)"),
        plan(space, "train.epochs=2"),
        plan(space, sampler="random"),
        plan(space, pruner="median"),
        plan(space, maximize="val/accuracy"),
    ):
        assert other.digest != study.digest


def test_the_command_of_a_trial_has_its_configuration():
    study = plan("optimizer.lr=log(1e-4,1e-1)", "model=[lenet,mlp]", "train.epochs=2")
    values = {"optimizer.lr": 0.012345678901234567, "model": "mlp"}
    run, sweep, source, *overrides = study.command(values, "digits")
    assert (run, sweep) == ("torchyard", "run")
    config = read_config(source, overrides, PRESETS, host()).config
    assert config == study.resolved(values, host()).config
