"""The checkpoints of a run in a bucket that machines share."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from torchyard.core.data.checkpoint_file import LAST
from torchyard.core.data.remote.shared import SharedAddress
from torchyard.core.errors import UnreachableError
from torchyard.core.tracking import checkpoints
from torchyard.core.tracking.checkpoints import CheckpointUploads, SharedCheckpoints
from torchyard.core.training import checkpoint
from torchyard.core.training.run_log import Line, RunLog

PATIENCE = 120.0
NUMBERS = torch.randn(200_000)  # so that a connection can break within a file
METRICS = [Line("RunningLoss", {"step": step, "loss": 0.5}) for step in (1, 2)]


def trained(folder: Path, *steps: int) -> Path:
    """A run's folder, with checkpoints as a training writes them."""
    folder.mkdir(exist_ok=True)
    for step in steps:
        checkpoint.save_beside({"step": step, "a": NUMBERS}, folder / LAST, step)
    return folder


def shared(folder: Path) -> SharedCheckpoints:
    return SharedCheckpoints(SharedAddress.chosen(), "run", folder)


def last(folder: Path) -> int:
    return checkpoint.load(checkpoint.find(folder))["step"]


def steps(bucket) -> list[int]:
    names = bucket.names("team/checkpoints/run/")
    return [int(name.split("/")[-1][:12]) for name in names if name.endswith(".pt")]


def test_another_machine_gets_the_last_checkpoint_and_what_it_rests_on(bucket, tmp_path):
    here = shared(trained(tmp_path / "a", 10))
    (tmp_path / "a/batch_size.json").write_text('{"batch_size": 8}')
    assert here.upload(METRICS)
    assert not here.upload([])  # it is there
    for step in (20, 30):
        trained(tmp_path / "a", step)
        assert here.upload(METRICS)
    assert steps(bucket) == [20, 30]
    assert not [*(tmp_path / "a").glob(".*")]

    there = tmp_path / "b"
    assert shared(there).fetch()
    assert last(there) == 30
    content = (there / "last.pt").read_bytes()
    assert content == (tmp_path / "a/last.pt").read_bytes()
    assert [(line.kind, line.values) for line in RunLog(there).read()] == [
        (line.kind, line.values) for line in METRICS
    ]
    assert (there / "batch_size.json").read_text() == '{"batch_size": 8}'
    assert there.stat().st_mode & 0o777 == 0o700
    assert not shared(there).fetch()  # it is as far
    trained(there, 40)
    assert not shared(there).fetch()
    assert last(there) == 40


def test_a_machine_that_fell_behind_gets_what_another_has_trained(bucket, tmp_path):
    trained(tmp_path / "a", 10, 20)
    shared(trained(tmp_path / "b", 30)).upload([])
    assert shared(tmp_path / "a").fetch()
    assert last(tmp_path / "a") == 30
    (tmp_path / "a/last.pt").unlink()
    assert last(tmp_path / "a") == 20


def test_one_that_was_spoiled_there_is_not_used(bucket, caplog, tmp_path):
    here = shared(tmp_path / "a")
    for step in (10, 20):
        trained(tmp_path / "a", step)
        here.upload([])
    name = bucket.names("team/checkpoints/run/")[1]
    content = bytearray(bucket.read(name))
    content[len(content) // 2] ^= 1
    bucket.put(name, bytes(content))
    assert shared(tmp_path / "b").fetch()
    assert last(tmp_path / "b") == 10
    assert "is damaged, and not used." in caplog.text
    bucket.put(bucket.names("team/checkpoints/run/")[0], b"")
    assert not shared(tmp_path / "c").fetch()
    assert not (tmp_path / "c").exists()


def test_one_of_another_step_than_its_name_says_is_not_used(bucket, caplog, tmp_path):
    here = shared(trained(tmp_path / "a", 10))
    here.upload([])
    [name] = bucket.names("team/checkpoints/run/0")
    bucket.put(name.replace(f"/{10:012d}", f"/{99:012d}"), bucket.read(name))
    assert shared(tmp_path / "b").fetch()
    assert f"The checkpoint {99:012d}" in caplog.text
    assert last(tmp_path / "b") == 10


def test_the_log_there_has_metrics_alone(bucket, tmp_path):
    here = shared(trained(tmp_path / "a", 10))
    here.upload([
        Line("end", {"status": "FINISHED"}),
        Line("tags", {"tags": {"torchyard.process": "1"}}),
        Line("artifact", {"file": "log.jsonl", "folder": None}),
        Line("RunningLoss", {"steps": 1}),
        Line("metrics", {"metrics": 3, "step": 1}),
        *METRICS,
    ])  # fmt: skip
    assert shared(tmp_path / "b").fetch()
    assert [line.values for line in RunLog(tmp_path / "b").read()] == [
        line.values for line in METRICS
    ]


def test_what_was_put_there_just_now_is_kept_beside_later_ones(bucket, tmp_path):
    shared(trained(tmp_path / "a", 40)).upload([])
    shared(trained(tmp_path / "a", 50)).upload([])
    shared(trained(tmp_path / "b", 10)).upload([])  # it could not see those
    assert 10 in steps(bucket)


@pytest.mark.slow
def test_connections_that_break_while_it_goes_there_and_while_it_comes(
    bucket, caplog, monkeypatch, tmp_path
):
    here = shared(trained(tmp_path / "a", 10))
    bucket.break_connections(after=300_000, cuts=10**6)
    with pytest.raises(UnreachableError):
        here.upload([])
    assert steps(bucket) == []
    bucket.break_connections(after=300_000, cuts=1)
    assert here.upload([])
    assert (bucket.seen, steps(bucket)) == (1, [10])

    bucket.break_connections(after=300_000, cuts=2)
    assert shared(tmp_path / "b").fetch()
    assert (bucket.seen, last(tmp_path / "b")) == (2, 10)

    bucket.break_connections(after=300_000, cuts=10**6)
    with pytest.raises(UnreachableError):
        shared(tmp_path / "c").fetch()
    assert checkpoint.find(tmp_path / "c") is None
    trained(tmp_path / "c", 5)
    assert not shared(tmp_path / "c").fetch()
    assert "The checkpoint that is here is used." in caplog.text
    bucket.break_connections(after=0, cuts=0)
    assert shared(tmp_path / "c").fetch()
    assert last(tmp_path / "c") == 10


def test_uploads_follow_a_training_and_name_only_what_is_there(bucket, monkeypatch, tmp_path):
    monkeypatch.setattr(checkpoints, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(checkpoints, "RETRY_SECONDS", 0.02)
    monkeypatch.setattr(checkpoints, "END_SECONDS", 120.0)
    folder, told = trained(tmp_path / "a"), []

    def tell(place: str) -> None:
        assert place.removeprefix("s3://data/") in bucket.names()
        told.append(place)

    bucket.break_connections(after=0, cuts=10**6)  # it does not give up
    uploads = CheckpointUploads.start("run", folder, lambda: METRICS, tell)
    trained(folder, 10)
    until(lambda: bucket.seen)
    bucket.break_connections(after=0, cuts=0)
    until(lambda: told)
    assert steps(bucket) == [10]
    trained(folder, 20, 30)
    uploads.stop()
    assert (last(folder), steps(bucket)[-1]) == (30, 30)
    assert f"/{30:012d}-" in told[-1]


def until(met: Callable[[], object]) -> None:
    wait = time.monotonic() + PATIENCE
    while not met() and time.monotonic() < wait:
        time.sleep(0.02)


def test_without_an_address_nothing_is_uploaded(monkeypatch, tmp_path):
    monkeypatch.delenv("TORCHYARD_SHARED", raising=False)
    assert CheckpointUploads.start("run", tmp_path, list, print) is None
    monkeypatch.setenv("TORCHYARD_SHARED", "https://example.org/team")
    assert CheckpointUploads.start("run", tmp_path, list, print) is None
