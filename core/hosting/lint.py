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

from torchyard.core.hosting.hookspecs import HOOKS
from torchyard.core.hosting.host import Host
from torchyard.core.hosting.old_imports import OldImport
from torchyard.core.hosting.params import KINDS
from torchyard.core.hosting.registration import Fault
from torchyard.core.hosting.static import (
    Function,
    hook_functions,
    parse,
    register_calls,
    registered_class,
)

SIMILARITY = 0.9  # difflib's; a function without the marker is taken for a hook from there on


@dataclass(frozen=True)
class Problem:
    """One thing to put right; `str` is what compilers print, file:line: message."""

    file: str
    line: int | None
    message: str

    def __str__(self) -> str:
        line = "" if self.line is None else f":{self.line}"
        return f"{self.file}{line}: {' '.join(self.message.split())}"


def problems(host: Host) -> list[Problem]:
    """Everything wrong with a host's plugins, all of which are imported unless turned off."""
    host.load_all()
    result: list[Problem] = []
    broken = {each.source: each for each in host.broken}
    registered = [each for kind in KINDS for _, each in host.registrations(kind)]
    for source in dict.fromkeys([*host.sources, *broken]):
        file = source.file or source.origin
        module = parse(source.source_file) if source.source_file else None
        faults = list(_read(module)) if module else []
        if source in broken:
            plugin = broken[source]
            for fault in plugin.faults or (Fault(plugin.reason),):
                prefix = "" if isinstance(fault, OldImport) else "failed to load: "
                # What pluggy says of a hook was found in the file already, with the line.
                if fault.line is not None or not faults:
                    faults.append(Fault(prefix + fault.reason, fault.line))
        faults += [
            Fault(_no_docstring(each.params.__name__), class_line(each.params))
            for each in registered
            if each.source == source and not has_docstring(each.params)
        ]
        in_order = sorted(dict.fromkeys(faults), key=lambda fault: fault.line or 0)
        result += [Problem(file, fault.line, fault.reason) for fault in in_order]
    return result


def has_docstring(params: type) -> bool:
    """Whether a class has a docstring of its own, not its base's."""
    return bool((vars(params).get("__doc__") or "").strip())


def class_line(params: type) -> int | None:
    """The first line of a class; None if it was made by calling `type`, or has no file."""
    try:
        return inspect.getsourcelines(params)[1]
    except (OSError, TypeError):
        return None


def _no_docstring(name: str) -> str:
    return f"the class {name} has no docstring: `torchyard plugins` shows its first line"


def _read(module: ast.Module) -> Iterator[Fault]:
    """What is wrong with a module's hooks and with the classes they register by name."""
    registered = {registered_class(call) for call in register_calls(module)}
    for owner in module.body:
        if isinstance(owner, ast.ClassDef):
            for node, _, marked in hook_functions(owner):
                if marked:
                    where = f"in the class {owner.name}: hooks are functions at the top of a file"
                    yield Fault(f"'{node.name}' is {where}", node.lineno)
            if owner.name in registered and not ast.get_docstring(owner):
                yield Fault(_no_docstring(owner.name), owner.lineno)
    hooks = HOOKS.values()
    for node, name, marked in hook_functions(module):
        nearest = difflib.get_close_matches(name, hooks, 1, 0.6 if marked else SIMILARITY)
        if marked and name not in hooks:
            hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
            known = f"  (there are: {', '.join(hooks)})"
            yield Fault(f"there is no hook named '{name}'.{hint}{known}", node.lineno)
        elif not marked and nearest:
            meant = "" if name == nearest[0] else f", and '{nearest[0]}' may be meant"
            yield Fault(f"'{name}' is named like a hook but lacks @hookimpl{meant}", node.lineno)
        if marked or nearest:
            for problem in _signature(node):
                yield Fault(f"'{node.name}'{problem}", node.lineno)


def _signature(node: Function) -> Iterator[str]:
    if isinstance(node, ast.AsyncFunctionDef):
        yield " is async: a hook is a plain function"
    elif any(isinstance(inner, ast.Yield | ast.YieldFrom) for inner in ast.walk(node)):
        yield " yields, so it never runs: a hook is a plain function"
    arguments = node.args
    names = [each.arg for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    names += [f"*{each.arg}" for each in (arguments.vararg, arguments.kwarg) if each]
    if names != ["register"] or arguments.kwonlyargs:
        taken = f"({', '.join(names)})" if names else "none"
        yield f" takes {taken}: a hook takes one argument, 'register'"
    elif arguments.defaults:
        yield ": 'register' has a default, and pluggy would not pass it"
