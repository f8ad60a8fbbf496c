"""The plugin host: finds plugins, sets broken ones aside, and looks them up by name.

A plugin of a third party is imported when a name is asked for that it may register: its text
says which (`core/hosting/static.py`). So plugins that a run does not use cost it nothing.
"""

from __future__ import annotations

import difflib
import inspect
import os
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pluggy

from torchyard.core.hosting import hookspecs
from torchyard.core.hosting.params import KINDS, PluginParams
from torchyard.core.hosting.sources import (
    PLUGIN_FOLDERS,
    Find,
    Source,
    builtin_sources,
    folder_sources,
    installed_sources,
    plugin_folders,
    raising_line,
)
from torchyard.core.hosting.static import HOOK_NAMES, Announcement, announced, parse

PLUGINS_OFF = "TORCHYARD_PLUGINS_OFF"

HOOKS = {
    "dataset": "register_datasets",
    "augmentation": "register_augmentations",
    "model": "register_models",
    "loss": "register_losses",
    "optimizer": "register_optimizers",
    "scheduler": "register_schedulers",
    "gate": "register_gates",
}

# What the host itself keeps beside a plugin's parameters (see `core/config/schema.py`).
RESERVED = {"name", "normalize", "freeze"}


@dataclass(frozen=True)
class Registration:
    """One plugin under its name."""

    kind: str
    name: str
    params: type[PluginParams]
    source: Source
    builtin: bool

    @property
    def status(self) -> str:
        """As the listing shows it."""
        return "built in" if self.builtin else "loaded"

    @property
    def qualified(self) -> str:
        """The name that tells it from those of other sources."""
        return f"{self.source.name}/{self.name}"

    @property
    def summary(self) -> str:
        """The first line of the plugin's docstring."""
        return (inspect.getdoc(self.params) or "").partition("\n")[0]


@dataclass(frozen=True)
class Unloaded:
    """A plugin that was not imported: what its file says of it.

    Attributes:
        name: may end with "*", where only its import tells the names.
        status: "not loaded", or "off".
    """

    kind: str
    name: str
    summary: str
    source: Source
    status: str
    builtin = False


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with a plugin, and the line of its file, where one is to blame."""

    reason: str
    line: int | None = None


@dataclass(frozen=True)
class BrokenPlugin:
    """A plugin that was set aside, and why: the first of its faults."""

    source: Source
    reason: str
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True)
class _Waiting:
    """A plugin to import when one of its names is asked for."""

    source: Source
    find: Find
    announced: tuple[Announcement, ...]

    def announces(self, kind: str, name: str) -> bool:
        return any((each.hook, each.name) == (HOOKS[kind], name) for each in self.announced)

    def covers(self, kind: str, name: str) -> bool:
        names = {name, name.removeprefix(f"{self.source.name}/")}
        return any(
            each.hook == HOOKS[kind] and each.covers(asked)
            for each in self.announced
            for asked in names
        )


class Host:
    """All plugins of this process, by kind and name.

    Attributes:
        sources: all that were imported, in that order.
        broken: those of them that were set aside, and folders that are not there.
    """

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager("torchyard")
        self._manager.add_hookspecs(hookspecs)
        self._registrations: dict[str, dict[str, list[Registration]]] = {k: {} for k in KINDS}
        self._waiting: list[_Waiting] = []
        self._off: list[_Waiting] = []
        self.sources: list[Source] = []
        self.broken: list[BrokenPlugin] = []

    def offer(self, source: Source, find: Find, *, off: bool = False) -> None:
        """Take a plugin in without importing it; a name that it may register will do that."""
        names = [Announcement(hook, "*") for hook in HOOK_NAMES]
        if source.file.endswith(".py"):
            module = parse(Path(source.file))
            if module is None and not off:
                self.load(source, find)  # which fails at once, and says why
                return
            names = announced(module) if module else []
        (self._off if off else self._waiting).append(_Waiting(source, find, tuple(names)))

    def load_all(self) -> None:
        """Import every plugin there is, but for those that are off."""
        self._load_waiting(list(self._waiting))

    def _load_waiting(self, chosen: list[_Waiting]) -> None:
        for waiting in chosen:
            self._waiting.remove(waiting)
            self.load(waiting.source, waiting.find)

    def load(self, source: Source, find: Find, *, builtin: bool = False) -> None:
        """Import one plugin and run its hooks; whatever it raises sets it aside.

        A plugin that fails half-way leaves no name behind.
        """
        self.sources.append(source)
        pending: list[Registration] = []
        faults: list[Fault] = []
        plugin = None
        try:
            # What a plugin prints must not get into what `--json` prints.
            with redirect_stdout(sys.stderr):
                plugin = find()
            self._manager.register(plugin, name=source.origin)
            for kind, hook in HOOKS.items():
                for implementation in getattr(self._manager.hook, hook).get_hookimpls():
                    if implementation.plugin is plugin:
                        register = self._collector(kind, source, builtin, pending, faults)
                        implementation.function(register)
            self._manager.check_pending()  # a hook of a name that is none
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit, too, and whatever else it may raise
            faults.append(
                Fault(f"{type(error).__name__}: {error}", raising_line(error, source.file))
            )
        if faults:
            if plugin is not None and self._manager.is_registered(plugin):
                self._manager.unregister(plugin)
            self.broken.append(BrokenPlugin(source, faults[0].reason, tuple(faults)))
            return
        for registration in pending:
            self._registrations[registration.kind].setdefault(registration.name, []).append(
                registration
            )

    def _collector(
        self,
        kind: str,
        source: Source,
        builtin: bool,
        pending: list[Registration],
        faults: list[Fault],
    ) -> hookspecs.Register:
        def register(name: str, params: type) -> None:
            try:
                self._check(kind, name, params, pending)
            except (TypeError, ValueError) as error:
                # Kept, not raised: the hook goes on, and all its faults are known at once.
                line = sys._getframe(1).f_lineno
                faults.append(Fault(f"{type(error).__name__}: {error}", line))
            else:
                pending.append(Registration(kind, name, params, source, builtin))

        return register

    def _check(self, kind: str, name: str, params: type, pending: list[Registration]) -> None:
        base = KINDS[kind]
        if not (isinstance(params, type) and issubclass(params, base)):
            raise TypeError(f"{kind} '{name}': {params!r} is not a {base.__name__}")
        if inspect.isabstract(params):
            raise TypeError(f"{kind} '{name}': {params.__name__} has no build method")
        if not isinstance(name, str) or not name or any(each in name for each in " =,*"):
            raise ValueError(f"{kind} '{name}': not a usable name")
        for taken in RESERVED & params.model_fields.keys():
            raise ValueError(f"{kind} '{name}': no parameter can be named '{taken}'")
        if any((other.kind, other.name) == (kind, name) for other in pending):
            raise ValueError(f"{kind} '{name}': is registered twice")

    def registrations(self, kind: str) -> Iterator[tuple[str, Registration]]:
        """Every imported plugin of a kind under the name that finds it, in alphabetical order.

        Where several sources use one name, each is listed as `source/name`; a built-in
        keeps the bare name.
        """
        for name, found in self.listed(kind):
            if isinstance(found, Registration):
                yield name, found

    def listed(self, kind: str) -> Iterator[tuple[str, Registration | Unloaded]]:
        """Every plugin of a kind as `registrations` has them, and those not imported."""
        named: dict[str, list[Registration | Unloaded]] = {}
        for name, registered in self._registrations[kind].items():
            named.setdefault(name, []).extend(registered)
        for status, those in (("not loaded", self._waiting), ("off", self._off)):
            for waiting in those:
                for told in waiting.announced:
                    if told.hook == HOOKS[kind]:
                        unloaded = Unloaded(kind, told.name, told.summary, waiting.source, status)
                        named.setdefault(told.name, []).append(unloaded)
        for name, candidates in sorted(named.items()):
            rivals = [each for each in candidates if each.status != "off"] or candidates
            for each in sorted(candidates, key=lambda each: (not each.builtin, each.source.name)):
                alone = each.builtin or rivals == [each]
                yield (name if alone else f"{each.source.name}/{name}"), each

    def find(self, kind: str, name: str) -> Registration:
        """Look a plugin up by its bare or its qualified name, and import it if need be.

        Before a name is refused, plugins are imported whose text does not show a single name.

        Raises:
            LookupError: nothing, or more than one thing, has that name; the message
                names the nearest, or the candidates.
        """
        candidates = self._registrations[kind].get(name, [])
        builtin = next((found for found in candidates if found.builtin), None)
        if builtin:
            return builtin
        asked = [waiting for waiting in self._waiting if waiting.covers(kind, name)]
        self._load_waiting(asked)
        found = self._lookup(kind, name)
        if found is None:
            self._load_waiting([waiting for waiting in self._waiting if not waiting.announced])
            found = self._lookup(kind, name)
        if found is None:
            raise LookupError(self._refusal(kind, name, asked))
        return found

    def _lookup(self, kind: str, name: str) -> Registration | None:
        found = self._registrations[kind].get(name, []) or [
            registered
            for same_name in self._registrations[kind].values()
            for registered in same_name
            if name == registered.qualified
        ]
        if len(found) < 2:
            return found[0] if found else None
        rivals = sorted(registered.qualified for registered in found)
        if len(set(rivals)) == len(rivals):
            raise LookupError(f"several plugins are named '{name}': choose {' or '.join(rivals)}")
        files = " and ".join(sorted(registered.source.origin for registered in found))
        raise LookupError(f"several plugins are named '{rivals[0]}', of {files}: rename one")

    def _refusal(self, kind: str, name: str, asked: list[_Waiting]) -> str:
        listed = [known for known, found in self.listed(kind) if found.status != "off"]
        known = [name for name in listed if not name.endswith("*")]
        message = f"no {kind} named '{name}'."
        for off in self._off:
            if off.covers(kind, name):
                return f"{message}  {off.source.origin} is turned off ({PLUGINS_OFF})"
        aside = {broken.source: broken for broken in self.broken}
        for waiting in asked:
            if waiting.source not in aside and waiting.announces(kind, name):
                why = "`torchyard plugins check` says what is wrong with it"
                return f"{message}  {waiting.source.origin} should register it: {why}"
        nearest = difflib.get_close_matches(name, known, n=1)
        if nearest:
            message += f" Did you mean '{nearest[0]}'?"
        elif len(known) <= 12:
            message += f"  (there are: {', '.join(known)})"
        else:
            message += f"  (`torchyard plugins {kind}` lists the {len(known)} there are)"
        # Of many that are broken, those are meant that would have had the name.
        meant = [aside[each.source] for each in asked if each.source in aside]
        for broken in meant or self.broken:
            message += f"  Set aside: {broken.source.origin} ({broken.reason})"
        return message


@cache
def host() -> Host:
    """The plugins of this process: built-in, installed, and from the plugin folders.

    Built-ins are loaded first, so that no other plugin's import can hinder them.
    """
    found = Host()
    for source, find in builtin_sources():
        found.load(source, find, builtin=True)
    off = {name.strip() for name in os.environ.get(PLUGINS_OFF, "").split(",") if name.strip()}
    known = {"all"}
    folders = plugin_folders()
    for sources in (installed_sources(), *map(folder_sources, folders)):
        for source, find in sources:
            known.add(source.name)
            found.offer(source, find, off=bool(off & {source.name, "all"}))
    missing = [
        (str(path), f"no such folder ({PLUGIN_FOLDERS})") for path in folders if not path.is_dir()
    ]
    missing += [(name, f"no such plugin ({PLUGINS_OFF})") for name in sorted(off - known)]
    found.broken += [BrokenPlugin(Source(Path(what).name, what, ""), why) for what, why in missing]
    return found
