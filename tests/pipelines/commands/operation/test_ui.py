"""`torchyard ui`: MLflow's UI comes up, the browser is sent to the page, Ctrl-C stops it."""

import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from torchyard.core.errors import UserError
from torchyard.core.tracking.record import RunRecord
from torchyard.pipelines.commands.operation.ui import ui_command


@pytest.mark.slow
def test_the_browser_is_sent_to_the_run_and_ctrl_c_ends_the_server(
    workspace, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    record = RunRecord.start(name_stem="looked at", parameters={}, tags={})
    record.finish("FINISHED")
    browser = tmp_path / "browser"
    browser.write_text(
        f"#!/bin/sh\necho \"$1\" > '{tmp_path}/opened.part'\n"
        f"mv '{tmp_path}/opened.part' '{tmp_path}/opened'\n"
    )
    browser.chmod(0o700)
    process = subprocess.Popen(
        workspace.command("ui", "latest"),
        cwd=tmp_path,
        env=workspace.environment | {"BROWSER": str(browser), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "opened").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    page = (tmp_path / "opened").read_text().strip()
    assert re.fullmatch(
        rf"http://127\.0\.0\.1:\d+/#/experiments/{record.experiment_id}/runs/{record.run_id}"
        r"\?workflowType=machine_learning",
        page,
    )
    urllib.request.urlopen(page.partition("#")[0], timeout=100).close()
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=150)
    assert process.returncode == 0, errors
    assert printed.splitlines() == [page, "Ctrl-C stops it.", "Stopped."]
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(page.partition("#")[0], timeout=100)


def test_without_a_run_there_is_nothing_to_look_at(workspace, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="There is no run yet"):
        workspace.invoke("ui")
    assert list(tmp_path.iterdir()) == []


def test_the_command_that_opens_a_run_is_short_where_it_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv/bin/python"))
    assert ui_command("latest") == ".venv/bin/torchyard ui latest"
    program = tmp_path / ".venv/bin/torchyard"
    program.parent.mkdir(parents=True)
    program.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    assert ui_command("latest") == "torchyard ui latest"
    assert ui_command("lenet #1") == "torchyard ui 'lenet #1'"
