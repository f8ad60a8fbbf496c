"""The commands that list and compare runs, on a real store."""

from __future__ import annotations

import dataclasses
import json
import re
import time

import pandas as pd
import pytest

from torchyard.core.errors import UserError
from torchyard.core.tracking.ownership.lease import LEASE
from torchyard.core.tracking.ownership.process import MACHINE, PROCESS, ProcessIdentity


@pytest.fixture
def runs(recorded):
    return recorded.ids


@pytest.fixture
def here(recorded, monkeypatch, capsys):
    from torchyard.pipelines.cli import app

    monkeypatch.setenv("MLFLOW_TRACKING_URI", recorded.client.tracking_uri)

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
    assert "<script>alert(1)</script> (95.0%)" in printed
    assert "No run meets these conditions." in here("runs", "accuracy>2")
    printed = here("compare", "champion", "best:digits", "best:cifar10")
    assert "is better than" in printed
    assert "different samples" in printed
    assert re.search(r"猫 🐈 +– +– +\S+ +\S+ · \S+ · \S+ +0", printed)
    assert re.search(r"class .* precision +images", printed)
    assert re.search(r"^device +cpu +cpu", printed, re.MULTILINE)


def test_a_run_of_a_machine_that_is_gone_is_told_with_what_goes_on_with_it(
    here, recorded, capsys
) -> None:
    process = dataclasses.replace(ProcessIdentity.of(1), number=4711, boot="another", machine="")
    tags = {PROCESS: str(process), MACHINE: "trainer-2", LEASE: f"9 {time.time() - 10801:.0f}"}
    run = recorded.client.create_run("0", tags=tags, run_name="lenet [1]")
    from torchyard.pipelines.cli import app

    try:
        app(["runs", "model=lenet"], standalone_mode=False)
    finally:
        recorded.client.delete_run(run.info.run_id)
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith("lenet·sgd·digits #4 failed: the loss became nan ")
    assert re.search(
        r" lenet \[1\] has not been heard of for 3 h 0 min: process 4711 on trainer-2\. If that "
        rf"runs no more, `torchyard resume {run.info.run_id} --force` goes on with it\.$",
        said,
    )


def test_best_says_what_it_was_chosen_by(here, recorded, capsys) -> None:
    from torchyard.pipelines.commands.arguments import chosen_run

    run = chosen_run(recorded.client, "best:digits")
    assert run.info.run_id == recorded.ids["better"]
    said = capsys.readouterr().err
    assert said == f"best:digits: {run.info.run_name} has the greatest test accuracy, 95.0 %.\n"
    chosen_run(recorded.client, "latest")
    assert capsys.readouterr().err == ""


def test_the_best_first_says_what_that_is(here, recorded, capsys) -> None:
    from torchyard.pipelines.cli import app

    def first(*arguments: str) -> tuple[str, str]:
        capsys.readouterr()
        app(["runs", "--best", "--csv", *arguments], standalone_mode=False)
        printed = capsys.readouterr()
        return printed.out.splitlines()[1].partition(",")[0], printed.err

    name, said = first("dataset=digits")
    assert name == recorded.records["better"].name
    assert "by test accuracy: none of these runs has a validation part" in said
    made = recorded.client.create_run("0", tags={"dataset": "digits"}, run_name="validated")
    recorded.client.log_metric(made.info.run_id, "best/val/accuracy", 0.4)
    try:
        name, said = first("dataset=digits")
        assert name == "validated"
        assert "The best first, by validation accuracy." in said
        assert "Runs without val/accuracy are left out." in said
    finally:
        recorded.client.delete_run(made.info.run_id)
    with pytest.raises(UserError, match="--best and --sort cannot be combined"):
        here("runs", "--best", "--sort", "lr")


def test_what_is_asked_for_and_not_there_is_said(here, runs, capsys) -> None:
    with pytest.raises(UserError, match="no run has the metric 'val/f1'"):
        here("runs", "--sort", "val/f1")
    assert "optimizer.lr" in here("runs", "--csv", "--limit", "1", "accuracy>0").splitlines()[0]
    here("runs", "--limit", "100")
    assert not capsys.readouterr().err
    from torchyard.pipelines.cli import app

    app(["runs", "--sort", "val/loss"], standalone_mode=False)
    captured = capsys.readouterr()
    assert "resnet18" in captured.out
    assert "cifar10" not in captured.out
    assert "Runs without val/loss are left out." in captured.err


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
    with pytest.raises(UserError, match=f"are the same run: {runs['good']}"):
        here("compare", "champion", runs["good"])
    with pytest.raises(UserError, match="there is no such folder"):
        here("compare", "champion", "latest", "--html", str(tmp_path / "none/page.html"))
    with pytest.raises(UserError, match="cannot be combined"):
        here("runs", "--json", "--csv")
