"""Runs compared with the first, as far as what they recorded allows."""

from __future__ import annotations

import re

import numpy as np
import pytest

from torchyard.core.report.comparison import (
    classes_of,
    compare_runs,
    comparison_page,
    conclusion,
    price,
    results,
    settings_that_differ,
)


def test_runs_are_compared_with_the_first_as_far_as_they_go(client, runs) -> None:
    names = ("good", "better", "other", "failed", "foreign")
    compared = compare_runs(client, [client.get_run(runs[name]) for name in names])
    differ = settings_that_differ(compared)
    assert differ["optimizer.lr"] == ["3e-05", "0.01", "0.1", "0.1", None]
    assert differ["train.epochs"][:3] == ["10", "9", None]
    assert "optimizer.momentum" not in differ
    assert results(compared).loc["worst class"].tolist()[:3] == [0.9, 0.95, 0.99]
    assert results(compared).loc["validation loss"].tolist()[:2] == [1.0, 0.1]
    assert "epochs" not in results(compared).index  # none has it
    assert compared[1].difference.overall.difference == pytest.approx(0.05)
    assert compared[0].curves["train/loss"] == [(1, 1.0), (2, 0.5)]
    rows = classes_of(compared)
    assert {row[0] for row in rows} == {"cat", "<script>alert(1)</script>", "猫 🐈"}
    [[images, cells]] = [row[1:] for row in rows if row[0] == "cat"]
    assert images == 100
    assert [cell is None for cell in cells] == [False, False, False, True, True]
    assert cells[2].difference is None
    assert cells[1].difference == pytest.approx(0.05)
    assert rows[2][0] == "猫 🐈"
    assert rows[2][1] == 0
    assert np.isnan(rows[2][2][1].accuracy)
    said = [conclusion(compared[0], each) for each in compared[1:]]
    assert re.fullmatch(r"resnet18.* is better than lenet.*", said[0][0])
    assert said[0][1].startswith("5.0 points")
    assert "different samples" in said[1][1]
    assert "has recorded no predictions: it is FAILED" in said[2][1]
    assert "has recorded no predictions" in said[3][1]


def test_a_circumstance_differs_where_two_runs_are_known_to_differ_in_it(client, runs) -> None:
    chosen = [runs[name] for name in ("good", "better", "failed")]

    def torch_versions() -> list[str | None] | None:
        compared = compare_runs(client, [client.get_run(run_id) for run_id in chosen])
        return settings_that_differ(compared).get("torch")

    try:
        client.set_tag(chosen[0], "torch_version", "2.11.0")
        assert torch_versions() is None
        client.set_tag(chosen[1], "torch_version", "2.15.0")
        assert torch_versions() == ["2.11.0", "2.15.0", None]
    finally:
        for run_id in chosen[:2]:
            if "torch_version" in client.get_run(run_id).data.tags:
                client.delete_tag(run_id, "torch_version")


def test_nothing_is_compared_by_class_without_predictions_of_the_first(client, runs) -> None:
    compared = compare_runs(client, [client.get_run(runs[name]) for name in ("failed", "good")])
    assert classes_of(compared) == []
    assert compared[1].result is not None


def test_what_a_point_takes_is_said_where_one_trained_longer_and_is_better(client, runs) -> None:
    def prices(*names: str) -> list[str]:
        compared = compare_runs(client, [client.get_run(runs[name]) for name in names])
        return [price(compared[0], each) for each in compared[1:]]

    [upward] = prices("good", "better")  # 0.003 s and 1 s
    assert re.fullmatch(
        r"resnet18·sgd·digits #2 trained 333\.3 times as long \(1\.0 s against 0\.0 s\): "
        r"0\.2 s more for each point",
        upward,
    )
    assert prices("better", "good", "other", "failed") == [upward, "", ""]
    [same_data] = prices("good", "good")
    assert same_data == ""


def test_runs_of_one_name_are_told_apart_by_their_ids(client, runs) -> None:
    good, better = (client.get_run(runs[name]) for name in ("good", "better"))
    names = [good.info.run_name, better.info.run_name]
    assert [each.label for each in compare_runs(client, [good, better])] == names
    twice = [f"{names[0]} {runs['good'][:8]}"] * 2
    assert [each.label for each in compare_runs(client, [good, good])] == twice


def test_the_device_is_shown_and_classes_are_drawn_from_just_below_the_worst(client, runs) -> None:
    compared = compare_runs(client, [client.get_run(runs[name]) for name in ("good", "better")])
    assert compared[0].placement == "cpu"
    page = comparison_page(compared)
    widths = [float(width) for width in re.findall(r'class="fill" style="width:([\d.]+)%', page)]
    assert 0 <= min(widths) < 50 <= max(widths) <= 100
