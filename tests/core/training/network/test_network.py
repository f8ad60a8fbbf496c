"""Normalization as a layer, dry runs, weights digested, networks exported."""

import itertools
import resource
from pathlib import Path

import pytest
import torch
from torch import nn

from torchyard import ModelParams, SampleSpec
from torchyard.core.data.dataset import PreparedDataset
from torchyard.core.errors import RunError, UserError
from torchyard.core.hosting.host import host
from torchyard.core.training.network import (
    Network,
    Normalize,
    build_model,
    dry_run,
    export,
    freeze,
    weights_digest,
)

GENERATOR = torch.Generator().manual_seed(0)


def pixels(count, *shape):
    return torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=GENERATOR)


def prepared(shape=(3, 16, 16), dtype="uint8", mean=(0.2, 0.5, 0.7), std=(0.1, 0.25, 0.4)):
    return PreparedDataset(
        folder=Path("nowhere"),
        name="given",
        classes=("a", "b", "c", "d"),
        shape=shape,
        dtype=dtype,
        mean=mean,
        std=std,
        counts={"train": 8, "test": 4},
        digest="0" * 64,
        source="",
    )


def network(name, data, normalize="statistics", **settings):
    model = host().find("model", name).params.model_validate(settings)
    torch.manual_seed(0)
    return Network(model.build(data.shape, len(data.classes)), data, normalize)


# ---- normalization


def test_images_are_scaled_to_one_then_centred_and_divided_channel_by_channel():
    samples = pixels(5, 3, 4, 6)
    mean, std = (0.2, 0.5, 0.7), (0.1, 0.25, 0.4)
    normalized = Normalize(mean, std, (3, 4, 6), 255)(samples)
    assert normalized.dtype == torch.float32
    assert normalized.shape == samples.shape
    for channel in range(3):
        expected = (samples[:, channel].double() / 255 - mean[channel]) / std[channel]
        torch.testing.assert_close(normalized[:, channel].double(), expected, rtol=1e-5, atol=1e-6)


def test_vectors_are_centred_and_divided_component_by_component():
    samples = torch.randn(5, 3, generator=GENERATOR)
    mean, std = (10.0, -1.0, 0.0), (2.0, 0.5, 100.0)
    expected = (samples - torch.tensor(mean)) / torch.tensor(std)
    torch.testing.assert_close(Normalize(mean, std, (3,), 1)(samples), expected)


def test_a_channel_that_never_varies_is_centred_and_not_blown_up():
    samples = pixels(2, 2, 3, 3)
    samples[:, 1] = 51
    normalized = Normalize((0.5, 0.2), (0.25, 0.0), (2, 3, 3), 255)(samples)
    assert normalized.isfinite().all()
    torch.testing.assert_close(normalized[:, 1], torch.zeros(2, 3, 3), rtol=0, atol=1e-6)


def test_the_statistics_are_the_default_and_one_pair_serves_all_channels():
    samples, data = pixels(4, 3, 16, 16), prepared()
    by_statistics = network("linear", data).normalize(samples)
    torch.testing.assert_close(
        by_statistics, Normalize(data.mean, data.std, data.shape, 255)(samples)
    )
    by_pair = network("linear", data, (0.5, 0.25)).normalize(samples)
    torch.testing.assert_close(by_pair, (samples / 255 - 0.5) / 0.25, rtol=1e-5, atol=1e-6)


def test_normalization_is_part_of_the_network_and_is_not_trained():
    net = network("linear", prepared())
    names = [name for name, _ in net.named_parameters()]
    assert not any(name.startswith("normalize") for name in names)
    assert {"normalize.factor", "normalize.shift"} <= net.state_dict().keys()
    samples = pixels(4, 3, 16, 16)
    torch.testing.assert_close(net(samples), net.model(net.normalize(samples)))


# ---- dry runs


class Given(ModelParams):
    """A model whose making and running a test gives."""

    def build(self, input_shape, num_classes):
        return self.make(input_shape, num_classes)


def given(make):
    return type("Own", (Given,), {"make": staticmethod(make)})()


def refusal(make, shape=(3, 8, 8), classes=4):
    with pytest.raises(UserError) as caught:
        dry_run(given(make), SampleSpec(shape, classes), "own")
    [problem] = caught.value.problems
    assert "\n" not in problem
    return problem


def flat_linear(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(int(torch.tensor(shape).prod()), classes))


def test_trainable_parameters_are_counted():
    def make(shape, classes):
        network = flat_linear(shape, classes)
        network[1].bias.requires_grad_(False)
        return network

    assert dry_run(given(make), SampleSpec((3, 8, 8), 4), "own").parameters == 4 * 192


def test_no_memory_is_taken_for_the_weights():
    def make(shape, classes):
        return nn.Sequential(nn.Flatten(), nn.Linear(192, 2**21), nn.Linear(2**21, classes))

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tried = dry_run(given(make), SampleSpec((3, 8, 8), 4), "own")
    assert tried.parameters == 192 * 2**21 + 2**21 + 4 * 2**21 + 4
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * 1024 < tried.parameters  # they would take four bytes each


def test_arithmetic_is_counted_for_one_sample():
    tried = dry_run(given(flat_linear), SampleSpec((3, 8, 8), 4), "own")
    assert tried.flops == 2 * 192 * 4


def test_a_model_may_compute_with_small_tensors_while_it_is_built():
    def make(shape, classes):
        widths = [int(width) for width in torch.linspace(8, 16, 3).tolist()]
        layers = nn.Sequential(nn.Flatten(), nn.Linear(192, widths[0]))
        for before, after in itertools.pairwise(widths):
            layers.append(nn.Linear(before, after))
        return layers.append(nn.Linear(widths[-1], classes))

    expected = 192 * 8 + 8 + 8 * 12 + 12 + 12 * 16 + 16 + 16 * 4 + 4
    assert dry_run(given(make), SampleSpec((3, 8, 8), 4), "own").parameters == expected


def test_a_model_may_find_its_widths_when_it_is_run():
    def make(shape, classes):
        return nn.Sequential(nn.Flatten(), nn.LazyLinear(5), nn.Linear(5, classes))

    tried = dry_run(given(make), SampleSpec((3, 8, 8), 4), "own")
    assert tried.parameters == 192 * 5 + 5 + 5 * 4 + 4


def test_a_model_that_is_built_has_its_widths_and_has_learned_nothing():
    def make(shape, classes):
        layers = nn.Flatten(), nn.LazyLinear(5), nn.LazyBatchNorm1d(), nn.Linear(5, classes)
        model = nn.Sequential(*layers)
        model[2].eval()
        return model

    model = build_model(given(make), SampleSpec((3, 8, 8), 4))
    assert model[1].weight.shape == (5, 192)
    assert model[2].running_mean.tolist() == [0] * 5
    assert model[2].running_var.tolist() == [1] * 5
    assert [module.training for module in model] == [True, True, False, True]


def test_a_model_that_needs_its_weights_values_is_tried_on_the_cpu():
    class Odd(nn.Module):
        def __init__(self, classes):
            super().__init__()
            self.head = nn.Linear(192, classes)
            self.scale = self.head.weight.std().item()

        def forward(self, samples):
            logits = self.head(samples.flatten(1))
            return logits if logits.sum() > 0 else logits / self.scale

    tried = dry_run(given(lambda shape, classes: Odd(classes)), SampleSpec((3, 8, 8), 4), "own")
    assert tried.parameters == 192 * 4 + 4


def test_trying_out_leaves_no_trace_on_models_built_later():
    dry_run(given(flat_linear), SampleSpec((3, 8, 8), 4), "own")
    refusal(lambda shape, classes: nn.Linear(-1, classes))
    assert not nn.Linear(2, 2).weight.is_meta
    assert not torch.empty(1).is_meta


@pytest.mark.parametrize("outputs", [1, 3, 5, 1000])
def test_a_model_of_another_number_of_outputs_is_refused(outputs):
    assert refusal(lambda shape, classes: flat_linear(shape, outputs)) == (
        f"model: 'own' returns (2, {outputs}) for 2 samples of 3x8x8, not logits of (2, 4): "
        "the data has 4 classes"
    )


def test_a_model_that_gives_no_tensor_is_refused():
    class Pair(nn.Module):
        def forward(self, samples):
            return samples, samples

    assert refusal(lambda shape, classes: Pair()).startswith("model: 'own' returns tuple for 2 ")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("too small"), "too small"),
        (ValueError("too small\nsecond line"), "too small"),
        (RuntimeError("Kernel size"), "Kernel size"),
        (KeyError("width"), "KeyError: 'width'"),
        (AssertionError(), "AssertionError"),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero"),
    ],
)
def test_whatever_building_raises_is_one_clear_line(error, said):
    def make(shape, classes):
        raise error

    assert refusal(make) == f"model: 'own' cannot take samples of 3x8x8: {said}"
    assert refusal(make, (5,)) == f"model: 'own' cannot take samples of 5: {said}"


def test_a_model_that_fails_on_the_samples_is_refused():
    problem = refusal(lambda shape, classes: nn.Conv2d(1, classes, 3))
    assert problem.startswith("model: 'own' cannot take samples of 3x8x8: ")
    assert "channel" in problem


# ---- digests


def test_the_digest_changes_with_any_weight_buffer_type_and_name():
    def made():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))

    first = weights_digest(made())
    assert first == weights_digest(made())
    assert len(first) == 64
    digests = {first}
    state = made().state_dict()
    for name, tensor in state.items():
        for index in range(tensor.numel()):
            changed = made()
            values = changed.state_dict()[name].view(-1)
            values[index] += 1 if values.dtype == torch.int64 else 1e-6
            digests.add(weights_digest(changed))
    assert len(digests) == 1 + sum(tensor.numel() for tensor in state.values())
    assert weights_digest(made().bfloat16()) not in digests
    assert weights_digest(nn.Sequential(*made(), nn.Identity())) == first  # no weights, no name
    assert weights_digest(nn.Sequential(nn.Identity(), *made())) not in digests


def test_the_digest_does_not_depend_on_how_weights_lie_in_memory():
    convolution = nn.Conv2d(3, 4, 3)
    before = weights_digest(convolution)
    assert weights_digest(convolution.to(memory_format=torch.channels_last)) == before


# ---- export


@pytest.mark.parametrize(
    ("name", "settings", "data"),
    [
        ("lenet", {}, prepared()),
        ("mlp", {"dropout": 0.5, "hidden": [5]}, prepared((6,), "float32", (0.0,) * 6, (2.0,) * 6)),
    ],
    ids=["lenet on images", "mlp on vectors"],
)
def test_an_exported_network_gives_the_same_for_any_batch(tmp_path, name, settings, data):
    net = network(name, data, **settings).train()
    before = weights_digest(net)
    export(net, data, tmp_path / "model.pt2")
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt2"]
    assert net.training  # what is given stays as it is
    assert weights_digest(net) == before
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    net.eval()
    for count in (1, 2, 5):
        samples = pixels(count, *data.shape)
        if data.dtype == "float32":
            samples = torch.randn(count, *data.shape, generator=GENERATOR)
        torch.testing.assert_close(loaded(samples), net(samples))
        assert loaded(samples).shape == (count, 4)


def test_a_model_that_cannot_be_traced_is_one_clear_error(tmp_path):
    class Odd(nn.Module):
        def forward(self, samples):
            return samples.flatten(1)[:, :4] * (1.0 if samples.sum() > 0 else 2.0)

    with pytest.raises(RunError, match=r"^The model cannot be exported by torch.export: .+"):
        export(Network(Odd(), prepared(), "statistics"), prepared(), tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == []


def test_frozen_parameters_are_named_by_layer_or_pattern():
    def left(*patterns):
        model = host().find("model", "lenet").params().build((1, 32, 32), 10)
        freeze(model, patterns)
        return [name for name, weight in model.named_parameters() if weight.requires_grad]

    everything = left()
    assert len(everything) == 10
    assert left("conv1") == everything[2:]
    assert left("conv*", "fc1.bias") == ["fc1.weight", *everything[6:]]
    assert left("*.weight") == [name for name in everything if name.endswith("bias")]
    with pytest.raises(UserError) as caught:
        left("cnv1", "fc9.weight", "fc3")
    first, second = caught.value.problems
    assert first == (
        "model.freeze: no parameter matches 'cnv1'. Did you mean 'conv1'?  "
        "(accepts: conv1, conv2, fc1, fc2, fc3)"
    )
    assert second.startswith("model.freeze: no parameter matches 'fc9.weight'.")
    deep = host().find("model", "resnet18").params().build((3, 32, 32), 10)
    for pattern, nearest in [("layer9*", "layer4"), ("layer3.0.conv3", "layer3.0.conv2")]:
        with pytest.raises(UserError) as caught:
            freeze(deep, [pattern])
        assert caught.value.problems == [
            f"model.freeze: no parameter matches '{pattern}'. Did you mean '{nearest}'?  "
            "(accepts: conv1, bn1, layer1, layer2, layer3, layer4, fc)"
        ]
    with pytest.raises(UserError, match=r"model\.freeze: nothing is left to train"):
        left("*")


def test_a_model_is_refused_for_a_layer_there_is_not_before_it_is_trained():
    spec = SampleSpec((1, 32, 32), 10)
    lenet = host().find("model", "lenet").params()
    trial = dry_run(lenet, spec, "lenet", lambda built: freeze(built, ["fc*"]))
    assert trial.parameters == 61_706 - 59_134
    with pytest.raises(UserError, match=r"^model\.freeze: no parameter matches 'head'"):
        dry_run(lenet, spec, "lenet", lambda built: freeze(built, ["head"]))
