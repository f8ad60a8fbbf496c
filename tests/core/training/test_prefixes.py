"""Checkpoints that trainings have in common: kept where all of it is equal, and there alone."""

import pytest
import torch
from filelock import FileLock

from tests.core.small_training import CPU, make_network, same, weights
from torchyard.core.data.checkpoint_file import LAST
from torchyard.core.training.events import EpochDone, RunningLoss
from torchyard.core.training.parallel.strategy import Strategy
from torchyard.core.training.prefixes import ScheduleReplay, SharedEpochs, Snapshots
from torchyard.core.training.run_log import with_metrics_logged
from torchyard.core.training.state import TrainingState

EPOCH = EpochDone(1, 9, 0.5, 0.9, None, None, 0.1, 100.0, 1.0)


def new_state(final=10):
    """Of 12 steps, the same whatever `final` is until the learning rate falls, in the seventh."""
    network = make_network()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.1, 12, pct_start=0.5, cycle_momentum=False, final_div_factor=final
    )
    return TrainingState(network, optimizer, schedule, device=CPU)


def snapshots(folder, final=10, execution="float32, 1 thread"):
    lone = new_state(final)
    replay = ScheduleReplay(lone.optimizer, lone.scheduler)
    return Snapshots(SharedEpochs(folder, {1: "a", 2: "b"}), execution, replay)


@pytest.fixture
def trained(tmp_path):
    """A state after an epoch of four steps, its folder with a checkpoint, and a log of five."""
    state, folder = new_state(), tmp_path / "run"
    folder.mkdir()
    emit = with_metrics_logged(folder, lambda event: None)
    for step in range(1, 5):
        state.network(torch.ones(2, 1, 8, 8)).sum().backward()
        state.optimizer.step()
        state.scheduler.step()
        emit(RunningLoss(step, 0.5))
    emit(EPOCH)
    emit(RunningLoss(5, 0.5))
    state.position.epoch, state.position.step = 1, 4
    state.save(folder / LAST, Strategy())
    return state, folder


def begun(folder, execution="float32, 1 thread"):
    state = new_state(1000)
    with snapshots(folder, 1000, execution) as shared:
        return state, shared.begin(state, Strategy())


def rates(state, steps):
    """The learning rates of the next steps."""
    found = []
    for _ in range(steps):
        found.append(state.optimizer.param_groups[0]["lr"])
        state.optimizer.step()
        state.scheduler.step()
    return found


def test_who_comes_second_begins_where_the_first_one_was_with_what_was_recorded(trained, tmp_path):
    state, folder = trained
    with snapshots(tmp_path / "prefixes") as shared:
        shared.keep(state, folder)
    second, events = begun(tmp_path / "prefixes")
    assert events == [*(RunningLoss(step, 0.5) for step in range(1, 5)), EPOCH]
    assert (second.position.epoch, second.position.step) == (1, 4)
    assert same(weights(second.network), weights(state.network))
    assert rates(second, 8) == rates(new_state(1000), 12)[4:]  # on its own schedule


def test_a_training_that_is_carried_out_otherwise_begins_anew(trained, tmp_path):
    state, folder = trained
    with snapshots(tmp_path / "prefixes") as shared:
        shared.keep(state, folder)
    second, events = begun(tmp_path / "prefixes", "float32, 2 threads")
    assert events == []
    assert same(weights(second.network), weights(new_state().network))


def test_an_optimizer_that_changes_its_own_settings_shares_nothing(trained, tmp_path):
    state, folder = trained
    state.optimizer.param_groups[0]["lr"] *= 0.9
    with snapshots(tmp_path / "prefixes") as shared:
        shared.keep(state, folder)
    assert begun(tmp_path / "prefixes")[1] == []


@pytest.mark.timeout(120)
def test_a_training_does_not_wait_for_who_is_ahead_of_it(trained, tmp_path):
    state, folder = trained
    with snapshots(tmp_path / "prefixes") as shared, FileLock(tmp_path / "prefixes" / "b.lock"):
        shared.keep(state, folder)
    assert (tmp_path / "prefixes" / "a.pt").exists()


def test_an_epoch_from_which_nobody_parts_is_not_kept(trained, tmp_path):
    state, folder = trained
    state.position.epoch = 3
    with snapshots(tmp_path / "prefixes") as shared:
        shared.keep(state, folder)
    assert not [*(tmp_path / "prefixes").glob("*.pt")]


def test_a_schedule_is_told_from_another_by_what_an_optimizer_was_given():
    def digests(final):
        state = new_state(final)
        replay = ScheduleReplay(state.optimizer, state.scheduler)
        return [replay.advance(step) for step in (3, 6, 7)]

    first, second = digests(10), digests(1000)
    assert first[:2] == second[:2]
    assert first[2] != second[2]
    assert len(set(first)) == 3


def test_a_schedule_that_took_over_what_another_one_kept_gets_its_own_back():
    def scheduled(factor):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
        return optimizer, torch.optim.lr_scheduler.MultiStepLR(optimizer, [6], factor)

    optimizer, schedule = scheduled(0.1)
    schedule.load_state_dict(scheduled(0.5)[1].state_dict())  # as from a checkpoint
    replay = ScheduleReplay(*scheduled(0.1))
    replay.advance(4)
    replay.hand_over(optimizer, schedule)
    assert (schedule.gamma, schedule.last_epoch) == (0.1, 4)
