"""What is scheduled and deployed, a line each: how it ended last, and when it runs next."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from rich.text import Text

from torchyard.core.formatting import coarse_duration, printable
from torchyard.pipelines import display
from torchyard.pipelines.terminal.columns import moment, print_columns

HEADINGS = ("name", "schedule", "pool", "last", "result", "next")
FAILED = ("Failed", "Crashed", "Cancelled", "TimedOut")
PREFECTS_OWN = ("All states completed.",)  # messages that say nothing
# What Prefect puts before the text of an exception that ended a flow run.
RAISED = re.compile(r"Flow run encountered an exception: (?:RunError|UserError): ")


def print_schedules(
    plan: Iterable[Mapping[str, Any]], pool: str, zone: str, now: datetime | None = None
) -> None:
    """Print the rows of `deployments.overview`.

    Args:
        plan: the rows.
        pool: of this machine; another one is named.
        zone: of this machine; another one is named.
        now: the time from which the next starts are counted.
    """
    now, plan = now or datetime.now(UTC), list(plan)
    rows = [
        (
            row["name"],
            _schedule(row, zone),
            "" if row["pool"] == pool else f"pool {row['pool'] or '–'}",
            moment(datetime.fromisoformat(row["last"])) if row["last"] else "",
            _result(row),
            _next(row, now),
        )
        for row in plan
    ]
    cut = print_columns(HEADINGS, rows, droppable=("last", "pool"), cut="result", header=False)
    for number, row in enumerate(plan):
        whole = _result(row).plain.partition(" ")[2] if number in cut else ""
        if reason := _reason(row) or whole:
            text = Text(f"{printable(row['name'])}: {printable(reason)}", "dim")
            display.stdout.print(text, soft_wrap=True)


def _schedule(row: Mapping[str, Any], zone: str) -> str:
    """In few words, and in which city if that is not here: `03:00 Shanghai`."""
    words = str(row["schedule"] or "by hand").replace("every day at ", "").replace(" at ", " ")
    words = re.sub(r"\b(Sun|Mon|Tue|Wed|Thu|Fri|Sat)[a-z]*days?\b", r"\1", words)
    words = words.replace("Mon to Fri", "Mon–Fri").replace("hours", "h").replace("minutes", "min")
    if row["timezone"] in (None, zone):
        return words
    return f"{words} {str(row['timezone']).rpartition('/')[2].replace('_', ' ')}"


def _result(row: Mapping[str, Any]) -> Text:
    state, message = row["last_state"], row["last_message"] or ""
    if state is None:
        return Text("  not run yet", "dim")
    if state == "Running":
        return Text.assemble(("● ", "cyan"), printable(row["progress"] or "running"))
    skipped = f"; then skipped: {row['skipped_since']}" if row["skipped_since"] else ""
    if state not in ("Completed", *FAILED):  # on its way
        return Text.assemble(("· ", "cyan"), printable(state.lower()))
    if state in FAILED:
        return Text.assemble(("✗ ", "red"), printable(f"{state.lower()}{skipped}"))
    if not message or message in PREFECTS_OWN:
        message = "completed"
    passed = not re.search(r"\brefused by |^skipped\b", message)
    mark = ("✓ ", "green") if passed else ("– ", "yellow")
    return Text.assemble(mark, printable(f"{message.partition(': ')[0]}{skipped}"))


def _reason(row: Mapping[str, Any]) -> str:
    """Why a run ended early, in a line."""
    state, message = row["last_state"], row["last_message"]
    if state not in FAILED or not message:
        return ""
    return str(RAISED.sub("", message)).strip().partition("\n")[0]


def _next(row: Mapping[str, Any], now: datetime) -> str:
    if row["paused"]:
        return "paused"
    if not row["next"]:
        return ""
    seconds = (datetime.fromisoformat(row["next"]) - now).total_seconds()
    return f"next in {coarse_duration(seconds)}" if seconds > 0 else "next now"
