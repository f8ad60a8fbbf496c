"""The configuration of a run: presets, files, overrides, and every problem at once.

A configuration is read as a plain mapping, then resolved (`resolve`) against the plugins:
every name found, every parameter typed, every default filled in.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from core import device as devices
from core.errors import UserError, suggestion
from core.host import Host, Registration
from core.parameters import (
    KINDS,
    AugmentationParams,
    DatasetParams,
    GateParams,
    LossParams,
    ModelParams,
    OptimizerParams,
    PluginParams,
    SchedulerParams,
)
from core.setting_problems import explained
from core.settings_text import parse_value, read_settings


class Choice(BaseModel):
    """A plugin chosen by name; the other keys are the plugin's own parameters."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    name: str


class DatasetChoice(Choice):
    """The data set, and what its pixels are normalized by."""

    normalize: Literal["statistics"] | tuple[float, PositiveFloat] = Field(
        "statistics",
        description="'statistics' (mean and std of the training split), or [mean, std]",
    )

    @field_validator("normalize", mode="wrap")
    @classmethod
    def _one_message(cls, value: object, validate: ValidatorFunctionWrapHandler) -> object:
        try:
            return validate(value)
        except ValidationError:
            raise ValueError(
                f"must be 'statistics', or [mean, std] with std above 0, not {value!r}"
            ) from None


class ModelChoice(Choice):
    """The model, and which of its parameters are left as they are."""

    freeze: tuple[str, ...] = Field(
        (), description="patterns of parameter names that are not trained, e.g. [conv*]"
    )

    @field_validator("freeze", mode="before")
    @classmethod
    def _one_is_enough(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value


class TrainConfig(BaseModel):
    """How to train, whatever is trained."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    epochs: PositiveInt = Field(5, description="passes over the training split")
    batch_size: PositiveInt = Field(32, description="samples a step")
    seed: int = Field(0, ge=0, lt=2**32, description="of initial weights, order and dropout")
    max_steps: PositiveInt | None = Field(None, description="stop after so many batches")
    validation: float = Field(
        0.0, ge=0, lt=1, description="share of the training split held out for validation"
    )
    patience: PositiveInt | None = Field(
        None, description="stop early after so many epochs without a lower validation loss"
    )
    clip_norm: PositiveFloat | None = Field(None, description="clip the gradient's norm to this")
    log_every: PositiveInt = Field(100, description="batches between two running losses")
    log_gradients: bool = Field(
        False, description="also the norm of each layer's gradient, at the same batches"
    )
    parallel: Literal["none", "data_parallel", "ddp"] = Field(
        "none", description="several GPUs of one process, or several processes, share each batch"
    )
    processes: PositiveInt | None = Field(None, description="of ddp; none: 2")
    threads: PositiveInt | None = Field(
        None, description="CPU threads; none: one for little work a batch, else all"
    )

    @model_validator(mode="after")
    def _processes_need_ddp(self) -> TrainConfig:
        if self.processes is not None and self.parallel != "ddp":
            raise ValueError("processes are those of ddp: set train.parallel=ddp")
        if self.batch_size < self.team_size:
            raise ValueError(
                f"{self.team_size} processes cannot share a batch of {self.batch_size}"
            )
        return self

    @property
    def team_size(self) -> int:
        """How many processes train together."""
        return (self.processes or 2) if self.parallel == "ddp" else 1

    @model_validator(mode="after")
    def _patience_needs_validation(self) -> TrainConfig:
        if self.patience is not None and self.validation == 0:
            raise ValueError("patience needs a validation split: set train.validation, e.g. 0.1")
        return self


DEFAULT_GATES = (Choice(name="beats_champion"),)


class PromoteConfig(BaseModel):
    """Which registered model a run's network becomes a version of, and what it must show."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(description="the registered model's name", min_length=1)
    gates: tuple[Choice, ...] = Field(DEFAULT_GATES, description="all of them must pass")

    @field_validator("model")
    @classmethod
    def _a_name(cls, value: str) -> str:
        if set(value) & set("/:@"):
            raise ValueError(f"a model's name has no '/', ':' or '@': {value!r}")
        return value


class RunConfig(BaseModel):
    """One run, whole: what is trained on what, how, and where."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: DatasetChoice
    augmentations: tuple[Choice, ...] = Field(
        (), description="random changes of the training samples, in this order"
    )
    model: ModelChoice = ModelChoice(name="lenet")
    loss: Choice = Choice(name="cross_entropy")
    optimizer: Choice = Choice(name="sgd")
    scheduler: Choice = Choice(name="constant")
    train: TrainConfig = TrainConfig()
    device: str = Field("auto", description="auto, cpu, cuda, cuda:N, mps")
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="of the forward pass in training; weights stay float32"
    )
    plugins: dict[str, str] = Field(
        {},
        description="filled in: the distribution, or file and sha256, of each that is not built in",
    )
    promote: PromoteConfig | None = Field(
        None, description="make the network the champion if it passes the gates"
    )

    @field_validator("device")
    @classmethod
    def _a_device(cls, value: str) -> str:
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value):
            raise ValueError(f"must be auto, cpu, mps, cuda or cuda:N, not {value!r}")
        return value


# The kinds a run has one of.
SINGLE = tuple(kind for kind in KINDS if kind in RunConfig.model_fields)


@dataclass(frozen=True)
class Recipe:
    """A configuration with its plugins found and typed; nothing is built yet.

    Attributes:
        recorded: of its plugins, what the configuration says that was resolved before.
    """

    config: RunConfig
    recorded: Mapping[str, str]
    plugins: Mapping[str, Registration]
    dataset: DatasetParams
    augmentations: tuple[AugmentationParams, ...]
    model: ModelParams
    loss: LossParams
    optimizer: OptimizerParams
    scheduler: SchedulerParams
    gates: tuple[GateParams, ...] = ()

    @property
    def named_gates(self) -> list[tuple[str, GateParams]]:
        """The gates of a promotion, with their names."""
        chosen = self.config.promote.gates if self.config.promote else ()
        return [(gate.name, typed) for gate, typed in zip(chosen, self.gates, strict=True)]

    @property
    def changed(self) -> list[str]:
        """The plugins that are not those the configuration was resolved with before."""
        return [
            f"{plugin} was of {before}, and is of {now} here"
            for plugin, now in self.config.plugins.items()
            if (before := self.recorded.get(plugin, now)) != now
        ]


def read_recipe(source: str, overrides: Sequence[str], presets: Path, host: Host) -> Recipe:
    """Read a preset or a YAML file, apply `key=value` overrides to it, and resolve it.

    An override of a plugin's name drops the parameters of the plugin it replaces; the
    host's own settings of that section (`dataset.normalize`) stay.

    Raises:
        UserError: with everything that is wrong with file, overrides and settings.
    """
    problems: list[str] = []
    assignments = []
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator or not all(part.isidentifier() for part in key.split(".")):
            problems.append(f"'{override}' is not of the form key=value, e.g. train.epochs=3")
            continue
        path = key.split(".")
        if path[0] in SINGLE and len(path) == 1:
            path.append("name")
        assignments.append((path, parse_value(value)))
    try:
        raw = read_settings(_find_source(source, presets))
    except UserError as error:
        raise UserError(error.problems + problems) from None
    # Names first, whatever their place on the line: they decide what the others mean.
    for path, value in sorted(assignments, key=lambda item: item[0][1:] != ["name"]):
        try:
            _assign(raw, path, value)
        except UserError as error:
            problems += error.problems
    try:
        recipe = resolve(raw, host)
    except UserError as error:
        problems += error.problems
    if problems:
        raise UserError(problems)
    return recipe


def preset_names(presets: Path) -> list[str]:
    """The presets there are."""
    return sorted(file.stem for file in presets.glob("*.yaml"))


def _find_source(source: str, presets: Path) -> Path:
    names = preset_names(presets)
    if source in names:
        return presets / f"{source}.yaml"
    file = Path(source)
    if file.suffix in (".yaml", ".yml") or len(file.parts) > 1:
        if file.is_file():
            return file
        siblings = [str(found) for found in file.parent.glob("*.y*ml")]
        nearest = difflib.get_close_matches(str(file), siblings, n=1)
        hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
        raise UserError(f"{source}: no such file.{hint}")
    raise UserError(f"no preset named '{source}'.{suggestion(source, names)}")


def _assign(raw: dict[str, Any], path: list[str], value: Any) -> None:
    *parents, last = path
    if parents and parents[0] in SINGLE and last == "name" and len(path) == 2:
        section = _section(raw.get(parents[0], {}))
        if isinstance(section, dict) and section.get("name") != value:
            shared = shared_settings(parents[0])
            raw[parents[0]] = {key: section[key] for key in section if key in shared}
    for parent in parents:
        inner = _section(raw.setdefault(parent, {}))
        if not isinstance(inner, dict):
            raise UserError(f"{'.'.join(path)}: '{parent}' is a single value, not a section")
        raw[parent] = inner
        raw = inner
    raw[last] = value


def _section(value: Any) -> Any:
    """Let `model: lenet` stand for `model: {name: lenet}`."""
    return {"name": value} if isinstance(value, str) else value


def resolve(raw: Mapping[str, Any], host: Host) -> Recipe:
    """Find every plugin, type every parameter, fill in every default.

    Raises:
        UserError: with all that is wrong, one line each, and the nearest right names.
    """
    problems: list[str] = []
    raw = dict(raw)
    for kind in SINGLE:
        default = RunConfig.model_fields[kind].default
        base = default.model_dump() if isinstance(default, Choice) else {}
        given = _section(raw.get(kind, base))
        if given and isinstance(given, Mapping):
            raw[kind] = {**base, **given}
    raw["augmentations"] = _listed(raw.get("augmentations"))
    lists = {"augmentations": ("augmentation", raw["augmentations"])}
    promote = raw.get("promote")
    if isinstance(promote, str):  # the model's name alone
        promote = raw["promote"] = {"model": promote}
    if isinstance(promote, Mapping) and "gates" in promote:
        raw["promote"] = {**promote, "gates": _listed(promote["gates"])}
    config = None
    try:
        config = RunConfig.model_validate(raw)
    except ValidationError as error:
        problems += explained(error, RunConfig)
    chosen = {kind: (kind, raw.get(kind)) for kind in SINGLE}
    if isinstance(promote, Mapping):
        default_gates = [gate.model_dump() for gate in DEFAULT_GATES]
        lists["promote.gates"] = ("gate", raw["promote"].get("gates", default_gates))
    chosen |= {
        f"{where}.{at}": (kind, choice)
        for where, (kind, choices) in lists.items()
        for at, choice in enumerate(choices)
    }
    recorded: Mapping[str, str] = config.plugins if config else {}
    identities: dict[str, str] = {}
    found: dict[str, Registration] = {}
    params: dict[str, PluginParams] = {}
    written: dict[str, dict[str, Any]] = {}
    for where, (kind, given) in chosen.items():
        if not isinstance(given, Mapping) or not isinstance(given.get("name"), str):
            continue  # said above
        try:
            found[where] = host.find(kind, given["name"])
        except LookupError as error:
            before = recorded.get(f"{kind} {given['name']}")
            hint = f"  This configuration had it from {before}." if before else ""
            problems.append(f"{where}: {error}{hint}")
            continue
        if not found[where].builtin:
            identities[f"{kind} {given['name']}"] = found[where].source.identity
        own = {key: value for key, value in given.items() if key not in shared_settings(kind)}
        try:
            params[where] = found[where].params.model_validate(own)
            written[where] = params[where].model_dump(mode="json")
        except ValidationError as error:
            problems += explained(error, found[where].params, where, f" of '{given['name']}'")
        except Exception as error:  # a plugin's own validator or type may raise anything
            name, origin = given["name"], found[where].source.origin
            problems.append(f"{where}: '{name}' ({origin}): {type(error).__name__}: {error}")
    wanted = raw.get("device")
    if isinstance(wanted, str) and (reason := devices.unavailable(wanted)):
        problems.append(f"device: {wanted}: {reason}")
    if problems or config is None:
        raise UserError(problems)
    single = {kind: params.pop(kind) for kind in SINGLE}
    filled: dict[str, Any] = {
        kind: getattr(config, kind).model_dump() | written[kind] for kind in SINGLE
    }
    typed_lists = {
        where: tuple(params[f"{where}.{at}"] for at in range(len(choices)))
        for where, (_, choices) in lists.items()
    }
    complete_lists = {
        where: [
            {"name": choice["name"]} | written[f"{where}.{at}"] for at, choice in enumerate(choices)
        ]
        for where, (_, choices) in lists.items()
    }
    filled["augmentations"] = complete_lists["augmentations"]
    if config.promote:
        filled["promote"] = {
            "model": config.promote.model,
            "gates": complete_lists["promote.gates"],
        }
    filled["plugins"] = identities
    return Recipe(
        RunConfig.model_validate(config.model_dump(mode="json") | filled),
        recorded,
        found,
        augmentations=typed_lists["augmentations"],  # type: ignore[arg-type]
        gates=typed_lists.get("promote.gates", ()),  # type: ignore[arg-type]
        **single,  # type: ignore[arg-type]
    )


def _listed(choices: Any) -> list[Any]:
    """Let `[flip]`, `flip` and `[{name: flip}]` stand for one another."""
    choices = choices or []
    if not isinstance(choices, list | tuple):
        choices = [choices]
    return [_section(choice) for choice in choices]


def shared_settings(kind: str) -> Mapping[str, FieldInfo]:
    """The settings the host itself keeps beside the parameters of a kind's plugins."""
    field = RunConfig.model_fields.get(kind)
    return getattr(field.annotation, "model_fields", {}) if field else Choice.model_fields
