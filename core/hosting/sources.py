"""Where plugins are: in this package, in installed distributions, in folders of files.

A source says where a plugin is and how to import it; no third party's is imported here.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import pkgutil
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.machinery import PathFinder
from pathlib import Path

from torchyard.core.hosting.neighbours import code_of, import_file, neighbours

ENTRY_POINT_GROUP = "torchyard"
PLUGIN_FOLDERS = "TORCHYARD_PLUGINS"
DEFAULT_FOLDER = "torchyard_plugins"

Load = Callable[[], object]  # imports a plugin


@dataclass(frozen=True)
class Source:
    """Where a plugin comes from.

    Attributes:
        name: what qualifies its plugins' names: the distribution, or the file's stem.
        origin: distribution and version, or the file.
        identity: what a run's record has of it: distribution and version, or the sha256 of the
            file and of what it imports from its folder.
        file: the module's, if there is one.
        attribute: the object in that module that is the plugin; "" if the module itself is.
    """

    name: str
    origin: str
    identity: str
    file: str = ""
    attribute: str = ""

    @property
    def source_file(self) -> Path | None:
        """The file whose text shows what the plugin registers, if there is one."""
        return Path(self.file) if self.file.endswith(".py") and not self.attribute else None


def builtin_sources() -> Iterator[tuple[Source, Load]]:
    """The modules of this package's own plugins."""
    version = importlib.metadata.version("torchyard")
    # Listed, not imported by name: core depends on no plugin.
    spec = importlib.util.find_spec("torchyard.plugins")
    folders = spec.submodule_search_locations if spec else ()
    for module in pkgutil.walk_packages(folders, "torchyard.plugins."):
        if not module.ispkg:
            origin = f"torchyard {version} ({module.name})"
            source = Source("torchyard", origin, f"torchyard=={version}")
            yield source, partial(importlib.import_module, module.name)


def installed_sources() -> Iterator[tuple[Source, Load]]:
    """The entry points of installed distributions."""
    for entry in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        dist = entry.dist.name if entry.dist else entry.name
        version = entry.dist.version if entry.dist else "?"
        origin, file = f"{dist} {version} ({entry.value})", module_file(entry.module)
        source = Source(dist, origin, f"{dist}=={version}", file, entry.attr)
        yield source, entry.load


def folder_sources(folder: Path) -> Iterator[tuple[Source, Load]]:
    """The plugin files of a folder; the tests of a plugin lie beside it."""
    for file in sorted(folder.glob("[!_.]*.py")):
        if not file.name.startswith("test_") and file.name != "conftest.py":
            yield file_source(file), partial(import_file, file)


def plugin_folders() -> list[Path]:
    """The folders in `TORCHYARD_PLUGINS`, and `torchyard_plugins` in the working folder."""
    named = filter(None, os.environ.get(PLUGIN_FOLDERS, "").split(os.pathsep))
    folders = [Path(folder).expanduser() for folder in named]
    default = Path.cwd() / DEFAULT_FOLDER
    if default.is_dir() and default.resolve() not in [folder.resolve() for folder in folders]:
        folders.append(default)
    return folders


def module_file(name: str) -> str:
    """The file of a module, found without importing the packages it is in; "" if there is none."""
    top, *inner = name.split(".")
    try:
        spec = importlib.util.find_spec(top)
        for part in inner:
            top = f"{top}.{part}"
            locations = spec.submodule_search_locations if spec else None
            spec = PathFinder.find_spec(top, locations) if locations else None
    except (Exception, SystemExit):  # importing it raises the same
        return ""
    return (spec and spec.origin) or ""


def file_source(file: Path) -> Source:
    """A plugin file as a source: named by its stem, recorded by the digest of its code."""
    try:
        digest = hashlib.sha256(code_of(file)).hexdigest()
        identity = f"sha256:{digest} ({file.name})"
    except OSError:
        identity = ""  # importing it raises the same
    return Source(file.stem, str(file), identity, str(file.absolute()))


def raising_line(error: BaseException, file: str) -> int | None:
    """The line of a plugin's own file that raised, whatever it called."""
    if isinstance(error, SyntaxError) and error.filename == file:
        return error.lineno
    frames = traceback.extract_tb(error.__traceback__)
    return next((frame.lineno for frame in reversed(frames) if frame.filename == file), None)


def raised_in(error: BaseException, sources: Iterable[Source]) -> str:
    """Name the plugin whose code raised: " in NAME (FILE, line N)"; "" if none did.

    Args:
        error: as it was caught, with its traceback.
        sources: the plugins that may have raised it; those without a file are skipped.
    """
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        for source in sources:
            if source.file and _belongs(Path(frame.filename), Path(source.file)):
                return f" in {source.name} ({frame.filename}, line {frame.lineno})"
    return ""


def _belongs(file: Path, plugin: Path) -> bool:
    """Whether a file is a plugin's own, in the package that it is in, or a neighbour it imports."""
    packaged = (plugin.parent / "__init__.py").exists() and plugin.parent in file.parents
    return file == plugin or packaged or file in neighbours(plugin)
