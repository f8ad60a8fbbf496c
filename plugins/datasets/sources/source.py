"""A source of image files, opened as what it is: a folder or an archive.

It lists its files and reads them in any order, in any process: its reader can be pickled. No
member of an archive is ever unpacked under its own name, and links in it lead to its own files
alone, so an archive cannot reach files outside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torchyard.plugins.datasets.sources.tree import DEEPEST, Entry, too_deep, walk_tree

LARGEST = 1 << 30  # bytes of one file that is read: a photo of 300 megapixels, not compressed
DANGLING = "a link that leads nowhere, or out of the archive"
LOST = "links that lead nowhere, or out of the archive"
OUTSIDE = "outside (an absolute path, or one with '..')"
SPECIAL = "special (a pipe, socket or device)"


@dataclass
class ImageSource:
    """All files of a folder or an archive.

    A name that is not UTF-8 holds its other bytes as `os.fsdecode` writes them.

    Attributes:
        files: arguments of `read`, by file name: the path within the source, with slashes. That of
            a link in an archive that leads nowhere is None, and cannot be read.
        folders: names of all folders that the source lists, empty ones too.
        read: returns the bytes of one file; can be pickled.
        close: to be called after the last read, or None.
        left_out: the kind of each entry that is neither a file nor a folder in it, by name.
        replaced: names of members that a later one replaces.
        old_names: the encoding of names that are not UTF-8, where nothing better is found.
        says_utf8: whether names that are UTF-8 are so for sure, and not by chance.
    """

    files: dict[str, Any]
    folders: set[str]
    read: Callable[[Any], bytes]
    close: Callable[[], None] | None = None
    left_out: dict[str, str] = field(default_factory=dict)
    replaced: list[str] = field(default_factory=list)
    old_names: str = "cp1252"
    says_utf8: bool = False

    def forget(self, name: str, links: dict[str, str]) -> None:
        """Make room for a member of that name: the later one counts, as where it is unpacked."""
        for earlier in (self.files, self.left_out, links):
            if name in earlier:
                del earlier[name]
                self.replaced.append(name)

    def settle(self, links: dict[str, str]) -> None:
        """Add what symbolic links within an archive lead to, and leave out what is not within.

        Args:
            links: what they lead to, from the folder they lie in, by their names.

        Raises:
            UserError: folders link to one another.
        """
        if all(name.startswith("/") for name in (*self.files, *self.folders, *links)):
            self.files = {name[1:]: reference for name, reference in self.files.items()}
            self.folders = {name[1:] for name in self.folders}
            links = {name[1:]: target for name, target in links.items()}
        for name in filter(_is_outside, [*self.files, *links]):
            self.files.pop(name, None)
            links.pop(name, None)
            self.left_out[name] = OUTSIDE
        self.folders = {name for name in self.folders if not _is_outside(name)}
        if links:
            self._follow(links)

    def _follow(self, links: dict[str, str]) -> None:
        inside: dict[str, dict[str, None]] = {"": {}}
        for name in [*self.folders, *self.files, *links]:
            known = False
            while not known:
                folder, _, own = name.rpartition("/")
                known = folder in inside
                inside.setdefault(folder, {})[own] = None
                name = folder
        for folder in self.folders:
            inside.setdefault(folder, {})

        def entries(folder: str, _: object) -> Iterator[Entry]:
            for name in sorted(inside[folder]):
                path = f"{folder}/{name}".lstrip("/")
                real = _resolved(path, links)
                yield name, real if real in inside else None, real

        files = {}
        for name, real in walk_tree("", entries, None):
            if real in self.files:
                files[name] = self.files[real]
            elif real in inside:
                self.folders.add(name)
            elif "." in name.rpartition("/")[2]:
                files[name] = None
            else:
                self.left_out[name] = LOST
        self.files = files


def _resolved(path: str, links: dict[str, str]) -> str | None:
    """The path without links; None if they lead out of the archive, or in a circle."""
    left, done, followed = path.split("/")[::-1], list[str](), 0
    while left:
        part = left.pop()
        if part == ".." and not done:
            return None
        if part == "..":
            done.pop()
        elif part not in ("", "."):
            done.append(part)
        target = links.get("/".join(done))
        if target is not None:
            followed += 1
            if target.startswith("/") or followed > 40:  # Linux follows as many
                return None
            done.pop()
            left += target.split("/")[::-1]
    return "/".join(done)


def check_size(size: int) -> None:
    """Refuse a file that is too large to be an image.

    Raises:
        ValueError: it has more than `LARGEST` bytes.
    """
    if size > LARGEST:
        raise ValueError(f"its {size / 1e9:,.1f} GB are too many for an image file")


def _is_outside(name: str) -> bool:
    return name.startswith("/") or ".." in name.split("/")


def cleaned(name: str) -> str:
    """A member's name without "./" and extra slashes; an absolute one begins with one.

    Raises:
        UserError: more than `DEEPEST` folders lie within one another.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if len(parts) > DEEPEST:
        raise too_deep("/".join(parts))
    return "/" * (name.startswith("/") and bool(parts)) + "/".join(parts)
