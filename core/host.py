"""The plugin host: finds plugins, sets broken ones aside, and looks them up by name."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import os
import pkgutil
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import pluggy

from core import hookspecs
from core.parameters import KINDS, PluginParams

ENTRY_POINT_GROUP = "torchyard"
PLUGIN_FOLDERS = "TORCHYARD_PLUGINS"
DEFAULT_FOLDER = "torchyard_plugins"

HOOKS = {
    "dataset": "register_datasets",
    "augmentation": "register_augmentations",
    "model": "register_models",
    "loss": "register_losses",
    "optimizer": "register_optimizers",
    "scheduler": "register_schedulers",
}

# What the host itself keeps beside a plugin's parameters (see `core.config`).
RESERVED = {"name", "normalize", "freeze"}


@dataclass(frozen=True)
class Source:
    """Where a plugin comes from.

    Attributes:
        name: what qualifies its plugins' names: the distribution, or the file's stem.
        origin: distribution and version, or the file.
        identity: what the record keeps: distribution and version, or the file's sha256.
        file: the plugin's own, where that is known.
    """

    name: str
    origin: str
    identity: str
    file: str = ""


@dataclass(frozen=True)
class Registration:
    """One plugin under its name."""

    kind: str
    name: str
    params: type[PluginParams]
    source: Source
    builtin: bool

    @property
    def summary(self) -> str:
        """The first line of the plugin's docstring."""
        return (inspect.getdoc(self.params) or "").partition("\n")[0]


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


class Host:
    """All plugins of this process, by kind and name."""

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager("torchyard")
        self._manager.add_hookspecs(hookspecs)
        self._registrations: dict[str, dict[str, list[Registration]]] = {k: {} for k in KINDS}
        self.sources: list[Source] = []
        self.broken: list[BrokenPlugin] = []

    def load(self, source: Source, find: Callable[[], object], *, builtin: bool = False) -> None:
        """Import one plugin and run its hooks; whatever it raises sets it aside.

        A plugin that fails half-way leaves no name behind.
        """
        self.sources.append(source)
        pending: list[Registration] = []
        faults: list[Fault] = []
        try:
            plugin = find()
            self._manager.register(plugin, name=source.origin)
            for kind, hook in HOOKS.items():
                for implementation in getattr(self._manager.hook, hook).get_hookimpls():
                    if implementation.plugin is plugin:
                        register = self._collector(kind, source, builtin, pending, faults)
                        implementation.function(register)
            self._manager.check_pending()  # a hook of a name that is none
        except (Exception, SystemExit) as error:
            faults.append(Fault(f"{type(error).__name__}: {error}", _line(error, source.file)))
        if faults:
            if self._manager.has_plugin(source.origin):
                self._manager.unregister(name=source.origin)
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
                self._check(kind, name, params, source, pending)
            except (TypeError, ValueError) as error:
                # Kept, not raised: the hook goes on, and all its faults are known at once.
                line = sys._getframe(1).f_lineno
                faults.append(Fault(f"{type(error).__name__}: {error}", line))
            else:
                pending.append(Registration(kind, name, params, source, builtin))

        return register

    def _check(
        self, kind: str, name: str, params: type, source: Source, pending: list[Registration]
    ) -> None:
        base = KINDS[kind]
        if not (isinstance(params, type) and issubclass(params, base)):
            raise TypeError(f"{kind} '{name}': {params!r} is not a {base.__name__}")
        if inspect.isabstract(params):
            raise TypeError(f"{kind} '{name}': {params.__name__} has no build method")
        if not name or any(character in name for character in " =,"):
            raise ValueError(f"{kind} '{name}': not a usable name")
        for taken in RESERVED & params.model_fields.keys():
            raise ValueError(f"{kind} '{name}': no parameter can be named '{taken}'")
        for other in [*pending, *self._registrations[kind].get(name, [])]:
            if (other.kind, other.name, other.source.name) == (kind, name, source.name):
                raise ValueError(f"{kind} '{name}': is there already from {other.source.origin}")

    def registrations(self, kind: str) -> Iterator[tuple[str, Registration]]:
        """Every plugin of a kind under the name that finds it, in alphabetical order.

        Where several sources use one name, each is listed as `source/name`; a built-in
        keeps the bare name.
        """
        for name, candidates in sorted(self._registrations[kind].items()):
            for found in candidates:
                alone = len(candidates) == 1 or found.builtin
                yield (name if alone else f"{found.source.name}/{name}"), found

    def find(self, kind: str, name: str) -> Registration:
        """Look a plugin up by its bare or its qualified name.

        Raises:
            LookupError: nothing, or more than one thing, has that name; the message
                names the nearest, or the candidates.
        """
        known = dict(self.registrations(kind))
        if name in known:
            return known[name]
        for candidates in self._registrations[kind].values():
            for found in candidates:
                if name == f"{found.source.name}/{found.name}":
                    return found
        rivals = [qualified for qualified in known if qualified.endswith(f"/{name}")]
        if rivals:
            raise LookupError(f"several plugins are named '{name}': choose {' or '.join(rivals)}")
        message = f"no {kind} named '{name}'."
        nearest = difflib.get_close_matches(name, known, n=1)
        if nearest:
            message += f" Did you mean '{nearest[0]}'?"
        elif len(known) <= 12:
            message += f"  (there are: {', '.join(known)})"
        else:
            message += f"  (`torchyard plugins {kind}` lists the {len(known)} there are)"
        for broken in self.broken:
            message += f"  Set aside: {broken.source.origin} ({broken.reason})"
        raise LookupError(message)


@cache
def host() -> Host:
    """The plugins of this process: built-in, installed, and from the plugin folders.

    Built-ins are loaded first, so that no other plugin's import can hinder them.
    """
    found = Host()
    own = importlib.metadata.version("torchyard")
    for name in _builtin_modules():
        source = Source("torchyard", f"torchyard {own} ({name})", f"torchyard=={own}")
        found.load(source, lambda name=name: importlib.import_module(name), builtin=True)  # type: ignore[misc]
    for entry in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        dist = entry.dist.name if entry.dist else entry.name
        version = entry.dist.version if entry.dist else "?"
        origin = f"{dist} {version} ({entry.value})"
        source = Source(dist, origin, f"{dist}=={version}", _module_file(entry.module))
        found.load(source, entry.load)
    for path in _plugin_folders():
        if not path.is_dir():
            missing = Source(path.name, str(path), "")
            found.broken.append(BrokenPlugin(missing, f"no such folder ({PLUGIN_FOLDERS})"))
        for file in sorted(path.glob("[!_.]*.py")):
            # The tests of a plugin lie beside it.
            if not file.name.startswith("test_") and file.name != "conftest.py":
                found.load(file_source(file), lambda file=file: import_file(file))  # type: ignore[misc]
    return found


def _plugin_folders() -> list[Path]:
    """Those that `TORCHYARD_PLUGINS` names, and `torchyard_plugins` in the working folder."""
    named = filter(None, os.environ.get(PLUGIN_FOLDERS, "").split(os.pathsep))
    folders = [Path(folder).expanduser() for folder in named]
    default = Path.cwd() / DEFAULT_FOLDER
    if default.is_dir() and default.resolve() not in [folder.resolve() for folder in folders]:
        folders.append(default)
    return folders


def _builtin_modules() -> list[str]:
    # Found by name, not imported: core knows no built-in plugin.
    spec = importlib.util.find_spec("plugins")
    folders = list(spec.submodule_search_locations or []) if spec else []
    return [f"plugins.{module.name}" for module in pkgutil.iter_modules(folders)]


def _module_file(name: str) -> str:
    """The file of a module that is not imported yet; its packages are."""
    try:
        spec = importlib.util.find_spec(name)
    except (Exception, SystemExit):  # its import will say why
        spec = None
    return (spec and spec.origin) or ""


def _line(error: BaseException, file: str) -> int | None:
    """The line of the plugin's own file that raised, whatever it called."""
    if isinstance(error, SyntaxError) and error.filename == file:
        return error.lineno
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == file
    ]
    return lines[-1] if lines else None


def file_source(file: Path) -> Source:
    """A plugin file as a source: named by its stem, recorded by its digest."""
    try:
        identity = f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"
    except OSError:
        identity = ""  # its import says why
    return Source(file.stem, str(file), identity, str(file.absolute()))


def import_file(file: Path) -> ModuleType:
    """Import a plugin file under a name that hides no other module."""
    name = f"torchyard_plugin_{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(f"{name}_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot be imported: {file}")
    module = importlib.util.module_from_spec(spec)
    # Registered before it runs: pydantic and dataclasses look a class's module up there.
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        raise
    return module
