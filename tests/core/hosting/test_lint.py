"""What is wrong with plugins is reported by file and line, and all of it at once."""

import os

from tests.core.hosting.plugin_texts import NEVER_BUILT
from torchyard.core.hosting.host import Host, host
from torchyard.core.hosting.lint import Problem, problems
from torchyard.core.hosting.neighbours import import_file
from torchyard.core.hosting.sources import file_source


def checked(tmp_path, text):
    """The (line, message) of each problem of one file."""
    file = tmp_path / "mine.py"
    file.write_text(text)
    own = Host()
    own.load(file_source(file), lambda: import_file(file))
    found = problems(own)
    assert {problem.file for problem in found} <= {str(file)}
    assert all(str(p).startswith(f"{file}:") for p in found)
    return [(problem.line, problem.message) for problem in found]


def test_nothing_is_wrong_with_the_built_ins():
    assert problems(host()) == []


def test_nothing_is_wrong_with_a_plugin_that_is_right(tmp_path):
    assert checked(tmp_path, NEVER_BUILT) == []
    assert checked(tmp_path, NEVER_BUILT.replace("@hookimpl", "@hookimpl(tryfirst=True)")) == []
    other = NEVER_BUILT.replace("@hookimpl", '@hookimpl(specname="register_models")')
    assert checked(tmp_path, other.replace("def register_models", "def ours")) == []


def test_a_syntax_error_has_its_line(tmp_path):
    [(line, message)] = checked(tmp_path, "x = 1\ny = 2\ndef broken(:\n")
    assert line == 3
    assert message.startswith("failed to load: SyntaxError: ")


def test_all_problems_of_a_file_are_reported_at_once(tmp_path):
    text = NEVER_BUILT.replace('    """One layer."""\n', "")
    text += '    register("a b", Tiny)\n    register("other", int)\n    1 / 0\n'
    text += "\ndef register_losses(register): pass\n"
    assert [line for line, _ in checked(tmp_path, text)] == [3, 12, 13, 14, 16]


def test_a_broken_plugin_lacks_its_docstring_too(tmp_path):
    text = NEVER_BUILT.replace('    """One layer."""\n', "").replace("def build(", "def make(")
    assert [line for line, _ in checked(tmp_path, text)] == [3, 11]


def test_a_class_made_by_type_may_lack_a_docstring_as_well(tmp_path):
    made = 'type("Made", (Tiny,), {"__module__": __name__})'
    found = checked(tmp_path, NEVER_BUILT.replace('"tiny", Tiny', f'"made", {made}'))
    assert [message.split(":")[0] for _, message in found] == ["the class Made has no docstring"]


def test_a_pipe_among_the_plugins_is_named_and_not_waited_for(tmp_path):
    file = tmp_path / "pipe.py"
    os.mkfifo(file)
    own = Host()
    own.load(file_source(file), lambda: import_file(file))
    reason = "failed to load: OSError: pipe.py is a pipe or a device, not a file"
    assert [str(problem) for problem in problems(own)] == [f"{file}: {reason}"]


def test_a_problem_is_one_line(tmp_path):
    [(_, message)] = checked(tmp_path, "raise ValueError('one\\nand two')")
    assert "\n" not in str(Problem("f.py", 1, message))
