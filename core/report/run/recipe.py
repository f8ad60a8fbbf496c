"""How a run was trained, in words: what it began with, and what was done."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchyard.core.config.choices import Choice
    from torchyard.core.config.schema import RunConfig

# Of a plugin's parameters, those that are shown of an optimizer or a schedule.
SHOWN = ("lr", "max_lr", "momentum", "nesterov", "weight_decay", "step_size", "gamma", "T_max")
VIEWS = {
    "mirror": "each test image and its mirror image",
    "mirror_and_shifts": "each test image, its mirror image, and both shifted by a pixel",
}


def recipe(
    config: RunConfig, trained: Mapping[str, Any], tags: Mapping[str, str]
) -> dict[str, str]:
    """What was done, by what it is about; what was left at its default is left out.

    Args:
        config: of the run.
        trained: how training ended: parameters, epochs, best_epoch, steps, stopped_early, balance.
        tags: of the run; `weights` says which tensors were taken from where.
    """
    train, model, optimizer = config.train, config.model, config.optimizer
    facts = {"began with": tags.get("weights") or f"random weights, seed {train.seed}"}
    facts["model"] = f"{model.name}, {trained['parameters']:,} parameters"
    if model.freeze:
        facts["model"] += " to train"
        until = f" for {model.freeze_epochs} epochs" if model.freeze_epochs else ""
        kept = ", running statistics too" if model.freeze_statistics else ""
        facts["frozen"] = f"{', '.join(model.freeze)}{until}{kept}"
    facts["optimizer"] = _with_parameters(optimizer, SHOWN)
    if config.scheduler.name != "constant":
        facts["optimizer"] += f"; schedule {_with_parameters(config.scheduler, SHOWN)}"
    if optimizer.layer_decay:
        facts["layers"] = f"learning rate times {optimizer.layer_decay:g} a block, from the output"
    if optimizer.groups:
        facts["parameter groups"] = "; ".join(
            f"{', '.join(group.match)}: {_listed(group.settings)}" for group in optimizer.groups
        )
    if not optimizer.decay_norms:
        facts["weight decay"] = "not of norms and biases"
    facts["loss"] = _with_parameters(config.loss, ("label_smoothing", "gamma"))
    if trained.get("balance"):
        facts["classes balanced"] = str(trained["balance"])
    if config.augmentations:
        facts["augmentations"] = "; ".join(map(_with_parameters, config.augmentations))
    facts["length"] = _length(config, trained)
    if train.ema:
        facts["averaging"] = (
            f"exponential, of the weights, decay {train.ema:g}: these are evaluated"
        )
    if train.clip_norm:
        facts["gradient"] = f"clipped to a norm of {train.clip_norm:g}"
    if config.evaluate.views in VIEWS:
        facts["test"] = f"the mean over {VIEWS[config.evaluate.views]}"
    return facts


def _length(config: RunConfig, trained: Mapping[str, Any]) -> str:
    """Epochs and steps, and whose weights were kept."""
    epochs, best = trained["epochs"], trained["best_epoch"]
    facts = f"{epochs} epochs, {trained['steps']:,} steps of {trained['batch_size']} samples"
    if trained["stopped_early"]:
        facts += f", stopped early of {config.train.epochs} epochs"
    if best != epochs:
        facts += f"; the weights of epoch {best} were kept, the best by {config.train.monitor}"
    if config.train.validation:
        facts += f"; {100 * config.train.validation:g} % held out for validation"
    return facts


def _with_parameters(choice: Choice, names: tuple[str, ...] | None = None) -> str:
    """A plugin with its parameters: those named, or all; what is off or unset is left out."""
    given = choice.model_extra or {}
    chosen = {
        name: value
        for name, value in given.items()
        if (names is None or name in names) and value not in (None, False, 0, "", [], ())
    }
    return f"{choice.name} ({_listed(chosen)})" if chosen else choice.name


def _listed(settings: Mapping[str, Any]) -> str:
    """`lr 0.01, momentum 0.9`."""
    return ", ".join(
        name if value is True else f"{name} {value:g}" if _is_number(value) else f"{name} {value}"
        for name, value in settings.items()
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
