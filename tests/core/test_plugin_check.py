"""What is wrong with plugins is told by file and line, and all of it at once."""

import pytest

from core.host import HOOKS, Host, file_source, host, import_file
from core.plugin_check import problems

TINY = '''\
from core import ModelParams, hookimpl

class Tiny(ModelParams):
    """One layer."""
    width: int = 8

    def build(self, input_shape, num_classes):
        raise AssertionError("not built")

@hookimpl
def register_models(register):
    register("tiny", Tiny)
'''
KNOWN = ", ".join(HOOKS.values())


def checked(tmp_path, text):
    """The (line, message) of each problem of one file."""
    file = tmp_path / "mine.py"
    file.write_text(text)
    own = Host()
    own.load(file_source(file), lambda: import_file(file))
    found = problems(own)
    assert {problem.place for problem in found} <= {str(file)}
    assert all(str(p).startswith(f"{file}:") for p in found)
    return [(problem.line, problem.message) for problem in found]


def test_nothing_is_wrong_with_the_built_ins():
    assert problems(host()) == []


def test_nothing_is_wrong_with_a_plugin_that_is_right(tmp_path):
    assert checked(tmp_path, TINY) == []
    assert checked(tmp_path, TINY.replace("@hookimpl", "@hookimpl(tryfirst=True)")) == []
    other = TINY.replace("@hookimpl", '@hookimpl(specname="register_models")')
    assert checked(tmp_path, other.replace("def register_models", "def ours")) == []


CASES = {
    "raises": ("x = 1\n1 / 0", 2, "set aside: ZeroDivisionError: division by zero"),
    "raises elsewhere": (
        "import json\n\njson.loads('')",
        3,
        "set aside: JSONDecodeError: Expecting value: line 1 column 1 (char 0)",
    ),
    "exits": ("\nraise SystemExit(3)", 2, "set aside: SystemExit: 3"),
    "import": (
        "import no_such_module",
        1,
        "set aside: ModuleNotFoundError: No module named 'no_such_module'",
    ),
    "unknown hook": (
        TINY.replace("_models", "_modles"),
        11,
        "there is no hook named 'register_modles'. Did you mean 'register_models'?  "
        f"(there are: {KNOWN})",
    ),
    "unlike any hook": (
        TINY.replace("register_models", "zzz"),
        11,
        f"there is no hook named 'zzz'.  (there are: {KNOWN})",
    ),
    "no marker": (
        TINY.replace("@hookimpl", ""),
        11,
        "'register_models' is named like a hook but lacks @hookimpl",
    ),
    "no marker, misspelled": (
        TINY.replace("@hookimpl", "").replace("_models", "_model"),
        11,
        "'register_model' is named like a hook but lacks @hookimpl, and 'register_models' may be "
        "meant",
    ),
    "other argument": (
        TINY.replace("(register)", "(add)"),
        11,
        "'register_models' takes (add): a hook takes one argument, 'register'",
    ),
    "no argument": (
        TINY.replace("models(register)", "models()"),
        11,
        "'register_models' takes none: a hook takes one argument, 'register'",
    ),
    "default": (
        TINY.replace("(register)", "(register=None)"),
        11,
        "'register_models': 'register' has a default, and pluggy would not pass it",
    ),
    "async": (
        TINY.replace("def register_", "async def register_"),
        11,
        "'register_models' is async: a hook is a plain function",
    ),
    "no parameter class": (
        TINY.replace(", Tiny)", ", 3)"),
        12,
        "set aside: TypeError: model 'tiny': 3 is not a ModelParams",
    ),
    "no build": (
        TINY.replace("def build(", "def make("),
        12,
        "set aside: TypeError: model 'tiny': Tiny has no build method",
    ),
    "no docstring": (
        TINY.replace('    """One layer."""\n', ""),
        3,
        "the class Tiny has no docstring: `torchyard plugins` shows its first line",
    ),
}


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
@pytest.mark.parametrize("case", CASES)
def test_one_problem(tmp_path, case):
    text, line, message = CASES[case]
    assert checked(tmp_path, text) == [(line, message)]


def test_a_syntax_error_has_its_line(tmp_path):
    [(line, message)] = checked(tmp_path, "x = 1\ny = 2\ndef broken(:\n")
    assert line == 3
    assert message.startswith("set aside: SyntaxError: ")


def test_all_problems_of_a_file_are_told_at_once(tmp_path):
    text = TINY.replace('    """One layer."""\n', "")
    text += '    register("a b", Tiny)\n    register("other", int)\n    1 / 0\n'
    text += "\ndef register_losses(register): pass\n"
    assert [line for line, _ in checked(tmp_path, text)] == [3, 12, 13, 14, 16]


def test_a_broken_plugin_lacks_its_docstring_too(tmp_path):
    text = TINY.replace('    """One layer."""\n', "").replace("def build(", "def make(")
    assert [line for line, _ in checked(tmp_path, text)] == [3, 11]


def test_a_class_made_by_type_may_lack_a_docstring_as_well(tmp_path):
    made = 'type("Made", (Tiny,), {"__module__": __name__})'
    found = checked(tmp_path, TINY.replace('"tiny", Tiny', f'"made", {made}'))
    assert [message.split(":")[0] for _, message in found] == ["the class Made has no docstring"]
