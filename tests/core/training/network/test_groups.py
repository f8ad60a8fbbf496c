"""Groups of parameters: blocks in order, learning rates that fall, decay without norms."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

from torchyard import OptimizerParams, UserError
from torchyard.core.config.choices import OptimizerChoice
from torchyard.core.hosting.host import host
from torchyard.core.training.network import build_optimizer, parameter_groups
from torchyard.core.training.network.blocks import depths


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3)
        self.norm = nn.BatchNorm2d(4)


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.position = nn.Parameter(torch.zeros(1, 4, 4))
        self.layers = nn.ModuleList([Block(), Block(), Block()])
        self.norm = nn.LayerNorm(4)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(4, 4))
        self.stem = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.encoder = Encoder()
        self.fc = nn.Linear(4, 2)


def test_blocks_are_items_of_lists_and_layers_beside_them():
    by_depth = {}
    for name, depth in depths(Net()).items():
        by_depth.setdefault(depth, []).append(name)
    assert {depth: [n for n in names if n.endswith("weight") or "." not in n]
            for depth, names in by_depth.items()} == {
        0: ["token", "stem.weight", "bn.weight"],
        1: ["encoder.layers.0.conv.weight", "encoder.layers.0.norm.weight"],
        2: ["encoder.layers.1.conv.weight", "encoder.layers.1.norm.weight"],
        3: ["encoder.layers.2.conv.weight", "encoder.layers.2.norm.weight", "encoder.norm.weight"],
        4: ["fc.weight"],
    }  # fmt: skip
    assert depths(Net())["encoder.position"] == 0


def test_a_resnet_has_its_residual_blocks():
    resnet = host().find("model", "resnet18").params().build((3, 32, 32), 10)
    found = depths(resnet)
    assert max(found.values()) == 9
    assert (found["conv1.weight"], found["bn1.weight"], found["fc.weight"]) == (0, 0, 9)
    assert found["layer2.0.downsample.0.weight"] == found["layer2.0.conv1.weight"] == 3


def made(model, optimizer="sgd", learning=None, settings=(), **chosen):
    plugin = (
        host().find("optimizer", optimizer).params.model_validate({"lr": 0.1, **dict(settings)})
    )
    choice = OptimizerChoice.model_validate({"name": optimizer, **chosen})
    names = learning or [name for name, _ in model.named_parameters()]
    groups = parameter_groups(model, names, choice, [g.settings for g in choice.groups], plugin)
    return build_optimizer(plugin, dict(model.named_parameters()), groups)


def settings_of(model, optimizer, *keys):
    names = {id(weight): name for name, weight in model.named_parameters()}
    return {
        names[id(weight)]: tuple(group[key] for key in keys)
        for group in optimizer.param_groups
        for weight in group["params"]
    }


def test_without_settings_there_is_one_group_in_the_models_order():
    model = Net()
    [group] = made(model).param_groups
    assert all(a is b for a, b in zip(group["params"], model.parameters(), strict=True))


def test_rates_fall_from_block_to_block_and_a_groups_own_is_final():
    model = Net()
    optimizer = made(model, layer_decay=0.5, groups=[{"match": "encoder.layers.0", "lr": 3.0}])
    rates = settings_of(model, optimizer, "lr")
    assert rates["fc.weight"] == (0.1,)
    assert rates["encoder.norm.bias"] == (0.05,)
    assert rates["encoder.layers.1.conv.weight"] == (0.025,)
    assert rates["encoder.layers.0.conv.weight"] == (3.0,)
    assert rates["token"] == (pytest.approx(0.1 / 16),)
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_norms_and_biases_need_not_decay():
    model = Net()
    decays = settings_of(model, made(model, "adamw", decay_norms=False), "weight_decay")
    assert decays["fc.weight"] == decays["stem.weight"] == (0.01,)
    assert decays["fc.bias"] == decays["bn.weight"] == decays["encoder.norm.weight"] == (0.0,)


def test_the_first_group_that_matches_counts():
    model = Net()
    groups = [{"match": "fc.bias", "lr": 1.0}, {"match": ["fc", "stem*"], "momentum": 0.5}]
    found = settings_of(model, made(model, groups=groups), "lr", "momentum")
    assert found["fc.bias"] == (1.0, 0.0)
    assert found["fc.weight"] == found["stem.weight"] == (0.1, 0.5)
    assert found["token"] == (0.1, 0.0)


def test_a_pattern_that_matches_nothing_is_an_error():
    with pytest.raises(UserError) as refused:
        made(
            Net(),
            learning=["fc.weight", "fc.bias"],
            groups=[
                {"match": ["fcs", "stem"], "lr": 1.0},
                {"match": "fc*", "lr": 1.0},
                {"match": "fc.bias", "lr": 1.0},
            ],
        )
    first, second, third = refused.value.problems
    assert first.startswith("optimizer.groups.0: 'fcs' matches no parameter. Did you mean 'fc'?")
    assert second == "optimizer.groups.0: 'stem' matches what is frozen for the whole run"
    assert third == "optimizer.groups.2: all that it matches is in a group before it"


def test_sam_has_the_groups_of_its_base():
    model = Net()
    optimizer = made(model, "sam", layer_decay=0.5, decay_norms=False,
                     settings={"base": {"name": "adamw", "weight_decay": 0.3}},
                     groups=[{"match": "fc", "rho": 0.5}])  # fmt: skip
    found = settings_of(model, optimizer, "lr", "weight_decay", "rho")
    assert found["fc.weight"] == (0.1, 0.3, 0.5)
    assert found["encoder.norm.weight"] == (0.05, 0.0, 0.05)


class OneByOne(OptimizerParams):
    """Looks at its parameters, as plugins from before groups do."""

    lr: float = 0.1

    def build(self, parameters):
        return torch.optim.SGD([weight for weight in parameters if weight.ndim], lr=self.lr)


class Deaf(OneByOne):
    """Has one rate for all."""

    def build(self, parameters):
        flat = [weight for group in parameters for weight in group["params"]]
        return torch.optim.SGD(flat, lr=self.lr)


def test_an_optimizer_that_does_not_take_groups_is_told_so():
    model = nn.Sequential(OrderedDict(a=nn.Linear(2, 2), b=nn.Linear(2, 2)))
    names = [name for name, _ in model.named_parameters()]

    def build(plugin, **chosen):
        choice = OptimizerChoice.model_validate({"name": "given", **chosen})
        groups = parameter_groups(model, names, choice, [g.settings for g in choice.groups], plugin)
        return build_optimizer(plugin, dict(model.named_parameters()), groups)

    assert len(build(OneByOne()).param_groups) == 1
    with pytest.raises(ValueError, match="cannot take groups of parameters, which"):
        build(OneByOne(), layer_decay=0.5)
    with pytest.raises(ValueError, match="does not take over 'lr' of a group of parameters"):
        build(Deaf(), groups=[{"match": "a", "lr": 1.0}])
    with pytest.raises(
        ValueError, match=r"'nonesuch' is not a setting of a group  \(groups have: "
    ):
        made(model, groups=[{"match": "a", "nonesuch": 1.0}])
