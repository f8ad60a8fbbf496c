"""What a plugin file registers, read from its text without running it.

Listing forty plugins, or a run with one of them, must not import the other thirty-nine.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from torchyard.core.hosting.hookspecs import HOOKS
from torchyard.core.hosting.neighbours import read_code
from torchyard.core.hosting.registration import Unloaded
from torchyard.core.hosting.sources import Source

KIND_OF = {hook: kind for kind, hook in HOOKS.items()}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def parse(file: Path) -> ast.Module | None:
    """The syntax tree of a file; None if it cannot be read or is no Python."""
    try:
        return ast.parse(read_code(file))
    except (OSError, SyntaxError, ValueError, RecursionError):
        return None


def declarations(module: ast.Module, source: Source, status: str) -> list[Unloaded]:
    """All that a source's module may register, in the order of its text."""
    found = [(KIND_OF[hook], "*", "") for hook in _imported_hooks(module)]
    summaries = {
        node.name: (ast.get_docstring(node) or "").partition("\n")[0]
        for node in module.body
        if isinstance(node, ast.ClassDef)
    }
    for function, hook, _ in hook_functions(module):
        if hook not in KIND_OF:
            continue
        calls, kind = list(register_calls(function)), KIND_OF[hook]
        found += [(kind, _name(call), summaries.get(registered_class(call), "")) for call in calls]
        mentions = sum(getattr(node, "id", "") == "register" for node in ast.walk(function))
        if mentions > len(calls):  # passed to another function
            found.append((kind, "*", ""))
    return [Unloaded(*each, source, status) for each in dict.fromkeys(found)]


def hook_functions(owner: ast.Module | ast.ClassDef) -> Iterator[tuple[Function, str, bool]]:
    """(function, the hook it would implement, whether it is marked as one) of a module or class."""
    for node in owner.body:
        if isinstance(node, Function):
            hook, marked = node.name, False
            for decorator in node.decorator_list:
                marker = getattr(decorator, "func", decorator)
                marked |= getattr(marker, "id", getattr(marker, "attr", "")) == "hookimpl"
                for keyword in getattr(decorator, "keywords", ()):
                    if keyword.arg == "specname" and isinstance(keyword.value, ast.Constant):
                        hook = str(keyword.value.value)
            yield node, hook, marked


def register_calls(function: ast.AST) -> Iterator[ast.Call]:
    """The calls of `register` with a name and a class."""
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "register" and node.args:
            yield node


def registered_class(call: ast.Call) -> str:
    """`Class` of a call `register("name", Class)`; "" if it is written in another way."""
    return getattr(call.args[1], "id", "") if len(call.args) == 2 else ""


def _imported_hooks(module: ast.Module) -> Iterator[str]:
    """The hooks that a module does not define but imports or assigns."""
    for node in ast.walk(module):
        if isinstance(node, ast.ImportFrom):
            names = {alias.asname or alias.name for alias in node.names}
            yield from KIND_OF if "*" in names else names.intersection(KIND_OF)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield from {node.id}.intersection(KIND_OF)


def _name(call: ast.Call) -> str:
    """The name a call registers; where it is made at run time, its literal beginning and "*"."""
    first: ast.AST = call.args[0]
    literal = isinstance(first, ast.Constant)
    if isinstance(first, ast.JoinedStr) and first.values:
        first = first.values[0]
    elif isinstance(first, ast.BinOp) and isinstance(first.op, ast.Add):
        first = first.left
    beginning = str(first.value) if isinstance(first, ast.Constant) else ""
    return beginning if literal else f"{beginning}*"
