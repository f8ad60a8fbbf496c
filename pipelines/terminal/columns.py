"""Columns of text that fit: what matters least is left out first, and no name is ever broken."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime

from rich.text import Text

from torchyard.core.formatting import printable
from torchyard.pipelines import display

GAP = "  "


def print_columns(
    headings: Sequence[str],
    rows: Iterable[Sequence[str | Text]],
    *,
    right: Collection[str] = (),
    droppable: Sequence[str] = (),
    cut: str = "",
    header: bool = True,
) -> list[int]:
    """Print a row a line; in a pipe all of it.

    Where a terminal is too narrow, columns are left out, and then one is cut short. What is
    wider still is broken by the terminal, not here: it can be copied whole.

    Args:
        headings: of the columns; one that is empty in every row is left out.
        rows: their cells.
        right: headings of columns of numbers.
        droppable: headings of columns that may be left out, what matters least first.
        cut: heading of the column whose cells may end in `…`.
        header: whether the headings are printed.

    Returns:
        The numbers of the rows whose cell was cut short.
    """
    lines = [[_text(cell) for cell in row] for row in rows]
    kept = [at for at in range(len(headings)) if any(line[at].plain for line in lines)]
    shortened = []
    if header:
        lines.insert(0, [Text(printable(name), "dim") for name in headings])
    widths = [max((line[at].cell_len for line in lines), default=0) for at in range(len(headings))]
    console = display.stdout
    room = console.width if console.is_terminal else display.UNFOLDED
    fitting = [at for at in kept if headings[at] not in droppable]
    for name in reversed(droppable):
        more = [at for at in kept if at in fitting or headings[at] == name]
        if _total(widths, more) <= room:
            fitting = more
    kept = fitting
    if cut and (over := _total(widths, kept) - room) > 0:
        at = headings.index(cut)
        widths[at] = max(widths[at] - over, 10)
        for number, line in enumerate(lines, -int(header)):
            if line[at].cell_len > widths[at]:
                line[at].truncate(widths[at], overflow="ellipsis")
                shortened.append(number)
    for line in lines:
        for at in kept:
            pad = widths[at] - line[at].cell_len
            line[at].pad_left(pad) if headings[at] in right else line[at].pad_right(pad)
        whole = Text(GAP).join(line[at] for at in kept)
        whole.rstrip()
        console.print(whole, soft_wrap=True)
    return shortened


def _text(cell: str | Text) -> Text:
    return cell.copy() if isinstance(cell, Text) else Text(printable(cell))


def _total(widths: Sequence[int], kept: Sequence[int]) -> int:
    return sum(widths[at] for at in kept) + len(GAP) * max(len(kept) - 1, 0)


def moment(time: datetime) -> str:
    """A time in this machine's time zone: `27 Nov 08:40`; `27 Nov 2025` of another year."""
    here = time.astimezone()
    return f"{here:%d %b %H:%M}" if here.year == datetime.now().year else f"{here:%d %b %Y}"
