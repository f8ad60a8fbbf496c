"""Daemons: found by their lock, stopped with all they started."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.pipelines.services.sandbox import eventually
from torchyard.pipelines.services.daemon import Daemon, exec_command, report_pid, state_lock

SLEEPS = [sys.executable, "-c", "import time; time.sleep(60)"]
STARTS_ANOTHER = f"import subprocess, time; subprocess.Popen({SLEEPS!r}); time.sleep(60)"


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path, "sleeper")
    yield daemon
    with state_lock(tmp_path):
        daemon.stop(1)


def test_a_daemon_has_a_state_as_long_as_its_process_lives(daemon: Daemon, tmp_path: Path) -> None:
    with state_lock(tmp_path):
        assert daemon.state() is None
        daemon.start(exec_command(SLEEPS), "here")
        state = daemon.state()
        assert state
        assert state.address == "here"
        with pytest.raises(BlockingIOError):
            daemon.start(exec_command(SLEEPS), "there")
    pid = eventually(lambda: (state := daemon.state()) and state.pid)
    process = psutil.Process(pid)
    assert os.getsid(pid) == pid
    process.kill()
    assert eventually(lambda: daemon.state() is None)


def test_stopping_a_daemon_ends_what_it_started_also_after_its_death(
    daemon: Daemon, tmp_path: Path
) -> None:
    daemon.start(exec_command([sys.executable, "-c", STARTS_ANOTHER]), "")
    assert eventually(lambda: len(daemon.processes()) == 2)
    state = daemon.state()
    assert state
    psutil.Process(state.pid).kill()
    [left] = eventually(lambda: len(processes := daemon.processes()) == 1 and processes)
    with state_lock(tmp_path):
        daemon.stop()
    assert eventually(lambda: not left.is_running() or left.status() == psutil.STATUS_ZOMBIE)


def test_a_stale_number_is_never_believed(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, "dead")
    daemon.lock.write_text(f'["here", "2026-01-01T00:00:00+00:00", "me"]\n{os.getpid()} up\n')
    with state_lock(tmp_path):
        assert daemon.state() is None
        daemon.stop(1)  # and this process lives on
    lock = os.open(daemon.lock, os.O_RDWR)
    report_pid(lock)
    os.close(lock)
    assert daemon.state() is None


def test_the_end_of_its_log_is_of_its_last_start(daemon: Daemon, tmp_path: Path) -> None:
    daemon.log.write_text("Traceback of last week\n")
    assert daemon.log_tail() == ["Traceback of last week"]
    daemon.start(exec_command([sys.executable, "-c", "print('of now')"]), "")
    assert eventually(lambda: daemon.log_tail() == ["of now"])
