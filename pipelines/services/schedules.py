"""When a run begins: cron, interval or rule, judged by Prefect before anything is registered."""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

from torchyard.core.errors import UserError

UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


@dataclass(frozen=True)
class Times:
    """When a run begins.

    Attributes:
        schedule: Prefect's.
        first: the first time.
    """

    schedule: Any
    first: datetime

    @property
    def text(self) -> str:
        """The schedule as a person says it."""
        return said(self.schedule)


def read_times(
    cron: str | None, interval: str | None, rrule: str | None, timezone: str | None
) -> Times:
    """Judge what was said of the time. Imports Prefect, whose judgement counts.

    Raises:
        UserError: with all that is wrong.
    """
    problems = []
    zone = timezone or local_timezone()
    if zone not in available_timezones():
        problems.append(f"--timezone: there is no '{zone}'.{_near(zone)}")
        zone = "UTC"
    given = {"--cron": cron, "--interval": interval, "--rrule": rrule}
    chosen = {option: value for option, value in given.items() if value is not None}
    if len(chosen) != 1:
        what = " and ".join(chosen) if chosen else "none of them"
        problems.append(f"give one of {', '.join(given)}, not {what}")
    found = None
    for option, value in chosen.items():
        try:
            found = _READERS[option](value, zone)
        except ValueError as error:
            problems.append(f"{option}: '{value}': {error}")
    if problems or found is None:
        raise UserError(problems)
    return found


def local_timezone() -> str:
    """The name of this machine's time zone; UTC where it has none."""
    named = os.environ.get("TZ", "").removeprefix(":")
    linked = str(Path("/etc/localtime").resolve()).rpartition("zoneinfo/")[2]
    return next((zone for zone in (named, linked) if zone in available_timezones()), "UTC")


def _near(zone: str) -> str:
    known = {}
    for name in sorted(available_timezones()):
        known[name.lower()] = known[name.rpartition("/")[2].lower()] = name
    near = difflib.get_close_matches(zone.lower().replace(" ", "_"), known, n=1)
    return f" Did you mean '{known[near[0]]}'?" if near else "  (e.g. Asia/Shanghai, UTC)"


def _cron(value: str, zone: str) -> Times:
    from prefect._vendor import croniter
    from prefect.client.schemas.schedules import CronSchedule
    from pydantic import ValidationError

    try:
        schedule = CronSchedule(cron=value, timezone=zone)
        times: Any = croniter  # the judge Prefect's scheduler asks; it has no types
        first = times.croniter(value, datetime.now(ZoneInfo(zone))).get_next(datetime)
    except ValidationError as error:
        raise ValueError(
            f'{_reason(error)}  (minute hour day month weekday, e.g. "0 3 * * *")'
        ) from None
    return Times(schedule, first)


def _interval(value: str, zone: str) -> Times:
    from prefect.client.schemas.schedules import IntervalSchedule

    parts = re.findall(r"(\d+)([smhdw])", value)
    if not parts or "".join(number + unit for number, unit in parts) != value:
        raise ValueError("is not an interval such as 30m, 12h, 1d or 1d12h")
    try:
        lengths = (timedelta(**{UNITS[unit]: int(number)}) for number, unit in parts)
        length = sum(lengths, timedelta())
        first = datetime.now(ZoneInfo(zone)) + length
    except OverflowError:
        raise ValueError("is too long") from None
    if length <= timedelta():
        raise ValueError("must be longer than nothing")
    schedule = IntervalSchedule(interval=length, anchor_date=datetime.now(UTC), timezone=zone)
    return Times(schedule, first)


def _rrule(value: str, zone: str) -> Times:
    from prefect.client.schemas.schedules import RRuleSchedule
    from pydantic import ValidationError

    try:
        schedule = RRuleSchedule(rrule=value, timezone=zone)
    except ValidationError as error:
        raise ValueError(f"{_reason(error)}  (RFC 5545, e.g. FREQ=DAILY;BYHOUR=3)") from None
    first = schedule.to_rrule().after(datetime.now(ZoneInfo(zone)))
    if first is None:
        raise ValueError("all its times have passed")
    return Times(schedule, first)


def said(schedule: Any) -> str:
    """A schedule of Prefect's as a person says it."""
    if cron := getattr(schedule, "cron", None):
        return f'"{cron}", {schedule.timezone}'
    if rule := getattr(schedule, "rrule", None):
        return f"{rule}, {schedule.timezone}"
    return f"every {schedule.interval}"


_READERS = {"--cron": _cron, "--interval": _interval, "--rrule": _rrule}


def _reason(error: Any) -> str:
    return str(error.errors()[0]["msg"]).removeprefix("Value error, ")
