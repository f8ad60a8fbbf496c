"""What is wrong with the plugins of this process, by file and line.

The host reports what fails to load. Here each file is read as well, without running it: a
misspelled hook and one without its marker register nothing, and would go unnoticed.
"""

from __future__ import annotations

import ast
import difflib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torchyard.core.hosting.hookspecs import HOOKS
from torchyard.core.hosting.manager import Host
from torchyard.core.hosting.old_imports import OldImport
from torchyard.core.hosting.params import KINDS
from torchyard.core.hosting.registration import Fault
from torchyard.core.hosting.sources import Source
from torchyard.core.hosting.static import hook_functions, parse, register_calls, registered_class

SIMILARITY = 0.9  # difflib's, from which on a function without the marker is taken for a hook


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
    """Everything wrong with a host's plugins, all of which are imported unless turned off."""
    host.load_all()
    result: list[Problem] = []
    broken = {each.source: each for each in host.broken}
    registered: dict[Source, list[type]] = {}
    for kind in KINDS:
        for _, registration in host.registrations(kind):
            registered.setdefault(registration.source, []).append(registration.params)

    for source in dict.fromkeys([*host.sources, *broken]):
        place = source.file or source.origin
        messages: list[tuple[int | None, str]] = []
        if source.text:
            messages += _read(source.text)
        if source in broken:
            plugin = broken[source]
            for fault in plugin.faults or (Fault(plugin.reason),):
                prefix = "" if isinstance(fault, OldImport) else "failed to load: "
                # What pluggy says of a hook was found in the file already, with the line.
                if fault.line is not None or not messages:
                    messages.append((fault.line, prefix + fault.reason))
        for params in registered.get(source, ()):
            if not described(params):
                messages.append((class_line(params), _no_docstring(params.__name__)))
        in_order = sorted(dict.fromkeys(messages), key=lambda pair: pair[0] or 0)
        result += [Problem(place, line, message) for line, message in in_order]
    return result


def described(params: type) -> bool:
    """Whether a class has a docstring of its own; its base's does not describe it."""
    return bool((vars(params).get("__doc__") or "").strip())


def class_line(params: type) -> int | None:
    """The first line of a class; None if it was made by a call of `type`, or has no file."""
    try:
        return inspect.getsourcelines(params)[1]
    except (OSError, TypeError):
        return None


def _no_docstring(name: str) -> str:
    return f"the class {name} has no docstring: `torchyard plugins` shows its first line"


def _read(file: Path) -> Iterator[tuple[int, str]]:
    """What is wrong with a file's hooks and with the classes they register by name."""
    module = parse(file)
    if module is None:
        return  # importing it raises, with the line
    classes = {node.name: node for node in module.body if isinstance(node, ast.ClassDef)}
    for owner in classes.values():
        for inner in hook_functions(owner):
            if inner.marked:
                where = f"in the class {owner.name}: hooks are functions at the top of a file"
                yield inner.node.lineno, f"'{inner.node.name}' is {where}"
    for function in hook_functions(module):
        node, name, marked = function.node, function.hook, function.marked
        nearest = difflib.get_close_matches(name, HOOKS.values(), 1, 0.6 if marked else SIMILARITY)
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
    arguments = node.args
    names = [each.arg for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    names += [f"*{each.arg}" for each in (arguments.vararg, arguments.kwarg) if each]
    if names != ["register"] or arguments.kwonlyargs:
        taken = f"({', '.join(names)})" if names else "none"
        yield node.lineno, f"'{node.name}' takes {taken}: a hook takes one argument, 'register'"
    elif arguments.defaults:
        yield node.lineno, f"'{node.name}': 'register' has a default, and pluggy would not pass it"
