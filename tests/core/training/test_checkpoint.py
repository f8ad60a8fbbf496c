"""Checkpoints: exact, whole or absent, and never unpickled."""

import pickle
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

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


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path, keep):
    checkpoint.save({"a": torch.randn(1000)}, tmp_path / "c.pt")
    content = (tmp_path / "c.pt").read_bytes()
    size = int(len(content) * keep) if keep < 1 else keep
    (tmp_path / "c.pt").write_bytes(content[:size])
    with pytest.raises(RunError, match=r"c\.pt cannot be read"):
        checkpoint.load(tmp_path / "c.pt")


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
    for delay in (0.0, 0.003, 0.011):
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
