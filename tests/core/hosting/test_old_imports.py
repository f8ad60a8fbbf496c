"""Plugins written for the import names of before 0.2: what to write instead, by file and line."""

import ast
import sys

import pytest

from torchyard.core.config.resolve import resolve
from torchyard.core.errors import UserError
from torchyard.core.hosting.host import Host, host
from torchyard.core.hosting.lint import problems
from torchyard.core.hosting.neighbours import import_file
from torchyard.core.hosting.old_imports import old_imports
from torchyard.core.hosting.sources import Source, file_source

TINY = '''\
from core import ModelParams, hookimpl

class Tiny(ModelParams):
    """One layer."""

    def build(self, input_shape, num_classes):
        raise AssertionError("not built")

@hookimpl
def register_models(register):
    register("tiny", Tiny)
'''
OLD = "'from core import ModelParams, hookimpl' is from before 0.2"
WRITE = f"{OLD}: write 'from torchyard import ModelParams, hookimpl'"


def reasons(text):
    return [(fault.line, fault.reason) for fault in old_imports(ast.parse(text))]


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder on the import path, for a user's own packages."""
    folder = tmp_path / "own"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("core", "plugins", "pipelines"):
            del sys.modules[name]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A plugin folder with an old plugin, tiny.py."""
    monkeypatch.setenv("TORCHYARD_PLUGINS", str(tmp_path))
    (tmp_path / "tiny.py").write_text(TINY)
    host.cache_clear()
    yield tmp_path
    host.cache_clear()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("from core import ModelParams, hookimpl", "from torchyard import ModelParams, hookimpl"),
        ("from core import hookimpl as hook", "from torchyard import hookimpl as hook"),
        ("from core import *", "from torchyard import *"),
        ("from core.dataset import RawData", "from torchyard import RawData"),
        (
            "from core.plugin_tests import assert_loss_plugin",
            "from torchyard.testing import assert_loss_plugin",
        ),
        ("from plugins.optimizers import SGD", "from torchyard.plugins.optimizers import SGD"),
        ("from plugins import optimizers", "from torchyard.plugins import optimizers"),
        ("from pipelines.display import stdout", "from torchyard.pipelines.display import stdout"),
        ("import core", "import torchyard"),
        ("import core as c", "import torchyard as c"),
        ("import os, core.errors", "import torchyard.core.errors"),
        ("import plugins.losses as losses", "import torchyard.plugins.losses as losses"),
        (
            "from core.parameters import LossParams, assert_loss_plugin",
            "from torchyard import LossParams; from torchyard.testing import assert_loss_plugin",
        ),
    ],
)
def test_what_to_write_instead(own, old, new):
    assert reasons(f"import os\n\n{old}") == [(3, f"'{old}' is from before 0.2: write '{new}'")]
    inside = f"def build(self):\n    {old}\n" if "*" not in old else old
    assert [reason for _, reason in reasons(inside)] == [
        f"'{old}' is from before 0.2: write '{new}'"
    ]


def test_the_use_of_a_module_tells_what_it_is(own):
    assert reasons("import core\n\nclass Tiny(core.ModelParams): pass\n") == [
        (1, "'import core' is from before 0.2: write 'import torchyard'")
    ]
    assert reasons("import core\n\ncore.engine.start()") == []  # a user's, who will see it missing


@pytest.mark.parametrize(
    "text",
    [
        "from torchyard import ModelParams, hookimpl",
        "from .core import ModelParams",
        "from core.engine import start",  # nothing of torchyard's: its import says what is wrong
        "import torchyard.core.errors",
        "from score import ModelParams",
        "try:\n    from torchyard import Gate\nexcept ImportError:\n    from core import Gate",
    ],
)
def test_imports_that_are_left_alone(own, text):
    assert reasons(text) == []


@pytest.mark.parametrize(
    ("files", "text", "left_alone"),
    [
        ({"core/__init__.py": "class ModelParams: pass"}, "from core import ModelParams", True),
        ({"core/__init__.py": "from .inner import *"}, "from core import ModelParams", True),
        ({"core/__init__.py": "def __getattr__(n): ..."}, "from core import ModelParams", True),
        ({"core/__init__.py": "x = 1"}, "from core import ModelParams", False),
        ({"core/__init__.py": "x = 1"}, "from core import x, hookimpl", False),
        ({"core/__init__.py": "x = 1"}, "from core import x, y", True),
        ({"core/__init__.py": "x = 1"}, "import core\ncore.x", True),
        ({"core/__init__.py": "x = 1"}, "import core\ncore.ModelParams", False),
        ({"core/engine.py": "x = 1"}, "from core import engine", True),
        ({"core/engine.py": "x = 1"}, "from core.engine import x", True),
        ({"core/engine.py": "x = 1"}, "import core.engine", True),
        ({"plugins.py": "class SGD: pass"}, "from plugins import SGD", True),
        ({"plugins/__init__.py": ""}, "from plugins.optimizers import SGD", False),
    ],
)
def test_a_package_of_the_users_that_has_the_names_is_left_alone(own, files, text, left_alone):
    for name, content in files.items():
        (own / name).parent.mkdir(exist_ok=True)
        (own / name).write_text(content)
    assert (reasons(text) == []) == left_alone


def test_torchyards_own_folder_on_the_path_answers_nothing(monkeypatch):
    import torchyard

    monkeypatch.syspath_prepend(torchyard.__path__[0])
    for text in (
        "from core.errors import UserError",
        "import core.errors",
        "from core import data",
    ):
        assert len(reasons(text)) == 1, text


# ---- as a user meets it


def test_check_gives_file_and_line_without_running_the_file(folder):
    (folder / "tiny.py").write_text(TINY + "raise SystemExit\nfrom core.plugin_tests import *\n")
    [first] = problems(host())
    assert str(first) == f"{folder / 'tiny.py'}:1: {WRITE}"


def test_a_run_that_asks_for_its_name_is_refused_with_the_line(folder):
    assert resolve({"dataset": "digits", "model": "lenet"}, host()).model
    assert host().broken == []
    with pytest.raises(UserError) as caught:
        resolve({"dataset": "digits", "model": "tiny"}, host())
    [problem] = caught.value.problems
    assert problem.startswith("model: no model named 'tiny'.")
    assert problem.endswith(f"Failed to load: {folder / 'tiny.py'} (tiny.py:1: {WRITE})")


def test_it_is_refused_although_a_package_of_that_name_would_answer_in_part(folder, own):
    (own / "core").mkdir()
    (own / "core" / "__init__.py").write_text("hookimpl = lambda function: function\n")
    with pytest.raises(LookupError, match="write 'from torchyard import ModelParams'"):
        host().find("model", "tiny")
    assert "core" not in sys.modules


def test_an_own_package_that_has_the_names_makes_the_plugin_load(folder, own):
    (own / "core").mkdir()
    (own / "core" / "__init__.py").write_text("from torchyard import ModelParams, hookimpl\n")
    assert host().find("model", "tiny").summary == "One layer."


@pytest.mark.parametrize("entry", ["old_one.models", "old_one.models:hooks"])
def test_an_installed_plugin_is_refused_with_its_file_and_line(tmp_path, monkeypatch, entry):
    package = tmp_path / "old_one"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "models.py").write_text(TINY)
    info = tmp_path / "old_one-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: old-one\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[torchyard]\nold = {entry}\n")
    monkeypatch.syspath_prepend(tmp_path)
    host.cache_clear()
    try:
        with pytest.raises(LookupError) as caught:
            host().find("model", "tiny")
        origin = f"old-one 1.0 ({entry})"
        assert str(caught.value).endswith(f"Failed to load: {origin} (models.py:1: {WRITE})")
        assert [str(problem) for problem in problems(host())] == [
            f"{package / 'models.py'}:1: {WRITE}"
        ]
    finally:
        host.cache_clear()
    assert "old_one" not in sys.modules


def test_all_old_imports_of_a_file_are_reported_at_once(tmp_path):
    file = tmp_path / "tiny.py"
    file.write_text(f"{TINY}\ndef helper():\n    from plugins.losses import Focal\n")
    own = Host()
    own.load(file_source(file), lambda: import_file(file))
    assert [problem.line for problem in problems(own)] == [1, 14]
    [broken] = own.broken
    assert "tiny.py:14: 'from plugins.losses import Focal'" in broken.reason


def test_an_old_import_in_a_module_that_the_plugin_imports_is_named(folder, own):
    helper = own / "mine_helper.py"
    helper.write_text("x = 1\nfrom core import ModelParams\n")
    (folder / "tiny.py").write_text("import mine_helper\n")
    [problem] = problems(host())
    write = "'from core import ModelParams' is from before 0.2: write 'from torchyard import"
    file, message = folder / "tiny.py", f"failed to load: mine_helper.py:2: {write} ModelParams'"
    assert str(problem) == f"{file}:1: {message}"


def test_a_plugin_without_a_file_is_not_read():
    own = Host()
    own.load(Source("mine", "mine 1.0", ""), lambda: object())
    assert own.broken == []
