"""`fit()` against a plain loop, resumed, stopped, clipped, diverging."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from tests.core.small_training import make_network, make_split, run_fit, same, weights
from torchyard.core.data.checkpoint_file import BEST, LAST
from torchyard.core.data.dataset import Split
from torchyard.core.data.predictions import Predictions
from torchyard.core.data.splitting import stratified_split
from torchyard.core.errors import RunError
from torchyard.core.evaluation.figures import Figures, standard_figures
from torchyard.core.training import batches, checkpoint, loop, sampling
from torchyard.core.training.events import EpochDone, GradientNorms, RunningLoss
from torchyard.core.training.network import freeze
from torchyard.core.training.state import TrainingState


def test_fit_is_the_plain_loop(tmp_path):
    split, network = make_split(), make_network()
    plain = copy.deepcopy(network)
    run_fit(tmp_path / "run", network, train=split)

    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
    samples, labels = torch.from_numpy(split.samples), torch.from_numpy(split.labels)
    for epoch in range(3):
        for index in sampling.epoch_order(90, 5, epoch).split(8):
            optimizer.zero_grad()
            nn.functional.cross_entropy(plain(samples[index]), labels[index]).backward()
            optimizer.step()
            scheduler.step()
    assert same(weights(network), weights(plain))


def test_epoch_figures_are_the_means_over_its_samples(tmp_path):
    events = []
    split = make_split(45)  # batches of 8: the last has 5, so a mean of batch means is wrong
    network = make_network()
    before = copy.deepcopy(network)
    run_fit(tmp_path / "run", network, train=split, emit=events.append, epochs=1, lr=1e-12)
    done = [event for event in events if isinstance(event, EpochDone)]
    logits = before(torch.from_numpy(split.samples))
    targets = torch.from_numpy(split.labels)
    assert len(done) == 1
    assert done[0].loss == pytest.approx(nn.functional.cross_entropy(logits, targets).item(), 1e-4)
    assert done[0].accuracy == pytest.approx((logits.argmax(1) == targets).float().mean().item())
    assert done[0].images_per_second == pytest.approx(45 / done[0].seconds)
    running = [event for event in events if isinstance(event, RunningLoss)]
    assert [event.step for event in running] == [4, 6]


def test_it_learns(tmp_path):
    events = []
    run_fit(tmp_path / "run", make_network(), emit=events.append, epochs=15)
    losses = [event.loss for event in events if isinstance(event, EpochDone)]
    assert losses[-1] < 0.5 * losses[0]


class StopHere(Exception):  # noqa: N818
    pass


@pytest.mark.parametrize("at", [1, 2])
def test_continued_from_its_checkpoint_it_ends_with_the_same_weights(tmp_path, at):
    whole = make_network(dropout=0.3)
    run_fit(tmp_path / "whole", whole, epochs=4)

    def stop(event):
        # Of the next epoch: an epoch is reported before its checkpoint is written.
        if isinstance(event, RunningLoss) and event.step > 12 * at:
            raise StopHere

    interrupted = make_network(dropout=0.3)
    with pytest.raises(StopHere):
        run_fit(tmp_path / "cut", interrupted, epochs=4, emit=stop)
    torch.manual_seed(999)  # what a new process would have
    events = []
    continued = make_network(dropout=0.3)
    result = run_fit(tmp_path / "cut", continued, epochs=4, emit=events.append)
    assert same(weights(whole), weights(continued))
    done = [event.epoch for event in events if isinstance(event, EpochDone)]
    assert done == list(range(at + 1, 5))
    assert result.epochs == 4
    assert result.steps == 4 * 12


def test_continued_within_an_epoch_it_ends_with_the_same_weights(tmp_path, monkeypatch):
    whole, whole_events = make_network(dropout=0.3), []
    run_fit(tmp_path / "whole", whole, emit=whole_events.append)

    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)  # at every log point

    def stop(event):
        if isinstance(event, RunningLoss) and event.step == 20:
            raise StopHere

    with pytest.raises(StopHere):
        run_fit(tmp_path / "cut", make_network(dropout=0.3), emit=stop)
    position = checkpoint.load(tmp_path / "cut" / LAST)["position"]
    assert (position["epoch"], position["batch"], position["step"]) == (1, 4, 16)
    continued, events = make_network(dropout=0.3), []
    run_fit(tmp_path / "cut", continued, emit=events.append)
    assert same(weights(whole), weights(continued))

    def figures(events):
        return [(e.epoch, e.step, e.loss, e.accuracy, e.learning_rate) for e in events
                if isinstance(e, EpochDone)]  # fmt: skip

    assert figures(events) == figures(whole_events)[1:]


def spoil(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    "damaged", [["last.pt"], ["best.pt"], ["last.pt", "best.pt"], ["last.pt", "previous.pt"]]
)
def test_with_damaged_checkpoints_it_ends_with_the_same_weights(tmp_path, damaged):
    def run(folder):
        network = make_network(dropout=0.3)
        settings = {"validation": make_split(30, seed=1), "epochs": 6, "lr": 2.0}
        best = run_fit(tmp_path / folder, network, **settings).best_epoch
        return weights(network), best

    whole, best = run("spoiled")
    assert best < 5  # neither of the last two checkpoints is of the best epoch
    for name in damaged:
        spoil(tmp_path / "spoiled" / name)
    torch.manual_seed(999)
    again, best_again = run("spoiled")
    assert same(whole, again)
    assert best == best_again
    best_weights = checkpoint.load(tmp_path / "spoiled" / BEST)["network"]
    assert same(list(best_weights.values()), again)


def test_figures_are_told_before_the_checkpoint_of_their_step(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)  # at every log point
    told, last = [], tmp_path / "run" / LAST

    def emit(event):
        if isinstance(event, RunningLoss | EpochDone):
            saved = checkpoint.load(last)["position"] if last.exists() else {"step": 0, "epoch": 0}
            told.append((event.step, saved["step"], saved["epoch"]))
            if isinstance(event, EpochDone):
                assert saved["epoch"] == event.epoch - 1
            else:
                assert saved["step"] < event.step

    run_fit(tmp_path / "run", make_network(), emit=emit, epochs=2)
    assert {step for step, *_ in told} == {4, 8, 12, 16, 20, 24}


def test_a_finished_run_is_not_trained_again(tmp_path):
    network = make_network()
    run_fit(tmp_path / "run", network)
    events, again = [], make_network()
    run_fit(tmp_path / "run", again, emit=events.append)
    assert events == []
    assert same(weights(network), weights(again))


def test_only_the_training_part_is_learned_from(tmp_path):
    split = make_split()
    rest, part = stratified_split(split.labels, 0.3, seed=0)
    spoiled = split.samples.copy()
    spoiled[part] = 255 - spoiled[part]
    first, second = make_network(), make_network()
    run_fit(tmp_path / "a", first, train=Split(split.samples, split.labels, rest))
    run_fit(tmp_path / "b", second, train=Split(spoiled, split.labels, rest))
    assert same(weights(first), weights(second))
    events = []
    run_fit(tmp_path / "c", make_network(), train=Split(split.samples, split.labels, rest),
            emit=events.append, epochs=1)  # fmt: skip
    assert events[-1].step == batches.steps_per_epoch(len(rest), 8)


def test_the_best_epoch_is_kept_and_patience_ends_the_run(tmp_path):
    validation = make_split(60, seed=7)
    events, network = [], make_network()
    # A learning rate at which the loss first falls and then swings.
    result = run_fit(tmp_path / "run", network, validation=validation, emit=events.append,
                     epochs=60, patience=3, lr=3.0)  # fmt: skip
    done = [event for event in events if isinstance(event, EpochDone)]
    losses = [event.validation_loss for event in done]
    assert result.best_epoch == 1 + losses.index(min(losses))
    assert result.stopped_early
    assert result.epochs == result.best_epoch + 3 == len(done)
    logits = network.eval()(torch.from_numpy(validation.samples))
    loss = nn.functional.cross_entropy(logits, torch.from_numpy(validation.labels)).item()
    assert loss == pytest.approx(min(losses), rel=1e-5)


@pytest.mark.parametrize(
    ("monitor", "lower", "best"),
    [("accuracy", False, 4), ("macro_f1", False, 4), ("toy/a", False, 3), ("toy/a", True, 2)],
)
def test_the_best_epoch_is_that_of_the_monitored_figure(tmp_path, monitor, lower, best):
    values = iter([0.4, 0.2, 0.9, 0.2, 0.9, 0.5])
    figures = Figures([("toy", lambda logits, targets: {"a": next(values)}, lower)])
    validation, events = make_split(60, seed=7), []
    validation.labels[::2] = np.roll(validation.labels[::2], 1)
    network = make_network()
    result = run_fit(tmp_path / "run", network, validation=validation, figures=figures,
                     emit=events.append, epochs=6, lr=0.03, monitor=monitor)  # fmt: skip
    assert result.best_epoch == best
    kept = [event for event in events if isinstance(event, EpochDone)][best - 1]
    logits = network.eval()(torch.from_numpy(validation.samples)).detach().numpy()
    made = standard_figures(Predictions(logits, validation.labels))
    assert made["loss"] == pytest.approx(kept.validation_loss)
    assert made["macro_f1"] == kept.validation_figures["macro_f1"]


def test_a_figure_that_is_never_defined_chooses_no_epoch(tmp_path):
    figures = Figures([("toy", lambda logits, targets: math.nan, False)])
    result = run_fit(tmp_path / "run", make_network(), validation=make_split(60, seed=7),
                     figures=figures, monitor="toy", patience=2, epochs=9)  # fmt: skip
    assert (result.epochs, result.best_epoch) == (2, 2)


def test_interrupted_it_knows_the_best_value_of_the_monitored_figure(tmp_path, monkeypatch):
    settings = {"validation": make_split(60, seed=7), "epochs": 9, "lr": 3.0, "monitor": "macro_f1"}
    whole = make_network()
    best = run_fit(tmp_path / "whole", whole, **settings)
    for stop_at in (14, 40, 90):  # within an epoch, of twelve steps each
        monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)

        def stop(event, step=stop_at):
            if isinstance(event, RunningLoss) and event.step > step:
                raise StopHere

        with pytest.raises(StopHere):
            run_fit(tmp_path / str(stop_at), make_network(), emit=stop, **settings)
        network = make_network()
        again = run_fit(tmp_path / str(stop_at), network, **settings)
        assert same(weights(whole), weights(network))
        assert again.best_epoch == best.best_epoch


def test_a_checkpoint_from_before_there_was_a_choice_has_monitored_the_loss(tmp_path):
    settings = {"validation": make_split(60, seed=7), "epochs": 6, "lr": 3.0}
    result = run_fit(tmp_path / "run", make_network(), **settings)
    file = tmp_path / "run" / LAST
    state = checkpoint.load(file)
    state["position"]["best_loss"] = state["position"].pop("best_value")
    checkpoint.save(state, file)
    assert run_fit(tmp_path / "run", make_network(), **settings) == result


def test_out_of_patience_stays_out_of_patience(tmp_path):
    validation = make_split(60, seed=7)
    settings = {"validation": validation, "epochs": 60, "patience": 3, "lr": 3.0}
    first = run_fit(tmp_path / "run", make_network(), **settings)
    events = []
    second = run_fit(tmp_path / "run", make_network(), emit=events.append, **settings)
    assert (first, events) == (second, [])


def test_max_steps_ends_the_run_within_an_epoch(tmp_path):
    events = []
    result = run_fit(tmp_path / "run", make_network(), emit=events.append, max_steps=15)
    done = [event for event in events if isinstance(event, EpochDone)]
    assert (result.steps, result.epochs) == (15, 2)
    assert [event.step for event in done] == [12, 15]


def test_a_loss_that_becomes_nan_names_epoch_and_step_and_keeps_the_last_good_one(tmp_path):
    calls = itertools.count(1)

    def loss(logits, targets):
        value = nn.functional.cross_entropy(logits, targets)
        return value * math.nan if next(calls) == 12 + 7 else value

    with pytest.raises(RunError, match=r"nan in epoch 2 at step 19.*last\.pt"):
        run_fit(tmp_path / "run", make_network(), loss=loss)
    state = checkpoint.load(tmp_path / "run" / LAST)
    assert state["position"]["epoch"] == 1
    assert all(value.isfinite().all() for value in state["network"].values())


def test_weights_that_overflow_after_the_last_loss_are_not_saved(tmp_path):
    with pytest.raises(RunError, match="weights became NaN or infinite by step 1"):
        run_fit(tmp_path / "run", make_network(), loss=lambda logits, _: 1e30 * logits.sum(),
                lr=1e30, momentum=0.0, max_steps=1)  # fmt: skip
    assert not (tmp_path / "run" / LAST).exists()


def test_weights_that_overflow_within_an_epoch_leave_the_last_good_checkpoint(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)  # at every log point: steps 4, 8, 12
    calls = itertools.count(1)

    def loss(logits, targets):
        # At step 8 the loss is finite and the update is not: only the next loss would show it.
        return logits.sum() * (1e30 if next(calls) == 8 else 1e-30)

    with pytest.raises(RunError, match=r"weights became NaN or infinite by step 8.*last\.pt"):
        run_fit(tmp_path / "run", make_network(), loss=loss, lr=1e20, momentum=0.0)
    assert checkpoint.load(tmp_path / "run" / LAST)["position"]["step"] == 4


def test_weights_are_scanned_once_an_epoch(tmp_path, monkeypatch):
    scans, finite = [], TrainingState.weights_are_finite.fget
    monkeypatch.setattr(
        TrainingState,
        "weights_are_finite",
        property(lambda state: scans.append(1) or finite(state)),
    )
    run_fit(tmp_path / "run", make_network(), validation=make_split(60, seed=7), epochs=4)
    assert len(scans) == 4


def test_gradients_are_clipped(tmp_path):
    network = make_network()
    before = weights(network)
    run_fit(tmp_path / "run", network, clip_norm=0.01, lr=1.0, momentum=0.0, max_steps=1)
    moved = math.sqrt(sum(((a - b) ** 2).sum().item()
                          for a, b in zip(before, weights(network), strict=True)))  # fmt: skip
    assert moved == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_learns_and_keeps_float32_weights(tmp_path, precision):
    events, types, network = [], set(), make_network()
    network[3].register_forward_hook(lambda module, inputs, output: types.add(output.dtype))
    run_fit(tmp_path / "run", network, emit=events.append, epochs=8, precision=precision)
    losses = [event.loss for event in events if isinstance(event, EpochDone)]
    assert types == {getattr(torch, precision)}
    assert network[3].weight.dtype == torch.float32
    assert losses[-1] < 0.8 * losses[0]


def test_batch_norm_survives_a_last_batch_of_one(tmp_path):
    network = nn.Sequential(
        make_network()[:3], nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)
    )
    result = run_fit(tmp_path / "run", network, train=make_split(81), epochs=1)
    assert result.steps == 10


def test_gradient_norms_are_reported_by_layer_on_request(tmp_path):
    def norms(**settings):
        events = []
        run_fit(tmp_path / str(len(settings)), make_network(), emit=events.append, **settings)
        return [event for event in events if isinstance(event, GradientNorms)]

    assert norms() == []
    logged = norms(log_gradients=True, epochs=1, max_steps=1, log_every=1, lr=1e-12)
    split, network = make_split(), make_network()
    index = sampling.epoch_order(90, 5, 0)[:8]
    samples, labels = torch.from_numpy(split.samples)[index], torch.from_numpy(split.labels)[index]
    nn.functional.cross_entropy(network(samples), labels).backward()
    layer = network[3]
    expected = torch.cat([layer.weight.grad.flatten(), layer.bias.grad]).norm().item()
    assert [event.step for event in logged] == [1]
    assert logged[0].norms == {"3": pytest.approx(expected, 1e-4)}


def test_frozen_parameters_stay_and_the_others_learn(tmp_path):
    network = nn.Sequential(make_network(), nn.Linear(3, 3))
    freeze(network, ["0.3"])
    before = weights(network)
    run_fit(tmp_path / "run", network)
    kept = [torch.equal(old, new) for old, new in zip(before, weights(network), strict=True)]
    assert kept == [True, True, False, False]


def test_training_that_is_not_to_go_on_ends_with_a_checkpoint_that_goes_on(tmp_path):
    whole, pruned = make_network(), make_network()
    run_fit(tmp_path / "whole", whole)
    answers = iter([True, True, False])
    result = run_fit(tmp_path / "pruned", pruned, go_on=answers.__next__)
    assert (result.epochs, result.stopped_early) == (2, False)
    run_fit(tmp_path / "pruned", pruned)
    for one, other in zip(weights(whole), weights(pruned), strict=True):
        assert torch.equal(one, other)
