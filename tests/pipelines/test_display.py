"""What a run shows to people, to a pipe and to machines."""

from __future__ import annotations

import io
import json
import math
import re
import time

import pytest
from rich.console import Console

from torchyard.core.errors import UserError
from torchyard.core.training.events import EpochDone, Progress, RunningLoss
from torchyard.pipelines.display import (
    Display,
    JsonDisplay,
    PrintableConsole,
    epoch_line,
    print_json,
    print_table,
)
from torchyard.pipelines.flow.outcome import Outcome

EPOCH = {
    "epoch": 1, "step": 45, "loss": 0.5, "accuracy": 0.9, "validation_loss": None,
    "validation_accuracy": None, "learning_rate": 0.1, "images_per_second": 1234.5, "seconds": 2.0,
    "validation_figures": {},
}  # fmt: skip
ROW = {
    "class": "猫 [bold]",
    "images": 0,
    "correct": 0,
    "accuracy": None,
    "precision": 0.5,
    "f1": None,
}


def follow(shown: Display) -> None:
    """A run as the flow reports it."""
    shown.began("a" * 32, "lenet #1")
    with shown.bars(), shown.stage("train", "lenet"):
        shown.event(RunningLoss(step=3, loss=0.7))
        shown.event(Progress(epoch=1, step=3, total_steps=9, images_per_second=1000.0))
        shown.event(EpochDone(**EPOCH))
        shown.output("a warning [red]of torch")
    shown.line("train", "done [of it]")
    shown.outcome = Outcome("a" * 32, "lenet #1", "http://127.0.0.1:5000/", 0.875, 8, [ROW])
    shown.result("torchyard ui latest", served=True)


@pytest.mark.parametrize(("terminal", "lines"), [(False, 1), (True, 2)])
def test_the_stages_are_in_as_many_lines_as_they_need_and_none_is_broken(terminal, lines) -> None:
    file = io.StringIO()
    console = Console(file=file, highlight=False, width=80, force_terminal=terminal)
    shown = Display(console)
    shown.seconds = dict.fromkeys(("prepare", "train", "evaluate", "report", "promote"), 11.8)
    shown.outcome = Outcome("a" * 32, "lenet #1", "http://127.0.0.1:5000/", 0.875, 8, [ROW])
    shown.result("torchyard ui latest", served=False)
    about = [line for line in file.getvalue().splitlines() if " 11.8 s" in line]
    assert len(about) == lines
    assert about[0].startswith("Stages:      prepare 11.8 s · train 11.8 s")
    assert about[-1].endswith("promote 11.8 s")
    assert all(len(line) <= 80 for line in about) or not terminal


def printed(**options) -> str:
    file = io.StringIO()
    follow(Display(Console(file=file, highlight=False, width=100, **options)))
    return file.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_a_name_commands_no_terminal_and_a_table_shows_it_whole(monkeypatch, terminal) -> None:
    file = io.StringIO()
    console = PrintableConsole(file=file, width=100, force_terminal=terminal, color_system=None)
    monkeypatch.setattr("torchyard.pipelines.display.stdout", console)
    monkeypatch.setattr("sys.stdout", file)
    name = "\x1b]0;title\x07\x1b[2J\u202ecat"
    print_table(["class", name], [[name, "1"]])
    console.print(f"[bold]{name}[/]")
    Display(console).line("train", name)
    text = file.getvalue()
    assert text.count(r"\x1b]0;title") == 4
    assert text.count(r"\u202ecat") == 4
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_json_escapes_what_a_terminal_would_obey(capsys) -> None:
    print_json({"class": "\x9b2J\u202e猫\x1b\x7f"})
    text = capsys.readouterr().out
    assert json.loads(text) == {"class": "\x9b2J\u202e猫\x1b\x7f"}
    assert text == '{"class": "\\u009b2J\\u202e猫\\u001b\\u007f"}\n'


def test_a_pipe_gets_plain_lines() -> None:
    text = printed(force_terminal=False)
    lines = [line.rstrip() for line in text.splitlines()]
    assert lines[:3] == [
        "train     epoch 1: loss 0.5000, accuracy 90.0%, 1,234 images/s, 2.0 s",
        "          a warning [red]of torch",
        "train     done [of it]",
    ]
    assert "87.5% of 8 test samples right" in lines
    assert any(line.startswith("Stages:      train 0.") for line in lines)
    assert lines[-2:] == [
        "Look at it:  torchyard ui latest",
        "         or  http://127.0.0.1:5000/",
    ]
    assert any("猫 [bold]" in line and "–" in line and "50.0%" in line for line in lines)
    assert "\x1b" not in text
    assert "\r" not in text


def test_an_epochs_line_has_the_figure_that_is_monitored() -> None:
    validated = {"validation_loss": 0.4, "validation_accuracy": 0.8}
    figures = {"validation_figures": {"loss": 0.4, "accuracy": 0.8, "macro_f1": 0.7654}}
    done = EpochDone(**EPOCH | validated | figures)
    shown = "epoch 1: loss 0.5000, accuracy 90.0%, validation loss 0.4000, accuracy 80.0%"
    rate = ", 1,234 images/s, 2.0 s"
    assert epoch_line(done, "macro_f1") == f"{shown}, macro_f1 0.7654{rate}"
    assert epoch_line(done, "accuracy") == epoch_line(done) == f"{shown}{rate}"


def test_a_terminal_gets_a_bar_with_rate_and_no_colour_where_it_wants_none(monkeypatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    file = io.StringIO()
    shown = Display(Console(file=file, highlight=False, width=100, force_terminal=True))
    with shown.bars(), shown.stage("train", "lenet"):
        shown.event(RunningLoss(step=3, loss=0.7))
        shown.event(Progress(epoch=1, step=3, total_steps=9, images_per_second=1000.0))
        end = time.monotonic() + 60
        while "1,000 images/s" not in file.getvalue() and time.monotonic() < end:
            time.sleep(0.05)
    assert "epoch 1  step 3 of 9  loss 0.7000  1,000 images/s" in file.getvalue()
    assert not re.search(r"\x1b\[(3|4|9)\d", file.getvalue())


def test_a_machine_gets_an_object_a_line(capsys) -> None:
    shown = JsonDisplay()
    follow(shown)
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in events] == [
        "run", "stage", "epoch", "output", "stage", "message", "result",
    ]  # fmt: skip
    assert events[2] == {"event": "epoch", **EPOCH}
    assert events[3]["text"] == "a warning [red]of torch"
    assert events[4]["seconds"] >= 0
    assert events[-1]["per_class"] == [ROW]
    shown.event(EpochDone(**EPOCH | {"loss": math.nan}))
    assert json.loads(capsys.readouterr().out)["loss"] is None


def test_a_stage_that_fails_has_no_time(capsys) -> None:
    shown = JsonDisplay()
    with pytest.raises(ZeroDivisionError), shown.stage("train", "lenet"):
        1 / 0  # noqa: B018
    assert json.loads(capsys.readouterr().out) == {"event": "stage", "stage": "train"}
    assert shown.seconds == {}


def test_quiet_and_json_exclude_each_other() -> None:
    from torchyard.pipelines.cli import app

    with pytest.raises(UserError, match="cannot be combined"):
        app(["run", "digits", "--quiet", "--json"], standalone_mode=False)
