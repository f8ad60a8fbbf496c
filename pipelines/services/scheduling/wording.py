"""When a schedule starts runs, as people say it: `every day at 03:00`, `every 12 hours`."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

WEEKDAYS = ("Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
SHORT = ("SU", "MO", "TU", "WE", "TH", "FR", "SA")  # in a rule of the calendar
UNITS = ((604800, "week"), (86400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))


def described(schedule: Any) -> str:
    """One of Prefect's schedules in words; a rule that has none, as it is written."""
    if cron := getattr(schedule, "cron", None):
        return _cron(cron) or f'"{cron}"'
    if rule := getattr(schedule, "rrule", None):
        return _rule(rule) or str(rule).rpartition("\n")[2]
    return _interval(schedule.interval)


def zone_of(schedule: Any) -> str | None:
    """The time zone that the words are of; None for an interval, which is the same in all."""
    return None if getattr(schedule, "interval", None) else schedule.timezone


def _cron(line: str) -> str:
    if not (fields := re.fullmatch(r"(\S+) (\S+) (\S+) \* (\S+)", " ".join(line.split()))):
        return ""
    minute, hour, day, weekdays = fields.groups()
    if (day, weekdays) == ("*", "*"):
        if hour == "*" and (step := re.fullmatch(r"\*/(\d+)", minute)) and 60 % int(step[1]) == 0:
            return f"every {step[1]} minutes"
        if hour == "*" and minute.isdecimal():
            return f"every hour at :{int(minute):02}"
        step = re.fullmatch(r"\*/(\d+)", hour)
        if step and minute.isdecimal() and 24 % int(step[1]) == 0:
            return f"every {step[1]} hours at :{int(minute):02}"
    if not (minute.isdecimal() and hour.isdecimal()):
        return ""
    return _at(int(hour), int(minute), _cron_days(day, weekdays))


def _cron_days(day: str, weekdays: str) -> str:
    """Which days; empty where they have no plain words."""
    if weekdays == "*":
        return f"day {day} of each month" if day.isdecimal() else "every day" * (day == "*")
    if day != "*":
        return ""
    if weekdays.upper() in ("1-5", "MON-FRI"):
        return "Monday to Friday"
    names = [*dict.fromkeys(_weekday(each) for each in weekdays.split(","))]
    return _listed(names) if all(names) else ""


def _weekday(text: str) -> str:
    if text.isdecimal():
        return f"{WEEKDAYS[int(text) % 7]}s" if int(text) <= 7 else ""
    named = [f"{name}s" for name in WEEKDAYS if name[:3].upper() == text.upper()]
    return named[0] if named else ""


def _rule(rule: str) -> str:
    rule = re.sub(r"\ADTSTART[^\n]*\n", "", rule)  # Prefect's own; the days and hours say when
    if "\n" in rule:
        return ""
    pairs = (part.partition("=") for part in rule.removeprefix("RRULE:").split(";"))
    parts = {key.upper(): value.upper() for key, _, value in pairs}
    frequency = parts.pop("FREQ", "")
    hour, minute = parts.pop("BYHOUR", ""), parts.pop("BYMINUTE", "")
    parts.pop("BYSECOND", "")
    days, interval = parts.pop("BYDAY", ""), parts.pop("INTERVAL", "1")
    if parts or interval != "1" or not (hour.isdecimal() and minute.isdecimal()):
        return ""
    if frequency == "DAILY" and not days:
        return _at(int(hour), int(minute), "every day")
    if frequency == "WEEKLY" and days and all(each in SHORT for each in days.split(",")):
        names = [f"{WEEKDAYS[SHORT.index(each)]}s" for each in days.split(",")]
        return _at(int(hour), int(minute), _listed(names))
    return ""


def _interval(length: timedelta) -> str:
    seconds = int(length.total_seconds())
    parts = []
    for size, unit in UNITS:
        count, seconds = divmod(seconds, size)
        if count:
            parts.append(f"{count} {unit}{'s' * (count > 1)}")
    return f"every {' '.join(parts).removeprefix('1 ') if len(parts) == 1 else ' '.join(parts)}"


def _at(hour: int, minute: int, days: str) -> str:
    return days and f"{days} at {hour:02}:{minute:02}"


def _listed(names: list[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
