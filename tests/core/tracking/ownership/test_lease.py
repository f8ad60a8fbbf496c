"""Never do two processes train one run: what is not known to have ended is not resumed."""

import dataclasses
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.core.tracking.runs import start, stored
from torchyard.core.errors import UserError
from torchyard.core.tracking.checkpoints import check_checkpoint
from torchyard.core.tracking.ownership import lease, process
from torchyard.core.tracking.ownership.lease import TakenOverError
from torchyard.core.tracking.ownership.orphans import settle_owner, silent_runs
from torchyard.core.tracking.ownership.process import PROCESS, ProcessIdentity
from torchyard.core.tracking.record import RunRecord
from torchyard.core.tracking.store import run_folder


@pytest.fixture
def quick(workspace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.1)
    monkeypatch.setattr(lease, "WATCH_SECONDS", 2.0)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Makes the rest of the test run on another machine, whose files are others."""

    def move() -> None:
        monkeypatch.setattr(process, "_surroundings", lambda: ("another", "1-1", ""))
        monkeypatch.setenv("TORCHYARD_RUNS", str(tmp_path / "elsewhere"))

    return move


def settle(record: RunRecord, **options: bool) -> list[str]:
    said: list[str] = []
    options.setdefault("force", False)
    settle_owner(record._client, stored(record), say=said.append, **options)
    return said


def test_a_run_that_another_machine_trains_is_not_resumed(
    quick, elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "WATCH_SECONDS", 5.0)  # no longer than until it renews its lease
    record = start()
    elsewhere()
    for force in (False, True):
        with pytest.raises(UserError, match=r"is running, in process \d+ on "):
            settle(record, force=force)
    with pytest.raises(UserError, match=r"is not known to have ended: .* add --force"):
        RunRecord.resume(record.run_id)
    assert stored(record).info.status == "RUNNING"
    record.finish("FINISHED")


def test_a_run_of_which_nothing_is_seen_is_resumed_by_force_alone(quick, elsewhere) -> None:
    before = {*threading.enumerate()}
    record = start()
    record.log_metrics({"train/loss": 0.5}, 1)
    assert record.sync()
    record.sender.stop()  # its machine is cut off, or suspended
    for thread in {*threading.enumerate()} - before:
        if "_keep" in thread.name:  # on a busy machine it may be renewing the lease still
            thread.join(60)
    elsewhere()
    with pytest.raises(UserError, match="is not known to have ended"):
        settle(record)
    assert stored(record).info.status == "RUNNING"
    [said] = settle(record, force=True)
    assert "looking for 2 s whether that still runs" in said
    run = stored(record)
    assert run.info.status == "KILLED"
    assert run.data.tags["torchyard.reason"].startswith("taken over: process ")

    run_folder(record._uri, run).mkdir(parents=True)
    again = RunRecord.resume(record.run_id)
    time.sleep(0.2)
    record.log_metrics({"train/loss": 9.0}, 2)
    with pytest.raises(TakenOverError, match="was taken over by process"):  # it comes back
        record.sync()
    with pytest.raises(TakenOverError):
        record.log_metrics({"train/loss": 9.0}, 3)
    assert record.finish("FAILED", "it stopped") is False
    assert stored(record).info.status == "RUNNING"
    assert stored(record).data.metrics == {"train/loss": 0.5}
    again.finish("FINISHED")


def test_a_process_is_told_that_its_run_was_taken_over(quick) -> None:
    record, told = start(), []
    record.sender.on_taken_over = told.append
    other = dataclasses.replace(ProcessIdentity.of(1), boot="another")
    record._client.set_tag(record.run_id, PROCESS, str(other))
    deadline = time.monotonic() + 60
    while not told and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "was taken over by process 1 on " in str(told[0])
    record.finish("FAILED")


def test_a_run_of_whose_machine_nothing_is_heard_is_known(workspace: str, elsewhere) -> None:
    record = start()
    record.sender.stop()

    def silent() -> list[str]:
        return [run.info.run_id for run in silent_runs(record._client, record.experiment_id)]

    record._client.set_tag(record.run_id, lease.LEASE, f"9 {time.time() - 3 * 3600:.0f}")
    assert silent() == []  # here it is known that its process lives
    elsewhere()
    assert silent() == [record.run_id]
    assert lease.silent_seconds(stored(record)) == pytest.approx(3 * 3600, abs=60)
    # 9: of torchyard 0.3
    for text in (lease.lease_text(9), "9", "", "9 soon", "9 " + "9" * 5000):
        record._client.set_tag(record.run_id, lease.LEASE, text)
        assert silent() == []
    record.finish("KILLED")


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_a_run_that_was_just_taken_over_does_not_get_the_end_of_the_process_before(
    workspace: str, status
) -> None:
    """Before the lease is renewed again; neither in the store nor in the log, which both share."""
    record = start()
    other = str(dataclasses.replace(ProcessIdentity.of(1), boot="another"))
    record._client.set_tag(record.run_id, PROCESS, other)
    if status == "FINISHED":
        with pytest.raises(TakenOverError, match="was taken over by process 1 on "):
            record.finish(status)
    else:
        assert record.finish(status, "it stopped") is False
    assert not record.discard()
    run = stored(record)
    assert (run.info.status, run.data.tags[PROCESS]) == ("RUNNING", other)
    assert "torchyard.reason" not in run.data.tags
    assert "end" not in [line.kind for line in record._delivery.log.read()]


def test_a_run_that_is_taken_over_while_its_last_lines_are_sent_does_not_end(
    workspace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = start()
    record.log_metrics({"train/loss": 0.5}, 1)
    client, log_batch = record._client, record._client.log_batch

    def slow(*arguments, **options) -> None:
        log_batch(*arguments, **options)
        other = dataclasses.replace(ProcessIdentity.of(1), boot="another")
        client.set_tag(record.run_id, PROCESS, str(other))

    monkeypatch.setattr(client, "log_batch", slow)
    with pytest.raises(TakenOverError):
        record.finish("FINISHED")
    assert stored(record).info.status == "RUNNING"


def test_a_checkpoint_that_is_elsewhere_is_missed(quick, elsewhere) -> None:
    record = start()
    assert record.finish("KILLED")
    elsewhere()
    folder = run_folder(record._uri, stored(record))
    check_checkpoint(stored(record), folder)  # nothing was trained
    again = RunRecord.resume(record.run_id)
    again.log_metrics({"train/loss": 0.5, "train/epochs": 1}, 1)
    assert again.finish("KILLED")
    check_checkpoint(stored(record), folder)
    folder.rename(folder.with_name("away"))
    for refused in (
        lambda: check_checkpoint(stored(record), folder),
        lambda: RunRecord.resume(record.run_id),
    ):
        with pytest.raises(UserError, match=rf"process \d+ on .*there is no {folder}") as error:
            refused()
        assert "TORCHYARD_RUNS" in str(error.value)
        assert "--from-start" in str(error.value)
    assert stored(record).info.status == "KILLED"
