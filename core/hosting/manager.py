"""The plugin host: loads plugins, looks them up by name, and keeps what fails to load apart.

A plugin of a third party is imported when a name is asked for that its text declares
(`core/hosting/static.py`), so plugins that a run does not use cost it nothing.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pluggy

from torchyard.core.hosting import hookspecs, old_imports
from torchyard.core.hosting.hookspecs import HOOKS
from torchyard.core.hosting.params import KINDS
from torchyard.core.hosting.registration import (
    BrokenPlugin,
    Fault,
    Registration,
    Unloaded,
    check_registration,
)
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
from torchyard.core.hosting.static import Declaration, declarations, parse

PLUGINS_OFF = "TORCHYARD_PLUGINS_OFF"


@dataclass(frozen=True)
class _Deferred:
    """A plugin to import when one of its names is asked for."""

    source: Source
    find: Find
    declared: tuple[Declaration, ...]

    def declares(self, kind: str, name: str) -> bool:
        return any((each.hook, each.name) == (HOOKS[kind], name) for each in self.declared)

    def covers(self, kind: str, name: str) -> bool:
        names = {name, name.removeprefix(f"{self.source.name}/")}
        return any(
            each.hook == HOOKS[kind] and each.covers(asked)
            for each in self.declared
            for asked in names
        )


class Host:
    """All plugins of this process, by kind and name.

    Attributes:
        sources: all that were imported, in that order.
        broken: those of them that failed to load, and folders that do not exist.
    """

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager("torchyard")
        self._manager.add_hookspecs(hookspecs)
        self._registrations: dict[str, dict[str, list[Registration]]] = {k: {} for k in KINDS}
        self._deferred: list[_Deferred] = []
        self._off: list[_Deferred] = []
        self.sources: list[Source] = []
        self.broken: list[BrokenPlugin] = []

    def add(self, source: Source, find: Find, *, off: bool = False) -> None:
        """Add a plugin to import when a name is asked for that its text declares."""
        declared = [Declaration(hook, "*") for hook in HOOKS.values()]
        if source.text:
            module = parse(source.text)
            if module is None and not off:
                self.load(source, find)  # which fails, and records why
                return
            declared = declarations(module) if module else []
        (self._off if off else self._deferred).append(_Deferred(source, find, tuple(declared)))

    def load_all(self) -> None:
        """Import every plugin that is not turned off."""
        self._load_deferred(list(self._deferred))

    def _load_deferred(self, chosen: list[_Deferred]) -> None:
        for deferred in chosen:
            self._deferred.remove(deferred)
            self.load(deferred.source, deferred.find)

    def load(self, source: Source, find: Find, *, builtin: bool = False) -> None:
        """Import one plugin and run its hooks; if anything raises, it joins `broken`.

        A plugin that fails half-way registers nothing.
        """
        self.sources.append(source)
        module = parse(Path(source.file)) if source.file.endswith(".py") else None
        outdated = old_imports.old_imports(module) if module else []
        if outdated:
            reason = old_imports.described(outdated, source.file)
            self.broken.append(BrokenPlugin(source, reason, tuple(outdated)))
            return
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
            self._manager.check_pending()  # raises for a marked function that is no known hook
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit, too, and whatever else it may raise
            reason = old_imports.raised_by(error) or f"{type(error).__name__}: {error}"
            faults.append(Fault(reason, raising_line(error, source.file)))
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
                check_registration(kind, name, params)
                if any((other.kind, other.name) == (kind, name) for other in pending):
                    raise ValueError(f"{kind} '{name}': is registered twice")
            except (TypeError, ValueError) as error:
                # Collected, not raised: the hook goes on, and all its faults are reported at once.
                line = sys._getframe(1).f_lineno
                faults.append(Fault(f"{type(error).__name__}: {error}", line))
            else:
                pending.append(Registration(kind, name, params, source, builtin))

        return register

    def registrations(self, kind: str) -> Iterator[tuple[str, Registration]]:
        """Every imported plugin of a kind with the name that finds it, in alphabetical order.

        Where several sources use one name, each is listed as `source/name`; a built-in
        keeps the bare name.
        """
        for name, plugin in self.listed(kind):
            if isinstance(plugin, Registration):
                yield name, plugin

    def listed(self, kind: str) -> Iterator[tuple[str, Registration | Unloaded]]:
        """Every plugin of a kind as `registrations` has them, and those not imported."""
        named: dict[str, list[Registration | Unloaded]] = {}
        for name, registered in self._registrations[kind].items():
            named.setdefault(name, []).extend(registered)
        for status, group in (("not loaded", self._deferred), ("off", self._off)):
            for deferred in group:
                for each in deferred.declared:
                    if each.hook == HOOKS[kind]:
                        unloaded = Unloaded(kind, each.name, each.summary, deferred.source, status)
                        named.setdefault(each.name, []).append(unloaded)
        for name, candidates in sorted(named.items()):
            rivals = [each for each in candidates if each.status != "off"] or candidates
            for plugin in sorted(candidates, key=lambda each: (not each.builtin, each.source.name)):
                alone = plugin.builtin or rivals == [plugin]
                yield (name if alone else f"{plugin.source.name}/{name}"), plugin

    def find(self, kind: str, name: str) -> Registration:
        """Look up a plugin by its bare or its qualified name, importing it if necessary.

        Before a name is refused, plugins are imported whose text declares no name at all.

        Raises:
            LookupError: no plugin, or more than one, has that name; the message
                gives the nearest, or the candidates.
        """
        candidates = self._registrations[kind].get(name, [])
        builtin = next((each for each in candidates if each.builtin), None)
        if builtin:
            return builtin
        asked = [deferred for deferred in self._deferred if deferred.covers(kind, name)]
        self._load_deferred(asked)
        registration = self._lookup(kind, name)
        if registration is None:
            self._load_deferred([deferred for deferred in self._deferred if not deferred.declared])
            registration = self._lookup(kind, name)
        if registration is None:
            raise LookupError(self._refusal(kind, name, asked))
        return registration

    def _lookup(self, kind: str, name: str) -> Registration | None:
        matches = self._registrations[kind].get(name, []) or [
            registered
            for same_name in self._registrations[kind].values()
            for registered in same_name
            if name == registered.qualified
        ]
        if len(matches) < 2:
            return matches[0] if matches else None
        rivals = sorted(registered.qualified for registered in matches)
        if len(set(rivals)) == len(rivals):
            raise LookupError(f"several plugins are named '{name}': choose {' or '.join(rivals)}")
        files = " and ".join(sorted(registered.source.origin for registered in matches))
        raise LookupError(f"several plugins are named '{rivals[0]}', of {files}: rename one")

    def _refusal(self, kind: str, name: str, asked: list[_Deferred]) -> str:
        listed = [known for known, plugin in self.listed(kind) if plugin.status != "off"]
        known = [name for name in listed if not name.endswith("*")]
        message = f"no {kind} named '{name}'."
        for off in self._off:
            if off.covers(kind, name):
                return f"{message}  {off.source.origin} is turned off ({PLUGINS_OFF})"
        broken = {each.source: each for each in self.broken}
        for deferred in asked:
            if deferred.source not in broken and deferred.declares(kind, name):
                why = "`torchyard plugins check` says what is wrong with it"
                return f"{message}  {deferred.source.origin} should register it: {why}"
        nearest = difflib.get_close_matches(name, known, n=1)
        if nearest:
            message += f" Did you mean '{nearest[0]}'?"
        elif len(known) <= 12:
            message += f"  (there are: {', '.join(known)})"
        else:
            message += f"  (`torchyard plugins {kind}` lists the {len(known)} there are)"
        # Of many that are broken, those that would have had the name.
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
    for source, find in builtin_sources():
        plugins.load(source, find, builtin=True)
    off = {name.strip() for name in os.environ.get(PLUGINS_OFF, "").split(",") if name.strip()}
    known = {"all"}
    folders = plugin_folders()
    for sources in (installed_sources(), *map(folder_sources, folders)):
        for source, find in sources:
            known.add(source.name)
            plugins.add(source, find, off=bool(off & {source.name, "all"}))
    missing = [
        (str(path), f"no such folder ({PLUGIN_FOLDERS})") for path in folders if not path.is_dir()
    ]
    missing += [(name, f"no such plugin ({PLUGINS_OFF})") for name in sorted(off - known)]
    for origin, reason in missing:
        plugins.broken.append(BrokenPlugin(Source(Path(origin).name, origin, ""), reason))
    return plugins
