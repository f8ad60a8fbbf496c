"""A batch in parts is the whole batch: accumulated, for want of memory, resumed, mixed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.core.small_training import make_network, make_split, run_fit, same, weights
from torchyard.core.data.checkpoint_file import LAST
from torchyard.core.errors import RunError
from torchyard.core.training import checkpoint, loop
from torchyard.core.training.batches import part_count
from torchyard.core.training.events import BatchSplit, EpochDone, RunningLoss


def close(left, right):
    return all(torch.allclose(a, b, atol=1e-5) for a, b in zip(left, right, strict=True))


def seen_sizes(network):
    """The sizes of what the network is trained on, as they come."""
    sizes = []
    network.register_forward_pre_hook(
        lambda module, given: sizes.append(len(given[0])) if module.training else None
    )
    return sizes


@given(samples=st.integers(1, 300), size=st.integers(1, 64))
def test_parts_are_about_as_large_as_asked_and_never_single_samples(samples, size):
    parts = [len(part) for part in torch.arange(samples).tensor_split(part_count(samples, size))]
    assert sum(parts) == samples
    assert max(parts) <= max(size, 3) or samples <= 3
    assert size == 1 or samples == 1 or min(parts) > 1


@pytest.mark.parametrize("settings", [{}, {"clip_norm": 0.1}, {"precision": "float16"}])
def test_a_batch_in_parts_gives_the_weights_of_the_whole(tmp_path, settings):
    whole, parts, events = make_network(), make_network(), {"whole": [], "parts": []}
    sizes = seen_sizes(parts)
    run_fit(tmp_path / "whole", whole, emit=events["whole"].append, **settings)
    run_fit(tmp_path / "parts", parts, emit=events["parts"].append, accumulate=3, **settings)
    tolerance = 5e-3 if "precision" in settings else 1e-5
    for a, b in zip(weights(whole), weights(parts), strict=True):
        assert torch.allclose(a, b, atol=tolerance)
    assert sizes[:4] == [3, 3, 2, 3]  # of 8, then the next
    assert sizes[33:35] == [2, 3]  # of the epoch's last two samples, then the next epoch
    figures = [
        [(e.accuracy, e.loss) for e in events[name] if isinstance(e, EpochDone)] for name in events
    ]
    for before, after in zip(*figures, strict=True):
        assert after == pytest.approx(before, rel=1e-2 if "precision" in settings else 1e-5)


class TooLarge(nn.Module):
    """Has memory for so many samples."""

    def __init__(self, most):
        super().__init__()
        self.most = most

    def forward(self, samples):
        if self.training and len(samples) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return samples


def test_out_of_memory_a_batch_is_split_and_the_result_is_that_of_as_many_parts(tmp_path):
    events, parts, short = [], make_network(), nn.Sequential(TooLarge(3), make_network())
    run_fit(tmp_path / "parts", parts, accumulate=4)
    run_fit(tmp_path / "short", short, emit=events.append)
    assert same(weights(parts), weights(short))
    split = [event for event in events if isinstance(event, BatchSplit)]
    assert split == [BatchSplit(1, 4)]


def test_without_memory_for_a_sample_a_message_says_so(tmp_path):
    network = nn.Sequential(TooLarge(0), make_network())
    with pytest.raises(
        RunError, match="cpu has too little memory for 8 samples, even one after the other"
    ):
        run_fit(tmp_path / "run", network)


class StopHere(Exception):  # noqa: N818
    pass


@pytest.mark.parametrize("stop_at", [14, 24])  # within an epoch of twelve steps, and after one
@pytest.mark.parametrize(
    "settings",
    [{"accumulate": 2}, {"ema": 0.9}, {"ema": 0.9, "validation": True, "monitor": "accuracy"}],
)
def test_interrupted_it_ends_with_the_same_weights(tmp_path, monkeypatch, settings, stop_at):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    if "validation" in settings:
        settings = settings | {"validation": make_split(60, seed=7)}
    whole, again = make_network(dropout=0.3), make_network(dropout=0.3)
    result = run_fit(tmp_path / "whole", whole, epochs=4, **settings)

    def stop(event):
        if isinstance(event, RunningLoss) and event.step > stop_at:
            raise StopHere

    with pytest.raises(StopHere):
        run_fit(tmp_path / "cut", make_network(dropout=0.3), epochs=4, emit=stop, **settings)
    torch.manual_seed(999)
    resumed = run_fit(tmp_path / "cut", again, epochs=4, **settings)
    assert same(weights(whole), weights(again))
    assert resumed.best_epoch == result.best_epoch
    state = checkpoint.load(tmp_path / "cut" / resumed.file)["network"]
    assert same([state["3.weight"], state["3.bias"]], weights(again))


def test_interrupted_after_memory_was_short_it_ends_with_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)

    def short():
        return nn.Sequential(TooLarge(3), make_network(dropout=0.3))

    def stop(event):
        if isinstance(event, RunningLoss) and event.step > 14:
            raise StopHere

    whole, again, events = short(), short(), []
    run_fit(tmp_path / "whole", whole)
    with pytest.raises(StopHere):
        run_fit(tmp_path / "cut", short(), emit=stop)
    run_fit(tmp_path / "cut", again, emit=events.append)
    assert same(weights(whole), weights(again))
    assert not [event for event in events if isinstance(event, BatchSplit)]


def test_the_average_is_what_is_validated_and_kept(tmp_path):
    validation, events = make_split(60, seed=7), []
    network = make_network()
    result = run_fit(tmp_path / "run", network, validation=validation, ema=0.99,
                     emit=events.append, lr=0.3)  # fmt: skip
    kept = [event for event in events if isinstance(event, EpochDone)][result.best_epoch - 1]
    logits = network.eval()(torch.from_numpy(validation.samples))
    loss = nn.functional.cross_entropy(logits, torch.from_numpy(validation.labels)).item()
    assert loss == pytest.approx(kept.validation_loss, rel=1e-5)
    last = checkpoint.load(tmp_path / "run" / LAST)["network"]
    assert not torch.equal(last["3.weight"], network[3].weight)
    plain = make_network()
    run_fit(tmp_path / "plain", plain, lr=0.3)
    assert torch.equal(last["3.weight"], plain[3].weight)  # training itself goes on as without


def test_an_optimizer_with_a_closure_makes_one_step_a_batch(tmp_path):
    plain, closed = make_network(), make_network()
    run_fit(tmp_path / "plain", plain)
    run_fit(tmp_path / "closed", closed, needs_closure=True)
    assert same(weights(plain), weights(closed))
