"""What a run shows while it runs: a line per stage and epoch, and a progress bar on a terminal."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Container, Iterable, Iterator
from contextvars import ContextVar
from typing import Any

from rich import progress
from rich.console import Console, ConsoleOptions, JustifyMethod, OverflowMethod, RenderableType
from rich.markup import escape
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from torchyard.core.formatting import percent, printable
from torchyard.core.training.events import (
    BatchSplit,
    EpochDone,
    Event,
    GoesOn,
    Progress,
    RunningLoss,
    StageProgress,
)


class PrintableConsole(Console):
    """A console that no name of a class, run, file or tag can command."""

    def render(  # noqa: D102 - as rich's; everything that is printed passes here
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterator[Segment]:
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else printable(text), style, control)


stdout = PrintableConsole(highlight=False)
stderr = PrintableConsole(stderr=True, highlight=False)


def look_at_terminal() -> None:
    """Find out anew what the terminal can: of a process that was forked from one without."""
    stdout.__init__(highlight=False)  # type: ignore[misc]
    stderr.__init__(stderr=True, highlight=False)  # type: ignore[misc]


UNFOLDED = 10_000  # columns
LABEL = 13  # columns of what a line of the result is about


def print_table(
    headings: Iterable[str],
    rows: Iterable[Iterable[str | Text]],
    *,
    right: Container[str] = (),
    no_wrap: Container[str] = (),
) -> None:
    """Print columns of plain texts, numbers to the `right`; folded on a terminal, not in a pipe."""
    table = Table(box=None, pad_edge=False)
    for heading in headings:
        justify: JustifyMethod = "right" if heading in right else "left"
        whole = heading in no_wrap
        overflow: OverflowMethod = "ellipsis" if whole else "fold"
        name = escape(printable(heading))
        table.add_column(name, justify=justify, overflow=overflow, no_wrap=whole)
    for row in rows:
        # Before the columns' widths are measured.
        cells = (escape(printable(cell)) if isinstance(cell, str) else cell for cell in row)
        table.add_row(*cells)
    if stdout.is_terminal:
        stdout.print(table)
    else:
        PrintableConsole(highlight=False, width=UNFOLDED, file=stdout.file).print(table)


def print_json(value: Any, indent: int | None = None) -> None:
    """Print JSON that reads as it is, but for what a terminal would obey: that is escaped."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    shown = (c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)
    print("".join(shown), flush=True)


class Display:
    """Follows one run; without a console it shows nothing (the default under Prefect)."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console
        self._bar: progress.Progress | None = None
        self._task: progress.TaskID | None = None
        self._loss = ""
        self.seconds: dict[str, float] = {}
        """How long each stage that has ended took."""
        self.outcome: Any = None
        """The `Outcome` of a run that is finished and recorded."""
        self.monitor = "loss"
        """The figure by which the training knows its best epoch: `train.monitor`."""

    @contextlib.contextmanager
    def bars(self) -> Iterator[None]:
        """Show a bar for the stage under way, where the console is a terminal."""
        if self._console is None or not self._console.is_terminal:
            yield
            return
        self._bar = progress.Progress(
            progress.TextColumn("{task.description:<9}"),
            progress.BarColumn(bar_width=30),
            progress.TextColumn("{task.fields[status]}"),
            progress.TimeRemainingColumn(compact=True),
            console=self._console,
            transient=True,
        )
        with self._bar:
            yield
        self._bar = None

    def line(self, stage: str, text: str) -> None:
        """Print a message of a stage."""
        if self._console is not None:
            self._console.print(f"{stage:<9} {text}", highlight=False, markup=False, soft_wrap=True)

    def output(self, line: str) -> None:
        """Print what a plugin printed, or torch warned of, in the worker."""
        self.line("", line)

    def began(self, run_id: str, name: str) -> None:
        """The run has been recorded as started."""

    @contextlib.contextmanager
    def stage(self, name: str, status: str) -> Iterator[None]:
        """Show a stage's bar while it runs."""
        began = time.perf_counter()
        if self._bar is not None:
            self._task = self._bar.add_task(name, total=None, status=status)
        try:
            yield
            self.seconds[name] = time.perf_counter() - began
        finally:
            if self._bar is not None and self._task is not None:
                self._bar.remove_task(self._task)
                self._task = None

    def event(self, event: Event) -> None:
        """Show an event of a stage."""
        match event:
            case EpochDone():
                self.line("train", epoch_line(event, self.monitor))
            case GoesOn(epoch, epochs):
                self.line("train", f"goes on at epoch {epoch} of {epochs}")
            case BatchSplit():
                self.line("train", split_line(event))
            case RunningLoss():
                self._loss = f"loss {event.loss:.4f}  "
            case StageProgress(description, done, total):
                self._advance(done, total, f"{description}  {done:,} of {total:,}")
            case Progress():
                status = (
                    f"epoch {event.epoch}  step {event.step:,} of {event.total_steps:,}  "
                    f"{self._loss}{event.images_per_second:,.0f} images/s"
                )
                self._advance(event.step, event.total_steps, status)

    def _advance(self, done: int, total: int, status: str) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=total, status=status)

    def result(self, ui_command: str, served: bool) -> None:
        """Print the result.

        Args:
            ui_command: opens its page.
            served: whether that is known to be at its address already.
        """
        if self._console is None:
            return
        show, outcome = self._console.print, self.outcome
        show(_per_class_table(outcome.per_class))
        show(f"[bold]{outcome.accuracy:.1%}[/] of {outcome.images:,} test samples right")
        room = self._console.width if self._console.is_terminal else UNFOLDED
        times = [f"{name} {seconds:.1f} s" for name, seconds in self.seconds.items()]
        for number, line in enumerate(_joined(times, room - LABEL)):
            show(f"{'' if number else 'Stages:':<{LABEL}}{line}", soft_wrap=True)
        show(f"MLflow run:  [bold]{escape(outcome.name)}[/]  {outcome.run_id}")
        self._show_address(ui_command, served)

    def _show_address(self, ui_command: str, served: bool) -> None:
        """Print how to look at the outcome's page."""
        assert self._console is not None
        show = self._console.print
        show(f"Look at it:  [bold]{escape(ui_command)}[/]", soft_wrap=True)
        if served:
            show(f"         or  {self.outcome.url}", soft_wrap=True)


class QuietDisplay(Display):
    """Prints the id of the finished run and nothing else."""

    def result(self, ui_command: str, served: bool) -> None:  # noqa: D102 - as above
        print(self.outcome.run_id)


class JsonDisplay(Display):
    """Prints JSON lines, each an object whose key "event" says what happened.

    run: run_id, name; stage: stage, and seconds once it has ended; epoch: as the training's
    `EpochDone`; message: stage, text; output: text, printed by a plugin or by torch; result:
    the `Outcome`. Errors go to standard error, with an exit status.
    """

    def _print(self, event: str, **values: Any) -> None:
        print_json({"event": event, **_without_nan(values)})

    def began(self, run_id: str, name: str) -> None:  # noqa: D102
        self._print("run", run_id=run_id, name=name)

    def line(self, stage: str, text: str) -> None:  # noqa: D102
        self._print("message", stage=stage, text=text)

    def output(self, line: str) -> None:  # noqa: D102
        self._print("output", text=line)

    @contextlib.contextmanager
    def stage(self, name: str, status: str) -> Iterator[None]:  # noqa: D102
        self._print("stage", stage=name)
        with super().stage(name, status):
            yield
        self._print("stage", stage=name, seconds=self.seconds[name])

    def event(self, event: Event) -> None:  # noqa: D102
        if isinstance(event, EpochDone):
            self._print("epoch", **dataclasses.asdict(event))
        if isinstance(event, BatchSplit | GoesOn):
            super().event(event)

    def result(self, ui_command: str, served: bool) -> None:  # noqa: D102
        self._print("result", **dataclasses.asdict(self.outcome))


def _joined(parts: Iterable[str], room: int) -> list[str]:
    """The parts in as few lines as have room for them: none is broken."""
    lines: list[str] = []
    for part in parts:
        longer = f"{lines[-1]} · {part}" if lines else part
        lines[-1:] = [longer] if not lines or len(longer) <= room else [lines[-1], part]
    return lines


def _without_nan(values: dict[str, Any]) -> dict[str, Any]:
    """The values for JSON, which has no NaN: None in its place."""
    return {
        key: _without_nan(value) if isinstance(value, dict) else None if value != value else value
        for key, value in values.items()
    }


def _per_class_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="per class", title_justify="left")
    table.add_column("class")
    for heading in ("images", "correct", "accuracy", "precision", "F1"):
        table.add_column(heading, justify="right")
    for row in rows:
        shares = [row[key] for key in ("accuracy", "precision", "f1")]
        table.add_row(
            escape(printable(str(row["class"]))),
            f"{row['images']:,}",
            f"{row['correct']:,}",
            *(percent(share, space="") for share in shares),
        )
    return table


def epoch_line(done: EpochDone, monitor: str = "loss") -> str:
    """A finished epoch in one line, with the figure by which the best epoch is known."""
    line = f"epoch {done.epoch}: loss {done.loss:.4f}, accuracy {done.accuracy:.1%}"
    if done.validation_loss is not None:
        line += (
            f", validation loss {done.validation_loss:.4f}, accuracy {done.validation_accuracy:.1%}"
        )
    if monitor not in ("loss", "accuracy") and monitor in done.validation_figures:
        line += f", {monitor} {done.validation_figures[monitor]:.4f}"
    return f"{line}, {done.images_per_second:,.0f} images/s, {done.seconds:.1f} s"


def split_line(split: BatchSplit) -> str:
    """That batches are split from here on."""
    return (
        f"out of memory at step {split.step:,}: each batch is computed in {split.parts} parts "
        "from here on, with the same update"
    )


# Prefect runs tasks in copies of the caller's context: what the command line sets here
# reaches them, and a flow that Prefect started by itself finds the silent default.
display: ContextVar[Display] = ContextVar("display", default=Display())  # noqa: B039
