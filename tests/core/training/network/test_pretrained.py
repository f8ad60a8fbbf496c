"""Weights to begin with: which fit, what of files is found, and which files are refused."""

import pickle
from collections import OrderedDict

import pytest
import torch
from torch import nn

from torchyard import ModelParams, Pretrained, SampleSpec, UserError
from torchyard.core.training.network import Network, StartingWeights, export
from torchyard.core.training.network.published import fetch

from .test_network import prepared


class Small(ModelParams):
    """A convolution, a norm and a layer."""

    def build(self, input_shape, num_classes):
        return nn.Sequential(
            OrderedDict(
                conv=nn.Conv2d(input_shape[0], 6, 3),
                norm=nn.BatchNorm2d(6),
                pool=nn.AdaptiveAvgPool2d(1),
                flat=nn.Flatten(),
                fc=nn.Linear(6, num_classes),
            )
        )


RGB = SampleSpec((3, 8, 8), 4)


def build(channels=3, classes=4, seed=1):
    torch.manual_seed(seed)
    return Small().build((channels, 8, 8), classes)


def start(path, content, plugin=None):
    torch.save(content, path)
    return StartingWeights.open(str(path), path, plugin or Small())


def same(left, right):
    return all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": {f"module.{name}": value for name, value in state.items()}},
        lambda state: (
            {f"module.backbone.{name}": value for name, value in state.items()}
            | {"module.other.weight": torch.zeros(3)}
        ),
    ],
)
def test_a_state_dict_is_found_where_programs_put_it(tmp_path, wrapped):
    other, model = build(seed=2), build()
    found = start(tmp_path / "a.pth", wrapped(other.state_dict()))
    fit = found.fit(model, "small")
    assert len(fit.taken) == len(model.state_dict())
    assert not fit.new
    assert same(fit.taken, other.state_dict())


def test_the_same_network_under_other_names_is_taken_in_its_order(tmp_path):
    other, model = build(classes=9, seed=2), build()
    names = ["stem.weight", "stem.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"]
    own = [each for each in other.state_dict().items() if "num_batches" not in each[0]]
    renamed = {
        name: value
        for name, (_, value) in zip([*names, "out.weight", "out.bias"], own, strict=True)
    }
    found = start(tmp_path / "a.pth", renamed)
    fit = found.fit(model, "small")
    assert fit.renamed == ("conv.weight", "stem.weight")
    assert same(fit.taken, {key: other.state_dict()[key] for key in fit.taken})
    assert {*fit.new} == {"fc.weight", "fc.bias"}
    line = found.apply(Network(build(), prepared((3, 8, 8)), "auto"), "small", RGB, "auto")
    assert "taken in their order, since the file names them otherwise: conv.weight is its" in line
    swapped = dict(sorted(renamed.items()))  # the norm before the convolution
    with pytest.raises(UserError, match=r"of 9 tensors of .small., 6% of its parameters"):
        start(tmp_path / "a.pth", swapped).fit(model, "small")


def test_a_new_last_layer_begins_with_no_larger_weights_than_torchs(tmp_path):
    other, data = build(classes=1000, seed=2), prepared((3, 8, 8))
    for scale in (100.0, 0.5):
        network = Network(build(), data, "auto")
        layer = network.model.fc
        layer.weight.data *= scale
        before = layer.weight.detach().clone()
        start(tmp_path / "a.pth", other.state_dict()).apply(network, "small", RGB, "auto")
        largest = before.abs().max()
        torch.testing.assert_close(
            layer.weight, before * min(1.0, float(6**-0.5 / largest)), msg=str(scale)
        )


def test_safetensors_are_read(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    other = build(seed=2)
    safetensors.save_file(other.state_dict(), tmp_path / "a.safetensors")
    found = StartingWeights.open("a", tmp_path / "a.safetensors", Small())
    assert same(found.fit(build(), "small").taken, other.state_dict())


def test_a_model_that_wraps_a_backbone_takes_the_backbones_weights(tmp_path):
    other = build(seed=2)
    model = nn.ModuleDict({"backbone": build(), "head": nn.Linear(4, 2)})
    fit = start(tmp_path / "a.pth", other.state_dict()).fit(model, "wrapper")
    assert set(fit.new) == {"head.weight", "head.bias"}
    assert torch.equal(fit.taken["backbone.fc.weight"], other.fc.weight)


def test_the_head_is_new_where_there_are_other_classes_and_the_line_says_so(tmp_path):
    data = prepared((3, 8, 8))
    other, network = build(classes=1000, seed=2), Network(build(), data, "auto")
    path = tmp_path / "a.pth"
    line = start(path, other.state_dict()).apply(network, "small", RGB, "auto")
    assert line == (
        f"7 of 9 tensors from {path}; new: fc.weight (4x6, was 1000x6), fc.bias (4, was 1000); "
        "normalized by the statistics of these data: what they were trained with is not known "
        "(dataset.normalize)"
    )
    assert torch.equal(network.model.conv.weight, other.conv.weight)
    assert torch.equal(network.model.fc.weight, build().fc.weight)


def test_the_head_of_a_run_on_other_classes_is_not_taken_though_its_size_fits(tmp_path):
    theirs = build(seed=1)
    file = tmp_path / "model.pt"
    torch.save(theirs.state_dict(), file)
    tensors = theirs.state_dict()

    def begun(theirs, ours):
        found = StartingWeights("latest", tensors, file, None, theirs)
        network = Network(build(seed=2), prepared((3, 8, 8)), "auto")
        said = found.apply(network, "small", RGB, "auto", ours)
        return said, network.model.state_dict()

    said, state = begun(("a", "b", "c", "d"), ["w", "x", "y", "z"])
    assert same({key: state[key] for key in state if "fc" not in key}, tensors)
    assert not torch.equal(state["fc.weight"], tensors["fc.weight"])
    assert "new: fc.weight (for the classes w, x, y, z, was for a, b, c, d), fc.bias" in said

    said, state = begun(("a", "b", "c", "d"), ["d", "a", "b", "c"])
    assert torch.equal(state["fc.weight"], tensors["fc.weight"][[3, 0, 1, 2]])
    assert torch.equal(state["fc.bias"], tensors["fc.bias"][[3, 0, 1, 2]])
    for known in ((), ("a", "b", "c", "d")):
        said, state = begun(known, ["a", "b", "c", "d"])
        assert same(state, tensors)
        assert "new:" not in said


@pytest.mark.parametrize(("theirs", "ours"), [(3, 1), (1, 3)])
def test_grey_images_give_what_they_would_give_as_rgb(tmp_path, theirs, ours):
    other, model = build(theirs, seed=2), build(ours)
    fit = start(tmp_path / "a.pth", other.state_dict()).fit(model, "small")
    assert fit.adapted == f"conv.weight made of {theirs} input channels for {ours}"
    model.load_state_dict(fit.taken)
    grey = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(
        model.eval()(grey.expand(2, ours, 8, 8)), other.eval()(grey.expand(2, theirs, 8, 8))
    )


def test_the_normalization_of_published_weights_comes_with_them(tmp_path):
    path = tmp_path / "published.pth"
    torch.save(build(seed=2).state_dict(), path)

    class Known(Small):
        """Has published weights."""

        def published_weights(self, name):
            return Pretrained(path, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), image_size=224)

    found = StartingWeights.open("default", None, Known())
    assert found.normalization(RGB) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    grey = found.normalization(SampleSpec((1, 8, 8), 4))
    assert grey == ((pytest.approx(0.2),), (pytest.approx(0.5),))
    network = Network(build(), prepared((3, 8, 8)), found.normalization(RGB))
    assert found.apply(network, "small", RGB, "auto") == (
        "9 of 9 tensors from default (published.pth); normalized as for them; "
        "they are for images of 224x224, these are 8x8"
    )


def test_an_exported_network_gives_its_weights_and_its_normalization(tmp_path):
    data = prepared((3, 8, 8))
    other = Network(build(seed=2), data, (0.25, 0.125))
    export(other, data, tmp_path / "model.pt2")
    network = Network(build(), data, "auto")
    found = StartingWeights.open("a run", tmp_path / "model.pt2", Small())
    assert found.apply(network, "small", RGB, "auto").endswith("; normalized as for them")
    samples = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    torch.testing.assert_close(network.eval()(samples), other.eval()(samples))


class Code:
    def __reduce__(self):
        return print, ("this ran",)


def test_a_file_that_is_no_state_dict_is_refused_in_one_line(tmp_path, capsys):
    contents = {
        "code.pth": lambda path: torch.save({"weight": Code()}, path),
        "pickle.pth": lambda path: path.write_bytes(pickle.dumps(Code())),
        "list.pth": lambda path: torch.save([torch.zeros(3)], path),
        "text.pth": lambda path: path.write_text("hello"),
        "empty.pt2": lambda path: path.write_text(""),
        "gone.pth": lambda path: None,
    }
    said = {}
    for name, write in contents.items():
        write(tmp_path / name)
        with pytest.raises(UserError) as refused:
            StartingWeights.open(name, tmp_path / name, Small())
        [said[name]] = refused.value.problems
        assert "\n" not in said[name]
        assert said[name].startswith(f"model.weights: {name}: ")
    assert "holds Python objects" in said["code.pth"]
    assert said["list.pth"].endswith("holds no state dict, a mapping of tensors")
    assert said["gone.pth"].endswith(
        f"there is no such file. Did you mean '{tmp_path / 'code.pth'}'?"
    )
    assert "this ran" not in capsys.readouterr().out


def test_weights_of_another_model_are_refused_with_the_nearest_names(tmp_path):
    wide = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 60, 3), fcs=nn.Linear(6, 4)))
    with pytest.raises(UserError) as refused:
        start(tmp_path / "a.pth", wide.state_dict()).fit(build(), "small")
    [problem] = refused.value.problems
    assert "fits 0 of 9 tensors of 'small', 0% of its parameters" in problem
    assert "conv.weight: 6x3x3x3, was 60x3x3x3" in problem
    assert "norm.weight: 6, not in the file" in problem


def test_published_weights_that_cannot_be_fetched_say_where_to_put_them(tmp_path):
    file = tmp_path / "hub" / "net-0123456789abcdef.pth"

    class Known(Small):
        """Has published weights."""

        def published_weights(self, name):
            if name != "default":
                raise ValueError(f"no weights are named '{name}'")
            return Pretrained(file, "http://127.0.0.1:9/net-0123456789abcdef.pth")

    with pytest.raises(UserError) as refused:
        fetch(Known(), "default")
    assert str(refused.value).startswith("model.weights: 'default' cannot be had (")
    assert str(refused.value).endswith(
        f"fetch http://127.0.0.1:9/net-0123456789abcdef.pth elsewhere and save it as {file}"
    )
    assert not list(file.parent.iterdir())
    file.write_bytes(b"cut short")
    with pytest.raises(UserError, match="is damaged: its sha256 does not begin with 0123456789ab"):
        fetch(Known(), "default")
    with pytest.raises(UserError, match="no weights are named 'v2', and it names no file"):
        fetch(Known(), "v2")
