"""The test kit: every built-in passes it, and each check finds what it is for."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from tests.core.testing.plugin_classes import plugin
from torchyard import (
    ArraySplit,
    RawData,
    SampleSpec,
)
from torchyard.core.hosting.host import host
from torchyard.testing import (
    PluginFault,
    assert_augmentation_plugin,
    assert_dataset_plugin,
    assert_loss_plugin,
    assert_model_plugin,
    assert_optimizer_plugin,
    assert_scheduler_plugin,
)

ASSERTIONS = {
    "model": assert_model_plugin,
    "loss": assert_loss_plugin,
    "optimizer": assert_optimizer_plugin,
    "scheduler": assert_scheduler_plugin,
    "augmentation": assert_augmentation_plugin,
}
TORCHVISION = {"squeezenet1_1", "shufflenet_v2_x0_5", "resnet18"}  # the small ones


def built_ins():
    for kind in ASSERTIONS:
        for name, found in host().registrations(kind):
            if (kind, name) == ("model", "timm"):  # 40 s
                yield pytest.param(kind, name, marks=pytest.mark.slow)
            elif not found.params.__module__.endswith(".models.torchvision"):
                yield kind, name
            elif name in TORCHVISION:
                yield pytest.param(kind, name, marks=pytest.mark.slow)


@pytest.mark.parametrize(("kind", "name"), list(built_ins()))
def test_every_built_in_passes(kind, name):
    before = torch.get_rng_state(), random.getstate()
    ASSERTIONS[kind](host().find(kind, name).params())
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()


@pytest.mark.parametrize("name", ["digits", "random_vectors"])
def test_built_in_data_sets_pass(name, tmp_path):
    assert_dataset_plugin(host().find("dataset", name).params(), tmp_path)


# ---- losses

cross_entropy = nn.functional.cross_entropy
LOSSES = {
    "a loss each": (
        lambda x, y: cross_entropy(x, y, reduction="none"),
        r"shape of \(8,\), not a scalar",
    ),
    "infinite": (
        lambda x, y: -(x.softmax(1).gather(1, y[:, None]) * 0).log().mean(),
        "right logits: the loss is inf",
    ),
    "float": (lambda x, y: cross_entropy(x, y).item(), "returns a float"),
    "detached": (lambda x, y: cross_entropy(x.detach(), y), "does not depend"),
    "gradient": (
        lambda x, y: cross_entropy(x, y) + (x.square() - x.square().detach()).sum().sqrt(),
        "the gradient is NaN or infinite",
    ),
    "in place": (lambda x, y: cross_entropy(x, y.zero_()), "logits or targets in place"),
    "random": (lambda x, y: cross_entropy(x, y) + torch.rand(()), "a second call differs"),
    "upside down": (lambda x, y: -cross_entropy(x, y), "order: right logits give"),
    "raises": (lambda x, y: x[0, 99], "right logits: raises IndexError"),
}


@pytest.mark.parametrize("case", LOSSES)
def test_a_loss_that_is_wrong(case):
    loss, message = LOSSES[case]
    with pytest.raises(PluginFault, match=message):
        assert_loss_plugin(plugin("loss", lambda self, classes: loss))


def test_parameters_for_class_counts_that_are_wrong():
    found = plugin("loss", lambda self, classes: cross_entropy)
    for returned, message in (
        (lambda self, counts: None, "with_class_counts: returns a NoneType"),
        (lambda self, counts: self.build(len(counts) / counts[0]), "raises ZeroDivisionError"),
    ):
        wrong = type("Wrong", (type(found),), {"__doc__": "Wrong.", "with_class_counts": returned})
        with pytest.raises(PluginFault, match=message):
            assert_loss_plugin(wrong())


def test_a_gradient_that_leads_upwards_is_found():
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return -grad

    with pytest.raises(PluginFault, match="its gradient does not lead downwards"):
        assert_loss_plugin(
            plugin("loss", lambda self, classes: lambda x, y: cross_entropy(Wrong.apply(x), y))
        )


# ---- optimizers


class Descent(torch.optim.Optimizer):
    """Gradient descent with momentum, to be spoilt."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 0.01})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for weight in group["params"]:
                self.move(weight, group["lr"])

    def move(self, weight, rate):
        if weight.grad is not None:
            weight.sub_(weight.grad, alpha=rate)


class Ascent(Descent):
    def move(self, weight, rate):
        super().move(weight, -rate)


class OwnRate(Descent):
    def move(self, weight, rate):
        super().move(weight, 0.01)


class Shaking(Descent):
    def move(self, weight, rate):
        weight.mul_(1 - rate)


class Forgetful(Descent):
    def __init__(self, parameters):
        super().__init__(parameters)
        self.steps = 0

    def move(self, weight, rate):
        self.steps += 1
        super().move(weight, rate / self.steps)


OPTIMIZERS = {
    "no optimizer": (lambda weights: list(weights), "returns a list, not a torch.optim.Optimizer"),
    "no rate": (lambda weights: torch.optim.Optimizer(weights, {}), "has no 'lr'"),
    "ascends": (Ascent, "learning: a quadratic does not fall"),
    "own rate": (OwnRate, "learning rate: it moves although"),
    "idle weights": (Shaking, "moves a weight that has no gradient"),
    "forgetful": (Forgetful, "it takes other steps"),
}


@pytest.mark.parametrize("case", OPTIMIZERS)
def test_an_optimizer_that_is_wrong(case):
    make, message = OPTIMIZERS[case]
    with pytest.raises(PluginFault, match=message):
        assert_optimizer_plugin(plugin("optimizer", lambda self, weights: make(weights)))


# ---- schedulers

schedules = torch.optim.lr_scheduler


class Forgetting(schedules.LRScheduler):
    """Its factor is in no state that it saves."""

    def __init__(self, optimizer):
        self.rates = [0.1]
        super().__init__(optimizer)

    def get_lr(self):
        self.rates.append(0.9 * self.rates[-1])
        return [self.rates[-1]]

    def state_dict(self):
        return {}


SCHEDULERS = {
    "no schedule": (lambda optimizer, steps: None, "returns a NoneType, not an LRScheduler"),
    "negative": (
        lambda optimizer, steps: schedules.LambdaLR(optimizer, lambda step: 1 - step / 50),
        r"learning rate: -0\.\d+ at step 52 of 100",
    ),
    "zero": (
        lambda optimizer, steps: schedules.LambdaLR(optimizer, lambda step: 0.0),
        "0 at every step",
    ),
    "too short": (
        lambda optimizer, steps: schedules.OneCycleLR(optimizer, 0.1, total_steps=steps // 2),
        "step 51: raises ValueError",
    ),
    "forgets": (lambda optimizer, steps: Forgetting(optimizer), "other learning rates"),
}


@pytest.mark.parametrize("case", SCHEDULERS)
def test_a_schedule_that_is_wrong(case):
    make, message = SCHEDULERS[case]
    with pytest.raises(PluginFault, match=message):
        assert_scheduler_plugin(plugin("scheduler", lambda self, *of: make(*of)))


# ---- augmentations

AUGMENTATIONS = {
    "shape": (lambda x: x[..., :-1], "shape "),
    "dtype": (lambda x: x.float(), r"dtype torch.float32, not torch.uint8 as it was"),
    "in place": (lambda x: x.zero_(), "changes samples, targets or indices in place"),
    "other generator": (lambda x: x + random.randrange(200), "draws elsewhere"),
    "one sample": (lambda x: x[[0, 1]], "1 samples on cpu: raises IndexError"),
}


@pytest.mark.parametrize("case", AUGMENTATIONS)
def test_an_augmentation_that_is_wrong(case):
    change, message = AUGMENTATIONS[case]
    params = plugin("augmentation", lambda self, shape: lambda x, indices, epoch: change(x))
    with pytest.raises(PluginFault, match=message):
        assert_augmentation_plugin(params)


MIXING = {
    "samples alone": (lambda x, y: x, "does not return \\(samples, targets\\)"),
    "indices": (lambda x, y: (x, y.argmax(1)), "targets: shape "),
    "double": (lambda x, y: (x, y.double()), "targets: dtype torch.float64"),
    "sum": (lambda x, y: (x, 0.9 * y), "targets: a row does not sum to 1"),
    "in place": (
        lambda x, y: (x, y.roll(1, 0).clone() + 0 * y.zero_()),
        "changes samples, targets",
    ),
    "other generator": (lambda x, y: (x, one_of(y)), "targets: differs under one torch seed"),
}


def one_of(targets):
    return targets.roll(random.randrange(8), 1)


@pytest.mark.parametrize("case", MIXING)
def test_a_mixture_that_is_wrong(case):
    mix, message = MIXING[case]
    params = plugin("mixing", lambda self, shape: lambda x, y, indices, epoch: mix(x, y))
    with pytest.raises(PluginFault, match=message):
        assert_augmentation_plugin(params)


REGIONS = {
    "empty": (lambda high, wide, generator: (0, 0, 0, wide), "empty or not within the image"),
    "outside": (lambda high, wide, generator: (1, 0, high, wide), "empty or not within the image"),
    "float": (lambda high, wide, generator: (0, 0, high / 2, wide), "not four int"),
    "raises": (lambda high, wide, generator: 1 / 0, "region of 480 x 640 pixels: raises ZeroDiv"),
    "other generator": (
        lambda high, wide, generator: (0, 0, random.randint(1, high), wide),
        "differs under one seed: draws elsewhere",
    ),
}


@pytest.mark.parametrize("case", REGIONS)
def test_a_region_that_is_wrong(case):
    draw, message = REGIONS[case]
    same = lambda self, shape: lambda x, indices, epoch: x  # noqa: E731
    params = plugin("region", same, region=lambda self, *size: draw(*size))
    with pytest.raises(PluginFault, match=message):
        assert_augmentation_plugin(params)


def test_a_loss_whose_soft_targets_are_wrong():
    def loss(logits, targets):
        if targets.is_floating_point():
            return cross_entropy(logits, targets) * 2
        return cross_entropy(logits, targets)

    wrong = plugin("loss", lambda self, classes: loss, takes_soft_targets=True)
    with pytest.raises(PluginFault, match=r"soft targets: one-hot ones give .*, their indices "):
        assert_loss_plugin(wrong)
    none = plugin("loss", lambda self, classes: lambda x, y: cross_entropy(x, y.long()))
    assert_loss_plugin(none)


@pytest.mark.parametrize(("shape", "vocabulary"), [((2, 9), None), ((9,), 5), ((9,), None)])
def test_an_augmentation_of_other_samples_passes(shape, vocabulary):
    params = plugin("augmentation", lambda self, shape: lambda x, indices, epoch: x.flip(-1))
    assert_augmentation_plugin(params, shape, vocabulary=vocabulary)


# ---- data sets


def data(classes=2, used=2, offset=0.0):
    samples = np.random.default_rng(0).random((12, 3), dtype=np.float32) + np.float32(offset)
    split = ArraySplit(samples, np.arange(12) % used)
    return RawData([f"class {n}" for n in range(classes)], split, split)


DATASETS = {
    "raises": (lambda: 1 / 0, {}, "raises RunError: .*ZeroDivisionError"),
    "random": (lambda: data(offset=random.SystemRandom().random()), {}, "the samples differ"),
    "classes": (data, {"describe": lambda self: SampleSpec((3,), 4)}, "4 classes, there are 2"),
    "type": (
        data,
        {"describe": lambda self: SampleSpec((3,), 2, "int64")},
        "returns samples of int64, they are float32",
    ),
    "shape": (data, {"describe": lambda self: SampleSpec((4,), 2)}, r"returns \(4,\)"),
    "missing": (lambda: data(classes=3), {}, "no training sample is of class 2"),
    "fingerprint": (
        data,
        {"fingerprint": lambda self: str(random.SystemRandom().random())},
        "not found again",
    ),
}


@pytest.mark.parametrize("case", DATASETS)
def test_a_data_set_that_is_wrong(case, tmp_path):
    make, others, message = DATASETS[case]
    params = plugin("dataset", lambda self, downloads: make(), **others)
    with pytest.raises(PluginFault, match=message):
        assert_dataset_plugin(params, tmp_path)


def test_a_data_set_of_image_files_passes(tmp_path):
    from PIL import Image

    for part in ("train", "test"):
        for name in ("cat", "dog"):
            folder = tmp_path / "photos" / part / name
            folder.mkdir(parents=True)
            for number in range(3):
                pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    params = host().find("dataset", "image_folder").params(path=tmp_path / "photos")
    assert_dataset_plugin(params, tmp_path / "cache")
