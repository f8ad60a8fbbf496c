"""Whose a run is: known without a clock, and only where it can be known."""

import dataclasses
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchyard.core.tracking.ownership import process
from torchyard.core.tracking.ownership.process import (
    LOCK,
    MACHINE,
    PROCESS,
    ProcessIdentity,
    hold_folder,
    leave_folder,
    owner_lives,
    owner_tags,
)

OWN = ProcessIdentity.of(os.getpid())
HOLD = "import fcntl, sys; file = open(sys.argv[1]); fcntl.flock(file, 2); print(); input()"


def tags(identity: object, machine: str = platform.node()) -> dict[str, str]:
    return {MACHINE: machine, PROCESS: str(identity)}


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    started = subprocess.Popen(["sleep", "60"])
    yield started
    started.kill()
    started.wait()


def test_a_process_lives_until_it_ends(sleeper: subprocess.Popen[bytes]) -> None:
    assert ProcessIdentity.parse(str(OWN)) == OWN
    assert owner_lives(owner_tags()) is True
    identity = ProcessIdentity.of(sleeper.pid)
    assert owner_lives(tags(identity)) is True
    assert owner_lives(tags(identity, "a machine that was renamed")) is True
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert owner_lives(tags(identity)) is False  # nobody has fetched its exit status yet
    sleeper.wait()
    assert owner_lives(tags(identity)) is False


def test_another_process_of_the_same_number_is_not_the_owner() -> None:
    recycled = dataclasses.replace(OWN, started=str(int(OWN.started) - 1))
    assert owner_lives(tags(recycled)) is False


def test_a_step_of_the_clock_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = owner_tags()
    created = psutil.Process.create_time
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: created(self) + 1)
    assert owner_lives(before) is True
    assert owner_tags() == before


def test_a_name_with_brackets_and_spaces_hides_no_process(tmp_path: Path) -> None:
    program = tmp_path / "a) Z 1 (b"
    shutil.copy(shutil.which("sleep") or "", program)
    started = subprocess.Popen([str(program), "60"])
    try:
        assert owner_lives(tags(ProcessIdentity.of(started.pid))) is True
    finally:
        started.kill()
        started.wait()


@pytest.mark.parametrize(
    ("changed", "known"),
    [
        ({"boot": "another", "machine": "this"}, False),  # the machine was restarted
        ({"boot": "another", "machine": "that"}, None),
        ({"boot": "another", "machine": ""}, None),  # in a container
        ({"namespace": "1-2"}, None),  # in another container
        ({"boot": "unknown"}, None),
    ],
)
def test_of_another_machine_nothing_is_known(
    monkeypatch: pytest.MonkeyPatch, changed: dict[str, str], known: bool | None
) -> None:
    monkeypatch.setattr(process, "_surroundings", lambda: (OWN.boot, OWN.namespace, "this"))
    assert owner_lives(tags(dataclasses.replace(OWN, **changed))) is known


def test_where_the_system_hides_the_processes_of_others_nothing_is_known(
    monkeypatch: pytest.MonkeyPatch, sleeper: subprocess.Popen[bytes]
) -> None:
    identity = ProcessIdentity.of(sleeper.pid)

    def hidden(path: Path) -> bytes:
        raise PermissionError(path)

    monkeypatch.setattr(Path, "read_bytes", hidden)
    assert owner_lives(tags(identity)) is None


@given(st.text() | st.from_regex(r"\d+ (started=\S*|\d+\.\d\d).*"))
def test_a_tag_that_cannot_be_understood_says_nothing(text: str) -> None:
    assert owner_lives(tags(text)) in (None, False)
    assert owner_lives({PROCESS: text}) is not True


def test_tags_of_torchyard_0_2_tell_that_a_process_is_gone() -> None:
    assert owner_lives(tags("999999999 1700000000.00")) is False
    assert owner_lives(tags("999999999 1700000000.00", "elsewhere")) is None
    assert owner_lives(tags(f"{os.getpid()} 1700000000.00")) is None
    assert owner_lives(tags("x")) is None
    assert owner_lives({}) is None


def test_the_folder_tells_of_processes_in_other_containers(tmp_path: Path) -> None:
    elsewhere = tags(dataclasses.replace(OWN, namespace="1-2"))
    assert owner_lives(elsewhere, tmp_path) is None
    (tmp_path / LOCK).touch()
    assert owner_lives(elsewhere, tmp_path) is False
    assert owner_lives(tags(dataclasses.replace(OWN, boot="other", machine="")), tmp_path) is None
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / LOCK)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert other.stdout is not None
    other.stdout.readline()
    assert owner_lives(elsewhere, tmp_path) is True
    assert not hold_folder(tmp_path)
    other.communicate(b"\n")
    assert hold_folder(tmp_path)
    assert hold_folder(tmp_path)  # it is its own
    assert owner_lives(elsewhere, tmp_path) is True
    leave_folder(tmp_path)
    assert owner_lives(elsewhere, tmp_path) is False


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / LOCK).symlink_to("/etc/hostname")
    with pytest.raises(OSError, match="symbolic links"):
        hold_folder(tmp_path)
