"""A corpus of bad plugins: what the user sees of each, and that all else works.

`check` is what `torchyard plugins check` prints, by line; `asked` is what a run says that asks for
the plugin's model by `name`. Where that is None, the plugin works all the same.
"""

from typing import NamedTuple

import pytest

from tests.core.hosting.plugin_texts import NEVER_BUILT
from torchyard.core.config.resolve import resolve
from torchyard.core.errors import UserError
from torchyard.core.hosting.hookspecs import HOOKS
from torchyard.core.hosting.host import host
from torchyard.core.hosting.lint import problems

KNOWN = ", ".join(HOOKS.values())
FILE = "{file}"
LOOK = f"{FILE} should register it: `torchyard plugins check` says what is wrong with it"


class Bad(NamedTuple):
    text: str | bytes
    check: tuple[int | None, str]
    asked: str | None = ""
    name: str = "tiny"


def broken(text, line, reason, name="tiny"):
    return Bad(
        text, (line, f"failed to load: {reason}"), f"Failed to load: {FILE} ({reason})", name
    )


def instead(old, new):
    assert old in NEVER_BUILT
    return NEVER_BUILT.replace(old, new)


CORPUS = {
    # ---- at import
    "raises": broken("x = 1\n1 / 0", 2, "ZeroDivisionError: division by zero"),
    "raises elsewhere": broken(
        "import json\n\njson.loads('')",
        3,
        "JSONDecodeError: Expecting value: line 1 column 1 (char 0)",
    ),
    "exits": broken("\nraise SystemExit(3)", 2, "SystemExit: 3"),
    "exits by the book": broken("import sys\nsys.exit()", 2, "SystemExit: "),
    "raises no Exception": broken(
        "class Odd(BaseException): pass\n\nraise Odd('odd')", 3, "Odd: odd"
    ),
    "interrupts": broken("raise KeyboardInterrupt", 1, "KeyboardInterrupt: "),
    "closes": broken("raise GeneratorExit('now')", 1, "GeneratorExit: now"),
    "leaves": broken("import os\nos._exit(0)", 2, "SystemExit: os._exit(0)"),
    "leaves by name": broken("from os import _exit\n_exit(3)", 2, "SystemExit: os._exit(3)"),
    "an error without a text": broken("raise ValueError", 1, "ValueError: "),
    "missing module": broken(
        "import no_such_module", 1, "ModuleNotFoundError: No module named 'no_such_module'"
    ),
    "missing name": broken(
        "from torchyard import ModelPrams",
        1,
        "ImportError: cannot import name 'ModelPrams' from 'torchyard'",
    ),
    "recursion": broken(
        "def again():\n    again()\n\nagain()",
        2,
        "RecursionError: maximum recursion depth exceeded",
    ),
    "syntax": broken("x = 1\ndef broken(:\n", 2, "SyntaxError: "),
    "indentation": broken("if True:\nx = 1\n", 2, "IndentationError: "),
    "no text": broken("\0", None, "SyntaxError: "),
    "no UTF-8": broken(b'x = "\xff"', 1, "SyntaxError: "),
    "a field without a type": broken(
        instead("width: int = 8", "width = 8"),
        3,
        "PydanticUserError: A non-annotated attribute was detected: `width = 8`. All model fields "
        "require a type annotation; if `width` is not meant to be a field, you may be able to "
        "resolve this error by annotating it as a `ClassVar` or updating "
        "`model_config['ignored_types']`.",
    ),
    "another folder": broken(
        "import os\nos.chdir('/')\n" + NEVER_BUILT,
        None,
        "importing it changes the working folder, to /: give files whole paths",
    ),
    "another type": broken(
        "import torch\ntorch.set_default_dtype(torch.float64)\n" + NEVER_BUILT,
        None,
        "importing it changes torch's default type, to torch.float64: give tensors theirs",
    ),
    "no gradients": broken(
        "import torch\ntorch.set_grad_enabled(False)\n" + NEVER_BUILT,
        None,
        "importing it changes whether torch computes gradients",
    ),
    # ---- at registration
    "misspelled hook": Bad(
        instead("_models", "_modles"),
        (
            11,
            "there is no hook named 'register_modles'. Did you mean 'register_models'?  "
            f"(there are: {KNOWN})",
        ),
        "Failed to load: {file} (PluginValidationError: unknown hook 'register_modles'",
    ),
    "unlike any hook": Bad(
        instead("register_models", "zzz"),
        (11, f"there is no hook named 'zzz'.  (there are: {KNOWN})"),
        "Failed to load: {file} (PluginValidationError: unknown hook 'zzz'",
    ),
    "no marker": Bad(
        instead("@hookimpl", ""),
        (11, "'register_models' is named like a hook but lacks @hookimpl"),
        LOOK,
    ),
    "no marker, misspelled": Bad(
        NEVER_BUILT.replace("@hookimpl", "").replace("_models", "_model"),
        (
            11,
            "'register_model' is named like a hook but lacks @hookimpl, and 'register_models' may "
            "be meant",
        ),
    ),
    "a hook in a class": Bad(
        instead("@hookimpl\n", "class Hooks:\n  @hookimpl\n")
        .replace("def register", "  def register")
        .replace('    register("', '      register("'),
        (12, "'register_models' is in the class Hooks: hooks are functions at the top of a file"),
    ),
    "other argument": Bad(
        instead("(register)", "(add)"),
        (11, "'register_models' takes (add): a hook takes one argument, 'register'"),
        "PluginValidationError: ",
    ),
    "no argument": Bad(
        instead("models(register)", "models()"),
        (11, "'register_models' takes none: a hook takes one argument, 'register'"),
        "TypeError: ",
    ),
    "default": Bad(
        instead("(register)", "(register=None)"),
        (11, "'register_models': 'register' has a default, and pluggy would not pass it"),
        None,
    ),
    "async": Bad(
        instead("def register_", "async def register_"),
        (11, "'register_models' is async: a hook is a plain function"),
        "Failed to load: {file} (TypeError: 'register_models' returns a coroutine and registers "
        "nothing: call register(name, class) for each plugin)",
    ),
    "generator": Bad(
        instead('    register("', '    yield register("'),
        (11, "'register_models' yields, so it never runs: a hook is a plain function"),
        "Failed to load: {file} (TypeError: 'register_models' returns a generator and registers "
        "nothing: call register(name, class) for each plugin)",
    ),
    "a list": broken(
        instead('register("tiny", Tiny)', 'return [("tiny", Tiny)]'),
        None,
        "TypeError: 'register_models' returns a list and registers nothing: call register(name, "
        "class) for each plugin",
    ),
    # ---- when the hook is called
    "half-way": broken(
        NEVER_BUILT + "    raise KeyError('half-way')\n", 13, "KeyError: 'half-way'"
    ),
    "exits when called": broken(NEVER_BUILT + "    raise SystemExit('no')\n", 13, "SystemExit: no"),
    "interrupts when called": broken(
        NEVER_BUILT + "    raise KeyboardInterrupt('me')\n", 13, "KeyboardInterrupt: me"
    ),
    "leaves when called": broken(
        NEVER_BUILT + "    __import__('os')._exit(0)\n", 13, "SystemExit: os._exit(0)"
    ),
    "no class": broken(
        instead(", Tiny)", ", 3)"), 12, "TypeError: model 'tiny': 3 is not a ModelParams"
    ),
    "an instance": broken(
        instead(", Tiny)", ", Tiny())"),
        12,
        "TypeError: model 'tiny': Tiny(width=8) is not a ModelParams",
    ),
    "another kind": broken(
        instead("(ModelParams)", "(LossParams)").replace("import ", "import LossParams, "),
        12,
        "TypeError: model 'tiny': <class '",
    ),
    "no parameter class": broken(
        instead("(ModelParams)", ""), 12, "TypeError: model 'tiny': <class '"
    ),
    "no build": broken(
        instead("def build(", "def make("),
        12,
        "TypeError: model 'tiny': Tiny has no build method",
    ),
    "no name": broken(
        instead('"tiny"', '""'), 12, "ValueError: model '': not a usable name", name=""
    ),
    "odd name": broken(
        instead('"tiny"', '"a b"'), 12, "ValueError: model 'a b': not a usable name", name="a b"
    ),
    "an invisible name": broken(
        instead('"tiny"', '"tiny\\u200b"'),
        12,
        "ValueError: model 'tiny\u200b': not a usable name: it has invisible characters",
        name="tiny\u200b",
    ),
    "another name for a parameter": broken(
        "from pydantic import Field\n"
        + instead("width: int = 8", 'width: int = Field(8, alias="w")'),
        13,
        "ValueError: model 'tiny': the parameter 'width' has an alias: give it that name",
    ),
    "a number for a name": broken(
        instead('"tiny"', "7"), 12, "ValueError: model '7': not a usable name", name="7"
    ),
    "a name twice": broken(
        NEVER_BUILT + '    register("tiny", Tiny)\n',
        13,
        "ValueError: model 'tiny': is registered twice",
    ),
    "a setting of the host": broken(
        instead("width: int = 8", 'freeze: str = ""'),
        12,
        "ValueError: model 'tiny': no parameter can be named 'freeze'",
    ),
    "a method of the host's": broken(
        instead("width: int = 8", "published_weights: bool = False"),
        12,
        "ValueError: model 'tiny': no parameter can be named 'published_weights'",
    ),
    # ---- that work all the same
    "no docstring": Bad(
        instead('    """One layer."""\n', ""),
        (3, "the class Tiny has no docstring: `torchyard plugins` shows its first line"),
        None,
    ),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A plugin folder with one good plugin before and one after the bad one."""
    monkeypatch.setenv("TORCHYARD_PLUGINS", str(tmp_path))
    for name in ("aaa", "zzz"):
        (tmp_path / f"{name}.py").write_text(NEVER_BUILT.replace('"tiny"', f'"{name}"'))
    host.cache_clear()
    yield tmp_path
    host.cache_clear()


def write(folder, case):
    text = CORPUS[case].text
    file = folder / "mine.py"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def ask(name):
    """What a run says that names a model; None if it is found."""
    try:
        resolve({"dataset": "digits", "model": name}, host())
    except UserError as error:
        [problem] = error.problems
        return problem
    return None


def test_there_are_many():
    assert len(CORPUS) >= 20


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
@pytest.mark.parametrize("case", CORPUS)
def test_check_says_what_is_wrong_by_file_and_line_and_the_others_work(folder, case):
    file = write(folder, case)
    line, message = CORPUS[case].check
    [problem] = problems(host())
    assert (problem.file, problem.line) == (str(file), line)
    assert problem.message.startswith(message)
    for name in ("aaa", "zzz", "lenet"):
        assert ask(name) is None
    names = {name for kind in HOOKS for name, _ in host().registrations(kind)}
    assert ("tiny" in names) == (CORPUS[case].asked is None)


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
@pytest.mark.parametrize("case", CORPUS)
def test_a_run_meets_it_where_it_names_it_and_says_what_failed(folder, case):
    file = write(folder, case)
    for name in ("aaa", "lenet"):
        assert ask(name) is None
    # What is no Python at all fails to load before it is asked for.
    imported = {source.name for source in host().sources} - {"torchyard"}
    assert imported == {"aaa", *(each.source.name for each in host().broken)}
    assert all("Error: " in each.reason for each in host().broken)
    expected, name = CORPUS[case].asked, CORPUS[case].name
    said = ask(name)
    if expected is None:
        assert said is None
    else:
        assert said.startswith(f"model: no model named '{name}'.")
        assert expected.replace(FILE, str(file)).removesuffix(")") in said


def test_what_a_plugin_prints_is_not_in_what_a_command_prints(folder, capsys):
    (folder / "mine.py").write_text(f'print("hello")\n{NEVER_BUILT}')
    assert ask("tiny") is None
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "hello\n")


def test_a_parameter_that_cannot_be_written_down_is_said_to_be_so(folder):
    text = NEVER_BUILT.replace("width: int = 8", "made: object = object()")
    (folder / "mine.py").write_text(text)
    assert ask("tiny").startswith(
        f"model: 'tiny' ({folder / 'mine.py'}): PydanticSerializationError: Unable to serialize"
    )


def test_a_plugin_replaces_no_built_in(folder):
    (folder / "mine.py").write_text(NEVER_BUILT.replace('"tiny"', '"lenet"'))
    assert host().find("model", "lenet").builtin
    assert host().find("model", "mine/lenet").source.name == "mine"


def test_ctrl_c_stops_the_program(folder):
    (folder / "mine.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\n")
    with pytest.raises(KeyboardInterrupt):
        ask("tiny")


def test_what_ends_a_program_is_a_plugins_problem_in_a_validator_too(folder):
    (folder / "mine.py").write_text(
        NEVER_BUILT.replace("width: int = 8", "width: Annotated[int, AfterValidator(_stop)] = 8")
        .replace("class Tiny", "from typing import Annotated\nfrom pydantic import AfterValidator\n"
                 "def _stop(value): raise KeyboardInterrupt('mine')\n\nclass Tiny")
    )  # fmt: skip
    with pytest.raises(UserError) as caught:
        resolve({"dataset": "digits", "model": {"name": "tiny", "width": 3}}, host())
    assert caught.value.problems == [
        f"model: 'tiny' ({folder / 'mine.py'}): KeyboardInterrupt: mine"
    ]
