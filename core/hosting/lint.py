"""What is wrong with the plugins of this process, by file and line.

The host sets a plugin aside at its first fault. Here each file is read, too, without running
it: a misspelled hook and one that lacks its marker register nothing, and would go unnoticed.
"""

from __future__ import annotations

import ast
import difflib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torchyard.core.hosting.manager import HOOKS, Host, Registration
from torchyard.core.hosting.params import KINDS
from torchyard.core.hosting.sources import Source
from torchyard.core.hosting.static import hook_functions, parse, register_calls, registered_class

ALIKE = 0.9  # of a name that is meant to be a hook's


@dataclass(frozen=True)
class Problem:
    """One thing to put right; `str` gives it as compilers do, file:line: message."""

    place: str
    line: int | None
    message: str

    def __str__(self) -> str:
        line = "" if self.line is None else f":{self.line}"
        return f"{self.place}{line}: {self.message}"


def problems(host: Host) -> list[Problem]:
    """Everything wrong with a host's plugins; all are imported, but for those that are off."""
    host.load_all()
    found: list[Problem] = []
    aside = {broken.source: broken for broken in host.broken}
    registrations: dict[Source, list[Registration]] = {}
    for kind in KINDS:
        for _, registration in host.registrations(kind):
            registrations.setdefault(registration.source, []).append(registration)

    for source in dict.fromkeys([*host.sources, *aside]):
        place = source.file or source.origin
        read: list[tuple[int | None, str]] = []
        if source.file.endswith(".py"):
            read += _read(Path(source.file))
        broken = aside.get(source)
        for fault in broken.faults if broken else ():
            # What pluggy says of a hook, the file told already, with the line.
            if fault.line is not None or not read:
                read.append((fault.line, f"set aside: {fault.reason}"))
        if broken and not broken.faults:
            read.append((None, f"set aside: {broken.reason}"))
        read += [_undescribed(r) for r in registrations.get(source, []) if not described(r.params)]
        in_order = sorted(dict.fromkeys(read), key=lambda pair: pair[0] or 0)
        found += [Problem(place, line, message) for line, message in in_order]
    return found


def described(params: type) -> bool:
    """Whether a class has a docstring of its own: its base's tells nothing of it."""
    return bool((vars(params).get("__doc__") or "").strip())


def class_line(params: type) -> int | None:
    """Where a class begins; None if it was made by a call of `type`, or has no file."""
    try:
        return inspect.getsourcelines(params)[1]
    except (OSError, TypeError):
        return None


def _undescribed(found: Registration) -> tuple[int | None, str]:
    return class_line(found.params), _no_docstring(found.params.__name__)


def _no_docstring(name: str) -> str:
    return f"the class {name} has no docstring: `torchyard plugins` shows its first line"


def _read(file: Path) -> Iterator[tuple[int, str]]:
    """What is wrong with a file's hooks and with the classes they register by name."""
    module = parse(file)
    if module is None:
        return  # its import says so, and where
    classes = {node.name: node for node in module.body if isinstance(node, ast.ClassDef)}
    for owner in classes.values():
        for inner in hook_functions(owner):
            if inner.marked:
                where = f"in the class {owner.name}: hooks are functions at the top of a file"
                yield inner.node.lineno, f"'{inner.node.name}' is {where}"
    for function in hook_functions(module):
        node, name, marked = function.node, function.hook, function.marked
        nearest = difflib.get_close_matches(name, HOOKS.values(), 1, 0.6 if marked else ALIKE)
        if marked and name not in HOOKS.values():
            hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
            known = ", ".join(HOOKS.values())
            yield node.lineno, f"there is no hook named '{name}'.{hint}  (there are: {known})"
        elif not marked and nearest:
            meant = "" if name == nearest[0] else f", and '{nearest[0]}' may be meant"
            yield node.lineno, f"'{name}' is named like a hook but lacks @hookimpl{meant}"
        if marked or nearest:
            yield from _signature(node)
            for call in register_calls(node):
                known_class = classes.get(registered_class(call))
                if known_class and not ast.get_docstring(known_class):
                    yield known_class.lineno, _no_docstring(known_class.name)


def _signature(node: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[tuple[int, str]]:
    if isinstance(node, ast.AsyncFunctionDef):
        yield node.lineno, f"'{node.name}' is async: a hook is a plain function"
    elif any(isinstance(inner, ast.Yield | ast.YieldFrom) for inner in ast.walk(node)):
        yield node.lineno, f"'{node.name}' yields, so it never runs: a hook is a plain function"
    all_of = node.args
    names = [each.arg for each in (*all_of.posonlyargs, *all_of.args, *all_of.kwonlyargs)]
    names += [f"*{each.arg}" for each in (all_of.vararg, all_of.kwarg) if each]
    if names != ["register"] or all_of.kwonlyargs:
        given = f"({', '.join(names)})" if names else "none"
        yield node.lineno, f"'{node.name}' takes {given}: a hook takes one argument, 'register'"
    elif all_of.defaults:
        yield node.lineno, f"'{node.name}': 'register' has a default, and pluggy would not pass it"
