"""What a batch is made of: which samples, augmented and mixed, in what order."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.core.small_training import make_network, make_split, run_fit, same, weights
from torchyard.core.training import batches, sampling
from torchyard.core.training.events import EpochDone, RunningLoss


def test_every_sample_is_seen_once_an_epoch():
    for epoch in range(3):
        order = sampling.epoch_order(50, 3, epoch)
        assert sorted(order.tolist()) == list(range(50))
    assert not torch.equal(sampling.epoch_order(50, 3, 0), sampling.epoch_order(50, 3, 1))
    assert not torch.equal(sampling.epoch_order(50, 3, 0), sampling.epoch_order(50, 4, 0))


@given(samples=st.integers(1, 500), batch_size=st.integers(1, 64))
def test_steps_per_epoch_covers_all_but_a_lonely_last_sample(samples, batch_size):
    steps = batches.steps_per_epoch(samples, batch_size)
    sizes = [min(batch_size, samples - step * batch_size) for step in range(steps)]
    assert all(size > 1 or batch_size == 1 or samples == 1 for size in sizes)
    left_out = samples - sum(sizes)
    assert left_out in (0, 1)
    assert left_out == 0 or (samples > 1 and batch_size > 1)


def test_augmentations_change_every_batch_in_order_and_know_sample_and_epoch(tmp_path):
    split, seen = make_split(20), []

    def darken(samples, indices, epoch):
        assert torch.equal(samples, torch.from_numpy(split.samples)[indices])
        seen.append((epoch, indices.tolist()))
        return samples // 2

    def halved_again(samples, indices, epoch):
        assert torch.equal(samples, torch.from_numpy(split.samples)[indices] // 2)
        return samples // 2

    inputs = []
    network = make_network()
    network.register_forward_pre_hook(lambda module, given: inputs.append(given[0]))
    before = split.samples.copy()
    run_fit(tmp_path / "run", network, train=split, epochs=2, augmentations=[darken, halved_again])
    assert [epoch for epoch, _ in seen] == [1, 1, 1, 2, 2, 2]
    for epoch in (1, 2):
        indices = [index for of, batch in seen if of == epoch for index in batch]
        assert sorted(indices) == list(range(20))
    for (_, indices), darkened in zip(seen, inputs, strict=True):
        assert torch.equal(darkened, torch.from_numpy(before)[indices] // 2 // 2)
    assert np.array_equal(split.samples, before)


def test_random_augmentations_go_on_where_a_checkpoint_was_taken(tmp_path):
    def noisy(samples, indices, epoch):
        return (samples * torch.rand(len(samples), 1, 1, 1)).to(torch.uint8)

    def stop_in_second(event):
        if isinstance(event, RunningLoss) and event.step > 12:
            raise KeyboardInterrupt

    whole, halves = make_network(), make_network()
    torch.manual_seed(3)
    run_fit(tmp_path / "whole", whole, augmentations=[noisy])
    torch.manual_seed(3)
    with pytest.raises(KeyboardInterrupt):
        run_fit(tmp_path / "halves", halves, augmentations=[noisy], emit=stop_in_second)
    torch.manual_seed(99)
    run_fit(tmp_path / "halves", halves, augmentations=[noisy])
    assert same(weights(whole), weights(halves))


def test_mixing_has_one_hot_targets_and_accuracy_is_of_the_samples_own_labels(tmp_path):
    split, events, given = make_split(24), [], []

    def swapped(samples, targets, indices, epoch):
        given.append((targets.clone(), indices.clone(), epoch))
        return samples, targets[:, [1, 2, 0]]  # every target is of another class

    def darkened(samples, indices, epoch):
        return samples // 2

    def mixed_again(samples, targets, indices, epoch):
        assert torch.equal(targets, given[-1][0][:, [1, 2, 0]])
        assert samples.max() < 128
        return samples, targets

    mixing = [batches.MixedTargets(each, 3) for each in (swapped, mixed_again)]
    network = make_network()
    run_fit(tmp_path / "run", network, train=split, epochs=20, lr=0.5, emit=events.append,
            augmentations=[mixing[0], darkened, mixing[1]])  # fmt: skip
    labels = torch.from_numpy(split.labels)
    for targets, indices, _ in given:
        assert targets.dtype == torch.float32
        assert torch.equal(targets, nn.functional.one_hot(labels[indices], 3).float())
    assert [epoch for _, _, epoch in given] == [1 + number // 3 for number in range(60)]
    # It has learnt the other classes, so none of its own labels is right.
    last = [event for event in events if isinstance(event, EpochDone)][-1]
    assert last.loss < 0.3
    assert last.accuracy < 0.1


def test_samples_become_a_tensor_without_a_copy(tmp_path):
    split, seen = make_split(), []

    def brighten_what_comes(samples, indices, epoch):
        seen.append(samples.clone())
        split.samples[:] = 200  # after the first batch was taken, the array is changed
        return samples

    run_fit(tmp_path / "run", make_network(), train=split, epochs=1,
            augmentations=[brighten_what_comes])  # fmt: skip
    assert not (seen[0] == 200).all()
    assert all((batch == 200).all() for batch in seen[1:])  # one memory: the tensor has it too
