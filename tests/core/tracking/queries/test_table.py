"""Listing runs by conditions, in a real store."""

from __future__ import annotations

import base64
import contextlib
import json
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchyard.core.errors import UserError
from torchyard.core.tracking.queries.table import COLUMNS, RunQuery
from torchyard.core.tracking.queries.view import TAG


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
        (["train.epochs=10.0"], {"good"}),
        (["train.epochs!=10"], {"better"}),
        (["train.epochs>9", "train.epochs<=10"], {"good"}),
        (["train.epochs>8"], {"good", "better"}),  # as texts, "10" < "8"
        (["optimizer.lr<1e-3"], {"good"}),
        (["optimizer.lr=1%", "accuracy>0"], {"better"}),
        (["optimizer.lr>=0.00003", "dataset=digits", "optimizer.lr<0.1"], {"good", "better"}),
        (["optimizer.name=SGD"], set()),
        (["optimizer.name!=adam", "model=lenet", "accuracy>0"], {"good", "other"}),
        (["train.compile=True"], {"better"}),
        (["train.compile!=true"], {"good"}),
        (["train.threads=none", "train.parallel=none"], {"good"}),
        (["optimizer.name>3"], set()),
        (["status~fin", "dataset=digits"], {"good", "better"}),
        (["test/worst_recall>0.94"], {"better", "other"}),
        (["started>2020-01-01", "status=failed"], {"failed"}),
        (["started<2020-01-01"], set()),
        (["started<2100-01-01", "status=failed"], {"failed"}),
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


def test_a_limit_counts_the_runs_that_meet_conditions_on_settings(client, runs) -> None:
    assert listed(client, "train.epochs<=9", limit=1) == [runs["better"]]
    assert listed(client, "optimizer.lr>0", limit=2) == [runs["failed"], runs["other"]]


def test_the_loss_of_the_validation_is_that_of_the_kept_weights(client, runs) -> None:
    assert listed(client, sort="val/loss") == [runs["good"], runs["better"]]
    table = RunQuery.parse(["val/loss<0.5"]).table(client).set_index("id")
    assert table["val/loss"].to_dict() == {runs["better"]: 0.1}


def test_every_setting_is_a_column_if_asked_for(client, runs) -> None:
    query = RunQuery.parse(["accuracy>0", "train.epochs>0"])
    assert "optimizer.name" not in query.table(client)
    table = query.table(client, settings=True)
    assert list(table)[: len(COLUMNS)] == list(COLUMNS)
    assert list(table).count("train.epochs") == 1
    table = table.set_index("id")
    assert table.loc[runs["good"], "optimizer.lr"] == "3e-05"
    assert table.loc[runs["better"], "train.compile"] == "true"


def test_a_metric_or_setting_that_no_run_has_is_named_with_the_nearest(client) -> None:
    with pytest.raises(UserError) as caught:
        RunQuery.parse(["optimizer.lrr>3", "lr>0"], "val/los").check_names(client)
    problems = "\n".join(caught.value.problems)
    assert "no run has the metric 'val/los'. Did you mean 'val/loss'?" in problems
    assert "test/accuracy" in problems
    assert "no run has the setting 'optimizer.lrr'. Did you mean 'optimizer.lr'?" in problems
    RunQuery.parse(["optimizer.lr>3"], "val/loss").check_names(client)


def test_runs_without_the_metric_are_known_to_be_left_out(client) -> None:
    assert RunQuery.parse((), "accuracy").leaves_out(client)
    assert not RunQuery.parse().leaves_out(client)


def test_every_mistake_is_named_at_once() -> None:
    with pytest.raises(UserError) as caught:
        RunQuery.parse(
            [
                *("acuracy>3", "accuracy>x", "model>lenet", "what", "started>soon", "lr~1"),
                *("optimizer.lr>fast", "accuracy<nan", "status=finishd", "started~1"),
            ],
            "modle",
        )
    problems = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 11
    for part in (
        "no column 'acuracy'. Did you mean 'accuracy'?",
        "accuracy is a number, 'x' is not",
        "model is a text",
        "'what' is not a condition",
        "'soon' is not a date",
        "contains nothing",
        "'fast' is not a number",
        "accuracy is a number, 'nan' is not",
        "no such status. Did you mean 'FINISHED'?",
        "started is a number, which contains nothing",
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
def test_a_value_is_a_value_and_never_a_part_of_the_query(recorded, value: str) -> None:
    if "'" in value and '"' in value:
        with pytest.raises(UserError, match="both ' and"):
            RunQuery.parse([f"model={value}"])
        return
    query = RunQuery.parse([f"model={value}"])
    known = value.strip() in ("lenet", "resnet18")
    assert known or query.table(recorded.client).empty


def test_mlflows_own_table_has_a_view_with_columns_that_the_runs_have(client, runs) -> None:
    run = client.get_run(runs["good"])
    view = json.loads(client.get_experiment(run.info.experiment_id).tags[TAG])
    assert view["name"] == "Results"
    state = json.loads(zlib.decompress(base64.b64decode(view["state"].removeprefix("deflate;"))))
    assert "metrics.`test/accuracy`" in state["selectedColumns"]
    assert "tags.`worst_class`" in state["selectedColumns"]
    assert [section["name"] for section in state["compareRunSections"]] == [
        "val",
        "train",
        "results",
    ]
    charted = [chart.get("metricKey") for chart in state["compareRunCharts"]]
    assert charted[:4] == ["val/accuracy", "val/loss", "train/accuracy", "train/loss"]
    assert charted[4] == "test/accuracy"
