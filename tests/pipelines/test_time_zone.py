"""The machine's time zone: however it is set, it is the one whose hours `date` shows."""

import os
import shutil
import subprocess
import time
import zoneinfo
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from torchyard.core.errors import UserError
from torchyard.pipelines import time_zone

ZONES = Path("/usr/share/zoneinfo")

pytestmark = pytest.mark.skipif(not (ZONES / "Asia/Kolkata").is_file(), reason="no tzdata here")


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path):
    """A machine whose clock is set by TZ or the file `localtime`; that of the tests comes back."""
    monkeypatch.setattr(time_zone, "LOCALTIME", tmp_path / "localtime")
    monkeypatch.setattr(time_zone, "TIMEZONE", tmp_path / "timezone")
    monkeypatch.delenv("TZ", raising=False)
    yield tmp_path
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("setting", "zone"),
    [
        ("Asia/Kolkata", "Asia/Kolkata"),
        (":Asia/Kolkata", "Asia/Kolkata"),
        ("posix/Asia/Tokyo", "Asia/Tokyo"),
        (str(ZONES / "Asia/Tokyo"), "Asia/Tokyo"),
        (f":{ZONES}/Asia/Tokyo", "Asia/Tokyo"),
        ("IST-5:30", "Asia/Kolkata"),
        ("CST-8", "Asia/Shanghai"),
        ("FOO-8", "Etc/GMT-8"),
        ("<-03>3", "Etc/GMT+3"),
        ("UTC0", "UTC"),
        ("", "UTC"),
    ],
)
def test_the_variable_names_it_or_has_its_rules(monkeypatch, setting, zone):
    monkeypatch.setenv("TZ", setting)
    assert time_zone.local_zone() == zone


@pytest.mark.parametrize("rules", ["CET-1CEST,M3.5.0,M10.5.0/3", "EST5EDT,M3.2.0,M11.1.0"])
def test_rules_that_several_zones_have_give_one_with_the_same_hours(monkeypatch, rules):
    monkeypatch.setenv("TZ", rules)
    found = ZoneInfo(time_zone.local_zone())
    for month in range(1, 13):
        at = datetime(datetime.now(UTC).year + 1, month, 28, 12, tzinfo=UTC)
        shown = subprocess.run(
            ["date", "-d", at.isoformat(), "+%z"], env=os.environ, capture_output=True, text=True
        ).stdout.strip()
        assert f"{at.astimezone(found):%z}" == shown


def test_the_file_is_a_link_a_chain_of_links_or_a_copy(machine):
    assert time_zone.local_zone() == "UTC"  # `date` says so where there is no file
    file = machine / "localtime"
    file.symlink_to(ZONES / "Asia/Kolkata")
    assert time_zone.local_zone() == "Asia/Kolkata"
    file.unlink()
    (machine / "data").symlink_to(os.path.relpath(ZONES / "Europe/Lisbon", machine))
    file.symlink_to("data")
    assert time_zone.local_zone() == "Europe/Lisbon"
    file.unlink()
    shutil.copyfile(ZONES / "Asia/Calcutta", file)
    assert time_zone.local_zone() == "Asia/Kolkata"
    # Of names for the same hours the noted one; `date` does not read the note itself.
    (machine / "timezone").write_text("Asia/Calcutta\n")
    assert time_zone.local_zone() == "Asia/Calcutta"
    (machine / "timezone").write_text("Asia/Tokyo\n")
    assert time_zone.local_zone() == "Asia/Kolkata"


def test_a_link_of_the_system_to_the_file_is_no_zone(machine, monkeypatch):
    """Some systems have a zone `localtime`, which is whatever the file is."""
    zones = machine / "usr/share/zoneinfo"
    zones.mkdir(parents=True)
    shutil.copyfile(ZONES / "Asia/Kolkata", machine / "localtime")
    (zones / "localtime").symlink_to(machine / "localtime")
    monkeypatch.setenv("TZ", f":{zones}/localtime")
    assert time_zone.local_zone() == "Asia/Kolkata"
    with pytest.raises(UserError, match="there is no 'localtime'"):
        time_zone.check_zone("localtime")


def test_a_copy_of_another_release_is_known_by_its_hours(machine, monkeypatch):
    copy = machine / "copy"
    copy.write_bytes((ZONES / "Asia/Kathmandu").read_bytes())
    monkeypatch.setattr(zoneinfo, "TZPATH", ())  # no file has its bytes
    monkeypatch.setenv("TZ", f":{copy}")
    assert time_zone.local_zone() == "Asia/Kathmandu"


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("XXX-3:17", "has no name: give one, e.g. Asia/Shanghai"),
        ("Asia/Kolkatta", "TZ=Asia/Kolkatta is no time zone; name one. Did you mean 'Asia/Kol"),
        ("IST", "TZ=IST is no time zone"),
        ("/no/such/file", "TZ=/no/such/file is no time zone"),
    ],
)
def test_what_cannot_be_known_is_asked_for(monkeypatch, setting, says):
    monkeypatch.setenv("TZ", setting)
    with pytest.raises(UserError) as caught:
        time_zone.local_zone()
    assert caught.value.problems[0].startswith("--timezone: ")
    assert says in caught.value.problems[0]


def test_without_time_zone_data_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(time_zone, "available_timezones", set)
    for find in (time_zone.local_zone, lambda: time_zone.check_zone("UTC")):
        with pytest.raises(UserError, match="pip install tzdata"):
            find()
