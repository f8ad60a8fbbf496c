"""What a plugin file says it registers, read without running it.

Listing forty plugins and running with one of them must not import the other thirty-nine.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torchyard.core.hosting import hookspecs

HOOK_NAMES = [name for name in vars(hookspecs) if name.startswith("register_")]


@dataclass(frozen=True)
class Announcement:
    """One name, or a family of them, that a plugin registers.

    Attributes:
        hook: the hook it is registered by.
        name: "small"; or "timm/*", "*" where only running the hook tells.
        summary: the first line of the class's docstring, where the file shows it.
    """

    hook: str
    name: str
    summary: str = ""

    def covers(self, name: str) -> bool:
        """Whether the plugin may register that name."""
        stem, star, _ = self.name.partition("*")
        return name.startswith(stem) if star else name == stem


@dataclass(frozen=True)
class HookFunction:
    """A function, the hook it would implement by its name, and whether it is marked as one."""

    node: ast.FunctionDef | ast.AsyncFunctionDef
    hook: str
    marked: bool


def parse(file: Path) -> ast.Module | None:
    """The module; None if it is no Python, of which its import says more."""
    try:
        return ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return None


def announced(module: ast.Module) -> list[Announcement]:
    """All that a module may register, in the order of its text."""
    found = [Announcement(hook, "*") for hook in _bound_elsewhere(module)]
    summaries = {
        node.name: (ast.get_docstring(node) or "").partition("\n")[0]
        for node in module.body
        if isinstance(node, ast.ClassDef)
    }
    for function in hook_functions(module):
        if function.hook not in HOOK_NAMES:
            continue
        calls = list(register_calls(function.node))
        found += [
            Announcement(function.hook, _name(call), summaries.get(registered_class(call), ""))
            for call in calls
        ]
        mentions = sum(getattr(node, "id", "") == "register" for node in ast.walk(function.node))
        if mentions > len(calls):  # handed on to something else
            found.append(Announcement(function.hook, "*"))
    return list(dict.fromkeys(found))


def hook_functions(owner: ast.Module | ast.ClassDef) -> Iterator[HookFunction]:
    """The functions at the top of a module or class, each with the hook it may implement."""
    for node in owner.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield _hook_function(node)


def register_calls(function: ast.AST) -> Iterator[ast.Call]:
    """The calls of `register` with a name and a class."""
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "register" and node.args:
            yield node


def registered_class(call: ast.Call) -> str:
    """The class that a call `register("name", Class)` names, else an empty text."""
    return getattr(call.args[1], "id", "") if len(call.args) == 2 else ""


def _hook_function(node: ast.FunctionDef | ast.AsyncFunctionDef) -> HookFunction:
    marked = False
    for decorator in node.decorator_list:
        marker = decorator.func if isinstance(decorator, ast.Call) else decorator
        marked |= getattr(marker, "id", getattr(marker, "attr", "")) == "hookimpl"
        for keyword in decorator.keywords if isinstance(decorator, ast.Call) else ():
            if keyword.arg == "specname" and isinstance(keyword.value, ast.Constant):
                return HookFunction(node, str(keyword.value.value), marked)
    return HookFunction(node, node.name, marked)


def _bound_elsewhere(module: ast.Module) -> Iterator[str]:
    """The hooks that a module has from elsewhere: imported, or assigned."""
    for node in ast.walk(module):
        if isinstance(node, ast.ImportFrom):
            names = {alias.asname or alias.name for alias in node.names}
            yield from HOOK_NAMES if "*" in names else names.intersection(HOOK_NAMES)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield from {node.id}.intersection(HOOK_NAMES)


def _name(call: ast.Call) -> str:
    """The name a call registers, or as much of its beginning as is written there."""
    first: ast.AST = call.args[0]
    whole = isinstance(first, ast.Constant)
    if isinstance(first, ast.JoinedStr) and first.values:
        first = first.values[0]
    elif isinstance(first, ast.BinOp) and isinstance(first.op, ast.Add):
        first = first.left
    written = str(first.value) if isinstance(first, ast.Constant) else ""
    return written if whole else f"{written}*"
