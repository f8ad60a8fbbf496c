"""The benchmarks' arithmetic, page and networks; nothing here is timed."""

import dataclasses
import json
from pathlib import Path

import pytest

from benchmarks import rows
from benchmarks.bench import Bench, Run
from benchmarks.comparison import Comparison, Result, Series, Spread, Target, alternate
from benchmarks.home import Finished
from benchmarks.page import page
from benchmarks.peers.digits_bare import LeNet as GreyLeNet
from benchmarks.peers.networks import NETWORKS, LeNet
from benchmarks.run import ROWS, measure
from torchyard.core.hosting.host import host

FACTS = {"machine": "a box", "commit": "abc", "date": "today", "versions": {"torch": "2"}}


def table(limit: float, at_least: bool = True) -> Comparison:
    return Comparison(
        "LeNet",
        "images/s",
        True,
        (
            Series("ours", (300, 100, 220)),
            Series("slow", (100, 50, 100)),
            Series("fast", (150, 80, 100, 110)),
        ),
        (Target("faster than the best", "ours", limit, at_least, ("slow", "fast")),),
    )


def test_ratios_are_taken_round_by_round():
    # A round in which the machine is slow is slow for both: 3, 2 and 2.2.
    assert table(1).ratios("ours", "slow") == Spread(2.2, 2, 3)
    assert table(1).ratios("ours", "fast") == Spread(2.0, 1.25, 2.2)  # a fourth round has no pair


def test_the_best_of_the_others_is_the_one_to_beat():
    assert table(1).best(("slow", "fast")) == "fast"
    seconds = Comparison("", "seconds", False, table(1).series)
    assert seconds.best(("slow", "fast")) == "slow"  # medians 100 and 105


@pytest.mark.parametrize(
    ("limit", "at_least", "reached"),
    [(2.0, True, True), (2.01, True, False), (2.0, False, True), (1.99, False, False)],
)
def test_a_target_is_held_against_the_median_of_the_ratios(limit, at_least, reached):
    comparison = table(limit, at_least)
    assert comparison.reached(comparison.targets[0]) is reached


def test_without_another_the_value_itself_is_judged():
    target = Target("", "slow", 100, at_least=False)
    assert table(1).measured(target) == Spread(100, 50, 100)
    assert table(1).reached(target)


def test_contenders_alternate():
    order = []
    found = alternate(
        2, {name: lambda name=name: order.append(name) or 1.5 for name in "ab"}, lambda text: None
    )
    assert order == ["a", "b", "a", "b"]
    assert found == {"a": [1.5, 1.5], "b": [1.5, 1.5]}


def test_the_page_shows_every_row_with_its_verdict():
    results = [
        Result(
            "throughput",
            "Speed",
            comparisons=(table(2.5),),
            notes=("So it was.",),
            facts={**FACTS, "seconds": 12.3},
        ),
        Result("memory", "Space", "skipped", "no\ndata", facts=FACTS),
    ]
    again = [Result.from_json(json.loads(json.dumps(result.to_json()))) for result in results]
    assert again == results
    text = page(again, {"throughput": "Because of the loop."})
    short = "2.00 × (1.25 to 2.20) fast"
    assert f"| [throughput](#throughput) | faster than the best | {short} | **no** |" in text
    assert "| slow | 100 | 50 to 100 | 3 | 2.20 × (2.00 to 3.00) |" in text
    assert "commit abc, 12 s." in text
    assert "Because of the loop." in text
    fine = dataclasses.replace(again[0], comparisons=(table(1.5),))
    assert "Because of the loop." not in page([fine], {"throughput": "Because of the loop."})
    assert "| [memory](#memory) | – | skipped: no data | – |" in text


def test_a_row_of_another_machine_says_so():
    facts = {**FACTS, "seconds": 1}
    here = Result("throughput", "Speed", comparisons=(table(2.5),), facts=facts)
    there = Result(
        "evaluate",
        "Eyes",
        comparisons=(table(2.5),),
        facts={**facts, "machine": "a rack", "date": "before"},
    )
    head, *parts = page([there, here], {}).split("\n## ")
    assert "- Machine: a box" in head
    assert ["**On another machine**: a rack." in part for part in parts] == [False, True, False]
    assert "another machine" not in page([here], {})


def test_a_row_of_other_versions_names_them():
    facts = {**FACTS, "seconds": 1, "versions": {"torch": "2", "prefect": "3.9"}}
    earlier = {**facts, "date": "before", "versions": {"torch": "2", "prefect": "3.8"}}
    rows = [
        Result(row, "Speed", comparisons=(table(2.5),), facts=each)
        for row, each in (("evaluate", earlier), ("throughput", facts))
    ]
    head, *parts = page(rows, {}).split("\n## ")
    assert "- Versions: torch 2, prefect 3.9" in head
    named = ["**With other versions**: prefect 3.8." in part for part in parts]
    assert named == [False, True, False]
    assert "other versions" not in page(rows[1:], {})


def test_a_run_is_read_from_its_events():
    lines = [
        {"event": "run", "run_id": "1"},
        {"event": "stage", "stage": "train"},
        {"event": "epoch", "seconds": 2.0, "images_per_second": 500},
        {"event": "epoch", "seconds": 1.0, "images_per_second": 1000},
        {"event": "stage", "stage": "train", "seconds": 4.0},
        {"event": "result", "accuracy": 0.5},
    ]
    run = Run.of(Finished(9.0, "noise\n" + "\n".join(map(json.dumps, lines))))
    assert (run.images, run.steps_seconds, run.stages["train"]) == (2000, 3.0, 4.0)


def test_a_row_that_cannot_be_measured_says_why(tmp_path):
    skipped = measure("prepare", Bench(tmp_path / "a", None))
    assert (skipped.state, "CIFAR10=path" in skipped.reason) == ("skipped", True)
    broken = tmp_path / "broken.tar.gz"
    broken.write_bytes(b"no archive")
    failed = measure("throughput", Bench(tmp_path, broken))
    assert failed.state == "failed"
    assert failed.reason


def test_every_row_of_the_folder_is_run():
    files = {path.stem for path in Path(rows.__file__).parent.glob("[!_]*.py")}
    assert files == set(ROWS)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_peers_train_the_network_that_we_train(name):
    ours = host().find("model", name).params().build((3, 32, 32), 10)
    theirs = NETWORKS[name]()
    assert shapes(ours) == shapes(theirs)


def test_the_bare_digits_script_trains_our_network():
    ours = host().find("model", "lenet").params().build((1, 32, 32), 10)
    assert shapes(ours) == shapes(GreyLeNet()) == shapes(LeNet(1))


def shapes(network) -> list[tuple[int, ...]]:
    return [tuple(weight.shape) for weight in network.parameters()]
