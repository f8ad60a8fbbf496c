"""Plugins, a line each; in a terminal below their kinds, the many models of a package as one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby

from rich.text import Text

from torchyard.pipelines import display
from torchyard.pipelines.terminal.columns import print_columns

HEADINGS = ("kind", "name", "what it is", "from")
FOLDED = 12  # of one kind and one module more plugins than this are folded
BUILT_IN = "built in"


def print_plugins(rows: Sequence[Mapping[str, str]], *, fold: bool) -> None:
    """Print what `torchyard plugins` lists; in a pipe every plugin, with where it is from.

    Args:
        rows: kind, name, summary, origin and status of each.
        fold: whether in a terminal many of one module are one line.
    """
    whole = not display.stdout.is_terminal
    count = Counter((row["kind"], row["origin"]) for row in rows)
    shown, folded = [], set()
    for row in rows:
        kind, origin = of = row["kind"], row["origin"]
        name, summary = row["name"], row["summary"]
        if fold and not whole and count[of] > FOLDED:
            if of in folded:
                continue
            folded.add(of)
            module = origin.rpartition(".")[2].rstrip(")")
            name = f"{name}, …"
            summary = f"{count[of]} of {module} (torchyard plugins {kind})"
        built_in = row["status"] == BUILT_IN
        shown.append((kind, name, summary, "" if built_in and not whole else origin))
    if whole:
        print_columns(HEADINGS, shown)
        return
    for kind, of_kind in groupby(shown, lambda row: row[0]):
        display.stdout.print(Text(kind, "bold"))
        lines = [(f"  {name}", *more) for _, name, *more in of_kind]
        print_columns(HEADINGS[1:], lines, cut="what it is", header=False)
