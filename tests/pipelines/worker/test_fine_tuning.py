"""Fine-tuning, stage by stage: weights begun with, groups, frozen epochs, SAM, plateau; resumed."""

import pytest
import torch

from tests.pipelines.worker.conftest import config
from torchyard.core.data.checkpoint_file import LAST
from torchyard.core.errors import UserError
from torchyard.core.hosting.host import host
from torchyard.core.training import checkpoint, loop
from torchyard.core.training.events import EpochDone, RunningLoss, WeightsTaken
from torchyard.pipelines.worker.checks.config_check import check
from torchyard.pipelines.worker.stages import preparation, training

SMALL = ("train.batch_size=64", "train.epochs=2", "train.log_every=5", "train.threads=1")


class StopHere(Exception):  # noqa: N818
    pass


@pytest.fixture
def train(tmp_path, cache):
    """Train on digits in this process: the result, what the stage emitted, and its folder."""
    threads, onednn = torch.get_num_threads(), torch.backends.mkldnn.enabled

    def train(*overrides, folder="run", stop_at=None):
        seen, settings = [], config(*SMALL, *overrides)
        data = preparation.prepare(settings, cache, print)["folder"]
        target = tmp_path / folder
        target.mkdir(exist_ok=True)

        def emit(event):
            seen.append(event)
            if isinstance(event, RunningLoss) and event.step == stop_at:
                raise StopHere

        return training.train(settings, data, str(target), emit), seen, target

    yield train
    torch.set_num_threads(threads)
    torch.backends.mkldnn.enabled = onednn


def problems(cache, *overrides):
    with pytest.raises(UserError) as refused:
        check(config(*overrides), cache, print)
    return refused.value.problems


EXACT = {
    "groups": (
        *("optimizer=adamw", "optimizer.layer_decay=0.7", "optimizer.decay_norms=false"),
        *("optimizer.groups=[{match: fc3, lr: 0.01}, {match: [conv*], amsgrad: true}]",),
        "scheduler=one_cycle",
    ),
    "frozen epochs": (
        *("model=quicknet", "model.widths=[8,16]", "model.freeze=[0,1,4]"),
        *("model.freeze_epochs=1", "model.freeze_statistics=true"),
        *("optimizer=sgd", "optimizer.momentum=0.9", "optimizer.weight_decay=0.01"),
    ),
    "sam": ("model=quicknet", "model.widths=[8,16]", "optimizer=sam", "optimizer.base=adam"),
    "plateau": (
        *("scheduler=plateau", "scheduler.patience=0", "scheduler.threshold=0.99"),
        *("train.validation=0.2", "train.epochs=3"),
    ),
}


@pytest.mark.parametrize("case", EXACT)
def test_resumed_it_ends_with_the_same_weights(train, monkeypatch, case):
    whole, events, _ = train(*EXACT[case], folder="whole")
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)  # at every log point
    with pytest.raises(StopHere):
        train(*EXACT[case], folder="cut", stop_at=40)  # within the second epoch
    resumed, again, _ = train(*EXACT[case], folder="cut")
    assert resumed["weights_digest"] == whole["weights_digest"]
    rates, after = (
        [event.learning_rate for event in seen if isinstance(event, EpochDone)]
        for seen in (events, again)
    )
    assert after == rates[-len(after) :]


def test_what_is_frozen_learns_after_so_many_epochs(train):
    frozen = ("model.freeze=[conv*]", "model.freeze_epochs=1", "optimizer.weight_decay=0.5")
    trained = {}
    for epochs in (1, 2):
        _, _, folder = train(*frozen, f"train.epochs={epochs}", folder=f"{epochs}")
        weights = checkpoint.load(folder / LAST)["network"]
        trained[epochs] = weights["model.conv1.weight"], weights["model.fc1.weight"]
    torch.manual_seed(0)
    built = host().find("model", "lenet").params().build((1, 32, 32), 10)
    assert torch.equal(trained[1][0], built.conv1.weight)  # no weight decay either
    assert not torch.equal(trained[1][0], trained[2][0])
    assert not torch.equal(trained[1][1], built.fc1.weight)


def test_running_statistics_of_frozen_norms_stay_where_that_is_asked_for(train):
    frozen = ("model=quicknet", "model.widths=[8,16]", "model.freeze=[0,1]", "train.epochs=1")
    means = {}
    for keep in ("true", "false"):
        _, _, folder = train(*frozen, f"model.freeze_statistics={keep}", folder=keep)
        weights = checkpoint.load(folder / LAST)["network"]
        means[keep] = weights["model.1.running_mean"], weights["model.5.running_mean"]
    assert not means["true"][0].any()  # as it was built
    assert means["false"][0].any()
    assert means["true"][1].any()


def test_running_statistics_take_a_batch_in_once_with_sam(train):
    settings = ("model=quicknet", "model.widths=[8,16]", "train.epochs=1", "optimizer=sam")
    result, _, folder = train(*settings)
    weights = checkpoint.load(folder / LAST)["network"]
    assert int(weights["model.1.num_batches_tracked"]) == result["fit"]["steps"] > 5


def test_a_plateau_lowers_the_learning_rate_after_epochs_without_a_lower_loss(train):
    settings = ("scheduler=plateau", "scheduler.patience=0", "scheduler.threshold=0.99")
    _, events, _ = train(*settings, "train.validation=0.2", "optimizer.lr=0.01", "train.epochs=3")
    rates = [event.learning_rate for event in events if isinstance(event, EpochDone)]
    assert rates == pytest.approx([0.01, 0.01, 0.001])


@pytest.mark.slow  # starts processes
@pytest.mark.parametrize(
    "settings",
    [
        ("optimizer=sam", "optimizer.lr=0.05", "optimizer.base.momentum=0.9", "train.epochs=1"),
        ("optimizer=sgd", "optimizer.lr=0.05", "model.freeze=[conv*]", "model.freeze_epochs=1"),
    ],
)
def test_two_processes_learn_what_one_does(train, settings):
    trained = []
    for name, parallel in (("one", ()), ("two", ("train.parallel=ddp",))):
        _, _, folder = train(*settings, "train.batch_size=256", *parallel, folder=name)
        trained.append(checkpoint.load(folder / LAST)["network"])
    for name, weight in trained[0].items():
        torch.testing.assert_close(trained[1][name], weight, rtol=1e-3, atol=1e-4)


# ---- weights


def test_a_run_begins_with_the_weights_of_another_and_resumes_without_their_file(
    train, monkeypatch, tmp_path
):
    _, _, folder = train("train.epochs=1", folder="first")
    file = tmp_path / "weights.pt"
    (folder / LAST).rename(file)
    begin = (f"model.weights={file}", "train.epochs=2", "optimizer.lr=1e-9")
    whole, events, _ = train(*begin, folder="whole")
    [taken] = [event for event in events if isinstance(event, WeightsTaken)]
    assert taken.line == f"10 of 10 tensors from {file}; normalized as for them"
    assert taken.file.endswith("(weights.pt)")
    begun = [event.loss for event in events if isinstance(event, RunningLoss)]
    unlike = [event.loss for event in train("train.epochs=1", "optimizer.lr=1e-9")[1]
              if isinstance(event, RunningLoss)]  # fmt: skip
    assert begun[0] < unlike[0]

    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    with pytest.raises(StopHere):
        train(*begin, folder="cut", stop_at=20)
    file.unlink()
    resumed, events, _ = train(*begin, folder="cut")
    assert resumed["weights_digest"] == whole["weights_digest"]
    assert not [event for event in events if isinstance(event, WeightsTaken)]
    with pytest.raises(UserError, match=r"model\.weights: .*there is no such file"):
        train(*begin, folder="new")


def test_what_cannot_be_is_refused_before_training(cache, tmp_path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    assert problems(
        cache,
        *("model.freeze=[conv*]", f"model.weights={tmp_path}/other.pth"),
        "optimizer.groups=[{match: fc9, lr: 1}, {match: conv1, lr: 1}]",
    ) == [
        "optimizer.groups.0: 'fc9' matches no parameter. Did you mean 'fc3'?  "
        "(accepts: conv1, conv2, fc1, fc2, fc3)",
        "optimizer.groups.1: 'conv1' matches what is frozen for the whole run",
        f"model.weights: {tmp_path}/other.pth fits 0 of 10 tensors of 'lenet', 0% of its "
        "parameters, and half of them must fit: conv1.weight: 6x1x5x5, not in the file "
        "(nearest: weight, 3); conv1.bias: 6, not in the file; conv2.weight: 16x6x5x5, not in the "
        "file (nearest: weight, 3); conv2.bias: 16, not in the file; and 6 more",
    ]
    preparation.prepare(config(), cache, lambda event: None)
    assert problems(cache, "scheduler=plateau") == [
        "scheduler: 'plateau' follows a figure of the validation: set train.validation, e.g. 0.1"
    ]
    assert problems(cache, "optimizer=sam", "precision=float16") == [
        "precision: 'sam' computes the gradient more than once in a step, and float16 scales it "
        "once: choose bfloat16 or float32"
    ]
    assert problems(cache, "optimizer=muon", "optimizer.groups=[{match: fc1, others: 3}]") == [
        "optimizer: 'others' is not a setting of a group  (groups have: lr, momentum, weight_decay)"
    ]
    assert problems(cache, "dataset.normalize=[[0.1,0.2,0.3],[1,1,1]]") == [
        "dataset.normalize: has a mean and std for 3 channels, and the samples of 1x32x32 have 1"
    ]
    [problem] = problems(cache, "model.weights=default")
    assert problem == ("model.weights: no weights named 'default' are published for this model")


def test_what_is_frozen_at_first_counts_as_trained(cache):
    frozen = ("model.freeze=[conv1]", "train.epochs=2")
    count = [
        check(config(*settings), cache, print)["parameters"]
        for settings in ((), frozen, (*frozen, "model.freeze_epochs=1"))
    ]
    assert count == [61_706, 61_550, 61_706]
    assert check(config("model.freeze=none"), cache, print)["parameters"] == 61_706
