"""docs/reference.md has every command and every option that the program has."""

import runpy
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "reference.md"


def test_the_list_of_commands_is_what_the_program_says():
    program = runpy.run_path(str(PAGE.with_suffix(".py")))["reference"]()
    assert PAGE.read_text("utf-8") == program, "write it anew: make reference"
    assert "## run\n" in program
    assert "'gates=[beats_champion, " in program  # brackets of an example are no markup
