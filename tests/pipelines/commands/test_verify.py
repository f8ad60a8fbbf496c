"""`torchyard verify`: a run is trained again from its record."""

import re
from pathlib import Path

import pytest

from tests.pipelines.command_line import run_id
from torchyard.core.errors import RunError

QUICK = ("digits", "train.epochs=1", "model=linear")


@pytest.fixture(scope="module")
def trained(workspace, folder):
    """The ids of two runs."""
    return [
        run_id(workspace.invoke("run", *QUICK, *more)) for more in ((), ("train.max_steps=20",))
    ]


def test_a_run_is_proven_by_training_it_again(workspace, client, trained):
    better = trained[0]
    printed = workspace.invoke("verify", better)
    digest = client.get_run(better).data.tags["weights_digest"]
    assert "Reproduced." in printed
    assert digest in printed
    assert client.get_run(better).data.tags["torchyard.verified"] == digest
    assert not list(Path("mlruns/runs", better).glob("*.tmp"))


def test_a_run_that_is_not_what_its_record_says_is_not_proven(workspace, client, trained, capsys):
    worse = trained[1]
    client.set_tag(worse, "weights_digest", "0" * 64)
    with pytest.raises(RunError, match="has other weights; nothing that is recorded differs"):
        workspace.invoke("verify", worse)
    client.set_tag(worse, "torch_version", "1.0")
    client.set_tag(worse, "plugin.model", "torchyard==0.0.1")
    from torchyard.pipelines.cli import app

    with pytest.raises(RunError, match="has other weights; the above differs"):
        app(["verify", worse], standalone_mode=False)
    printed = capsys.readouterr().out
    assert re.search(r"torch_version +1\.0 +\d", printed)
    assert re.search(r"plugin\.model +torchyard==0\.0\.1 +torchyard==", printed)
    assert "torchyard.verified" not in client.get_run(worse).data.tags
