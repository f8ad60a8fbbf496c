"""A step on two samples: what is refused before a run, and what is not."""

import json

import numpy as np
import pytest
import torch

from tests.pipelines.worker.conftest import PRESETS, SEQUENCES
from torchyard.core.config.resolve import read_config
from torchyard.core.errors import UserError
from torchyard.core.hosting.hookspecs import HOOKS
from torchyard.core.hosting.host import host
from torchyard.pipelines.worker.checks.config_check import check
from torchyard.pipelines.worker.checks.plugin_check import try_plugins
from torchyard.pipelines.worker.stages import prepare

PLUGINS = '''
import math
from torchyard import *
from torchyard import hookimpl

class Lbfgs(OptimizerParams):
    """Its step needs a closure."""
    def build(self, parameters):
        import torch
        return torch.optim.LBFGS(parameters)

class Fused(OptimizerParams):
    """Takes real weights alone."""
    def build(self, parameters):
        import torch
        return torch.optim.Adam(parameters, fused=True)

class Closing(OptimizerParams):
    """Its state is no plain value."""
    def build(self, parameters):
        import torch
        class Optimizer(torch.optim.SGD):
            def state_dict(self):
                return super().state_dict() | {"odd": Closing}
        return Optimizer(parameters, lr=0.1)

class NoOptimizer(OptimizerParams):
    """Builds a list."""
    def build(self, parameters):
        return list(parameters)

class Plateau(SchedulerParams):
    """Its step needs a metric."""
    def build(self, optimizer, total_steps):
        from torch.optim import lr_scheduler
        return lr_scheduler.ReduceLROnPlateau(optimizer)

class Three(LossParams):
    """Takes weights as well."""
    def build(self, num_classes):
        return lambda logits, targets, weights: logits.mean()

class Unreduced(LossParams):
    """Returns one value for each sample."""
    def build(self, num_classes):
        import torch
        return torch.nn.CrossEntropyLoss(reduction="none")

class Detached(LossParams):
    """Has no gradient."""
    def build(self, num_classes):
        return lambda logits, targets: logits.detach().mean()

class Halved(AugmentationParams):
    """Returns another type."""
    def build(self, input_shape):
        return lambda samples, indices, epoch: samples / 2

class Unmixed(MixingParams):
    """Returns class indices."""
    def build(self, input_shape):
        return lambda samples, targets, indices, epoch: (samples, targets.argmax(1))

class Unpaired(MixingParams):
    """Returns no targets."""
    def build(self, input_shape):
        return lambda samples, targets, indices, epoch: samples

class HalfSoft(LossParams):
    """Takes class indices alone, whatever it says."""
    takes_soft_targets = True
    def build(self, num_classes):
        import torch
        return lambda logits, targets: torch.nn.functional.nll_loss(logits, targets)

def network(forward, *layers):
    from torch import nn
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(layers)
        def forward(self, x):
            return forward(self, x.flatten(1))
    return Network()

def made(make):
    class Made(ModelParams):
        """A model for one test."""
        def build(self, input_shape, num_classes):
            import torch
            return make(torch, torch.nn, math.prod(input_shape), num_classes)
    return Made

def first(m, x): return m.layers[0](x)

MODELS = {
    "squeezed": lambda t, nn, d, k: network(lambda m, x: first(m, x).squeeze(), nn.Linear(d, k)),
    "normed": lambda t, nn, d, k: nn.Sequential(
        nn.Flatten(), nn.Linear(d, 8), nn.BatchNorm1d(8), nn.Linear(8, k)),
    "of_two": lambda t, nn, d, k: network(lambda m, x: first(m, x).view(2, k), nn.Linear(d, k)),
    "weightless": lambda t, nn, d, k: network(lambda m, x: x[:, :k]),
    "frozen": lambda t, nn, d, k: network(first, nn.Linear(d, k).requires_grad_(False)),
    "branching": lambda t, nn, d, k: network(
        lambda m, x: first(m, x) if x.sum() > 0 else -first(m, x), nn.Linear(d, k)),
    "complex": lambda t, nn, d, k: network(
        lambda m, x: first(m, x.to(t.complex64)).abs(), nn.Linear(d, k, dtype=t.complex64)),
    "detached": lambda t, nn, d, k: network(lambda m, x: first(m, x).detach(), nn.Linear(d, k)),
    "pair": lambda t, nn, d, k: network(
        lambda m, x: (first(m, x),) * 2 if not m.training else first(m, x), nn.Linear(d, k)),
    "exiting": lambda t, nn, d, k: exit(3),
    "lacking": lambda t, nn, d, k: __import__("_not_here"),
    "large": lambda t, nn, d, k: network(
        lambda m, x: m.layers[1](first(m, x)).squeeze(), nn.Linear(d, 2**21), nn.Linear(2**21, k)),
    "sparse": lambda t, nn, d, k: network(
        lambda m, x: first(m, (x > 0).long()).sum(1), nn.Embedding(2, k, sparse=True)),
}

@hookimpl
def register_models(register):
    for name, make in MODELS.items():
        register(name, made(make))

@hookimpl
def register_losses(register):
    register("three", Three)
    register("unreduced", Unreduced)
    register("without_gradient", Detached)
    register("half_soft", HalfSoft)

@hookimpl
def register_optimizers(register):
    register("lbfgs", Lbfgs)
    register("fused", Fused)
    register("odd_state", Closing)
    register("a_list", NoOptimizer)

@hookimpl
def register_schedulers(register):
    register("by_metric", Plateau)

@hookimpl
def register_augmentations(register):
    register("halved", Halved)
    register("unmixed", Unmixed)
    register("unpaired", Unpaired)
'''


@pytest.fixture(scope="module")
def plugins(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plugins")
    (folder / "mine.py").write_text(PLUGINS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHYARD_PLUGINS", str(folder))
        host.cache_clear()
        yield folder / "mine.py"
    host.cache_clear()


def problems(cache, *overrides, exports=False):
    settings = read_config("digits", overrides, PRESETS, host()).config.model_dump(mode="json")
    try:
        check(settings, str(cache), print, exports)
        found = []
    except UserError as error:
        found = error.problems
    assert not any("\n" in problem for problem in found)
    return found


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ("optimizer=lbfgs", "optimizer: its step(), called without a closure, raises TypeError: "),
        ("optimizer=odd_state", "optimizer: its state cannot be kept in a checkpoint: "),
        ("optimizer=a_list", "optimizer: builds a list, not a torch.optim.Optimizer"),
        (
            "scheduler=by_metric",
            "scheduler: its step(), called after every batch, without a metric, raises TypeError: ",
        ),
        ("loss=three", "loss: TypeError: "),
        ("loss=unreduced", "loss: returns float32 (2,) for 2 samples, not a scalar"),
        ("loss=without_gradient", "loss: does not depend on the logits"),
        (
            "augmentations=[cutout,mixup] loss=focal",
            "loss: 'focal' takes no soft targets, which augmentations.1 'mixup' makes  "
            "(accepts: bce_with_logits, cross_entropy, ",
        ),
        (
            "augmentations=[cutmix,mixup] loss=focal",
            "loss: 'focal' takes no soft targets, which augmentations.0 'cutmix' and "
            "augmentations.1 'mixup' make  (accepts: ",
        ),
        (
            "augmentations=[unmixed]",
            "augmentations.0: 'unmixed': makes int64 (2,) of float32 (2, 2): both must stay",
        ),
        (
            "augmentations=[unpaired]",
            "augmentations.0: 'unpaired': returns uint8 (2, 1, 32, 32), not (samples",
        ),
        (
            "augmentations=[mixup] loss=half_soft",
            "loss: RuntimeError: ",
        ),
        (
            "augmentations=[halved]",
            "augmentations.0: 'halved': makes float32 (2, 1, 32, 32) of uint8 (2, 1, 32, 32)",
        ),
        (
            "model=squeezed",
            "model: 'squeezed' returns float32 (10,) for 1 sample of 1x32x32 in evaluation, "
            "not (1, 10)",
        ),
        ("model=large", "model: 'large' returns float32 (10,) for 1 sample of 1x32x32"),
        (
            "model=normed train.batch_size=1",
            "model: 'normed' cannot take 1 sample of 1x32x32 in training, as train.batch_size=1 "
            "asks for: Expected more than 1 value",
        ),
        (
            "model=normed train.batch_size=3 train.parallel=ddp",
            "1 sample of 1x32x32 in training, as 2 processes share a batch: ",
        ),
        ("model=of_two", "model: 'of_two' cannot take 1 sample of 1x32x32 in evaluation: "),
        ("model=weightless", "model: 'weightless' has no parameter that is trained"),
        ("model=frozen", "model: 'frozen' has no parameter that is trained"),
        ("model=detached", "model: 'detached' has no gradient: RuntimeError: "),
        ("model=pair", "model: 'pair' returns a tuple for 2 samples of 1x32x32 in evaluation"),
        ("model=exiting", "model: 'exiting' raises SystemExit: 3"),
        (
            "model=lacking",
            "model: 'lacking' raises ModuleNotFoundError: No module named '_not_here'",
        ),
        (
            "model=complex optimizer=fused",
            "optimizer: its step(), called without a closure, raises RuntimeError: `fused=True` ",
        ),
        ("model=sparse optimizer=adamw", "optimizer: its step(), called without a closure, raises"),
    ],
)
def test_what_would_end_a_run_is_refused_before_it(plugins, tmp_path, overrides, said):
    [problem] = problems(tmp_path, *overrides.split())
    assert said in problem


@pytest.mark.parametrize(
    "overrides",
    [
        ("model=normed",),
        ("model=normed", "train.parallel=ddp", "train.batch_size=4"),
        ("model=complex",),
        ("model=complex", "optimizer=adam"),
        ("model=complex", "optimizer=muon"),
        ("model=sparse", "optimizer=gradient_descent"),
        ("optimizer=fused",),
        ("model=branching",),  # a run trains it all the same
        ("model=lenet", "augmentations=[random_crop,cutout]", "loss=focal", "scheduler=one_cycle"),
        ("augmentations=[rand_augment,mixup,cutmix,random_erasing]",),
        ("augmentations=[mixup_or_cutmix]", "loss=bce_with_logits"),
    ],
    ids=" ".join,
)
def test_what_can_be_trained_is_not_refused(plugins, tmp_path, overrides):
    assert problems(tmp_path, *overrides) == []


def test_a_model_that_cannot_be_exported_is_refused_where_that_is_asked(plugins, tmp_path):
    [problem] = problems(tmp_path, "model=branching", exports=True)
    assert problem.startswith("model: 'branching' cannot be exported by torch.export: Could not")
    assert problems(tmp_path, exports=True) == []


def test_all_that_is_wrong_is_said_at_once(plugins, tmp_path):
    said = problems(
        tmp_path, "optimizer=lbfgs", "scheduler=by_metric", "loss=three", "model=squeezed"
    )
    assert [line.partition(":")[0] for line in said] == ["loss", "model", "optimizer", "scheduler"]


@pytest.mark.parametrize("model", ["squeezed", "pair", "detached", "of_two", "large"])
def test_what_is_wrong_with_a_model_is_the_same_beside_a_wrong_loss(plugins, tmp_path, model):
    [alone] = problems(tmp_path, f"model={model}")
    _, beside = problems(tmp_path, f"model={model}", "loss=three")
    assert beside == alone


def test_optimizer_and_schedule_are_tried_where_the_samples_are_not_known(plugins, tmp_path):
    data = tmp_path / "images.npz"
    overrides = ("dataset=image_folder", f"dataset.path={tmp_path}", "optimizer=lbfgs")
    data.write_bytes(b"")
    [problem] = problems(tmp_path, *overrides, "loss=three")
    assert problem.startswith("optimizer: its step()")


def test_the_trial_leaves_generators_and_threads_as_they_were(plugins, tmp_path):
    torch.manual_seed(3)
    np.random.seed(3)
    before, threads = (torch.get_rng_state(), np.random.get_state()[1]), torch.get_num_threads()
    problems(tmp_path, "model=mlp", "model.dropout=0.5", "augmentations=[cutout]")
    assert torch.equal(before[0], torch.get_rng_state())
    np.testing.assert_array_equal(before[1], np.random.get_state()[1])
    assert torch.get_num_threads() == threads


def test_plugins_are_tried_without_a_configuration(plugins):
    found = try_plugins(print)["problems"]
    assert json.loads(json.dumps(found)) == [list(each) for each in found]
    assert {file for file, _, _ in found} == {str(plugins)}
    said = {message.partition(": ")[0]: message.partition(": ")[2] for _, _, message in found}
    assert {name.partition(" ")[0] for name in said} == {
        *("augmentation", "loss", "model", "optimizer", "scheduler")
    }
    right = ("model 'normed'", "model 'complex'", "model 'sparse'", "optimizer 'fused'")
    assert not said.keys() & set(right)
    assert len(said) == 10 + 4 + 3 + 1 + 3
    assert said["model 'branching'"].startswith("cannot be exported by torch.export: ")
    assert said["model 'exiting'"] == "raises SystemExit: 3"
    assert said["model 'squeezed'"].startswith("returns float32 (10,) for 1 sample of 3x32x32")
    assert {line for _, line, message in found if "'by_metric'" in message} == {
        PLUGINS.splitlines().index("class Plateau(SchedulerParams):") + 1
    }


def test_token_ids_are_tried_with_the_least_and_greatest_that_there_are(tmp_path, monkeypatch):
    (tmp_path / "text.py").write_text(SEQUENCES)
    monkeypatch.setenv("TORCHYARD_PLUGINS", str(tmp_path))
    host.cache_clear()
    overrides = ("dataset=letters", "model=bag")
    assert problems(tmp_path, *overrides, exports=True) == []
    [problem] = problems(tmp_path, "dataset=letters", "model=linear")
    assert problem.startswith("model: 'linear' cannot take 2 samples of 12 integers from 0")
    assert problems(tmp_path, "dataset=letters", "model=linear", "dataset.normalize=[5,2]") == []
    settings = read_config("digits", overrides, PRESETS, host()).config.model_dump(mode="json")
    prepare(settings, str(tmp_path), lambda event: None)
    assert problems(tmp_path, *overrides) == []
    [problem] = problems(tmp_path, *overrides, "model.vocabulary=25")
    assert problem.startswith(
        "model: 'bag' cannot take 2 samples of 12 integers from 0 to 25 in evaluation: Index"
    )
    host.cache_clear()


def test_what_a_plugin_forgets_to_return_is_said(tmp_path, monkeypatch):
    """`build` without `return`: of each kind, and of all at once."""
    kinds = ("augmentation", "model", "loss", "optimizer", "scheduler", "gate", "metric")
    lines = ["from torchyard import *", "from torchyard import hookimpl"]
    for kind in kinds:
        lines += [
            f"class {kind.title()}({kind.title()}Params):",
            '    """Forgets to return it."""',
            "    def build(self, *given): pass",
            "@hookimpl",
            f"def {HOOKS[kind]}(register): register('nothing', {kind.title()})",
        ]
    (tmp_path / "forgets.py").write_text("\n".join(lines))
    monkeypatch.setenv("TORCHYARD_PLUGINS", str(tmp_path))
    host.cache_clear()
    expected = {
        "augmentations.0: 'nothing': builds a NoneType, which cannot be called",
        "model: 'nothing' builds a NoneType, not a torch.nn.Module",
        "loss: builds a NoneType, which cannot be called",
        "optimizer: builds a NoneType, not a torch.optim.Optimizer",
        "scheduler: builds a NoneType, not a torch.optim.lr_scheduler.LRScheduler",
        "promote.gates.0: 'nothing': builds a NoneType, which cannot be called",
        "metrics.0: 'nothing': builds a NoneType, which cannot be called",
    }
    chosen = [f"{kind}=nothing" for kind in ("model", "loss", "optimizer")]
    chosen += [
        "augmentations=[nothing]",
        "metrics=[nothing]",
        "promote.model=m",
        "promote.gates=[nothing]",
    ]
    found = {*problems(tmp_path, *chosen), *problems(tmp_path, "scheduler=nothing")}
    assert found == expected
    said = {message for _, _, message in try_plugins(print)["problems"]}
    assert len(said) == len(kinds)
    assert all("'nothing': builds a NoneType, " in message for message in said)
    host.cache_clear()
