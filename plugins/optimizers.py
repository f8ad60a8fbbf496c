"""Optimizers, under torch.optim's own parameter names and defaults."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from torchyard import OptimizerParams, Register, hookimpl

if TYPE_CHECKING:
    import torch

# One call for all weights: up to 14 % more images/s (`benchmarks/reasons/plugins.md`).
FUSED = ("SGD", "Adam", "AdamW")


class GradientDescent(OptimizerParams):
    """Plain gradient descent by hand, w ← w − lr·g, as the 60-minute blitz writes it.

    https://docs.pytorch.org/tutorials/beginner/blitz/neural_networks_tutorial.html
    """

    lr: PositiveFloat = Field(0.01, description="learning rate")

    def build(self, parameters: Iterable[Any]) -> torch.optim.Optimizer:
        """Make the optimizer; its class is made here because its base is torch's."""
        import torch

        class _GradientDescent(torch.optim.Optimizer):
            @torch.no_grad()
            def step(self, closure: None = None) -> None:  # type: ignore[override]
                for group in self.param_groups:
                    for weight in group["params"]:
                        if weight.grad is not None:
                            weight.sub_(weight.grad, alpha=group["lr"])

        return _GradientDescent(parameters, {"lr": self.lr})


class _TorchOptimizer(OptimizerParams):
    """An optimizer of torch.optim with the class's name, whose arguments are the fields."""

    def build(self, parameters: Iterable[Any]) -> torch.optim.Optimizer:
        """Make the optimizer of torch.optim with this class's name."""
        import torch

        name, given = type(self).__name__, list(parameters)
        weights = [
            weight
            for each in given
            for weight in (each["params"] if isinstance(each, dict) else [each])
        ]
        # torch refuses it for complex weights. Its SGD fails where some learn later than others:
        # it has a momentum for all of them or for none.
        fused = name in FUSED and all(w.is_floating_point() and w.requires_grad for w in weights)
        settings = {"fused": True} if fused else {}
        made: torch.optim.Optimizer = getattr(torch.optim, name)(
            given, **settings, **self.model_dump()
        )
        return made


class SGD(_TorchOptimizer):
    """Stochastic gradient descent with momentum (torch.optim.SGD)."""

    lr: PositiveFloat = Field(1e-3, description="learning rate")
    momentum: float = Field(0.0, ge=0, lt=1)
    dampening: float = Field(0.0, ge=0, lt=1)
    weight_decay: NonNegativeFloat = 0.0
    nesterov: bool = Field(False, description="Nesterov momentum")

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> SGD:
        if self.nesterov and (self.momentum == 0 or self.dampening != 0):
            raise ValueError("nesterov=true needs momentum above 0 and dampening 0")
        return self


class _AdamParams(_TorchOptimizer):
    lr: PositiveFloat = Field(1e-3, description="learning rate")
    betas: tuple[float, float] = Field((0.9, 0.999), description="decay of both averages")
    eps: PositiveFloat = 1e-8
    amsgrad: bool = False

    @model_validator(mode="after")
    def _betas_in_range(self) -> _AdamParams:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError("betas must be at least 0 and below 1")
        return self


class Adam(_AdamParams):
    """Adam (torch.optim.Adam; Kingma and Ba, arXiv:1412.6980)."""

    weight_decay: NonNegativeFloat = 0.0


class AdamW(_AdamParams):
    """Adam with decoupled weight decay (torch.optim.AdamW; arXiv:1711.05101)."""

    weight_decay: NonNegativeFloat = 0.01


class RMSprop(_TorchOptimizer):
    """RMSprop (torch.optim.RMSprop; Hinton's lecture 6e)."""

    lr: PositiveFloat = Field(0.01, description="learning rate")
    alpha: float = Field(0.99, ge=0, lt=1, description="decay of the squared average")
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0
    momentum: float = Field(0.0, ge=0, lt=1)
    centered: bool = False


class Adagrad(_TorchOptimizer):
    """Adagrad (torch.optim.Adagrad; Duchi, Hazan and Singer, JMLR 12, 2011)."""

    lr: PositiveFloat = Field(0.01, description="learning rate")
    lr_decay: NonNegativeFloat = Field(0.0, description="step t has lr / (1 + (t - 1) lr_decay)")
    weight_decay: NonNegativeFloat = 0.0
    initial_accumulator_value: NonNegativeFloat = Field(
        0.0, description="initial value of the sums of squares"
    )
    eps: PositiveFloat = 1e-10


# Coefficients of x → ax + bx³ + cx⁵ (Jordan et al.): iterated, it takes any singular value
# between 0 and 1 to near 1.
QUINTIC = (3.4445, -4.7750, 2.0315)


class Muon(OptimizerParams):
    """Orthogonalized momentum for convolutions, Nesterov momentum for all other weights.

    The Nesterov momentum of a convolution, a matrix with one row per filter, is orthogonalized
    approximately by a Newton-Schulz iteration, so that no direction of the gradient dominates
    (Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024, and their
    airbench94_muon). A step rotates the filters by about lr, in radians, and keeps their norm,
    which has no effect before a batch norm: it is meant for convolutions followed by one.
    """

    lr: PositiveFloat = Field(0.02, description="learning rate; of convolutions an angle")
    momentum: float = Field(0.6, gt=0, lt=1)
    weight_decay: NonNegativeFloat = Field(0.0, description="of all but the convolutions")
    others: PositiveFloat = Field(
        10.0, description="learning rate of all but the convolutions, in multiples of lr"
    )
    ns_steps: PositiveInt = Field(3, description="Newton-Schulz iterations")

    def build(self, parameters: Iterable[Any]) -> torch.optim.Optimizer:
        """Make the optimizer; its class is made here because its base is torch's."""
        import torch

        others, ns_steps = self.others, self.ns_steps

        class _Muon(torch.optim.Optimizer):
            @torch.no_grad()
            def step(self, closure: None = None) -> None:  # type: ignore[override]
                for group in self.param_groups:
                    lr, momentum = group["lr"], group["momentum"]
                    for weight in group["params"]:
                        if weight.grad is None:
                            continue
                        gradient, convolution = weight.grad, weight.dim() == 4
                        if not convolution:
                            gradient = gradient.add(weight, alpha=group["weight_decay"])
                        state = self.state[weight]
                        if not state:
                            state["momentum_buffer"] = torch.zeros_like(weight)
                        momentum_buffer = state["momentum_buffer"].mul_(momentum).add_(gradient)
                        nesterov = gradient.add(momentum_buffer, alpha=momentum)
                        if not convolution:
                            weight.sub_(nesterov, alpha=others * lr)
                            continue
                        update = _orthogonal(nesterov.flatten(1), ns_steps).view_as(weight)
                        norm = weight.norm()
                        weight.sub_(update.to(weight.dtype) * (lr * norm / update.norm()))
                        weight.mul_(norm / weight.norm())

        settings = {"momentum": self.momentum, "weight_decay": self.weight_decay}
        return _Muon(parameters, {"lr": self.lr, **settings})


def _orthogonal(matrix: torch.Tensor, steps: int) -> torch.Tensor:
    """Approximately the nearest matrix with orthonormal rows (columns, if those are fewer).

    Each step multiplies from the left by a polynomial of xxᵀ. The polynomials are multiplied
    with each other first, because they are smaller than x: less than half the time.
    """
    import torch

    a, b, c = QUINTIC
    x: torch.Tensor = matrix.float()
    x = x / (x.norm() + 1e-7)
    tall = len(x) > x.shape[1]
    x = x.T if tall else x
    square = x @ x.T
    product = torch.eye(len(x), device=x.device)
    for _ in range(steps):
        factor = torch.addmm(square, square, square, beta=b, alpha=c)
        factor.diagonal().add_(a)
        product = factor @ product
        square = factor @ square @ factor
    x = product @ x
    return x.T if tall else x


BASES: dict[str, type[OptimizerParams]] = {
    **{"gradient_descent": GradientDescent, "sgd": SGD, "adam": Adam, "adamw": AdamW},
    **{"rmsprop": RMSprop, "adagrad": Adagrad, "muon": Muon},
}


class SAM(OptimizerParams):
    """Sharpness-aware minimization: the gradient of the worst weights nearby, in two passes.

    The weights are moved by rho along the gradient, all of them together; the gradient there is
    what the base optimizer then steps by from where they were (Foret et al., arXiv:2010.01412).
    A step costs two. Running statistics of batch norms take in the first pass alone.
    """

    needs_closure = True

    lr: PositiveFloat = Field(1e-3, description="learning rate of the base")
    rho: PositiveFloat = Field(0.05, description="how far the weights are moved, a Euclidean norm")
    base: dict[str, Any] = Field(
        {"name": "sgd"},
        description=f"the optimizer and its parameters: {', '.join(BASES)}",
    )

    @field_validator("base", mode="before")
    @classmethod
    def _a_section(cls, value: object) -> object:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _base_is_one(self) -> SAM:
        self._made_base()
        return self

    def _made_base(self) -> OptimizerParams:
        settings = {"name": "sgd"} | self.base
        if (name := settings.pop("name")) not in BASES:
            raise ValueError(f"base.name: must be {', '.join(BASES)}, not {name!r}")
        if "lr" in settings:
            raise ValueError("base.lr: is optimizer.lr")
        try:
            return BASES[name].model_validate({"lr": self.lr, **settings})
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, ("base", *first["loc"])))
            accepted = ", ".join(each for each in BASES[name].model_fields if each != "lr")
            raise ValueError(f"{where}: {first['msg']}  ('{name}' accepts: {accepted})") from None

    def build(self, parameters: Iterable[Any]) -> torch.optim.Optimizer:
        """Make the optimizer; its groups and its state are those of the base."""
        import torch

        given, rho = list(parameters), self.rho
        plain = [
            {key: value for key, value in each.items() if key != "rho"}
            if isinstance(each, dict)
            else each
            for each in given
        ]
        base = self._made_base().build(plain)

        class _SAM(torch.optim.Optimizer):
            def __init__(self) -> None:
                super().__init__(base.param_groups, base.defaults | {"rho": rho})
                for group, each in zip(self.param_groups, given, strict=False):
                    group["rho"] = each.get("rho", rho) if isinstance(each, dict) else rho
                base.param_groups, self.state = self.param_groups, base.state

            def load_state_dict(self, state_dict: dict[str, Any]) -> None:
                super().load_state_dict(state_dict)
                base.param_groups, base.state = self.param_groups, self.state

            @torch.no_grad()
            def step(self, closure: Any = None) -> Any:
                loss = closure()
                moved = [
                    (weight, group["rho"], weight.clone())
                    for group in self.param_groups
                    for weight in group["params"]
                    if weight.grad is not None
                ]
                norms = [weight.grad.norm() for weight, _, _ in moved]
                norm = torch.stack(norms).norm() + 1e-12
                for weight, reach, _ in moved:
                    weight.add_(weight.grad * (reach / norm))
                closure()
                for weight, _, before in moved:
                    weight.copy_(before)
                base.step()
                return loss

        return _SAM()


@hookimpl
def register_optimizers(register: Register) -> None:
    for name, params in BASES.items():
        register(name, params)
    register("sam", SAM)
