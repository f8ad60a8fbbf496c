"""docs/python.md and the notebook: every example is run, in the order of the page."""

import ast
import asyncio
import json
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # some ten runs of the digits

ROOT = Path(__file__).parents[2]


def test_every_example_of_the_page_runs(workspace, capsys):
    text = (ROOT / "docs" / "python.md").read_text("utf-8")
    names = {}
    for block in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        exec(block, names)
    assert "Did you mean 'lenet'?" in capsys.readouterr().out
    assert names["run"].accuracy == names["again"].accuracy
    assert len(names["found"]) == 2


async def run_cells(cells):
    """Run cells as a kernel does: in one namespace, while its event loop runs.

    Returns:
        What each cell shows: the value of its last line.
    """
    names, shown = {}, []
    for cell in cells:
        *lines, last = ast.parse(cell).body
        exec(compile(ast.Module(lines, []), "cell", "exec"), names)
        shown.append(eval(compile(ast.Expression(last.value), "cell", "eval"), names))
    return shown


def test_the_notebook_runs_from_its_first_cell_to_its_last(workspace):
    notebook = json.loads((ROOT / "examples" / "notebook" / "digits.ipynb").read_text("utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] for cell in code)
    shown = asyncio.run(run_cells(["".join(cell["source"]) for cell in code]))
    run, wrong, difference, table, found = shown
    assert "test samples right" in run._repr_html_()
    assert (wrong["true"] != wrong["predicted"]).all()
    assert difference.first == run.accuracy
    assert table["accuracy"].is_monotonic_decreasing
    assert found["confidence"].between(0, 1).all()
