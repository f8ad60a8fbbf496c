"""A configuration with its plugins: each found, its parameters typed, every default filled in.

Everything that is wrong with a configuration is reported at once, before any work begins.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import ValidationError

from torchyard.core.config.files import file_identity, named_files
from torchyard.core.config.hardware import device_problem
from torchyard.core.config.messages import explain
from torchyard.core.config.parsing import as_section, preset_names, read_overridden
from torchyard.core.config.schema import (
    AUDIT_FIGURES,
    DEFAULT_GATES,
    SINGLE_KINDS,
    STANDARD_FIGURES,
    RunConfig,
    shared_settings,
)
from torchyard.core.config.secrets import read_secrets, recordable
from torchyard.core.config.weights import WeightsSource, weights_path
from torchyard.core.errors import UserError, suggestion
from torchyard.core.hosting import params
from torchyard.core.hosting.containment import contained
from torchyard.core.hosting.host import Host
from torchyard.core.hosting.registration import Registration


@dataclass(frozen=True)
class ResolvedConfig:
    """A configuration with its plugins found and typed; nothing is built yet.

    Attributes:
        config: with every default filled in, and the origin of each plugin not built in.
        recorded_origins: the origins of plugins and files that the configuration was read with,
            if any.
        plugins: the plugin in each slot, such as "model" or "augmentations.0".
        dataset, augmentations, model, loss, optimizer, scheduler, metrics, gates: their
            parameters.
        group_settings: of each of `optimizer.groups`, what it sets, typed by the optimizer.
        weights: what `model.weights` names, unless that is a parameter of the model's own.
    """

    config: RunConfig
    recorded_origins: Mapping[str, str]
    plugins: Mapping[str, Registration]
    dataset: params.DatasetParams
    augmentations: tuple[params.AugmentationParams, ...]
    model: params.ModelParams
    loss: params.LossParams
    optimizer: params.OptimizerParams
    scheduler: params.SchedulerParams
    metrics: tuple[params.MetricParams, ...] = ()
    gates: tuple[params.GateParams, ...] = ()
    group_settings: tuple[Mapping[str, Any], ...] = ()
    weights: str | None = None

    def with_batch_size(self, size: int) -> ResolvedConfig:
        """The same with a number for `train.batch_size=auto`."""
        train = self.config.train
        if train.batch_size != "auto":
            return self
        train = train.model_copy(update={"batch_size": size})
        return replace(self, config=self.config.model_copy(update={"train": train}))

    @property
    def named_gates(self) -> list[tuple[str, params.GateParams]]:
        """The gates of a promotion, with their names."""
        chosen = self.config.promote.gates if self.config.promote else ()
        return [(gate.name, typed) for gate, typed in zip(chosen, self.gates, strict=True)]

    @property
    def audited(self) -> bool:
        """Whether the data set is audited: its settings or a gate ask for it."""
        chosen = self.config.dataset
        if chosen.audit or chosen.exclude:
            return True
        for gate in self.gates:
            with suppress(Exception), contained():  # what is wrong with a plugin is said elsewhere
                if not {*AUDIT_FIGURES}.isdisjoint(gate.figures_used()):
                    return True
        return False

    @property
    def named_metrics(self) -> list[tuple[str, params.MetricParams]]:
        """The metrics, with their names."""
        names = [choice.name for choice in self.config.metrics]
        return list(zip(names, self.metrics, strict=True))

    @property
    def changed(self) -> list[str]:
        """A message for each plugin or file whose origin differs from the recorded one.

        A data set's files are left out: they may change from run to run, and the digest of the
        samples tells.
        """
        return [
            f"{what} was of {before}, and is of {now} here"
            for what, (before, now) in self.changes.items()
            if not what.startswith("dataset.")
        ]

    @property
    def changes(self) -> dict[str, tuple[str, str]]:
        """The plugins and files whose origin differs from the recorded one: (recorded, now)."""
        return {
            what: (before, now)
            for what, now in self.config.plugins.items()
            if (before := self.recorded_origins.get(what, now)) != now
        }


def read_config(
    source: str | Mapping[str, Any],
    overrides: Sequence[str | Mapping[str, Any]],
    presets: Path,
    host: Host,
) -> ResolvedConfig:
    """Read a preset or a YAML file, apply overrides to it, and resolve it, as `read_overridden`.

    An override of a plugin's name drops the parameters of the plugin it replaces; torchyard's
    own settings in that section (`dataset.normalize`) stay.

    Raises:
        UserError: with everything that is wrong with file, overrides and settings.
    """
    try:
        settings, problems = read_overridden(source, overrides, presets)
    except UserError as error:
        _, *others = error.problems
        if isinstance(source, str) and (hint := _plugin_in_place(source, presets, host)):
            raise UserError([hint, *others]) from None
        raise
    try:
        resolved = resolve(settings, host)
    except UserError as error:
        problems += error.problems
    if problems:
        raise UserError(problems)
    return resolved


_Typed: TypeAlias = tuple[Any, dict[str, Any]]


def _plugin_in_place(source: str, presets: Path, host: Host) -> str:
    """How to write it, where a plugin's name stands in the place of a preset's; "" elsewhere."""
    for kind in SINGLE_KINDS:
        if source in dict(host.listed(kind)):
            fields = host.find(kind, source).params.model_fields.items()
            needs = "".join(f" {kind}.{name}=…" for name, field in fields if field.is_required())
            return (
                f"'{source}' is the name of a {kind}, not of a preset: choose it in one, such as "
                f"{preset_names(presets)[0]} {kind}={source}{needs}"
            )
    return ""


@dataclass(frozen=True)
class _Plugin:
    """A chosen plugin; `name` is bare or qualified, as it was chosen."""

    name: str
    registration: Registration
    params: Any  # of the class of its kind
    recorded: dict[str, Any]
    given: dict[str, Any]  # the parameters as they are written


def resolve(settings: Mapping[str, Any], host: Host) -> ResolvedConfig:
    """Find every plugin, type every parameter, fill in every default.

    Raises:
        UserError: with all that is wrong, one line each, and the nearest right names.
    """
    settings = _written_out(settings)
    problems: list[str] = []
    config = None
    try:
        config = RunConfig.model_validate(settings)
    except ValidationError as error:
        problems += explain(error, RunConfig)
    before = config.plugins if config else {}
    plugins: dict[str, _Plugin] = {}
    for slot, kind, choice in _choices(settings):
        if not isinstance(choice, Mapping) or not isinstance(choice.get("name"), str):
            continue  # a problem of the configuration
        try:
            plugins[slot] = _find(slot, kind, choice, host, before)
        except UserError as error:
            problems += error.problems
    device = settings.get("device")
    if isinstance(device, str) and (reason := device_problem(device)):
        problems.append(f"device: {device}: {reason}")
    if config and (problem := _monitor_problem(config)):
        problems.append(problem)
    groups: list[_Typed] = []
    if config is not None and (optimizer := plugins.get("optimizer")):
        for index, group in enumerate(config.optimizer.groups):
            slot = f"optimizer.groups.{index}"
            try:
                groups.append(
                    _typed(slot, optimizer.registration, optimizer.given | group.settings)
                )
            except UserError as error:
                problems += error.problems
    if problems or config is None:
        raise UserError(problems)
    return _filled_in(config, plugins, groups)


def resolve_once(config: Mapping[str, Any], host: Host) -> ResolvedConfig:
    """`resolve` a configuration of plain JSON values once in each process."""
    return _resolved(json.dumps(config, sort_keys=True), host)


@functools.lru_cache(maxsize=8)
def _resolved(config: str, host: Host) -> ResolvedConfig:
    return resolve(json.loads(config), host)


def _written_out(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without short forms: a section for each plugin, with its name."""
    full = dict(settings)
    for kind in SINGLE_KINDS:
        field = RunConfig.model_fields[kind]
        base = {} if field.is_required() else field.default.model_dump()
        section = as_section(full.get(kind, base))
        if section and isinstance(section, Mapping):
            full[kind] = {**base, **section}
    for section in ("augmentations", "metrics"):
        full[section] = _sections(full.get(section))
    promote = as_section(full.get("promote"), "model")
    if isinstance(promote, Mapping):
        gates = promote.get("gates", [gate.model_dump() for gate in DEFAULT_GATES])
        full["promote"] = {**promote, "gates": _sections(gates)}
    return full


def _sections(choices: Any) -> list[Any]:
    """Let `[flip]`, `flip` and `[{name: flip}]` stand for one another."""
    choices = choices or []
    if not isinstance(choices, list | tuple):
        choices = [choices]
    return [as_section(choice) for choice in choices]


def _choices(settings: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """The slot, kind and section of each plugin that is chosen."""
    for kind in SINGLE_KINDS:
        yield kind, kind, settings.get(kind)
    for index, choice in enumerate(settings["augmentations"]):
        yield f"augmentations.{index}", "augmentation", choice
    for index, choice in enumerate(settings["metrics"]):
        yield f"metrics.{index}", "metric", choice
    if isinstance(settings.get("promote"), Mapping):
        for index, choice in enumerate(settings["promote"]["gates"]):
            yield f"promote.gates.{index}", "gate", choice


def _find(
    slot: str, kind: str, choice: Mapping[str, Any], host: Host, before: Mapping[str, str]
) -> _Plugin:
    """Find a plugin, which may have had another origin `before`, and type its parameters."""
    try:
        registration = host.find(kind, choice["name"])
    except LookupError as error:
        origin = before.get(f"{kind} {choice['name']}")
        hint = f"  This configuration had it from {origin}." if origin else ""
        raise UserError(f"{slot}: {error}{hint}") from None
    shared = shared_settings(kind).keys() - registration.params.model_fields.keys()
    own = {key: value for key, value in choice.items() if key not in shared}
    given, problems = read_secrets(slot, own)
    if problems:
        raise UserError(problems)
    name, (typed, plain) = choice["name"], _typed(slot, registration, given)
    recorded = recordable(plain, own)
    return _Plugin(name, registration, typed, {"name": name} | recorded, given)


def _typed(slot: str, registration: Registration, given: Mapping[str, Any]) -> _Typed:
    """A plugin's parameters as an instance of its class, and as plain values."""
    problems: list[str] = []
    try:
        with contained():
            typed = registration.params.model_validate(given)
            return typed, typed.model_dump(mode="json")
    except ValidationError as error:
        problems += explain(error, registration.params, slot, f" of '{registration.name}'")
    except Exception as error:  # a plugin's own validator or type may raise anything
        origin = f"'{registration.name}' ({registration.source.origin})"
        problems.append(f"{slot}: {origin}: {type(error).__name__}: {error}")
    raise UserError(problems)


def _monitor_problem(config: RunConfig) -> str | None:
    """Why no figure can have the name `train.monitor`; what a metric makes is found out later."""
    monitor, metrics = config.train.monitor, [choice.name for choice in config.metrics]
    if monitor in STANDARD_FIGURES:
        return None
    if any(monitor == name or monitor.startswith(f"{name}/") for name in metrics):
        return None
    known = [*STANDARD_FIGURES, *metrics]
    return f"train.monitor: no figure '{monitor}'.{suggestion(monitor, known)}"


def _filled_in(
    config: RunConfig, plugins: Mapping[str, _Plugin], groups: Sequence[_Typed]
) -> ResolvedConfig:
    """The configuration with the plugins' defaults and origins, which is what is recorded."""
    augmentations, metrics, gates = (
        [plugin for slot, plugin in plugins.items() if slot.startswith(section)]
        for section in ("augmentations.", "metrics.", "promote.gates.")
    )
    full = config.model_dump(mode="json")
    for kind in SINGLE_KINDS:
        full[kind] |= plugins[kind].recorded
    for written, chosen, (_, plain) in zip(
        full["optimizer"]["groups"], config.optimizer.groups, groups, strict=True
    ):
        written |= {name: plain[name] for name in chosen.settings}
    full["augmentations"] = [plugin.recorded for plugin in augmentations]
    full["metrics"] = [plugin.recorded for plugin in metrics]
    if config.promote:
        full["promote"]["gates"] = [plugin.recorded for plugin in gates]
    full["plugins"] = {
        f"{plugin.registration.kind} {plugin.name}": plugin.registration.source.identity
        for plugin in plugins.values()
        if not plugin.registration.builtin
    }
    for slot, plugin in plugins.items():
        for name, file in named_files(plugin.params):
            setting = f"{slot}.{name}"
            if setting in config.plugins or file.is_file():  # one that has gone since has changed
                full["plugins"][setting] = file_identity(file)
    owned = "weights" in plugins["model"].registration.params.model_fields
    weights = None if owned else config.model.weights
    if weights and WeightsSource.of(weights) is WeightsSource.FILE:
        file = weights_path(weights)
        if "model.weights" in config.plugins or file.is_file():
            full["plugins"]["model.weights"] = file_identity(file)
    return ResolvedConfig(
        RunConfig.model_validate(full),
        config.plugins,
        {slot: plugin.registration for slot, plugin in plugins.items()},
        augmentations=tuple(plugin.params for plugin in augmentations),
        metrics=tuple(plugin.params for plugin in metrics),
        gates=tuple(plugin.params for plugin in gates),
        group_settings=tuple(
            {name: getattr(typed, name) for name in chosen.settings}
            for chosen, (typed, _) in zip(config.optimizer.groups, groups, strict=True)
        ),
        weights=weights,
        **{kind: plugins[kind].params for kind in SINGLE_KINDS},
    )
