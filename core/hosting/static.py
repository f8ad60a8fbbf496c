"""What a plugin file registers, read from its text without running it.

Listing forty plugins, or a run with one of them, must not import the other thirty-nine.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torchyard.core.hosting.hookspecs import HOOKS

HOOK_NAMES = list(HOOKS.values())


@dataclass(frozen=True)
class Declaration:
    """One name, or a family of them, that a plugin registers by its text.

    Attributes:
        hook: the hook it is registered by.
        name: "small"; or "timm/*", "*" where names are made at run time.
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
    """The syntax tree of a file; None if it cannot be read or is no Python."""
    try:
        return ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return None


def declarations(module: ast.Module) -> list[Declaration]:
    """All that a module may register, in the order of its text."""
    found = [Declaration(hook, "*") for hook in _imported_hooks(module)]
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
            Declaration(function.hook, _name(call), summaries.get(registered_class(call), ""))
            for call in calls
        ]
        mentions = sum(getattr(node, "id", "") == "register" for node in ast.walk(function.node))
        if mentions > len(calls):  # passed to another function
            found.append(Declaration(function.hook, "*"))
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
    """`Class` of a call `register("name", Class)`; "" if it is written in another way."""
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


def _imported_hooks(module: ast.Module) -> Iterator[str]:
    """The hooks that a module does not define but imports or assigns."""
    for node in ast.walk(module):
        if isinstance(node, ast.ImportFrom):
            names = {alias.asname or alias.name for alias in node.names}
            yield from HOOK_NAMES if "*" in names else names.intersection(HOOK_NAMES)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield from {node.id}.intersection(HOOK_NAMES)


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
