"""docs/audit.md: its commands, one after the other as its reader would type them."""

import re
import shlex

import pytest

pytestmark = pytest.mark.slow  # three runs, and three trainings for the labels

DOCUMENT = "audit.md"


def test_every_command_of_the_page_works(line, workspace):
    printed = workspace.invoke(*shlex.split(line.removeprefix("torchyard ")))
    if line.startswith("torchyard audit"):
        assert re.search(r"^digits: .* samples, audited in ", printed, re.MULTILINE)
        assert "wrong labels: by " in printed
    elif "dataset." in line:
        assert "prepare   audit: " in printed
