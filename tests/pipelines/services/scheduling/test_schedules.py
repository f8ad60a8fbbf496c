"""Cron lines, intervals and rules: what is accepted, and the first start."""

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchyard.core.errors import UserError
from torchyard.pipelines.services.scheduling.schedules import parse_schedule


def parse(cron=None, interval=None, rrule=None, timezone="Asia/Shanghai"):
    return parse_schedule(cron, interval, rrule, timezone)


def problems(**given):
    with pytest.raises(UserError) as caught:
        parse(**given)
    return caught.value.problems


def test_a_cron_line_means_the_hour_of_its_time_zone():
    found = parse(cron="0 3 * * *")
    assert (found.first.hour, found.first.minute) == (3, 0)
    assert found.first.utcoffset() == datetime.now(ZoneInfo("Asia/Shanghai")).utcoffset()
    assert found.prefect.timezone == "Asia/Shanghai"
    assert parse(cron=" */5 3\t* * MON-FRI\n").prefect.cron == "*/5 3 * * MON-FRI"
    assert parse(cron="@daily").first.hour == 0


def test_without_a_time_zone_it_is_this_machines(monkeypatch):
    monkeypatch.setenv("TZ", "Europe/Lisbon")
    assert parse(cron="0 3 * * *", timezone=None).prefect.timezone == "Europe/Lisbon"


@given(st.lists(st.tuples(st.integers(1, 99), st.sampled_from("smhdw")), min_size=1, max_size=4))
def test_an_interval_is_the_sum_of_its_parts(parts):
    seconds = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
    found = parse(interval="".join(f"{number}{unit}" for number, unit in parts))
    expected = sum(number * seconds[unit] for number, unit in parts)
    assert found.prefect.interval.total_seconds() == expected


def test_a_rule_of_the_calendar():
    first = parse(rrule="FREQ=WEEKLY;BYDAY=SA;BYHOUR=4;BYMINUTE=30;BYSECOND=0").first
    assert (first.weekday(), first.hour, first.minute) == (5, 4, 30)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"cron": "0 3 * *"}, "--cron: '0 3 * *': Invalid cron string"),
        ({"cron": "0 0 31 2 *"}, "--cron: '0 0 31 2 *': "),
        ({"cron": "0 0 3 * * *"}, "has 6 fields, not five: minute hour day month weekday"),
        ({"cron": "*/90 * * * *"}, "'*/90' has a step that no minute reaches: give --interval"),
        ({"interval": "5 minutes"}, "is not an interval such as 30m"),
        ({"interval": "0s"}, "must be longer than 0"),
        ({"interval": "9999999999w"}, "is too long"),
        ({"rrule": "FREQ=DALY"}, "Invalid RRule string"),
        ({"rrule": "FREQ=DAILY;UNTIL=20200101T000000"}, "all its times have passed"),
        ({"rrule": "FREQ=SECONDLY"}, "'FREQ=SECONDLY' cannot be: give --interval, e.g. 5m"),
        ({"rrule": "FREQ=DAILY;INTERVAL=0"}, "'INTERVAL=0' cannot be"),
        ({"interval": "1d", "timezone": "GMT+8"}, "mean 'Etc/GMT-8', 8 hours ahead of UTC?"),
        ({"interval": "1d", "timezone": "-05:00"}, "mean 'Etc/GMT+5', 5 hours behind UTC?"),
        ({"interval": "1d", "timezone": "CST"}, "no 'CST'.  (name a place, e.g. Asia/Shanghai)"),
        ({}, "give one of --cron, --interval, --rrule, not none of them"),
        ({"cron": "0 3 * * *", "interval": "1d"}, "not --cron and --interval"),
        ({"interval": "1d", "timezone": "shanghai"}, "Did you mean 'Asia/Shanghai'?"),
    ],
)
def test_what_is_wrong_with_the_times(wrong, says):
    assert says in "\n".join(problems(**wrong))


def test_all_that_is_wrong_with_the_times_comes_at_once():
    assert len(problems(cron="x", interval="y", rrule="z", timezone="Nowhere")) == 5
