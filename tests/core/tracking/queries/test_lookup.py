"""Finding runs by what people call them, in a real store."""

from __future__ import annotations

import pytest
from mlflow.entities import Dataset, DatasetInput

from torchyard.core.errors import UserError
from torchyard.core.tracking.queries.lookup import ACCURACY, VALIDATED, chosen_among, find_run


def found(client, wanted: str) -> str:
    return find_run(client, wanted).info.run_id


def test_a_run_is_found_by_id_name_alias_and_as_the_latest_or_best(client, runs, recorded) -> None:
    assert found(client, runs["good"]) == runs["good"]
    assert found(client, recorded.records["better"].name) == runs["better"]
    assert found(client, "latest") == runs["foreign"]
    assert found(client, "best:digits") == runs["better"]
    assert found(client, "best:cifar10") == runs["other"]
    assert found(client, "champion") == runs["good"]
    assert found(client, "sorter@champion") == found(client, "sorter/1") == runs["good"]
    assert found(client, "sorter@challenger") == runs["better"]


def test_the_best_is_chosen_by_validation_where_a_run_has_one(client, runs) -> None:
    assert chosen_among(client, find_run(client, "best:digits")) == 2
    made = client.create_run("0", tags={"dataset": "digits"}, run_name="validated").info.run_id
    try:
        client.log_metric(made, ACCURACY, 0.5)
        client.log_metric(made, VALIDATED, 0.6)
        assert found(client, "best:digits") == runs["better"]  # it has not finished
        client.set_terminated(made)
        assert found(client, "best:digits") == made
        assert chosen_among(client, find_run(client, "best:digits")) == 1
        assert found(client, "best:cifar10") == runs["other"]  # by test: it has none
    finally:
        client.delete_run(made)


def test_the_best_of_one_folder_is_not_that_of_another(client, tmp_path) -> None:
    made = {}
    for folder, digest, metrics in (
        ("pets", "a", {ACCURACY: 0.9}),
        ("pets", "b", {ACCURACY: 0.2, VALIDATED: 0.3}),
        ("cars", "c", {ACCURACY: 0.4}),
        ("cars", "c", {ACCURACY: 0.5}),
        ("copy", "c", {ACCURACY: 0.45}),  # of the same data
    ):
        tags = {"dataset": "image_folder"}
        run = client.create_run("0", tags=tags, run_name=f"{folder} {metrics}").info.run_id
        client.log_param(run, "dataset.path", str(tmp_path / folder))
        source = {"source_type": "local", "source": "{}", "name": "train", "digest": digest}
        client.log_inputs(run, datasets=[DatasetInput(Dataset(**source))])
        for name, value in metrics.items():
            client.log_metric(run, name, value)
        client.set_terminated(run)
        made[folder, metrics[ACCURACY]] = run
    try:
        for wanted in ("pets", str(tmp_path / "pets"), f"{tmp_path}/pets/"):
            assert found(client, f"best:{wanted}") == made["pets", 0.2]
        assert found(client, "best:cars") == made["cars", 0.5]
        assert chosen_among(client, find_run(client, "best:cars")) == 3
        assert found(client, "best:digits")
        either = f"best:{tmp_path}/pets or best:{tmp_path}/cars"
        with pytest.raises(UserError, match=f"on 'image_folder' is 2 data sets: use {either}"):
            find_run(client, "best:image_folder")
        with pytest.raises(UserError, match=r"on 4 data sets: .* or best:digits or"):
            find_run(client, "best")
        with pytest.raises(UserError, match="no finished run on 'car'"):
            find_run(client, "best:car")
    finally:
        for run in made.values():
            client.delete_run(run)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("lenet·sgd·digit #1", r"no run .* Did you mean \w{32} \(lenet·sgd·digits #\d+\)\?"),
        ('it\'s not "ours"!', "Did you mean"),
        ("nothing like it", "no run with the id or name 'nothing like it'. The last one is"),
        ("best", "there are runs on 2 data sets: use best:cifar10 or best:digits"),
        ("best:digit", "no finished run on 'digit'. Did you mean 'digits'?"),
        ("sorter@champoin", "'sorter' has no alias 'champoin'. Did you mean 'champion'?"),
        ("sorter/7", "no version 7 of a registered model 'sorter'"),
        ("sortr@champion", "no registered model 'sortr'. Did you mean 'sorter'?"),
        ("", "no run"),
    ],
)
def test_what_is_no_run_is_said_with_the_nearest(client, wanted, message) -> None:
    with pytest.raises(UserError, match=message):
        find_run(client, wanted)


def test_two_champions_must_be_told_apart(client, runs) -> None:
    client.create_registered_model("second")
    client.create_model_version("second", "somewhere", runs["other"])
    client.set_registered_model_alias("second", "champion", "1")
    try:
        with pytest.raises(UserError, match="use second@champion or sorter@champion"):
            find_run(client, "champion")
        assert found(client, "second@champion") == runs["other"]
    finally:
        client.delete_registered_model("second")
