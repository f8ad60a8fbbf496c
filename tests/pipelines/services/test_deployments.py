"""What is registered with Prefect: times, names, and the form that its UI shows."""

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchyard.core.errors import UserError
from torchyard.pipelines.commands.arguments import preset_config
from torchyard.pipelines.commands.services import check_name
from torchyard.pipelines.services.deployments import form, local_environment, read_variables
from torchyard.pipelines.services.schedules import read_times


def times(cron=None, interval=None, rrule=None, timezone="Asia/Shanghai"):
    return read_times(cron, interval, rrule, timezone)


def problems(**given):
    with pytest.raises(UserError) as caught:
        times(**given)
    return caught.value.problems


def test_a_cron_line_means_the_hour_of_its_time_zone():
    found = times(cron="0 3 * * *")
    assert (found.first.hour, found.first.minute) == (3, 0)
    assert found.first.utcoffset() == datetime.now(ZoneInfo("Asia/Shanghai")).utcoffset()
    assert found.schedule.timezone == "Asia/Shanghai"


def test_without_a_time_zone_it_is_this_machines(monkeypatch):
    monkeypatch.setenv("TZ", "Europe/Lisbon")
    assert times(cron="0 3 * * *", timezone=None).schedule.timezone == "Europe/Lisbon"


@given(st.lists(st.tuples(st.integers(1, 99), st.sampled_from("smhdw")), min_size=1, max_size=4))
def test_an_interval_is_the_sum_of_its_parts(parts):
    seconds = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
    found = times(interval="".join(f"{number}{unit}" for number, unit in parts))
    expected = sum(number * seconds[unit] for number, unit in parts)
    assert found.schedule.interval.total_seconds() == expected


def test_a_rule_of_the_calendar():
    first = times(rrule="FREQ=WEEKLY;BYDAY=SA;BYHOUR=4;BYMINUTE=30;BYSECOND=0").first
    assert (first.weekday(), first.hour, first.minute) == (5, 4, 30)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"cron": "0 3 * *"}, "--cron: '0 3 * *': Invalid cron string"),
        ({"cron": "0 0 31 2 *"}, "--cron: '0 0 31 2 *': "),
        ({"interval": "5 minutes"}, "is not an interval such as 30m"),
        ({"interval": "0s"}, "must be longer than nothing"),
        ({"interval": "9999999999w"}, "is too long"),
        ({"rrule": "FREQ=DALY"}, "Invalid RRule string"),
        ({"rrule": "FREQ=DAILY;UNTIL=20200101T000000"}, "all its times have passed"),
        ({}, "give one of --cron, --interval, --rrule, not none of them"),
        ({"cron": "0 3 * * *", "interval": "1d"}, "not --cron and --interval"),
        ({"interval": "1d", "timezone": "shanghai"}, "Did you mean 'Asia/Shanghai'?"),
    ],
)
def test_what_is_wrong_with_the_times(wrong, says):
    assert says in "\n".join(problems(**wrong))


def test_all_that_is_wrong_with_the_times_comes_at_once():
    assert len(problems(cron="x", interval="y", rrule="z", timezone="Nowhere")) == 5


def test_a_name_is_the_presets_unless_it_is_given():
    assert check_name(None, None) == "digits"
    assert check_name(None, "train.epochs=3") == "digits"
    assert check_name(None, "some/where/night.yaml") == "night"
    assert check_name("nightly", "digits") == "nightly"
    for name in ("", " ", "a/b", "50%"):
        with pytest.raises(UserError, match="--name"):
            check_name(name, None)


def test_job_variables_have_sections():
    found = read_variables(["env.A=1", "env.B=x=y", "working_dir=/tmp", 'labels={"a": 1}'])
    assert found == {"env": {"A": "1", "B": "x=y"}, "working_dir": "/tmp", "labels": {"a": 1}}
    with pytest.raises(UserError) as caught:
        read_variables(["env", "=3", "a=1", "a.b=2"])
    assert len(caught.value.problems) == 3


def test_a_scheduled_run_gets_what_this_shell_has_and_no_password(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "PYTHONPATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCHYARD_PLUGINS", "mine:/else/where")
    found = local_environment()
    assert found["TORCHYARD_PLUGINS"] == f"{tmp_path}/mine:/else/where"
    assert found["MLFLOW_TRACKING_URI"] == f"sqlite:///{tmp_path}/mlruns/mlflow.db"
    assert found["PYTHONPATH"] is None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:secret@host/mlflow")
    assert "secret" not in str(local_environment())


def test_the_form_has_a_typed_field_for_every_setting_and_takes_the_configuration():
    from jsonschema import Draft202012Validator

    resolved = preset_config("cifar10", ["augmentations=[cutout]", "optimizer=adam"])
    schema = form(resolved)
    whole = {"config": resolved.config.model_dump(mode="json")}
    assert list(Draft202012Validator(schema).iter_errors(whole)) == []
    fields = schema["definitions"]["chosen_optimizer"]["properties"]
    assert fields["lr"]["type"] == "number"
    assert fields["lr"]["description"]
    assert (
        schema["definitions"]["RunConfig"]["properties"]["optimizer"]["default"]["lr"]
        == (resolved.config.optimizer.model_dump()["lr"])
    )
    whole["config"]["optimizer"]["lr"] = "fast"
    [error] = Draft202012Validator(schema).iter_errors(whole)
    assert list(error.absolute_path) == ["config", "optimizer", "lr"]
