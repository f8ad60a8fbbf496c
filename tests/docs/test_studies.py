"""docs/studies.md: its commands, its file and its program, run as they stand."""

import re
import shlex

import pytest

from tests.conftest import DOCS

pytestmark = pytest.mark.slow  # some twenty-five short trainings

DOCUMENT = "studies.md"


@pytest.fixture(scope="module")
def page(workspace):
    text = (DOCS / DOCUMENT).read_text("utf-8")
    [file] = re.findall(r"^```yaml\n# study.yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    (workspace.folder / "study.yaml").write_text(file)
    return text


def test_every_command_of_the_page_works(line, page, workspace):
    printed = workspace.invoke(*shlex.split(line.removeprefix("torchyard ")))
    assert re.search(r"^\d+ trials: \d+ complete, \d+ pruned, 0 failed$", printed, re.MULTILINE)
    assert "Run it:      torchyard run " in printed


def test_the_program_of_the_page_works(page, workspace, capsys):
    [program] = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    exec(program, {})
    assert "lenet·adam·digits #" in capsys.readouterr().out
