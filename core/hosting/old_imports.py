"""Imports from before 0.2, when `core`, `plugins` and `pipelines` were import names themselves.

They are looked for in a plugin's text before it is imported: one inside `build` would fail in the
middle of a run, and one that finds a package of the user's called `core` might half work.
"""

from __future__ import annotations

import ast
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path

from torchyard.core.hosting.registration import Fault
from torchyard.core.hosting.sources import module_file
from torchyard.core.hosting.static import parse

OLD_NAMES = ("core", "pipelines", "plugins")


class OldImport(Fault):
    """An import that must be rewritten; the reason says what to write instead."""


def old_imports(tree: ast.Module) -> list[OldImport]:
    """The old imports in a module's text.

    Imports within `try` are left alone, because they have an alternative, and so are those of
    names that a package of the user's called `core`, `plugins` or `pipelines` has.
    """
    faults = []
    for node in _imports(tree):
        moved: list[ast.stmt]
        if isinstance(node, ast.ImportFrom):
            new = _moved_to(node.module or "", [alias.name for alias in node.names])
            moved = [
                ast.ImportFrom(module, [a for a in node.names if new.get(a.name) == module], 0)
                for module in dict.fromkeys(new.values())
            ]
        else:
            moved = [
                ast.Import([ast.alias(module, alias.asname)])
                for alias in node.names
                for module in dict.fromkeys(_moved_to(alias.name, _uses(tree, alias)).values())
            ]
        if moved:
            rewritten = "; ".join(map(ast.unparse, moved))
            reason = f"'{ast.unparse(node)}' is from before 0.2: write '{rewritten}'"
            faults.append(OldImport(reason, node.lineno))
    return faults


def in_file(file: str) -> list[OldImport]:
    """The old imports in a file; none if it is not Python."""
    tree = parse(Path(file)) if file.endswith(".py") else None
    return old_imports(tree) if tree else []


def in_one_line(faults: Iterable[Fault], file: str) -> str:
    """All of them as "file:line: message", joined by semicolons."""
    return "; ".join(f"{Path(file).name}:{fault.line}: {fault.reason}" for fault in faults)


def raised_by(error: BaseException) -> str:
    """The old imports of the file whose import failed, in one line; "" if none did."""
    frames = traceback.extract_tb(error.__traceback__) if isinstance(error, ImportError) else ()
    for frame in reversed(frames):
        if faults := in_file(frame.filename):
            return in_one_line(faults, frame.filename)
    return ""


def _imports(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import) or (isinstance(child, ast.ImportFrom) and not child.level):
            yield child
        elif not isinstance(child, ast.Try):
            yield from _imports(child)


def _uses(tree: ast.Module, alias: ast.alias) -> list[str]:
    """The attributes of an imported module that a file uses; "*" if it uses none."""
    module = alias.asname or alias.name
    uses = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    return [node.attr for node in uses if ast.unparse(node.value) == module] or ["*"]


def _moved_to(module: str, names: list[str]) -> dict[str, str]:
    """The modules of torchyard that have what an import does not find: {name: module}.

    Args:
        module: as it is imported.
        names: those that are imported from it; "*" stands for the module itself.
    """
    top = module.partition(".")[0]
    if top not in OLD_NAMES:
        return {}
    guarded = "check_import_name" in (_bound(top) or ())  # torchyard's own folder, on the path
    bound = _bound(module)
    if not guarded and bound and bound & {"*", "__getattr__"}:
        return {}
    new = {
        name: _new_module(module, name)
        for name in names
        if guarded or (bound is None if name == "*" else not _has(module, name))
    }
    return {name: found for name, found in new.items() if found}


def _new_module(module: str, name: str) -> str:
    same = f"torchyard.{module}"
    if name == "*":
        package = "torchyard" if module == "core" else same
        return package if module_file(package) else ""
    public = ("torchyard", "torchyard.testing", same)
    return next((each for each in public if _has(each, name)), "")


def _has(module: str, name: str) -> bool:
    return name in (_bound(module) or ()) or bool(module_file(f"{module}.{name}"))


def _bound(module: str) -> set[str] | None:
    """The names bound in a module's text, "*" if it does not show all; None: no such module."""
    file = module_file(module)
    if not file:
        return None
    tree = parse(Path(file))
    if tree is None:
        return {"*"}
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.alias):
            names.add(node.asname or node.name.partition(".")[0])
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names
