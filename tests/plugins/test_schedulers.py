"""Every schedule against its formula at every step, at every length, and continued."""

import math
import warnings

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from torchyard.core.hosting.host import host
from torchyard.core.training import checkpoint

LR = 0.5
SCHEDULERS = ("constant", "cosine", "one_cycle", "piecewise", "step")
WARMING = ("constant", "cosine", "piecewise", "step")

pytestmark = pytest.mark.filterwarnings("error")


def params(name, **chosen):
    return host().find("scheduler", name).params.model_validate(chosen)


def optimizer_of(name="sgd", **chosen):
    weight = torch.nn.Parameter(torch.ones(1))
    weight.grad = torch.zeros(1)
    plugin = host().find("optimizer", name).params
    return plugin.model_validate({"lr": LR, **chosen}).build([weight])


def rates(optimizer, scheduler, steps):
    """The learning rate of each of these steps, as training goes."""
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def run(name, total, *, optimizer=None, **chosen):
    optimizer = optimizer or optimizer_of()
    return rates(optimizer, params(name, **chosen).build(optimizer, total), total)


def expected(name, total, warmup=0, **chosen):
    """The formulas: a linear rise of 1/(w+1), 2/(w+1), …, then the schedule over the rest."""
    rise = [LR * (step + 1) / (warmup + 1) for step in range(warmup)]
    rest = total - warmup
    if name == "constant":
        return rise + [LR] * rest
    if name == "step":
        size = chosen.get("step_size") or math.ceil(rest / 3)
        return rise + [LR * chosen.get("gamma", 0.1) ** (step // size) for step in range(rest)]
    if name == "piecewise":
        return rise + [
            LR * (1, 0.1, 0.01)[(step >= round(rest / 2)) + (step >= round(rest * 0.75))]
            for step in range(rest)
        ]
    low = chosen.get("eta_min", 0.0)
    return rise + [
        low + (LR - low) * (1 + math.cos(math.pi * step / rest)) / 2 for step in range(rest)
    ]


def one_cycle(total, peak=LR, share=0.3, div=25.0, final=1e4, linear=False):
    """Half a cosine up to the peak at step share·total - 1, and half a cosine down; or lines."""
    top, last = share * total - 1, total - 1
    first, end = peak / div, peak / div / final
    lrs = []
    for step in range(total):
        if step <= top:
            start, stop, part = first, peak, step / top
        else:
            start, stop, part = peak, end, (step - top) / (last - top)
        left = 1 - part if linear else (1 + math.cos(math.pi * part)) / 2
        lrs.append(stop + (start - stop) * left)
    return lrs


def test_every_scheduler_is_tested_here():
    known = {name for name, _ in host().registrations("scheduler")}
    assert known == {*SCHEDULERS, "plateau"}


@pytest.mark.parametrize("milestones", [(6, 9), (0.5, 0.75), (0.5, 9)])
def test_a_piecewise_rate_has_its_factor_from_each_milestone_on(milestones):
    seen = run("piecewise", 12, milestones=milestones, factors=(0.25, 2.0))
    assert seen == [LR] * 6 + [LR / 4] * 3 + [LR * 2] * 3


def test_milestones_of_a_piecewise_rate_have_a_factor_each_and_rise():
    with pytest.raises(ValidationError, match="1 milestones, but 2 factors"):
        params("piecewise", milestones=[0.5])
    with pytest.raises(ValueError, match=r"the batches \[6, 3\] do not rise"):
        run("piecewise", 12, milestones=[0.5, 3])


@pytest.mark.parametrize("warmup", [0, 3])
@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        *(("constant", {}), ("step", {"step_size": 3}), ("cosine", {})),
        *(("cosine", {"eta_min": 0.05}), ("one_cycle", {}), ("one_cycle", {"max_lr": 2.0})),
    ],
)
def test_groups_keep_the_ratio_of_their_rates(name, chosen, warmup):
    chosen = chosen if name == "one_cycle" else {"warmup_steps": warmup, **chosen}
    alone = run(name, 12, **chosen)
    weights = [torch.nn.Parameter(torch.ones(1)) for _ in range(2)]
    optimizer = torch.optim.SGD(
        [{"params": weights[:1]}, {"params": weights[1:], "lr": LR / 4}], LR
    )
    scheduler = params(name, **chosen).build(optimizer, 12)
    for rate in alone:
        first, second = (group["lr"] for group in optimizer.param_groups)
        assert (first, second) == (pytest.approx(rate), pytest.approx(rate / 4))
        optimizer.step()
        scheduler.step()


def test_a_plateau_lowers_the_rate_after_patience_is_over():
    optimizer = optimizer_of()
    scheduler = params("plateau", patience=1, factor=0.5).build(optimizer, 100)
    seen = []
    for loss in (1.0, 0.9, 0.9, 0.9, 0.8, 0.7, 0.7):
        scheduler.step(loss)
        seen.append(optimizer.param_groups[0]["lr"])
    assert seen == [LR, LR, LR, LR / 2, LR / 2, LR / 2, LR / 2]


@pytest.mark.parametrize("warmup", [0, 1, 4, 11])
@pytest.mark.parametrize("total", [12, 50])
@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        ("constant", {}),
        ("step", {}),
        ("step", {"step_size": 3, "gamma": 0.5}),
        ("step", {"step_size": 1000}),
        ("piecewise", {}),
        ("cosine", {}),
        ("cosine", {"eta_min": 0.1}),
    ],
)
def test_the_rate_at_every_step_is_the_formulas(name, chosen, total, warmup):
    given = run(name, total, warmup_steps=warmup, **chosen)
    assert given == pytest.approx(expected(name, total, warmup, **chosen), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(
    ("chosen", "formula"),
    [
        ({}, {}),
        ({"max_lr": 2}, {"peak": 2}),
        ({"pct_start": 0.5, "div_factor": 4}, {"share": 0.5, "div": 4}),
        ({"final_div_factor": 10}, {"final": 10}),
        ({"anneal_strategy": "linear"}, {"linear": True}),
    ],
)
@pytest.mark.parametrize("total", [20, 101])
def test_one_cycle_is_its_formula(chosen, formula, total):
    given = run("one_cycle", total, **chosen)
    assert given == pytest.approx(one_cycle(total, **formula), rel=1e-6)
    assert max(given) == pytest.approx(formula.get("peak", LR), rel=0.05)


def test_one_cycle_runs_the_momentum_the_other_way():
    for name, key in (("sgd", "momentum"), ("adam", "betas"), ("rmsprop", "momentum")):
        chosen = {} if key == "betas" else {"momentum": 0.9}
        optimizer = optimizer_of(name, **chosen)
        scheduler = params("one_cycle").build(optimizer, 10)
        pairs = []
        for _ in range(10):
            group = optimizer.param_groups[0]
            momentum = group["betas"][0] if key == "betas" else group["momentum"]
            pairs.append((group["lr"], momentum))
            optimizer.step()
            scheduler.step()
        fastest = max(pairs)
        assert fastest[1] == min(momentum for _, momentum in pairs) == pytest.approx(0.85)
        assert pairs[0][1] == pytest.approx(0.95)


@pytest.mark.parametrize("cycle", [True, False])
def test_one_cycle_takes_an_optimizer_without_momentum(cycle):
    given = run("one_cycle", 20, optimizer=optimizer_of("gradient_descent"), cycle_momentum=cycle)
    assert given == pytest.approx(one_cycle(20), rel=1e-6)


def test_one_cycle_leaves_the_momentum_alone_where_told():
    optimizer = optimizer_of(momentum=0.7)
    run("one_cycle", 20, optimizer=optimizer, cycle_momentum=False)
    assert optimizer.param_groups[0]["momentum"] == 0.7


def test_one_cycle_does_not_give_momentum_to_an_optimizer_told_to_have_none():
    for name in ("sgd", "rmsprop"):
        optimizer = optimizer_of(name)
        run("one_cycle", 10, optimizer=optimizer)
        assert optimizer.param_groups[0]["momentum"] == 0, name


lengths = st.integers(1, 200)


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(SCHEDULERS), lengths, st.integers(0, 250), st.floats(0, 1))
@example("one_cycle", 1, 0, 0.3)
@example("one_cycle", 2, 0, 0.5)
@example("one_cycle", 10, 0, 0.1)
@example("one_cycle", 10, 0, 0.0)
@example("one_cycle", 10, 0, 1.0)
@example("cosine", 1, 0, 0.0)
@example("step", 2, 1, 0.0)
def test_no_length_raises_or_warns(name, total, warmup, share):
    chosen = {"pct_start": share} if name == "one_cycle" else {"warmup_steps": warmup % total}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        given = run(name, total, **chosen)
    assert all(math.isfinite(rate) and 0 <= rate <= LR * 1.000001 for rate in given)
    assert given[0] > 0


@pytest.mark.parametrize("name", WARMING)
@pytest.mark.parametrize(("warmup", "total"), [(1, 1), (10, 10), (11, 10), (1000, 3)])
def test_a_warm_up_longer_than_the_run_is_refused(name, warmup, total):
    message = f"^warmup_steps={warmup}, but the whole run has {total} steps$"
    with pytest.raises(ValueError, match=message):
        params(name, warmup_steps=warmup).build(optimizer_of(), total)


@pytest.mark.parametrize("split", [1, 4, 5, 12])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_schedule_continues_from_a_checkpoint(name, split, tmp_path):
    chosen = {} if name == "one_cycle" else {"warmup_steps": 5}
    total = 20
    optimizer = optimizer_of(momentum=0.9)
    scheduler = params(name, **chosen).build(optimizer, total)
    rates(optimizer, scheduler, split)
    state = {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
    checkpoint.save(state, tmp_path / "state.pt")
    whole = rates(optimizer, scheduler, total - split)

    loaded = checkpoint.load(tmp_path / "state.pt")
    optimizer = optimizer_of(momentum=0.9)
    scheduler = params(name, **chosen).build(optimizer, total)
    optimizer.load_state_dict(loaded["optimizer"])
    scheduler.load_state_dict(loaded["scheduler"])
    assert rates(optimizer, scheduler, total - split) == whole


@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        *((name, {"warmup_steps": wrong}) for name in WARMING for wrong in (-1, 0.5, "x")),
        ("constant", {"gamma": 0.1}),
        ("step", {"step_size": 0}),
        ("step", {"gamma": 0}),
        ("cosine", {"eta_min": -1}),
        ("one_cycle", {"max_lr": 0}),
        ("one_cycle", {"pct_start": 1.5}),
        ("one_cycle", {"div_factor": 0}),
        ("one_cycle", {"warmup_steps": 1}),
    ],
)
def test_what_is_out_of_range_is_refused(name, chosen):
    with pytest.raises(ValidationError):
        params(name, **chosen)
