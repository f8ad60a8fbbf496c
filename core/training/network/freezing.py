"""Parameters that are not trained, for a whole run or for its first epochs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from torchyard.core.config.choices import ModelChoice
from torchyard.core.errors import MOST_LISTED, UserError, suggestion


def matching(pattern: str, names: Iterable[str]) -> list[str]:
    """The names that a pattern takes: of parameters ("conv1.weight"), or of layers.

    Patterns as in file names: "conv*" takes every layer that begins so.
    """
    return [n for n in names if fnmatchcase(n, pattern) or fnmatchcase(n, f"{pattern}.*")]


def nearest_layers(pattern: str, model: nn.Module) -> str:
    """The end of a message about a pattern that matches nothing.

    It lists the layers with parameters of their own or, where they are many, what they are in.
    """
    names = [name for name, _ in model.named_parameters()]
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in names))
    outer = list(dict.fromkeys(name.partition(".")[0] for name in names))
    shown = layers if len(layers) <= MOST_LISTED or len(outer) == 1 else outer
    return suggestion(pattern, shown, {name: name for name in (*outer, *layers)})


def freeze(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Exclude parameters from training, by their names or their layers'; returns their names.

    Buffers, such as batch norm's running statistics, still change.

    Raises:
        UserError: a pattern matches nothing, or nothing is left to train.
    """
    weights = dict(model.named_parameters())
    problems, frozen = [], dict[str, None]()
    for pattern in patterns:
        chosen = matching(pattern, weights)
        frozen |= dict.fromkeys(chosen)
        if not chosen:
            near = nearest_layers(pattern, model)
            problems.append(f"model.freeze: no parameter matches '{pattern}'.{near}")
    for name in frozen:
        weights[name].requires_grad_(False)
    if patterns and not any(weight.requires_grad for weight in weights.values()):
        problems.append("model.freeze: nothing is left to train")
    if problems:
        raise UserError(problems)
    return list(frozen)


@dataclass(frozen=True)
class Freezing:
    """What is frozen in which epoch.

    The optimizer has the parameters that are to learn later from the start. Without a gradient they
    are left as they are: neither weight decay nor momentum reaches them.

    Attributes:
        weights: frozen now.
        norms: whose running statistics stay as they are, as long as the weights are frozen.
        epochs: after so many the weights learn, too; None: never.
    """

    weights: tuple[nn.Parameter, ...]
    norms: tuple[nn.Module, ...]
    epochs: int | None

    @classmethod
    def of(cls, model: nn.Module, chosen: ModelChoice) -> Freezing:
        """`freeze` a model as a configuration asks for.

        Raises:
            UserError: as `freeze` raises it.
        """
        frozen = freeze(model, chosen.freeze)
        norms = []
        for name, module in model.named_modules() if chosen.freeze_statistics else ():
            own = {f"{name}.{each}" for each, _ in module.named_parameters(recurse=False)}
            named = any(matching(pattern, [name]) for pattern in chosen.freeze)
            is_norm = getattr(module, "running_mean", None) is not None
            if is_norm and (named or (own and own <= set(frozen))):
                norms.append(module)
        weights = dict(model.named_parameters())
        return cls(tuple(weights[name] for name in frozen), tuple(norms), chosen.freeze_epochs)

    def begin_epoch(self, epoch: int) -> bool:
        """Set the network, in training mode, up for an epoch, counted from 0.

        Returns:
            Whether other parameters are trained than before.
        """
        learns = self.epochs is not None and epoch >= self.epochs
        if not learns:
            for norm in self.norms:
                norm.eval()
        changed = any(weight.requires_grad != learns for weight in self.weights)
        for weight in self.weights:
            weight.requires_grad_(learns)
        return changed
