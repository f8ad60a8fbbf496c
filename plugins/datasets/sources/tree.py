"""All files below a folder, with links followed: of a disk, or of an archive."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any

from torchyard import UserError

DEEPEST = 100  # folders within one another
LINKED = 1000  # times that links lead into one folder

# Of each entry of a folder, in the order of the names: the name, what identifies the folder that
# it is or leads to (None: it is none), and what the caller wants back.
Entry = tuple[str, Hashable | None, Any]


def walk_tree(
    root: Hashable,
    entries: Callable[[Any, Any], Iterable[Entry]],
    of: Any,
    above: Iterable[Hashable] = (),
) -> Iterator[tuple[str, Any]]:
    """(path, what `entries` gave of it) of all files and folders.

    A link to a folder that it lies in is not followed.

    Args:
        root: what identifies the folder to begin with.
        entries: lists a folder, by what identifies it and by what it gave of that folder.
        of: the second argument of the first call.
        above: what identifies the folders that `root` lies in.

    Raises:
        UserError: more than `DEEPEST` folders lie within one another, or links lead into one
            folder more than `LINKED` times, as they do where folders link to one another.
    """
    around, visits = {root, *above}, Counter[Hashable]()
    open_folders = [(root, "", iter(entries(root, of)))]
    while open_folders:
        folder, prefix, left = open_folders[-1]
        for name, inner, given in left:
            if inner in around:
                continue
            yield prefix + name, given
            if inner is None:
                continue
            visits[inner] += 1
            if visits[inner] > LINKED:
                raise UserError(f"links lead to {prefix}{name} more than {LINKED:,} times")
            if len(open_folders) > DEEPEST:
                raise too_deep(prefix)
            around.add(inner)
            open_folders.append((inner, f"{prefix}{name}/", iter(entries(inner, given))))
            break
        else:
            around.discard(folder)
            open_folders.pop()


def too_deep(path: str) -> UserError:
    """The error about a path of more than `DEEPEST` folders."""
    return UserError(f"more than {DEEPEST} folders lie within one another: {path[:60]}…")
