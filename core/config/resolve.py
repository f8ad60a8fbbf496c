"""A configuration with its plugins: read, found, typed, every default filled in.

A configuration is read as a plain mapping, then resolved (`resolve`) against the plugins:
all that is wrong with it is told at once, before any work begins.
"""

from __future__ import annotations

import ctypes
import difflib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from torchyard.core.config.messages import explained
from torchyard.core.config.parsing import parse_value, read_settings, references, revealed
from torchyard.core.config.schema import DEFAULT_GATES, SINGLE, Choice, RunConfig, shared_settings
from torchyard.core.errors import UserError, suggestion
from torchyard.core.hosting.manager import Host
from torchyard.core.hosting.params import (
    AugmentationParams,
    DatasetParams,
    GateParams,
    LossParams,
    ModelParams,
    OptimizerParams,
    PluginParams,
    SchedulerParams,
)
from torchyard.core.hosting.registration import Registration

_CUDA_ERROR_NO_DEVICE = 100


def unavailable(device: str) -> str | None:
    """Say why a device is certainly missing on this machine, without importing torch.

    Args:
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".

    Returns:
        The reason, or None where it may be there: `choose` has the last word.
    """
    if device == "mps" and sys.platform != "darwin":
        return "this machine has no Apple GPU (accepts: auto, cpu, cuda, cuda:N, mps)"
    if not device.startswith("cuda"):
        return None
    count = _cuda_devices()
    if count == 0:
        return "this machine has no CUDA GPU (device=cpu and device=auto run here)"
    wanted = device.partition(":")[2] or "0"
    if count is not None and wanted.isdecimal() and int(wanted) >= count:
        return f"this machine has {count} CUDA GPU(s), numbered from 0"
    return None


def _cuda_devices() -> int | None:
    """Ask the CUDA driver how many GPUs there are; None where it gives no answer."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int()
    status = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if status:
        return 0 if status == _CUDA_ERROR_NO_DEVICE else None
    return count.value


@dataclass(frozen=True)
class ResolvedConfig:
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


def read_config(source: str, overrides: Sequence[str], presets: Path, host: Host) -> ResolvedConfig:
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
        resolved = resolve(raw, host)
    except UserError as error:
        problems += error.problems
    if problems:
        raise UserError(problems)
    return resolved


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
        if raw.get(parent) is None:
            raw[parent] = {}
        inner = _section(raw[parent], "model" if parent == "promote" else "name")
        if not isinstance(inner, dict):
            raise UserError(f"{'.'.join(path)}: '{parent}' is a single value, not a section")
        raw[parent] = inner
        raw = inner
    raw[last] = value


def _section(value: Any, key: str = "name") -> Any:
    """Let `model: lenet` stand for `model: {name: lenet}`."""
    return {key: value} if isinstance(value, str) else value


def resolve(raw: Mapping[str, Any], host: Host) -> ResolvedConfig:
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
            params[where], written[where] = _typed(where, found[where], own)
        except UserError as error:
            problems += error.problems
    wanted = raw.get("device")
    if isinstance(wanted, str) and (reason := unavailable(wanted)):
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
    return ResolvedConfig(
        RunConfig.model_validate(config.model_dump(mode="json") | filled),
        recorded,
        found,
        augmentations=typed_lists["augmentations"],  # type: ignore[arg-type]
        gates=typed_lists.get("promote.gates", ()),  # type: ignore[arg-type]
        **single,  # type: ignore[arg-type]
    )


def _typed(
    where: str, found: Registration, own: Mapping[str, Any]
) -> tuple[PluginParams, dict[str, Any]]:
    """A plugin's parameters with every default, and as they are recorded."""
    secrets, problems = revealed(where, own)
    if problems:
        raise UserError(problems)
    try:
        typed = found.params.model_validate({**own, **secrets})
        return typed, typed.model_dump(mode="json") | references(own)
    except ValidationError as error:
        problems += explained(error, found.params, where, f" of '{found.name}'")
    except Exception as error:  # a plugin's own validator or type may raise anything
        reason = f"{type(error).__name__}: {error}"
        problems.append(f"{where}: '{found.name}' ({found.source.origin}): {reason}")
    raise UserError(problems)


def _listed(choices: Any) -> list[Any]:
    """Let `[flip]`, `flip` and `[{name: flip}]` stand for one another."""
    choices = choices or []
    if not isinstance(choices, list | tuple):
        choices = [choices]
    return [_section(choice) for choice in choices]
