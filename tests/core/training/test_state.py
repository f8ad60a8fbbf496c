"""A training's state: saved by the main process, restored whole, each rank's generators its own."""

import pytest
import torch

from torchyard.core.errors import RunError
from torchyard.core.training import checkpoint
from torchyard.core.training.parallel.strategy import Strategy
from torchyard.core.training.state import Position, TrainingState

CPU = torch.device("cpu")


def make_state(precision="float32"):
    network = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    return TrainingState(network, optimizer, scheduler, device=CPU, precision=precision)


def step(state):
    loss = state.network(torch.rand(4, 3)).sum()
    state.optimizer.zero_grad()
    state.scaler.scale(loss).backward()
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.scheduler.step()
    state.position.step += 1


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_loaded_state_goes_on_as_the_saved_one(tmp_path, precision):
    saved, loaded = make_state(precision), make_state(precision)
    for _ in range(3):
        step(saved)
    saved.save(tmp_path / "c.pt", Strategy())
    step(saved)
    torch.manual_seed(99)
    loaded.load(tmp_path / "c.pt", Strategy())
    assert loaded.position == Position(step=3)
    step(loaded)
    assert torch.equal(loaded.network.weight, saved.network.weight)
    assert loaded.optimizer.param_groups[0]["lr"] == saved.optimizer.param_groups[0]["lr"]
    assert loaded.scaler.state_dict() == saved.scaler.state_dict()
    assert loaded.scaler.is_enabled() == (precision == "float16")


class SecondOfTwo(Strategy):
    """Rank 1 of two processes, of which the other one drew other numbers."""

    rank, world_size = 1, 2

    def all_gather(self, value):
        with torch.random.fork_rng([]):
            torch.manual_seed(12345)
            return [checkpoint.random_state(CPU), value]


def test_the_main_process_writes_and_every_process_has_its_own_generators(tmp_path):
    class FirstOfTwo(SecondOfTwo):
        rank = 0

        def all_gather(self, value):
            return super().all_gather(value)[::-1]

    state, file = make_state(), tmp_path / "c.pt"
    state.save(file, SecondOfTwo())
    assert not file.exists()
    torch.manual_seed(7)
    state.save(file, FirstOfTwo())
    drawn = torch.rand(1)
    torch.manual_seed(99)
    state.load(file, FirstOfTwo())
    assert torch.equal(torch.rand(1), drawn)
    state.load(file, SecondOfTwo())
    assert torch.rand(1) == torch.rand(1, generator=torch.Generator().manual_seed(12345))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_noticed(value):
    state = make_state()
    assert state.weights_are_finite
    with torch.no_grad():
        state.network.bias[1] = value
    assert not state.weights_are_finite


def test_a_damaged_checkpoint_is_one_clear_error(tmp_path):
    (tmp_path / "c.pt").write_bytes(b"no checkpoint")
    with pytest.raises(RunError, match=r"c\.pt cannot be read"):
        make_state().load(tmp_path / "c.pt", Strategy())
