"""How the commands' answers look: in 80 and in 120 columns, and in a pipe.

The texts are beside this file; `UPDATE_LOOKS=1 pytest …` writes them anew, to be looked at.
"""

from __future__ import annotations

import io
import os
import time
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pytest
from rich.cells import cell_len

from torchyard.core.tracking.queries.table import COLUMNS
from torchyard.pipelines.display import PrintableConsole

LOOKS = Path(__file__).parent / "looks"
WIDTHS = {"80": 80, "120": 120, "pipe": None}
NOW = datetime(2026, 11, 26, 5, 0, tzinfo=UTC)


@pytest.fixture(params=WIDTHS)
def looks(request, monkeypatch):
    """Compares what a function prints with the text of that name, at this width."""
    width = WIDTHS[request.param]
    file = io.StringIO()
    console = PrintableConsole(
        file=file, width=width or 80, force_terminal=width is not None, color_system=None,
        highlight=False,
    )  # fmt: skip
    shared = ("schedules", "models", "plugins")
    for module in ("display", *(f"terminal.{each}" for each in shared)):
        name = f"torchyard.pipelines.{module}.stdout"
        monkeypatch.setattr(name, console, raising=False)
    monkeypatch.setenv("TZ", "Asia/Shanghai")
    time.tzset()

    def compare(name: str, call, *arguments, **options) -> list[str]:
        call(*arguments, **options)
        expected = LOOKS / f"{name}.{request.param}.txt"
        if os.environ.get("UPDATE_LOOKS"):
            LOOKS.mkdir(exist_ok=True)
            expected.write_text(file.getvalue(), "utf-8")
        text = file.getvalue()
        assert text == expected.read_text("utf-8")
        lines = text.splitlines()
        assert all(line == line.rstrip() for line in lines)
        if width and not name.endswith("_long"):
            assert max(map(cell_len, lines)) <= width
        return lines

    yield compare
    monkeypatch.undo()
    time.tzset()


def night(name: str, state: str | None, message: str | None = None, **more) -> dict:
    return {
        "name": name, "pool": "torchyard", "schedule": "every day at 03:00",
        "timezone": "Asia/Shanghai", "paused": False, "next": "2026-11-27T03:00:00+08:00",
        "last": "2025-11-26T03:00:00+08:00" if state else None, "last_state": state,
        "last_message": message, "progress": None, "skipped_since": None,
    } | more  # fmt: skip


def test_each_schedule_is_a_line_that_says_how_it_ended(looks) -> None:
    from torchyard.pipelines.terminal.schedules import print_schedules

    raised = "Flow run encountered an exception: RunError: The loss became nan in epoch 3."
    plan = [
        night("nightly-digits", "Completed", "97.5 % (+0.3), promoted as v3"),
        night("nightly-cifar", "Completed", "81.0 % (−0.8), refused by beats_champion"),
        night("夜间训练", "Running", progress="epoch 164 of 400, 12 min left"),
        night("twice-a-day", "Failed", raised, schedule="every 12 hours", timezone=None),
        night("weekend", None, schedule="Saturdays at 04:30", timezone="Europe/Berlin"),
        night("again", "Completed", "skipped: lenet·adam·digits #9 had the same seed", next=None,
              paused=True),
        night("gpu", "Completed", "96.9 % of 359 test samples", pool="gpus", schedule=None,
              next=None),
        night("slow", "Completed", "All states completed.",
              skipped_since="the run before had not ended"),
    ]  # fmt: skip
    lines = looks("status", print_schedules, plan, "torchyard", "Asia/Shanghai", NOW)
    assert sum(line.startswith("夜间训练") for line in lines) == 1


def runs(*rows: dict) -> pd.DataFrame:
    table = pd.DataFrame([dict.fromkeys(COLUMNS) | row for row in rows], columns=list(COLUMNS))
    for name, column in COLUMNS.items():
        if column.place == "metrics":
            table[name] = table[name].astype(float)
    table["started"] = pd.to_datetime(table["started"], utc=True)
    return table


@pytest.mark.parametrize("folder", ["digits", "a-long-name-of-a-folder-of-photos"])
def test_a_run_is_a_line_with_its_role_and_a_whole_name(looks, folder) -> None:
    from torchyard.pipelines.terminal.runs import print_runs

    done = {
        "status": "FINISHED", "started": "2025-11-26T03:00:00Z", "lr": 0.001, "epochs": 20,
        "accuracy": 0.975, "worst": 0.9, "worst_class": "猫", "images_per_second": 14146,
        "device": "cpu",
    }  # fmt: skip
    table = runs(
        {"run": "lenet·adam·digits #4", "id": "d", "status": "RUNNING", "lr": 0.005123456,
         "started": "2025-11-26T04:00:00Z", "schedule": "nightly-digits"},
        done | {"run": "lenet·adam·digits #3", "id": "c", "schedule": "nightly-digits"},
        done | {"run": f"resnet18·sgd·{folder} #2", "id": "b"},
        done | {"run": "lenet·adam·digits #1", "id": "a", "status": "KILLED", "parent": "b"},
    )  # fmt: skip
    print_them = ({"c": "digits v3"}, {"d": "epoch 164/400"})
    name = "runs" if folder == "digits" else "runs_long"
    lines = looks(name, print_runs, table, *print_them)
    assert sum(f"resnet18·sgd·{folder} #2" in line for line in lines) == 1


def test_compared_runs_are_columns_below_names_that_are_whole(looks, recorded) -> None:
    from torchyard.core.report.comparison import compare_runs
    from torchyard.pipelines.terminal.comparison import print_comparison

    chosen = [recorded.client.get_run(recorded.ids[name]) for name in ("good", "better", "other")]
    lines = looks("compare_long", print_comparison, compare_runs(recorded.client, chosen))
    assert sum(line.startswith("95 % interval ") for line in lines) == 1


def version(number: int | None, status: str, **more) -> dict:
    return {
        "model": "digits", "version": number, "status": status, "run": "lenet·adam·digits #7",
        "run_id": "e", "accuracy": 0.9749, "promoted_at": "2025-11-26T03:00:00+00:00",
        "by": "root", "why": "beats_champion: 97.49% against the champion's 97.21%",
        "data": "digits, digest 5ee1d6e0a1c3f4e2",
    } | more  # fmt: skip


def test_the_champion_is_first_and_the_refused_are_a_count(looks) -> None:
    from torchyard.pipelines.terminal.models import print_models

    refused = [version(None, "refused by beats_champion") for _ in range(4)]
    rows = [
        *refused,
        version(3, "rolled back 2026-01-01 by root", run=None),
        version(2, "champion"),
        version(1, "replaced by version 2"),
        version(1, "champion", model="photos", accuracy=None, data=None),
    ]
    lines = looks("models", print_models, rows, {"digits": {"9f8e7d6c5b4a": 4}}, refused=False)
    assert lines[1].startswith("★ v2")


def test_a_plugin_is_a_line_and_a_package_of_models_too(looks) -> None:
    from torchyard.pipelines.terminal.plugins import print_plugins

    def plugin(kind, name, summary, module, status="built in"):
        origin = f"torchyard 0.2.0 (torchyard.plugins.{module})"
        return {"kind": kind, "name": name, "summary": summary, "origin": origin, "status": status}

    blitz = "The 60-minute blitz's network: two 5x5 convolutions with pooling, then three layers."
    rows = [
        plugin("dataset", "digits", "1,797 handwritten digits of 8x8 grey pixels.", "digits"),
        *(plugin("model", f"a{n}", f"torchvision.models.a{n}.", "torchvision") for n in range(20)),
        plugin("model", "lenet", blitz, "models.basic"),
        plugin("model", "zf", "My own.", "mine", "a file") | {"origin": "plugins/zf.py"},
    ]
    looks("plugins", print_plugins, rows, fold=True)
