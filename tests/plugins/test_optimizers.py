"""Every optimizer against its formula, step by step, in plain tensor arithmetic."""

import math

import pytest
import torch
from pydantic import ValidationError

from torchyard.core.hosting.host import host
from torchyard.core.training import checkpoint

STEPS = 3

# A quadratic bowl, 0.5 Σ a (w - c)², whose gradient can be written down: a (w - c).
CURVATURE = torch.tensor([1.0, 10.0, 0.1, 3.0], dtype=torch.float64)
CENTRE = torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=torch.float64)
START = torch.tensor([1.0, 1.0, -1.0, 0.3], dtype=torch.float64)


def gradient(weight):
    return CURVATURE * (weight - CENTRE)


def params(name, **settings):
    return host().find("optimizer", name).params.model_validate(settings)


def descend(weight, optimizer, steps):
    def closure():
        with torch.enable_grad():
            optimizer.zero_grad()
            loss = (0.5 * CURVATURE * (weight - CENTRE) ** 2).sum()
            loss.backward()
        return loss.detach()

    for _ in range(steps):
        closure()
        optimizer.step(closure)
    return weight.detach().clone()


def taken(name, steps, **settings):
    weight = torch.nn.Parameter(START.clone())
    return descend(weight, params(name, **settings).build([weight]), steps)


def gradient_descent(lr=0.01):
    weight = START.clone()
    while True:
        weight = weight - lr * gradient(weight)
        yield weight


def sgd(lr=1e-3, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False):
    weight, velocity = START.clone(), None
    while True:
        slope = gradient(weight) + weight_decay * weight
        dampened = (1 - dampening) * slope
        velocity = slope if velocity is None else momentum * velocity + dampened
        weight = weight - lr * (slope + momentum * velocity if nesterov else velocity)
        yield weight


def adam(lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, amsgrad=False, decoupled=False):
    weight = START.clone()
    mean = square = largest = torch.zeros_like(START)
    step = 0
    while True:
        step += 1
        slope = gradient(weight)
        if decoupled:
            weight = weight - lr * weight_decay * weight
        else:
            slope = slope + weight_decay * weight
        mean = betas[0] * mean + (1 - betas[0]) * slope
        square = betas[1] * square + (1 - betas[1]) * slope**2
        largest = torch.maximum(largest, square)
        scale = ((largest if amsgrad else square) / (1 - betas[1] ** step)).sqrt() + eps
        weight = weight - lr * mean / (1 - betas[0] ** step) / scale
        yield weight


def adamw(weight_decay=0.01, **settings):
    return adam(weight_decay=weight_decay, decoupled=True, **settings)


def rmsprop(lr=0.01, alpha=0.99, eps=1e-8, weight_decay=0.0, momentum=0.0, centered=False):
    weight = START.clone()
    square = mean = velocity = torch.zeros_like(START)
    while True:
        slope = gradient(weight) + weight_decay * weight
        square = alpha * square + (1 - alpha) * slope**2
        mean = alpha * mean + (1 - alpha) * slope
        scale = (square - mean**2 if centered else square).sqrt() + eps
        velocity = momentum * velocity + slope / scale
        weight = weight - lr * velocity
        yield weight


def adagrad(lr=0.01, lr_decay=0.0, weight_decay=0.0, initial_accumulator_value=0.0, eps=1e-10):
    weight = START.clone()
    total = torch.full_like(START, initial_accumulator_value)
    step = 0
    while True:
        slope = gradient(weight) + weight_decay * weight
        total = total + slope**2
        weight = weight - lr / (1 + step * lr_decay) * slope / (total.sqrt() + eps)
        step += 1
        yield weight


def muon(lr=0.02, momentum=0.6, weight_decay=0.0, others=10.0):
    """Of anything but a convolution's filters it is SGD with Nesterov's momentum."""
    return sgd(others * lr, momentum, weight_decay=weight_decay, nesterov=True)


def sam(lr=1e-3, rho=0.05, momentum=0.0):
    """SGD with the gradient at the weights, moved by rho along the gradient."""
    weight, velocity = START.clone(), torch.zeros_like(START)
    while True:
        slope = gradient(weight)
        velocity = momentum * velocity + gradient(weight + rho * slope / slope.norm())
        weight = weight - lr * velocity
        yield weight


REFERENCES = {
    "gradient_descent": gradient_descent,
    "sgd": sgd,
    "adam": adam,
    "adamw": adamw,
    "rmsprop": rmsprop,
    "adagrad": adagrad,
    "muon": muon,
    "sam": sam,
}
CASES = [
    ("gradient_descent", {}),
    ("gradient_descent", {"lr": 0.1}),
    ("sgd", {}),
    ("sgd", {"lr": 0.05, "momentum": 0.9}),
    ("sgd", {"lr": 0.05, "momentum": 0.9, "dampening": 0.5}),
    ("sgd", {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
    ("sgd", {"lr": 0.05, "weight_decay": 0.1}),
    ("sgd", {"lr": 0.05, "momentum": 0.8, "nesterov": True, "weight_decay": 0.1}),
    ("adam", {}),
    ("adam", {"lr": 0.1, "betas": (0.5, 0.7), "eps": 1e-3}),
    ("adam", {"lr": 0.1, "weight_decay": 0.1}),
    ("adam", {"lr": 0.1, "amsgrad": True, "betas": (0.5, 0.1)}),
    ("adamw", {}),
    ("adamw", {"lr": 0.1, "weight_decay": 0.5}),
    ("rmsprop", {}),
    ("rmsprop", {"lr": 0.05, "alpha": 0.5, "eps": 1e-3, "weight_decay": 0.1}),
    ("rmsprop", {"lr": 0.05, "momentum": 0.9}),
    ("rmsprop", {"lr": 0.05, "centered": True}),
    ("adagrad", {}),
    ("adagrad", {"lr": 0.5, "lr_decay": 0.2, "eps": 1e-3}),
    ("adagrad", {"lr": 0.5, "weight_decay": 0.1, "initial_accumulator_value": 2.0}),
    ("muon", {}),
    ("muon", {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1, "others": 2.0}),
    ("sam", {}),
    ("sam", {"lr": 0.05, "rho": 0.5}),
]


def test_every_optimizer_has_a_reference():
    assert [name for name, _ in host().registrations("optimizer")] == sorted(REFERENCES)


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_steps_are_those_of_the_formula(name, settings):
    expected = REFERENCES[name](**settings)
    for steps in range(1, STEPS + 1):
        reference = next(expected)
        torch.testing.assert_close(taken(name, steps, **settings), reference, rtol=1e-9, atol=1e-12)
        assert not torch.equal(reference, START)


@pytest.mark.parametrize("name", REFERENCES)
def test_a_parameter_without_a_gradient_stays(name):
    frozen, weight = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    optimizer = params(name).build([frozen, weight])
    weight.sum().backward()
    optimizer.step(lambda: None)
    assert frozen.tolist() == [1, 1]
    assert all(value < 1 for value in weight.tolist())


@pytest.mark.parametrize("name", REFERENCES)
def test_parameters_may_come_from_a_generator_and_the_rate_be_changed(name):
    network = torch.nn.Linear(3, 2)
    before = network.weight.detach().clone()
    optimizer = params(name, lr=1).build(parameter for parameter in network.parameters())
    for group in optimizer.param_groups:
        assert group["lr"] == 1
        group["lr"] = 0.0  # as a schedule does
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step(lambda: None)
    assert torch.equal(network.weight, before)


def test_sam_steps_by_any_of_the_others():
    def closure():
        return None  # the gradient stays

    weights = []
    for given in (
        params("sam", lr=0.1, base={"name": "adamw", "weight_decay": 0.5}),
        params("adamw", lr=0.1, weight_decay=0.5),
    ):
        weight = torch.nn.Parameter(START.clone())
        weight.grad = gradient(START)
        optimizer = given.build([weight])
        for _ in range(3):
            optimizer.step(closure)
        weights.append(weight.detach())
    torch.testing.assert_close(weights[0], weights[1])
    for wrong in ("sgdd", {"name": "sgd", "momentun": 1}, {"lr": 1}, {"nesterov": True}):
        with pytest.raises(ValidationError, match="base"):
            params("sam", base=wrong)


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_the_state_goes_through_a_checkpoint_and_training_continues(name, settings, tmp_path):
    weight = torch.nn.Parameter(START.clone())
    optimizer = params(name, **settings).build([weight])
    descend(weight, optimizer, 2)
    state = {"weight": weight.detach(), "optimizer": optimizer.state_dict()}
    checkpoint.save(state, tmp_path / "state.pt")

    loaded = checkpoint.load(tmp_path / "state.pt")
    weight = torch.nn.Parameter(loaded["weight"])
    optimizer = params(name, **settings).build([weight])
    optimizer.load_state_dict(loaded["optimizer"])
    assert torch.equal(descend(weight, optimizer, 2), taken(name, 4, **settings))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        *((name, {"lr": wrong}) for name in REFERENCES for wrong in (0, -1, float("nan"), "x")),
        ("gradient_descent", {"momentum": 0.9}),
        ("sgd", {"momentum": 1}),
        ("sgd", {"momentum": -0.1}),
        ("sgd", {"dampening": 1}),
        ("sgd", {"weight_decay": -1}),
        ("sgd", {"nesterov": True}),
        ("sgd", {"nesterov": True, "momentum": 0.9, "dampening": 0.1}),
        ("adam", {"betas": (0.9, 1)}),
        ("adam", {"betas": (-0.1, 0.9)}),
        ("adam", {"betas": (0.9,)}),
        ("adam", {"eps": 0}),
        ("adamw", {"betas": (1, 0.9)}),
        ("adamw", {"weight_decay": -0.1}),
        ("rmsprop", {"alpha": 1}),
        ("rmsprop", {"momentum": 1}),
        ("rmsprop", {"eps": 0}),
        ("adagrad", {"lr_decay": -0.1}),
        ("adagrad", {"initial_accumulator_value": -1}),
        ("adagrad", {"eps": 0}),
        ("muon", {"momentum": 1}),
        ("muon", {"ns_steps": 0}),
    ],
)
def test_what_is_out_of_range_is_refused(name, settings):
    with pytest.raises(ValidationError):
        params(name, **settings)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "rmsprop", "adagrad"])
def test_names_and_defaults_are_torchs_own(name):
    import inspect

    theirs = {
        "sgd": "SGD",
        "adam": "Adam",
        "adamw": "AdamW",
        "rmsprop": "RMSprop",
        "adagrad": "Adagrad",
    }
    defaults = inspect.signature(getattr(torch.optim, theirs[name])).parameters
    for parameter, value in params(name).model_dump().items():
        assert value == defaults[parameter].default, parameter


# ---- muon


def filters(seed=0):
    return torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(seed))


def test_muon_turns_filters_by_the_learning_rate_and_keeps_their_norm():
    weight = torch.nn.Parameter(filters())
    before = weight.detach().clone()
    optimizer = params("muon", lr=0.1).build([weight])
    weight.grad = filters(seed=1) * 1e-3
    optimizer.step()
    assert float(weight.detach().norm()) == pytest.approx(float(before.norm()))
    cosine = torch.cosine_similarity(weight.detach().flatten(), before.flatten(), dim=0)
    assert math.acos(float(cosine)) == pytest.approx(0.1, rel=0.1)


def test_muon_steps_alike_in_every_direction_of_the_gradient():
    """The singular values of what it steps by are near to each other, the gradient's are not."""
    weight = torch.nn.Parameter(filters())
    before = weight.detach().clone()
    left, values, right = torch.linalg.svd(filters(seed=1).flatten(1), full_matrices=False)
    values = torch.logspace(0, -1, len(values))
    weight.grad = (left @ torch.diag(values) @ right).view_as(weight)
    optimizer = params("muon", lr=1e-3, ns_steps=5).build([weight])
    optimizer.step()
    stepped = torch.linalg.svdvals((before - weight.detach()).flatten(1))
    assert stepped.max() / stepped.min() < 2 < values.max() / values.min()


@pytest.mark.parametrize("shape", [(8, 4, 3, 3), (8, 4, 1, 1)])
def test_muon_steps_by_the_published_iteration(shape):
    generator = torch.Generator().manual_seed(0)
    before, slope = (torch.randn(shape, generator=generator) for _ in range(2))
    weight = torch.nn.Parameter(before.clone())
    weight.grad = slope
    params("muon", lr=0.1, ns_steps=3).build([weight]).step()
    turn = slope.flatten(1).double() / slope.norm()
    for _ in range(3):
        square = turn @ turn.T
        turn = 3.4445 * turn + (-4.7750 * square + 2.0315 * square @ square) @ turn
    turned = before - 0.1 * before.norm() * (turn / turn.norm()).view(shape)
    torch.testing.assert_close(
        weight.detach().double(), turned * (before.norm() / turned.norm()), rtol=1e-5, atol=1e-6
    )


def test_muon_descends():
    weight, goal = torch.nn.Parameter(filters()), filters(seed=1)
    optimizer = params("muon", lr=0.1).build([weight])
    for _ in range(100):
        optimizer.zero_grad()
        (weight * goal).sum().backward()
        optimizer.step()
    cosine = torch.cosine_similarity(weight.detach().flatten(), goal.flatten(), dim=0)
    assert cosine < -0.8
