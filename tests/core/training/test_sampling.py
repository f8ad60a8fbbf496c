"""Which samples an epoch draws."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.small_training import make_network, make_split, run_fit, same, weights
from torchyard.core.data.dataset import Split
from torchyard.core.training import loop
from torchyard.core.training.events import RunningLoss
from torchyard.core.training.sampling import balanced_order, sampled_order, sampling

SAMPLES = st.lists(st.tuples(st.integers(0, 5), st.sampled_from([0.0, 0.5, 1.0, 1e6])), min_size=1)


@settings(max_examples=200, deadline=None)
@given(SAMPLES, st.integers(0, 9), st.integers(0, 3), st.booleans())
def test_each_class_is_drawn_equally_often(samples, seed, epoch, weighted):
    labels = torch.tensor([label for label, _ in samples])
    mass = torch.tensor([weight for _, weight in samples], dtype=torch.float64)
    if weighted and not mass.any():
        return
    order = balanced_order(labels, seed, epoch, mass if weighted else None)
    assert len(order) == len(labels)
    drawn = labels[order].bincount(minlength=6)
    usable = labels[mass > 0] if weighted else labels
    present = usable.bincount(minlength=6) > 0
    assert drawn[present].max() - drawn[present].min() <= 1
    assert not drawn[~present].any()
    if weighted:
        assert (mass[order] > 0).all()
    assert torch.equal(order, balanced_order(labels, seed, epoch, mass if weighted else None))


def test_samples_of_a_class_are_drawn_in_proportion_to_their_weights():
    labels = torch.arange(4000) % 2
    mass = torch.where(torch.arange(4000) < 1000, 3.0, 1.0).double()
    for order in (balanced_order(labels, 0, 0, mass), balanced_order(labels * 0, 0, 0, mass)):
        share = (order < 1000).double().mean().item()
        assert share == pytest.approx(0.5, abs=0.04)
    assert not torch.equal(balanced_order(labels, 0, 0), balanced_order(labels, 0, 1))
    assert not torch.equal(balanced_order(labels, 0, 0), balanced_order(labels, 1, 0))
    # With replacement, some 63 % of the samples are drawn at least once.
    assert len(balanced_order(labels, 0, 0).unique()) / 4000 == pytest.approx(0.632, abs=0.03)


def test_the_order_is_of_the_split_and_its_weights():
    split = Split(np.zeros((6, 2), np.float32), np.array([0, 0, 0, 0, 0, 1]))
    part = Split(
        split.samples, split.labels, np.array([0, 5]), weights=np.array([0, 1, 1, 1, 1, 1.0])
    )
    assert sorted(sampled_order(split, None, 0, 0).tolist()) == [0, 1, 2, 3, 4, 5]
    assert sampled_order(split, "balanced", 0, 0).tolist().count(5) == 3
    assert sampled_order(part, None, 0, 0).tolist() == [1, 1]
    assert sampled_order(part, "weighted", 0, 0).tolist() == [1, 1]
    assert sorted(sampled_order(part, "shuffle", 0, 0).tolist()) == [0, 1]
    assert [sampling(split, sampler) for sampler in (None, "shuffle", "balanced")] == [
        *("", ""),
        "classes drawn equally often",
    ]
    assert sampling(part, None) == "samples drawn in proportion to their weights"
    assert sampling(part, "shuffle") == ""


def test_continued_within_an_epoch_it_draws_the_same_samples(tmp_path, monkeypatch):
    split = make_split()
    split = Split(split.samples, np.where(split.labels == 2, 2, 0))

    def run(folder, **settings):
        network = make_network()
        run_fit(tmp_path / folder, network, train=split, sampler="balanced", **settings)
        return weights(network)

    whole = run("whole")
    assert not same(whole, weights_of_shuffled(tmp_path, split))
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)  # at every log point

    class StopHere(Exception):  # noqa: N818
        pass

    def stop(event):
        if isinstance(event, RunningLoss) and event.step == 20:
            raise StopHere

    with pytest.raises(StopHere):
        run("cut", emit=stop)
    torch.manual_seed(999)
    assert same(whole, run("cut"))


def weights_of_shuffled(tmp_path, split):
    network = make_network()
    run_fit(tmp_path / "shuffled", network, train=split)
    return weights(network)
