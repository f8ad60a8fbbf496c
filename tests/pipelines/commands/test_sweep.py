"""The command `sweep`: what it refuses before anything starts."""

from tests.pipelines.command_line import refused, torchyard


def test_every_mistake_comes_at_once_and_nothing_is_left_behind(tmp_path):
    said = refused(
        tmp_path,
        *("sweep", "digits", "model=[lenet,resnet81]", "optimizer.lr=log(0,1)"),
        *("optimizer.lrr=uniform(1,2)", "train.batch_size=int(9,3)", "--sampler", "sobol"),
    )
    assert sorted(line.partition(": ")[0] for line in said) == [
        "model",
        "optimizer.lr",
        "optimizer.lrr",
        "study.sampler",
        "train.batch_size",
    ]


def test_a_study_without_a_space_says_how_one_is_written(tmp_path):
    [said] = refused(tmp_path, "sweep", "digits", "train.epochs=2")
    assert said.startswith("a study needs a setting that differs  (accepts: log(1e-4,1e-1), ")


def test_a_file_of_a_study_is_checked_as_a_whole(tmp_path):
    (tmp_path / "study.yaml").write_text(
        "dataset: digits\nspace: {optimizer.lr: 0.1, model: []}\nstudy: {trails: 3}\n"
    )
    done = torchyard(tmp_path, "sweep", "study.yaml")
    assert done.returncode == 2
    said = [line.removeprefix("error: ") for line in done.stderr.splitlines()]
    assert len(said) == 3
    assert any(line.startswith("space: optimizer.lr: 0.1 is no domain") for line in said)
    assert any(line.startswith("model: [] has no choice") for line in said)
    assert any("Did you mean" in line and "trials" in line for line in said)
