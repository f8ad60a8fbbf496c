"""How a record begins: its configuration, its seed, what it repeats; and how it ends early."""

from types import SimpleNamespace

import pytest
import yaml

from torchyard.core.config.resolve import read_config
from torchyard.core.config.schema import RunConfig
from torchyard.core.errors import RunError
from torchyard.core.hosting.host import host
from torchyard.core.tracking.record import RunRecord
from torchyard.pipelines.commands.arguments import PRESETS
from torchyard.pipelines.flow.recording import start
from torchyard.pipelines.flow.recording.start import (
    config_text,
    ending_note,
    repeated_run,
    with_drawn_seed,
)


def test_the_recorded_configuration_is_read_as_it_was():
    config = read_config("digits", ["train.seed=3"], PRESETS, host()).config
    text = config_text(config)
    assert RunConfig.model_validate(yaml.safe_load(text)) == config


def test_a_seed_per_run_is_a_number_and_one_for_each_run():
    resolved = read_config("digits", ["train.seed=per_run"], PRESETS, host())
    drawn = [with_drawn_seed(resolved).config.train.drawn_seed for _ in range(3)]
    assert len(set(drawn)) == 3
    assert all(0 <= seed < 2**32 for seed in drawn)
    fixed = read_config("digits", ["train.seed=7"], PRESETS, host())
    assert with_drawn_seed(fixed) is fixed


def test_only_the_same_configuration_data_and_code_are_a_repeat(recorded, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", recorded.client.tracking_uri)
    monkeypatch.chdir(tmp_path)
    config = read_config("digits", [], PRESETS, host()).config
    other = read_config("digits", ["train.seed=1"], PRESETS, host()).config
    skipping = read_config("digits", ["train.skip_repeats=true"], PRESETS, host()).config
    data, changed = SimpleNamespace(digest="a" * 64), SimpleNamespace(digest="b" * 64)
    record = RunRecord.start(name_stem="repeats", parameters={}, tags={})
    assert repeated_run(record, config, data) is None
    assert repeated_run(record, config, data) is None  # it has not finished
    record.finish("FINISHED")
    later = RunRecord.start(name_stem="repeats", parameters={}, tags={})
    assert repeated_run(later, other, data) is None
    assert repeated_run(later, config, changed) is None
    assert repeated_run(later, skipping, data) == record.name
    monkeypatch.setattr(start, "version", lambda name: "another")
    assert repeated_run(later, config, data) is None
    later.finish("KILLED")
    for run in (record, later):
        recorded.client.delete_run(run.run_id)


@pytest.mark.parametrize(
    ("taken_over", "recorded", "says"),
    [
        (None, True, "Recorded as KILLED: lenet #1  abc"),
        (None, False, "KILLED, but MLflow does not have all of it yet; that waits on disk: "),
        (RunError("taken over"), False, "Another process has the run now: lenet #1  abc"),
    ],
)
def test_what_is_told_of_a_run_that_ended_early(taken_over, recorded, says):
    sender = SimpleNamespace(taken_over=taken_over)
    record = SimpleNamespace(name="lenet #1", run_id="abc", sender=sender)
    assert ending_note(record, "KILLED", recorded).startswith(says)
