"""Cron, interval or calendar rule, checked by Prefect's own scheduler before it is registered."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule, RRuleSchedule
from pydantic import ValidationError

from torchyard.core.errors import UserError
from torchyard.pipelines.time_zone import check_zone, local_zone

# Of the first fields of a cron line; a longer step would start at the first minute or hour alone.
STEPS = (("minute", 59), ("hour", 23), ("day", 30), ("month", 11), ("weekday", 6))
UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


@dataclass(frozen=True)
class Schedule:
    """When runs start.

    Attributes:
        prefect: Prefect's `CronSchedule`, `IntervalSchedule` or `RRuleSchedule`.
        first: the first start.
    """

    prefect: Any
    first: datetime


def parse_schedule(
    cron: str | None, interval: str | None, rrule: str | None, timezone: str | None
) -> Schedule:
    """Parse the one of the three that is given.

    Raises:
        UserError: with every problem.
    """
    problems: list[str] = []
    try:
        zone = check_zone(timezone) if timezone else local_zone()
    except UserError as error:
        problems += error.problems
        zone = "UTC"
    options = {"--cron": cron, "--interval": interval, "--rrule": rrule}
    chosen = {option: value for option, value in options.items() if value is not None}
    if len(chosen) != 1:
        what = " and ".join(chosen) if chosen else "none of them"
        problems.append(f"give one of {', '.join(options)}, not {what}")
    schedule = None
    for option, value in chosen.items():
        try:
            schedule = _PARSERS[option](value, zone)
        except ValueError as error:
            problems.append(f"{option}: '{value}': {error}")
    if problems or schedule is None:
        raise UserError(problems)
    return schedule


def _cron(value: str, zone: str) -> Schedule:
    from prefect.server.schemas.schedules import CronSchedule as ServerCronSchedule

    fields = value.split()
    # A sixth would be seconds, at the end: 0 0 3 * * *, as others write three o'clock, starts 60
    # runs in a minute of the third of a month.
    if len(fields) > 5:
        raise ValueError(f"has {len(fields)} fields, not five: minute hour day month weekday")
    for field, (unit, most) in zip(fields, STEPS, strict=False):
        if any(int(step) > most for step in re.findall(r"/(\d+)", field)):
            raise ValueError(
                f"'{field}' has a step that no {unit} reaches: give --interval, e.g. 90m"
            )
    try:
        schedule = CronSchedule(cron=" ".join(fields), timezone=zone)
        # The client's schedule cannot compute its dates; the scheduler uses the server's.
        dates = asyncio.run(ServerCronSchedule(cron=schedule.cron, timezone=zone).get_dates(n=1))
    except ValidationError as error:
        raise ValueError(
            f'{_reason(error)}  (minute hour day month weekday, e.g. "0 3 * * *")'
        ) from None
    return Schedule(schedule, dates[0])


def _interval(value: str, zone: str) -> Schedule:
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
        raise ValueError("must be longer than 0")
    schedule = IntervalSchedule(interval=length, anchor_date=datetime.now(UTC), timezone=zone)
    return Schedule(schedule, first)


def _rrule(value: str, zone: str) -> Schedule:
    # Every one of its times is counted from the year 2020 on.
    if found := re.search(r"FREQ=(SECONDLY|MINUTELY)|INTERVAL=[+-]?0*(?!\d)", value.upper()):
        raise ValueError(f"'{found[0]}' cannot be: give --interval, e.g. 5m")
    try:
        schedule = RRuleSchedule(rrule=value, timezone=zone)
    except ValidationError as error:
        raise ValueError(f"{_reason(error)}  (RFC 5545, e.g. FREQ=DAILY;BYHOUR=3)") from None
    first = schedule.to_rrule().after(datetime.now(ZoneInfo(zone)))
    if first is None:
        raise ValueError("all its times have passed")
    return Schedule(schedule, first)


_PARSERS = {"--cron": _cron, "--interval": _interval, "--rrule": _rrule}


def _reason(error: Any) -> str:
    return str(error.errors()[0]["msg"]).removeprefix("Value error, ")
