"""Checkpoints: exact, whole or absent, and never unpickled."""

import pickle
import random
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from torchyard.core.data.checkpoint_file import LAST
from torchyard.core.errors import RunError
from torchyard.core.training import checkpoint

CPU = torch.device("cpu")


def test_round_trip(tmp_path):
    state = {"weights": {"a": torch.randn(3, 4)}, "step": 7, "name": "x", "list": [1, 2.5, None]}
    checkpoint.save(state, tmp_path / "c.pt")
    loaded = checkpoint.load(tmp_path / "c.pt")
    assert torch.equal(loaded["weights"]["a"], state["weights"]["a"])
    assert (loaded["step"], loaded["name"], loaded["list"]) == (7, "x", [1, 2.5, None])
    assert [path.name for path in tmp_path.iterdir()] == ["c.pt"]


def test_every_generator_continues_where_it_was(tmp_path):
    checkpoint.seed_everything(3)
    np.random.normal()  # leaves a cached second value behind
    random.gauss(0, 1)
    checkpoint.save({"random": checkpoint.random_state(CPU)}, tmp_path / "c.pt")

    def draw():
        return [torch.rand(1).item(), np.random.normal(), np.random.rand(), random.gauss(0, 1),
                random.random()]  # fmt: skip

    expected = draw()
    checkpoint.seed_everything(99)
    checkpoint.restore_random_state(checkpoint.load(tmp_path / "c.pt")["random"], CPU)
    assert draw() == expected


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("evil-was-here"),))


def test_a_malicious_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Evil()))
    torch.save({"network": Evil()}, tmp_path / "zip.pt")
    for name in ("plain.pt", "zip.pt"):
        with pytest.raises(RunError, match="cannot be read"):
            checkpoint.load(tmp_path / name)
    assert not (tmp_path / "evil-was-here").exists()


@pytest.mark.parametrize(
    ("kept", "says"), [(Fraction(1, 3), r"fractions\.Fraction"), (lambda: 1, "lambda")]
)
def test_what_could_not_be_read_again_is_not_written_and_the_last_one_stays(tmp_path, kept, says):
    checkpoint.save_beside({"step": 1}, tmp_path / LAST)
    state = {"network": {"a": torch.ones(2)}, "optimizer": {"kept": kept}}
    with pytest.raises(RunError, match=rf"the state of the optimizer is not of .*{says}"):
        checkpoint.save_beside(state, tmp_path / LAST)
    assert checkpoint.load(tmp_path / LAST) == {"step": 1}
    assert [path.name for path in tmp_path.iterdir()] == [LAST]


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path, keep):
    checkpoint.save({"a": torch.randn(1000)}, tmp_path / "c.pt")
    content = (tmp_path / "c.pt").read_bytes()
    size = int(len(content) * keep) if keep < 1 else keep
    (tmp_path / "c.pt").write_bytes(content[:size])
    with pytest.raises(RunError, match=r"c\.pt cannot be read"):
        checkpoint.load(tmp_path / "c.pt")


@pytest.fixture
def two(tmp_path):
    """A folder with the last checkpoint and the one before it."""
    for step in (1, 2):
        state = {"step": step, "a": torch.full((300,), float(step))}
        checkpoint.save_beside(state, tmp_path / LAST)
    return tmp_path


def test_every_flipped_bit_is_noticed(two):
    file, rng = two / LAST, random.Random(0)
    content = file.read_bytes()
    for bit in rng.sample(range(8 * len(content)), 300):
        spoiled = bytearray(content)
        spoiled[bit // 8] ^= 1 << bit % 8
        file.write_bytes(spoiled)
        with pytest.raises(RunError, match="cannot be read"):
            checkpoint.load(file)
    file.write_bytes(content)
    assert checkpoint.load(file)["step"] == 2


SPOILED = {
    "empty": lambda content: b"",
    "cut short": lambda content: content[:-1],
    "cut to little": lambda content: content[:10],
    "zeroed": lambda content: bytes(len(content)),
    "zeroed at its end": lambda content: content[:-4096] + bytes(4096),
    "longer": lambda content: content + b"x",
    "without a digest": lambda content: content[:-72],
    "other": lambda content: b"no checkpoint " * 100,
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_the_one_before_a_damaged_checkpoint_is_found(two, caplog, spoil):
    last = two / LAST
    assert checkpoint.find(two) == last
    assert caplog.messages == []
    last.write_bytes(spoil(last.read_bytes()))
    found = checkpoint.find(two)
    assert checkpoint.load(found)["step"] == 1
    assert f"The checkpoint {last} is damaged: it " in caplog.text
    assert "Training goes on from the checkpoint before it, previous.pt." in caplog.text

    caplog.clear()
    assert checkpoint.find(two) == found  # said once
    assert caplog.messages == []
    found.write_bytes(spoil(found.read_bytes()))
    assert checkpoint.find(two) is None
    assert caplog.messages[-1] == "There is no other checkpoint: training begins anew."


def test_a_deleted_checkpoint_leaves_the_one_before_it(two, caplog):
    (two / LAST).unlink()
    assert checkpoint.load(checkpoint.find(two))["step"] == 1
    assert checkpoint.find(two / "empty") is None
    assert caplog.messages == []


def test_a_checkpoint_is_a_file_of_torch(two):
    assert torch.load(two / LAST, weights_only=True)["step"] == 2


def test_a_folder_that_takes_no_file_is_one_clear_error(tmp_path):
    with pytest.raises(RunError, match="cannot be written"):
        checkpoint.save({"a": torch.randn(3)}, tmp_path / "missing" / "c.pt")


WRITER = """
import sys, torch
from pathlib import Path
from torchyard.core.training import checkpoint
path = Path(sys.argv[1])
for step in range(10**9):
    checkpoint.save({"step": step, "weights": torch.full((300_000,), float(step))}, path)
    print(step, flush=True)
"""


def test_killed_while_writing_the_file_is_the_old_or_the_new_one(tmp_path):
    path = tmp_path / "last.pt"
    for delay in (0.0, 0.007):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
        )
        written = [int(writer.stdout.readline()) for _ in range(5)][-1]
        time.sleep(delay)
        writer.kill()
        written = max([written, *map(int, writer.stdout.read().split())])
        writer.wait()
        state = checkpoint.load(path)
        assert state["step"] in (written, written + 1)
        assert (state["weights"] == state["step"]).all()
