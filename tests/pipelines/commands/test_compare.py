"""Finding runs by what people call them, and listing them, in a real store."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchyard.core.data.predictions import PREDICTIONS_FILE, Predictions, PredictionTable
from torchyard.core.errors import UserError
from torchyard.core.report.comparison import (
    classes_compared,
    gather,
    results,
    settings_that_differ,
    verdict,
)
from torchyard.core.tracking.lookup import find_run, recorded_predictions
from torchyard.core.tracking.record import RunRecord
from torchyard.core.tracking.table import COLUMNS, TAG, RunQuery

CLASSES = ("cat", "<script>alert(1)</script>", "猫 🐈")


def record(folder: Path, model: str, dataset: str, accuracy: float | None, **more):
    """A run as a training leaves it; without an accuracy it failed."""
    lr = more.pop("lr", 0.1)
    begun = RunRecord.start(
        name_stem=f"{model}·sgd·{dataset}",
        parameters={"model": {"name": model}, "optimizer": {"name": "sgd", "lr": lr}, **more},
        tags={"model": model, "dataset": dataset, "optimizer": "sgd", "device": "cpu"},
    )
    begun.log_metrics({"train/base_learning_rate": lr}, step=0)
    if accuracy is None:
        begun.finish("FAILED", "the loss became nan")
        return begun
    for epoch in (1, 2):
        begun.log_metrics({"train/loss": 1 / epoch, "train/accuracy": accuracy / 2}, step=epoch)
    targets = np.arange(200) % 2
    wrong = np.arange(200) >= 200 * accuracy
    logits = 5 * np.eye(3, dtype=np.float32)[np.where(wrong, 2, targets)]
    begun.log_metrics({"test/accuracy": accuracy, "test/worst_recall": accuracy}, step=2)
    begun.log_metrics({"time/train_seconds": 100 * lr}, step=0)
    begun.set_tags({"worst_class": CLASSES[1]})
    PredictionTable(
        Predictions(logits, targets), begun.name, dataset, CLASSES, dataset.ljust(64, "0")
    ).write(folder / PREDICTIONS_FILE)
    begun.log_file(folder / PREDICTIONS_FILE)
    begun.finish("FINISHED")
    return begun


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A store with runs on two data sets, one that failed, and one of another program."""
    folder = tmp_path_factory.mktemp("workspace 场")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlruns/mlflow.db")
        patch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
        runs = {
            "good": record(folder, "lenet", "digits", 0.9, lr=3e-5, train={"epochs": 10}),
            "better": record(folder, "resnet18", "digits", 0.95, lr=0.01, train={"epochs": 9}),
            "other": record(folder, "lenet", "cifar10", 0.99),
            "failed": record(folder, "lenet", "digits", None),
        }
        client = runs["good"]._client
        foreign = client.create_run("0", run_name='it\'s not "ours"')
        client.set_terminated(foreign.info.run_id)
        client.create_registered_model("sorter")
        for name in ("good", "better"):
            version = client.create_model_version(
                "sorter", "somewhere", runs[name].run_id, tags={"from": name}
            )
        client.set_registered_model_alias("sorter", "champion", "1")
        client.set_registered_model_alias("sorter", "challenger", version.version)
        yield client, runs, foreign


@pytest.fixture
def client(workspace):
    return workspace[0]


@pytest.fixture
def runs(workspace):
    return {name: begun.run_id for name, begun in workspace[1].items()} | {
        "foreign": workspace[2].info.run_id
    }


def found(client, wanted: str) -> str:
    return find_run(client, wanted).info.run_id


# ---- what people call a run


def test_a_run_is_found_by_id_name_alias_and_as_the_latest_or_best(client, runs, workspace) -> None:
    assert found(client, runs["good"]) == runs["good"]
    assert found(client, workspace[1]["better"].name) == runs["better"]
    assert found(client, "latest") == runs["foreign"]
    assert found(client, "best:digits") == runs["better"]
    assert found(client, "best:cifar10") == runs["other"]
    assert found(client, "champion") == runs["good"]
    assert found(client, "sorter@champion") == runs["good"]
    assert found(client, "sorter@challenger") == runs["better"]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("lenet·sgd·digit #1", r"no run .* Did you mean \w{32} \(lenet·sgd·digits #\d+\)\?"),
        ('it\'s not "ours"!', "Did you mean"),
        ("nothing like it", "no run with the id or name 'nothing like it'. The last one is"),
        ("best", "there are runs on 2 data sets: say best:cifar10 or best:digits"),
        ("best:digit", "no finished run on 'digit'. Did you mean 'digits'?"),
        ("sorter@champoin", "'sorter' has no alias 'champoin'. Did you mean 'champion'?"),
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
        with pytest.raises(UserError, match="say second@champion or sorter@champion"):
            find_run(client, "champion")
        assert found(client, "second@champion") == runs["other"]
    finally:
        client.delete_registered_model("second")


# ---- the table


def listed(client, *conditions, **how) -> list[str]:
    limit = how.pop("limit", 20)
    return RunQuery.parse(conditions, **how).table(client, limit)["id"].tolist()


def test_the_table_has_a_row_a_run_the_newest_first(client, runs) -> None:
    table = RunQuery.parse().table(client)
    assert list(table) == list(COLUMNS)
    names = [name for run in table["id"] for name in runs if runs[name] == run]
    assert names == ["foreign", "failed", "other", "better", "good"]
    rows = table.set_index("id")
    assert rows.loc[runs["better"], "lr"] == 0.01
    assert rows.loc[runs["failed"], "status"] == "FAILED"
    assert np.isnan(rows.loc[runs["foreign"], "accuracy"])
    assert rows.loc[runs["foreign"], "run"] == 'it\'s not "ours"'
    assert str(rows["started"].dtype).startswith("datetime64")


@pytest.mark.parametrize(
    ("conditions", "names"),
    [
        (["dataset=digits", "status=finished"], {"good", "better"}),
        (["dataset!=digits"], {"other"}),
        (["accuracy>90%"], {"better", "other"}),
        (["accuracy>=0.9", "accuracy<=95%"], {"good", "better"}),
        (["lr<0.001"], {"good"}),
        (["model~NET18"], {"better"}),
        (["train.epochs=10"], {"good"}),
        (["test/worst_recall>0.94"], {"better", "other"}),
        (["started>2020-01-01", "status=failed"], {"failed"}),
        (["started<2020-01-01"], set()),
        (["run=it's not \"ours"], None),
        (["worst_class=<script>alert(1)</script>"], {"good", "better", "other"}),
    ],
)
def test_conditions_choose(client, runs, conditions, names) -> None:
    if names is None:
        with pytest.raises(UserError, match="both ' and"):
            listed(client, *conditions)
        return
    assert set(listed(client, *conditions)) == {runs[name] for name in names}


def test_numbers_sort_as_numbers_and_what_has_none_is_left_out(client, runs) -> None:
    assert listed(client, sort="accuracy") == [runs["other"], runs["better"], runs["good"]]
    assert listed(client, sort="lr", reverse=True)[:2] == [runs["good"], runs["better"]]
    assert listed(client, "dataset=digits", sort="model")[-1] == runs["better"]
    assert listed(client, limit=2) == [runs["foreign"], runs["failed"]]
    assert "train.epochs" in RunQuery.parse(["train.epochs=9"]).table(client)


def test_every_mistake_is_named_at_once() -> None:
    with pytest.raises(UserError) as caught:
        RunQuery.parse(
            ["acuracy>3", "accuracy>x", "model>lenet", "what", "started>soon", "lr~1"], "modle"
        )
    problems = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 7
    for part in (
        "no column 'acuracy'. Did you mean 'accuracy'?",
        "accuracy is a number, and 'x' is none",
        "model is a text",
        "'what' is no condition",
        "'soon' is no date",
        "contains nothing",
        "no column 'modle'. Did you mean 'model'?",
    ):
        assert part in problems


@given(st.text(max_size=30))
@settings(max_examples=150, deadline=None)
def test_any_text_is_a_condition_or_a_mistake_that_is_named(text: str) -> None:
    with contextlib.suppress(UserError):
        assert RunQuery.parse([text], "accuracy").chosen


@given(value=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12))
@settings(max_examples=40, deadline=None)
def test_a_value_is_a_value_and_never_a_part_of_the_query(workspace, value: str) -> None:
    client, _, _ = workspace
    if "'" in value and '"' in value:
        with pytest.raises(UserError, match="both ' and"):
            RunQuery.parse([f"model={value}"])
        return
    query = RunQuery.parse([f"model={value}"])
    known = value.strip() in ("lenet", "resnet18")
    assert known or query.table(client).empty


def test_mlflows_own_table_has_a_view_with_columns_that_the_runs_have(client, runs) -> None:
    run = client.get_run(runs["good"])
    view = json.loads(client.get_experiment(run.info.experiment_id).tags[TAG])
    assert view["name"] == "Results"
    state = json.loads(zlib.decompress(base64.b64decode(view["state"].removeprefix("deflate;"))))
    assert "metrics.`test/accuracy`" in state["selectedColumns"]
    assert "tags.`worst_class`" in state["selectedColumns"]


# ---- several runs


def test_predictions_are_read_back_from_the_store(client, runs) -> None:
    table = recorded_predictions(client, client.get_run(runs["good"]))
    assert table.dataset == "digits"
    assert table.classes == CLASSES
    with pytest.raises(UserError, match="has recorded no predictions: it is FAILED"):
        recorded_predictions(client, client.get_run(runs["failed"]))


def test_runs_are_compared_with_the_first_as_far_as_they_go(client, runs) -> None:
    names = ("good", "better", "other", "failed", "foreign")
    compared = gather(client, [client.get_run(runs[name]) for name in names])
    differ = settings_that_differ(compared)
    assert differ.loc["optimizer.lr"].tolist() == ["3e-05", "0.01", "0.1", "0.1", None]
    assert differ.loc["train.epochs"].tolist()[:3] == ["10", "9", None]
    assert "optimizer.momentum" not in differ.index
    assert results(compared).loc["worst class"].tolist()[:3] == [0.9, 0.95, 0.99]
    assert compared[1].difference.overall.difference == pytest.approx(0.05)
    assert compared[0].curves["train/loss"] == [(1, 1.0), (2, 0.5)]
    rows = classes_compared(compared)
    assert [row[0] for row in rows] == ["cat", "<script>alert(1)</script>", "猫 🐈"]
    _, images, cells = rows[0]
    assert images == 100
    assert [cell is None for cell in cells] == [False, False, True, True, True]
    assert cells[1].difference == pytest.approx(0.05)
    assert rows[2][1] == 0
    assert np.isnan(rows[2][2][1].accuracy)
    said = [verdict(compared[0], each) for each in compared[1:]]
    assert re.fullmatch(r"resnet18.* is better than lenet.*", said[0][0])
    assert said[0][1].startswith("5.0 points")
    assert "different samples" in said[1][1]
    assert "has recorded no predictions: it is FAILED" in said[2][1]
    assert "has recorded no predictions" in said[3][1]


def test_nothing_is_compared_by_class_without_predictions_of_the_first(client, runs) -> None:
    compared = gather(client, [client.get_run(runs[name]) for name in ("failed", "good")])
    assert classes_compared(compared) == []
    assert compared[1].result is not None


# ---- the commands


@pytest.fixture
def here(workspace, monkeypatch, capsys):
    from torchyard.pipelines.commands.run import app

    monkeypatch.setenv("MLFLOW_TRACKING_URI", workspace[0].tracking_uri)

    def command(*arguments: str) -> str:
        app(list(arguments), standalone_mode=False)
        return capsys.readouterr().out

    return command


def test_the_commands_list_and_compare(here, runs, tmp_path) -> None:
    rows = json.loads(here("runs", "dataset=digits", "--sort", "accuracy", "--json"))
    assert [row["accuracy"] for row in rows] == [0.95, 0.9]
    assert rows[0]["started"].endswith("Z")
    assert json.loads(here("runs", "status=failed", "--json"))[0]["accuracy"] is None
    written = tmp_path / "runs.csv"
    written.write_text(here("runs", "--csv", "--limit", "3"))
    assert pd.read_csv(written)["id"].tolist() == [runs["foreign"], runs["failed"], runs["other"]]
    printed = here("runs", "accuracy>0")
    assert "resnet18·sgd·digits" in printed
    assert "<script>alert(1)</script> 95.0%" in printed
    assert "There is no such run." in here("runs", "accuracy>2")
    printed = here("compare", "champion", "best:digits", "best:cifar10")
    assert "is better than" in printed
    assert "different samples" in printed
    assert re.search(r"猫 🐈 +– +– +– +0", printed)


def test_the_page_needs_no_other_file_and_shows_names_as_they_are(here, tmp_path) -> None:
    page = tmp_path / "page.html"
    here("compare", "champion", "best:digits", "best:cifar10", "latest", "--html", str(page))
    text = page.read_text("utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    assert "is better than" in text
    assert "different samples" in text
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "猫 🐈" in text
    assert text.count("<svg") == 3
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)", text)
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))


def test_what_cannot_be_compared_is_refused(here, runs, tmp_path) -> None:
    with pytest.raises(UserError, match="two runs or more"):
        here("compare", "latest")
    with pytest.raises(UserError, match=f"are one run: {runs['good']}"):
        here("compare", "champion", runs["good"])
    with pytest.raises(UserError, match="there is no such folder"):
        here("compare", "champion", "latest", "--html", str(tmp_path / "none/page.html"))
    with pytest.raises(UserError, match="say one of them"):
        here("runs", "--json", "--csv")
