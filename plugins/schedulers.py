"""Learning-rate schedules, stepped after every batch (torch.optim.lr_scheduler)."""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import TYPE_CHECKING, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from torchyard import Register, SchedulerParams, hookimpl

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler


class _WarmUp(SchedulerParams):
    warmup_steps: NonNegativeInt = Field(0, description="batches of linear rise from near 0")

    def build(self, optimizer: Optimizer, total_steps: int) -> LRScheduler:
        """Make the schedule, after a linear rise if `warmup_steps` is not 0."""
        from torch.optim import lr_scheduler

        if not self.warmup_steps:
            return self.after_warmup(optimizer, total_steps)
        if self.warmup_steps >= total_steps:
            raise ValueError(
                f"warmup_steps={self.warmup_steps}, but the whole run has {total_steps} steps"
            )
        rise = lr_scheduler.LinearLR(
            optimizer, start_factor=1 / (self.warmup_steps + 1), total_iters=self.warmup_steps
        )
        rest = self.after_warmup(optimizer, total_steps - self.warmup_steps)
        return lr_scheduler.SequentialLR(optimizer, [rise, rest], milestones=[self.warmup_steps])

    def after_warmup(self, optimizer: Optimizer, total_steps: int) -> LRScheduler:
        """Make the schedule of the `total_steps` batches that follow the warm-up."""
        raise NotImplementedError


class Constant(_WarmUp):
    """The optimizer's learning rate throughout, after an optional warm-up."""

    def after_warmup(self, optimizer: Optimizer, total_steps: int) -> LRScheduler:
        """Make a ConstantLR whose factor is 1."""
        from torch.optim import lr_scheduler

        return lr_scheduler.ConstantLR(optimizer, factor=1.0)


class Step(_WarmUp):
    """Multiply the learning rate by gamma every step_size batches (StepLR)."""

    step_size: PositiveInt | None = Field(
        None, description="batches between two drops; none: a third of the run"
    )
    gamma: PositiveFloat = 0.1

    def after_warmup(self, optimizer: Optimizer, total_steps: int) -> LRScheduler:
        """Make a StepLR."""
        from torch.optim import lr_scheduler

        step_size = self.step_size or max(1, -(-total_steps // 3))
        return lr_scheduler.StepLR(optimizer, step_size, gamma=self.gamma)


class Piecewise(_WarmUp):
    """The learning rate times a factor of its own from each milestone on.

    As MultiStepLR has it, with each factor given: the rates before a milestone do not depend on
    what comes after it.
    """

    milestones: tuple[PositiveFloat, ...] = Field(
        (0.5, 0.75), description="batches; below 1: shares of the run"
    )
    factors: tuple[NonNegativeFloat, ...] = Field(
        (0.1, 0.01), description="of the optimizer's learning rate, from each milestone on"
    )

    @model_validator(mode="after")
    def _one_factor_each(self) -> Piecewise:
        if len(self.factors) != len(self.milestones):
            count = f"{len(self.milestones)} milestones, but {len(self.factors)} factors"
            raise ValueError(f"factors: {count}")
        return self

    def after_warmup(self, optimizer: Optimizer, total_steps: int) -> LRScheduler:
        """Make a LambdaLR."""
        from torch.optim import lr_scheduler

        steps = [round(each * total_steps) if each < 1 else int(each) for each in self.milestones]
        if steps != sorted(steps):
            raise ValueError(f"milestones={list(self.milestones)}: the batches {steps} do not rise")
        factors = (1.0, *self.factors)
        return lr_scheduler.LambdaLR(optimizer, lambda step: factors[bisect_right(steps, step)])


class Cosine(_WarmUp):
    """Half a cosine from the learning rate down to eta_min (CosineAnnealingLR)."""

    eta_min: NonNegativeFloat = Field(0.0, description="the learning rate at the end")

    def after_warmup(self, optimizer: Optimizer, total_steps: int) -> LRScheduler:
        """Make a CosineAnnealingLR over the rest of the run."""
        from torch.optim import lr_scheduler

        if self.eta_min and len(optimizer.param_groups) > 1:
            # Of several groups it is the first one's, and the others keep their ratio to that.
            first = optimizer.param_groups[0]
            last: float = self.eta_min / first.get("initial_lr", first["lr"])

            def share(step: int) -> float:
                return last + (1 - last) * (1 + math.cos(math.pi * step / total_steps)) / 2

            return lr_scheduler.LambdaLR(optimizer, share)
        return lr_scheduler.CosineAnnealingLR(optimizer, total_steps, eta_min=self.eta_min)


class OneCycle(SchedulerParams):
    """One rise to max_lr and one fall to near zero (OneCycleLR; arXiv:1708.07120).

    The rise is the warm-up: `pct_start` of the run. Momentum (or the first beta) moves in the
    opposite direction if the optimizer has one.
    """

    max_lr: PositiveFloat | None = Field(
        None,
        description="the peak; none: the optimizer's learning rate. Groups of parameters keep "
        "their ratio to that",
    )
    pct_start: float = Field(0.3, ge=0, le=1, description="share of the run that rises")
    div_factor: PositiveFloat = Field(25.0, description="peak / first learning rate")
    final_div_factor: PositiveFloat = Field(1e4, description="first / last learning rate")
    anneal_strategy: Literal["cos", "linear"] = Field("cos", description="shape of rise and fall")
    cycle_momentum: bool = True

    def build(self, optimizer: Optimizer, total_steps: int) -> LRScheduler:
        """Make a OneCycleLR."""
        from torch.optim import lr_scheduler

        has_momentum = "betas" in optimizer.defaults or optimizer.defaults.get("momentum", 0) > 0
        settings = self.model_dump()
        # torch divides by the lengths of rise and fall: neither may be 0 steps.
        if self.pct_start * total_steps in (1, total_steps):
            settings["pct_start"] *= 1 - 1e-6
        rates = [group["lr"] for group in optimizer.param_groups]
        if self.max_lr:
            own = optimizer.defaults.get("lr", rates[0])
            rates = [self.max_lr if rate == own else self.max_lr * rate / own for rate in rates]
        settings["max_lr"] = rates
        settings["cycle_momentum"] = self.cycle_momentum and has_momentum
        return lr_scheduler.OneCycleLR(optimizer, total_steps=total_steps, **settings)


class Plateau(SchedulerParams):
    """Multiply the learning rate by factor where `train.monitor` no longer improves.

    After an epoch that ends `patience` epochs without a better one (ReduceLROnPlateau).
    """

    follows_metric = True

    factor: float = Field(0.1, gt=0, lt=1)
    patience: NonNegativeInt = Field(
        10, description="epochs without a lower loss that are let pass"
    )
    threshold: NonNegativeFloat = Field(1e-4, description="what a loss is lower by, relatively")
    cooldown: NonNegativeInt = Field(0, description="epochs after a drop that do not count")
    min_lr: NonNegativeFloat = Field(0.0, description="no learning rate goes below it")

    def build(self, optimizer: Optimizer, total_steps: int) -> LRScheduler:
        """Make a ReduceLROnPlateau, whose `step` is given the loss."""
        from torch.optim import lr_scheduler

        return lr_scheduler.ReduceLROnPlateau(optimizer, **self.model_dump())


@hookimpl
def register_schedulers(register: Register) -> None:
    register("constant", Constant)
    register("step", Step)
    register("piecewise", Piecewise)
    register("cosine", Cosine)
    register("one_cycle", OneCycle)
    register("plateau", Plateau)
