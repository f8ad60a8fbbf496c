"""What a plugin file imports from its own folder: `_helper.py` beside it, absolutely or relatively.

A plugin folder is not on the import path, and two of them may each have a `_helper.py`. So each
folder is a package under a name of its own, and an import of a neighbour is compiled as one from
that package.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

PREFIX = "torchyard_plugins_"


def import_file(file: Path) -> ModuleType:
    """Import a plugin file, under a name that hides no other module."""
    read_code(file)
    package = _package(file.parent)
    name = f"{package}.{file.stem.replace('.', '_')}"
    loader = _Loader(name, str(file))
    spec = importlib.util.spec_from_file_location(name, file, loader=loader)
    if spec is None:
        raise ImportError(f"cannot be imported: {file}")
    module = importlib.util.module_from_spec(spec)
    # Before it runs, because pydantic and dataclasses look up a class's module there.
    sys.modules[name] = module
    try:
        loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def neighbours(file: Path) -> list[Path]:
    """The files of its folder that a plugin file imports, directly or through others, sorted."""
    found: set[Path] = set()
    unread = [file]
    while unread:
        reader = unread.pop()
        for each in _imported(reader, file.parent):
            if each not in found and each != file:
                found.add(each)
                unread.append(each)
    return sorted(found)


def read_code(file: Path) -> bytes:
    """A file's bytes.

    Raises:
        OSError: it cannot be read, or never ends, as a pipe.
    """
    if file.exists() and not file.is_file() and not file.is_dir():
        raise OSError(f"{file.name} is a pipe or a device, not a file")
    return file.read_bytes()


def code_of(file: Path) -> bytes:
    """A file's bytes, followed by those of the neighbours that it imports.

    Raises:
        OSError: one of them cannot be read.
    """
    return b"".join(read_code(each) for each in (file, *neighbours(file)))


def _package(folder: Path) -> str:
    """The name of the package that stands for a folder."""
    name = PREFIX + hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]
    if name not in sys.modules:
        package = sys.modules[name] = ModuleType(name)
        package.__path__ = [str(folder.absolute())]
        if _Finder not in sys.meta_path:
            sys.meta_path.insert(0, _Finder)
    return name


def _is_neighbour(top: str, folder: Path, own: str = "") -> bool:
    """Whether a name that a file imports means a module of its folder.

    One that begins with "_" does wherever there is such a file; another where nothing else has
    that name, so that a plugin `timm.py` hides no library.
    """
    if top == own or not any(_module_files(folder / top)):
        return False
    return top.startswith("_") or importlib.util.find_spec(top) is None


def _module_files(path: Path) -> Iterator[Path]:
    """The file of a module or package at a path without suffix."""
    for file in (path / "__init__.py", path.with_name(f"{path.name}.py")):
        if file.is_file():
            yield file


def _imported(file: Path, folder: Path) -> Iterator[Path]:
    """The files below a folder that one of its files imports."""
    try:
        tree = ast.parse(read_code(file))
    except (OSError, SyntaxError, ValueError, RecursionError):
        return
    for node in ast.walk(tree):
        names: list[tuple[Path, str]] = []
        if isinstance(node, ast.Import):
            names = [(folder, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = [file, *file.parents][node.level] if node.level else folder
            within = f"{node.module}." if node.module else ""
            names = [(start, f"{within}{alias.name}") for alias in node.names]
        for path, name in names:
            if path == folder and not _is_neighbour(name.partition(".")[0], folder, file.stem):
                continue
            for part in name.split("."):
                path = path / part
                if folder in path.parents:
                    yield from _module_files(path)


class _Finder:
    """Finds the modules of plugin folders."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if not name.startswith(PREFIX):
            return None
        spec = PathFinder.find_spec(name, path)
        if spec and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    """Compiles a file with its imports of neighbours directed to their package."""

    def path_stats(self, path: Any) -> Any:
        # No bytecode file is read or written: an ordinary import of the file would find it.
        raise OSError("not cached")

    def source_to_code(  # type: ignore[override]
        self, data: Any, path: Any, *, _optimize: int = -1
    ) -> CodeType:
        tree = _Redirected(self.name).visit(ast.parse(data, path))
        code: CodeType = compile(tree, path, "exec", dont_inherit=True, optimize=_optimize)
        return code


class _Redirected(ast.NodeTransformer):
    """Imports of neighbours become imports from the package of the folder."""

    def __init__(self, module: str) -> None:
        self._package, _, own = module.partition(".")
        self._own = own
        self._folder = Path(sys.modules[self._package].__path__[0])

    def visit_Import(self, node: ast.Import) -> list[ast.stmt]:
        statements: list[ast.stmt] = []
        for alias in node.names:
            top, *_ = alias.name.split(".")
            if not _is_neighbour(top, self._folder, self._own):
                statements.append(ast.Import([alias]))
                continue
            within, _, last = f"{self._package}.{alias.name}".rpartition(".")
            # `import a.b` binds a, after it has loaded b.
            statements.append(ast.ImportFrom(within, [ast.alias(last, alias.asname or top)], 0))
            if last != alias.name and not alias.asname:
                statements.append(ast.ImportFrom(self._package, [ast.alias(top)], 0))
        return [ast.fix_missing_locations(ast.copy_location(each, node)) for each in statements]

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.ImportFrom:
        top = (node.module or "").partition(".")[0]
        if not node.level and _is_neighbour(top, self._folder, self._own):
            node.module = f"{self._package}.{node.module}"
        return node
