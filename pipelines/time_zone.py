"""The time zone of this machine, by the name that schedules need, as `date` finds it."""

from __future__ import annotations

import os
import re
import time
import zoneinfo
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo, available_timezones

from torchyard.core.errors import UserError, did_you_mean

LOCALTIME, TIMEZONE = Path("/etc/localtime"), Path("/etc/timezone")
POSIX = re.compile(r"(<[^>]+>|[A-Za-z]{3,})[+-]?\d")  # TZ=IST-5:30: hours west of Greenwich
HOURS = re.compile(r"(?:UTC|GMT|Z)? ?([+-])(0?\d|1[0-2])(?::?00)?", re.IGNORECASE)
ABBREVIATION = re.compile("[A-Z]{2,5}")
HOUR, DAY = 3600, 86400


def check_zone(zone: str) -> str:
    """The time zone, if it is one.

    Raises:
        UserError: there is none of that name; the message has the nearest.
    """
    known = _known()
    if zone not in known:
        raise UserError(f"--timezone: there is no '{zone}'.{_nearest(zone, known)}")
    return zone


def local_zone() -> str:
    """The name of this machine's time zone.

    That of TZ or else of /etc/localtime: a link to one of the system's files, a copy of one, or
    rules such as `IST-5:30`, for which a zone with the same hours is named.

    Raises:
        UserError: no zone has these hours, or TZ names none.
    """
    known = _known()
    setting = os.environ.get("TZ")
    named = None if setting is None else setting.removeprefix(":").removeprefix("posix/")
    if named in known:
        return named
    file = LOCALTIME if named is None else Path(named)
    if named == "" or (named is None and not file.exists()):
        return "UTC"
    if not file.is_absolute() or not file.is_file():
        if named is None or not POSIX.match(named):
            near = _nearest(named or "", known)
            raise UserError(f"--timezone: TZ={setting} is no time zone; name one.{near}")
    elif linked := _linked(file, known):
        return linked
    elif same := _copies(file, known):
        return _best(same)
    if same := _with_same_hours(known):
        return _best(same)
    raise UserError(
        "--timezone: this machine's time zone has no name: give one, e.g. Asia/Shanghai"
    )


def _known() -> set[str]:
    if known := available_timezones():
        return known - {"localtime", "posixrules", "Factory"}  # of no place
    raise UserError("--timezone: Python finds no time zones here: `pip install tzdata`")


def _linked(file: Path, known: Iterable[str]) -> str | None:
    """The zone that a chain of links leads to."""
    for _ in range(40):
        zone = str(file).rpartition("zoneinfo/")[2].removeprefix("posix/")
        if zone in known:
            return zone
        if not file.is_symlink():
            break
        file = Path(os.path.normpath(file.parent / file.readlink()))
    return None


def _copies(file: Path, known: Iterable[str]) -> list[str]:
    """The zones whose file has the same content."""
    content = file.read_bytes()
    found = []
    for folder in zoneinfo.TZPATH:
        for zone in known:
            path = Path(folder, zone)
            if path.is_file() and path.read_bytes() == content:
                found.append(zone)
    return found


def _with_same_hours(known: Iterable[str]) -> list[str]:
    """The zones whose clocks show, for two years to come, what this machine's shows."""
    time.tzset()
    now = int(time.time())
    zones = sorted(known)
    for step in (30 * DAY, 6 * HOUR):
        times = range(now, now + 730 * DAY, step)
        here = [time.localtime(at).tm_gmtoff for at in times]
        zones = [zone for zone in zones if _offsets(zone, times) == here]
    return zones


def _offsets(zone: str, times: Sequence[int]) -> list[float]:
    offsets = (datetime.fromtimestamp(at, ZoneInfo(zone)).utcoffset() for at in times)
    return [offset.total_seconds() for offset in offsets if offset is not None]


def _best(zones: Sequence[str]) -> str:
    """Of zones with the same hours the one that the machine's administrator may have meant."""
    noted = TIMEZONE.read_text("utf-8", "replace").strip() if TIMEZONE.is_file() else ""
    time.tzset()
    now = datetime.now(UTC)
    abbreviation = time.localtime(now.timestamp()).tm_zone
    of_countries = _zones_of_countries()

    def rank(zone: str) -> tuple[bool, bool, bool, int]:
        shown = now.astimezone(ZoneInfo(zone)).tzname()
        place = -1 if zone.startswith("Etc/") else of_countries.get(zone, len(of_countries))
        return zone != noted, zone != "UTC", shown != abbreviation, place

    return min(sorted(zones), key=rank)


def _zones_of_countries() -> dict[str, int]:
    """The zones in use, numbered; without their names of former days (Asia/Calcutta)."""
    for folder in zoneinfo.TZPATH:
        table = Path(folder, "zone.tab")
        if table.is_file():
            lines = table.read_text("utf-8").splitlines()
            zones = [line.split("\t")[2] for line in lines if not line.startswith("#")]
            return {zone: number for number, zone in enumerate(zones)}
    return {}


def _nearest(zone: str, zones: Iterable[str]) -> str:
    if east := HOURS.fullmatch(zone.strip()):
        # These names count the hours west of Greenwich, and not all do it.
        sign, side = ("-", "ahead of") if east[1] == "+" else ("+", "behind")
        return f" Did you mean 'Etc/GMT{sign}{int(east[2])}', {int(east[2])} hours {side} UTC?"
    if ABBREVIATION.fullmatch(zone):  # CST is in America, in China and on Cuba
        return "  (name a place, e.g. Asia/Shanghai)"
    known = {}
    for name in sorted(zones):
        known[name.lower()] = known[name.rpartition("/")[2].lower()] = name
    return did_you_mean(zone.lower().replace(" ", "_"), known) or "  (e.g. Asia/Shanghai, UTC)"
