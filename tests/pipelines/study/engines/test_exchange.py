"""What a study and its trials in other processes tell each other through files."""

import json
import subprocess
import sys

import pytest

from torchyard.core.errors import UserError
from torchyard.core.tracking.ownership.process import ProcessIdentity
from torchyard.pipelines.study.engines.exchange import Exchange
from torchyard.pipelines.study.trial import TrialEnd


def test_an_end_is_read_as_it_was_written(tmp_path):
    leader = Exchange.open(tmp_path)
    trial = Exchange(tmp_path, leader.session)
    assert leader.end_of(3) is None
    trial.begin(3)
    assert leader.end_of(3) is None
    assert not leader.is_dead(3)
    end = TrialEnd("pruned", 0.5, "pruned after epoch 1 of 3", run="lenet #2")
    trial.end(3, end)
    assert leader.end_of(3) == end
    leader.forget(3)
    assert leader.end_of(3) is None


def test_what_ends_the_whole_study_says_so(tmp_path):
    leader = Exchange.open(tmp_path)
    leader.end(0, TrialEnd("stopped", reason="no store", error=OSError("no store")))
    assert str(leader.end_of(0).error) == "no store"


def test_trials_of_a_leader_before_stop(tmp_path):
    first = Exchange.open(tmp_path)
    first.end(0, TrialEnd("complete", 0.5))
    second = Exchange.open(tmp_path)
    assert second.is_open
    assert not first.is_open
    assert second.end_of(0) is None
    second.close()
    assert not second.is_open


def test_a_process_that_has_died_is_known(tmp_path):
    leader = Exchange.open(tmp_path)
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    told = {"process": str(ProcessIdentity.of(process.pid))}
    (tmp_path / "trials" / "0.json").write_text(json.dumps(told))
    assert not leader.is_dead(0)
    process.kill()
    process.communicate()
    assert leader.is_dead(0)


def test_a_folder_that_is_not_shared_is_said(tmp_path):
    with pytest.raises(UserError, match="a file system that they share"):
        Exchange(tmp_path / "not there", "0").begin(0)
