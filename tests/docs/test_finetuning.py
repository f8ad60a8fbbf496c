"""docs/finetuning.md: its commands, one after the other."""

import re
import shlex

import pytest

pytestmark = pytest.mark.slow  # eight runs

DOCUMENT = "finetuning.md"


def test_every_command_of_the_page_works(line, workspace):
    printed = workspace.invoke(*shlex.split(line)[1:])
    assert "of 359 test samples right" in printed
    if "model.weights=latest" in line:
        said = r"10 of 10 tensors from latest, lenet·adam·digits #\d+; normalized as for them"
        assert re.search(said, printed)
