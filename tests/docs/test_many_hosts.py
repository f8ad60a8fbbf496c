"""docs/many-hosts.md: what its commands say is accepted; tests/production has two hosts do it."""

import shlex
from pathlib import Path

from torchyard.core.config.resolve import read_config
from torchyard.core.hosting.host import host

ROOT = Path(__file__).parents[2]
DOCUMENT = "many-hosts.md"


def test_the_hosts_meet_where_the_run_says(document):
    run, join = (shlex.split(line) for line in document.commands)
    assert run[:2] == ["torchyard", "run"]
    settings = read_config(run[2], run[3:], ROOT / "pipelines" / "presets", host()).config.train
    assert (settings.nodes, settings.world_size) == (2, 2)
    assert join == ["torchyard", "join", settings.rendezvous]
    assert (ROOT / "deploy" / "slurm.sbatch").exists()
