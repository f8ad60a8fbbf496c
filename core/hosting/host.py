"""The plugin host: loads plugins, looks them up by name, and keeps what fails to load apart.

A plugin of a third party is imported when a name is asked for that its text declares
(`core/hosting/static.py`), so plugins that a run does not use cost it nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import cache, partial
from itertools import chain, groupby
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import pluggy

from torchyard.core.errors import did_you_mean
from torchyard.core.hosting import hookspecs, old_imports, sources
from torchyard.core.hosting.containment import Surroundings, contained
from torchyard.core.hosting.hookspecs import HOOKS
from torchyard.core.hosting.params import KINDS
from torchyard.core.hosting.registration import BrokenPlugin, Fault, Registration, Unloaded
from torchyard.core.hosting.sources import PLUGIN_FOLDERS, Load, Source
from torchyard.core.hosting.static import declarations, parse

PLUGINS_OFF = "TORCHYARD_PLUGINS_OFF"


class _Deferred(NamedTuple):
    """A plugin that is imported when one of its names is asked for."""

    source: Source
    load: Load
    declared: list[Unloaded]

    def covers(self, kind: str, name: str) -> bool:
        return any(each.covers(kind, name) for each in self.declared)


class Host:
    """All plugins of this process, by kind and name.

    Attributes:
        sources: all whose import was tried, in that order.
        broken: those of them that failed to load, and folders that do not exist.
    """

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager("torchyard")
        self._manager.add_hookspecs(hookspecs)
        self._registrations: list[Registration] = []
        self._deferred: list[_Deferred] = []
        self._off: list[_Deferred] = []
        self.sources: list[Source] = []
        self.broken: list[BrokenPlugin] = []

    def add(self, source: Source, load: Load, *, off: bool = False) -> None:
        """Add a plugin; it is imported when a name is asked for that its text declares."""
        group, status = (self._off, "off") if off else (self._deferred, "not loaded")
        declared = [Unloaded(kind, "*", "", source, status) for kind in KINDS]
        if source.source_file:
            module = parse(source.source_file)
            if module is None and not off:
                self.load(source, load)  # which fails, and records why
                return
            declared = declarations(module, source, status) if module else []
        group.append(_Deferred(source, load, declared))

    def load_all(self) -> None:
        """Import every plugin that is not turned off."""
        self._load_deferred(list(self._deferred))

    def _load_deferred(self, chosen: list[_Deferred]) -> None:
        for deferred in chosen:
            self._deferred.remove(deferred)
            self.load(deferred.source, deferred.load)

    def load(self, source: Source, load: Load, *, builtin: bool = False) -> None:
        """Import one plugin and run its hooks; if anything raises, it joins `broken`.

        A plugin that fails half-way registers nothing.
        """
        self.sources.append(source)
        if outdated := old_imports.in_file(source.file):
            reason = old_imports.in_one_line(outdated, source.file)
            self.broken.append(BrokenPlugin(source, reason, tuple(outdated)))
            return
        pending: list[Registration] = []
        faults: list[Fault] = []

        def register(kind: str, name: str, params: type) -> None:
            try:
                registration = Registration(kind, name, params, source, builtin)
                if any((other.kind, other.name) == (kind, name) for other in pending):
                    raise ValueError(f"{kind} '{name}': is registered twice")
                pending.append(registration)
            except (TypeError, ValueError) as error:
                # Collected, not raised: the hook continues, and all faults are reported at once.
                line = sys._getframe(1).f_lineno
                faults.append(Fault(f"{type(error).__name__}: {error}", line))

        plugin = None
        before = Surroundings.now()
        try:
            # What a plugin prints must not get into what `--json` prints.
            with contained(), redirect_stdout(sys.stderr):
                plugin = load()
                self._manager.register(plugin, name=source.origin)
                for kind, hook in HOOKS.items():
                    for implementation in getattr(self._manager.hook, hook).get_hookimpls():
                        if implementation.plugin is not plugin:
                            continue
                        before_it = len(pending) + len(faults)
                        made = implementation.function(partial(register, kind))
                        if made is not None and len(pending) + len(faults) == before_it:
                            raise TypeError(
                                f"'{hook}' returns a {type(made).__name__} and registers nothing: "
                                "call register(name, class) for each plugin"
                            )
            self._manager.check_pending()  # raises for a marked function that is no known hook
        except Exception as error:
            said = " ".join(str(error).partition("\n\n")[0].split())  # pydantic adds paragraphs
            reason = old_imports.raised_by(error) or f"{type(error).__name__}: {said}"
            faults.append(Fault(reason, sources.raising_line(error, source.file)))
        faults += [Fault(f"importing it changes {what}") for what in before.restore()]
        if not faults:
            self._registrations += pending
            return
        if plugin is not None and self._manager.is_registered(plugin):
            self._manager.unregister(plugin)
        self.broken.append(BrokenPlugin(source, faults[0].reason, tuple(faults)))

    def registrations(self, kind: str) -> Iterator[tuple[str, Registration]]:
        """Every imported plugin of a kind with the name that finds it, in alphabetical order.

        Where several sources use one name, each is listed as `source/name`; a built-in
        keeps the bare name.
        """
        return ((name, each) for name, each in self.listed(kind) if isinstance(each, Registration))

    def listed(self, kind: str) -> Iterator[tuple[str, Registration | Unloaded]]:
        """Every plugin of a kind, named as in `registrations`, also those not imported."""
        of_kind: list[Registration | Unloaded] = []
        of_kind += [each for each in self._registrations if each.kind == kind]
        for deferred in (*self._deferred, *self._off):
            of_kind += [each for each in deferred.declared if each.kind == kind]
        of_kind.sort(key=lambda each: (each.name, not each.builtin, each.source.name))
        for name, group in groupby(of_kind, key=attrgetter("name")):
            candidates = list(group)
            rivals = [each for each in candidates if each.status != "off"] or candidates
            for plugin in candidates:
                alone = plugin.builtin or rivals == [plugin]
                yield (name if alone else f"{plugin.source.name}/{name}"), plugin

    def find(self, kind: str, name: str) -> Registration:
        """Look up a plugin by its bare or its qualified name, importing it if necessary.

        Before a name is refused, plugins are imported whose text declares no name at all.

        Raises:
            LookupError: no plugin, or more than one, has that name; the message
                names the nearest, or the candidates.
        """
        for registration in self._registrations:
            if registration.builtin and (registration.kind, registration.name) == (kind, name):
                return registration
        asked = [deferred for deferred in self._deferred if deferred.covers(kind, name)]
        unclear = [deferred for deferred in self._deferred if not deferred.declared]
        for chosen in (asked, unclear):
            self._load_deferred(chosen)
            if registered := self._lookup(kind, name):
                return registered
        raise LookupError(self._refusal(kind, name, asked))

    def _lookup(self, kind: str, name: str) -> Registration | None:
        of_kind = [each for each in self._registrations if each.kind == kind]
        matches = [each for each in of_kind if each.name == name] or [
            each for each in of_kind if each.qualified == name
        ]
        if len(matches) < 2:
            return matches[0] if matches else None
        rivals = sorted(registered.qualified for registered in matches)
        if len(set(rivals)) == len(rivals):
            raise LookupError(f"several plugins are named '{name}': choose {' or '.join(rivals)}")
        files = " and ".join(sorted(registered.source.origin for registered in matches))
        raise LookupError(f"several plugins are named '{rivals[0]}' ({files}): rename one")

    def _refusal(self, kind: str, name: str, asked: list[_Deferred]) -> str:
        listed = [known for known, plugin in self.listed(kind) if plugin.status != "off"]
        known = [name for name in listed if not name.endswith("*")]
        message = f"no {kind} named '{name}'."
        for off in self._off:
            if off.covers(kind, name):
                return f"{message}  {off.source.origin} is turned off ({PLUGINS_OFF})"
        broken = {each.source: each for each in self.broken}
        for deferred in asked:
            named = any((each.kind, each.name) == (kind, name) for each in deferred.declared)
            if named and deferred.source not in broken:
                why = "`torchyard plugins check` says what is wrong with it"
                return f"{message}  {deferred.source.origin} should register it: {why}"
        if hint := did_you_mean(name, known):
            message += hint
        elif len(known) <= 12:
            message += f"  (there are: {', '.join(known)})"
        else:
            message += f"  (`torchyard plugins {kind}` lists all {len(known)})"
        # Of the broken plugins, those that would have had the name, if there are any.
        relevant = [broken[each.source] for each in asked if each.source in broken]
        for each in relevant or self.broken:
            message += f"  Failed to load: {each.source.origin} ({each.reason})"
        return message


@cache
def host() -> Host:
    """The plugins of this process: built-in, installed, and from the plugin folders.

    Built-ins are loaded first, so that no other plugin's import can disturb them.
    """
    plugins = Host()
    for source, load in sources.builtin_sources():
        plugins.load(source, load, builtin=True)
    off = {name.strip() for name in os.environ.get(PLUGINS_OFF, "").split(",") if name.strip()}
    known = {"all"}
    folders = sources.plugin_folders()
    others = (sources.installed_sources(), *map(sources.folder_sources, folders))
    for source, load in chain.from_iterable(others):
        known.add(source.name)
        plugins.add(source, load, off=bool(off & {source.name, "all"}))
    missing = [
        (str(path), f"no such folder ({PLUGIN_FOLDERS})") for path in folders if not path.is_dir()
    ]
    missing += [(name, f"no such plugin ({PLUGINS_OFF})") for name in sorted(off - known)]
    for origin, reason in missing:
        plugins.broken.append(BrokenPlugin(Source(Path(origin).name, origin, ""), reason))
    return plugins
