"""Schedules in words."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchyard.pipelines.services.scheduling.schedules import parse_schedule
from torchyard.pipelines.services.scheduling.wording import described


def words(cron=None, interval=None, rrule=None) -> str:
    return described(parse_schedule(cron, interval, rrule, "Asia/Shanghai").prefect)


@pytest.mark.parametrize(
    ("cron", "said"),
    [
        ("0 3 * * *", "every day at 03:00"),
        ("30  17 * * *", "every day at 17:30"),
        ("5 * * * *", "every hour at :05"),
        ("*/15 * * * *", "every 15 minutes"),
        ("0 */6 * * *", "every 6 hours at :00"),
        ("30 1 * * 1-5", "Monday to Friday at 01:30"),
        ("30 4 * * 6", "Saturdays at 04:30"),
        ("30 4 * * sun,WED", "Sundays and Wednesdays at 04:30"),
        ("0 0 1 * *", "day 1 of each month at 00:00"),
        ("*/7 * * * *", '"*/7 * * * *"'),  # not every seven minutes: it begins again each hour
        ("0 3 1 * 1", '"0 3 1 * 1"'),
        ("0 3 * 6 *", '"0 3 * 6 *"'),
        ("0,30 3 * * *", '"0,30 3 * * *"'),
    ],
)
def test_a_cron_line_is_said_as_people_do_or_as_it_is_written(cron, said) -> None:
    assert words(cron=cron) == said


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("FREQ=WEEKLY;BYDAY=SA;BYHOUR=4;BYMINUTE=0;BYSECOND=0", "Saturdays at 04:00"),
        ("FREQ=DAILY;BYHOUR=3;BYMINUTE=30", "every day at 03:30"),
        (
            "FREQ=WEEKLY;BYDAY=MO,WE,FR;BYHOUR=4;BYMINUTE=0",
            "Mondays, Wednesdays and Fridays at 04:00",
        ),
        ("FREQ=MONTHLY;BYMONTHDAY=3", "FREQ=MONTHLY;BYMONTHDAY=3"),
        ("FREQ=DAILY;INTERVAL=2;BYHOUR=3;BYMINUTE=0", "FREQ=DAILY;INTERVAL=2;BYHOUR=3;BYMINUTE=0"),
    ],
)
def test_a_rule_of_the_calendar_too(rule, said) -> None:
    assert words(rrule=rule) == said


def test_intervals() -> None:
    assert words(interval="12h") == "every 12 hours"
    assert words(interval="1d") == "every day"
    assert words(interval="1d12h") == "every 1 day 12 hours"
    assert words(interval="90m") == "every 1 hour 30 minutes"


@given(st.integers(1, 10**8))
def test_an_interval_names_all_of_its_seconds(seconds) -> None:
    said = described(SimpleNamespace(interval=timedelta(seconds=seconds)))
    numbers = said.removeprefix("every ").split()
    if len(numbers) == 1:
        numbers.insert(0, "1")
    sizes = {"week": 604800, "day": 86400, "hour": 3600, "minute": 60, "second": 1}
    pairs = zip(numbers[::2], numbers[1::2], strict=True)
    assert sum(int(count) * sizes[unit.rstrip("s")] for count, unit in pairs) == seconds
