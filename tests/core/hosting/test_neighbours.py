"""Plugin files that import what lies beside them."""

import os
import subprocess
import sys

import pytest

from tests.core.hosting.plugin_texts import TINY, loaded, write
from torchyard.core.hosting.host import host
from torchyard.core.hosting.neighbours import import_file, neighbours
from torchyard.core.hosting.sources import file_source, raised_in

HELPER = "from math import prod\nWIDTH = {width}\n\ndef fails():\n    raise ValueError('here')\n"


def with_import(line, use="_helper.WIDTH"):
    """The plugin `tiny`, which imports a neighbour, or does so when it is built."""
    return f"{line}\n" + TINY.replace("width: int = 8", f"width: int = {use}")


@pytest.mark.parametrize(
    ("statement", "use"),
    [
        ("import _helper", "_helper.WIDTH"),
        ("import _helper as h", "h.WIDTH"),
        ("import os, _helper, sys", "_helper.WIDTH + 0 * len(os.sep) * len(sys.path)"),
        ("from _helper import WIDTH", "WIDTH"),
        ("from _helper import WIDTH as W, fails", "W"),
        ("from ._helper import WIDTH", "WIDTH"),
        ("from . import _helper", "_helper.WIDTH"),
        ("try:\n    import _helper\nexcept ImportError:\n    raise", "_helper.WIDTH"),
        ("from __future__ import annotations\nimport _helper", "_helper.WIDTH"),
        ("import _lib.blocks", "_lib.blocks.WIDTH + 0 * _lib.ONE"),
        ("import _lib.blocks as b", "b.WIDTH"),
        ("from _lib.blocks import WIDTH", "WIDTH"),
        ("from ._lib import blocks", "blocks.WIDTH"),
        ("from _lib import inner", "inner"),
        ("import common_parts_of_mine", "common_parts_of_mine.WIDTH"),
    ],
)
def test_a_neighbour_is_imported_absolutely_or_relatively(folder, statement, use):
    write(folder, "_helper.py", HELPER.format(width=5))
    write(folder, "common_parts_of_mine.py", "from _helper import WIDTH\n")
    (folder / "_lib").mkdir()
    write(folder / "_lib", "__init__.py", "from .blocks import WIDTH as inner\nONE = 1\n")
    write(folder / "_lib", "blocks.py", "import _helper\nfrom .. import _helper as same\n"
          "assert same is _helper\nWIDTH = _helper.WIDTH\n")  # fmt: skip
    write(folder, "tiny.py", with_import(statement, use))
    assert loaded().broken == []
    assert host().find("model", "tiny").params().width == 5
    assert not {"_helper", "_lib", "common_parts_of_mine"} & sys.modules.keys()
    assert not list(folder.rglob("*.pyc"))


def test_two_folders_have_helpers_of_one_name(tmp_path, monkeypatch):
    folders = []
    for number in (1, 2):
        folder = tmp_path / f"plugins{number}"
        folder.mkdir()
        write(folder, "_helper.py", HELPER.format(width=number))
        text = TINY.replace('"tiny"', f'"tiny{number}"').replace(
            "from math import prod", "from math import prod; from _helper import WIDTH"
        )
        write(folder, f"tiny{number}.py", text.replace("self.width, num", "WIDTH, num").replace(
            "features, self.width", "features, WIDTH"))  # fmt: skip
        folders.append(str(folder))
    monkeypatch.setenv("TORCHYARD_PLUGINS", os.pathsep.join(folders))
    host.cache_clear()
    for number in (1, 2):  # imported when it is built
        model = host().find("model", f"tiny{number}").params().build((3,), 2)
        assert model[1].out_features == number
    host.cache_clear()


def test_a_plugin_hides_no_library_of_its_name(folder):
    text = "import {0}\nfrom {0} import {1}\n" + TINY
    for name, needed in {"json": "dumps", "numpy": "zeros", "yaml": "safe_load"}.items():
        write(folder, f"{name}.py", text.format(name, needed).replace('"tiny"', f'"{name}"'))
    write(folder, "other.py", "from yaml import safe_load\nfrom numpy import zeros\n" + TINY)
    assert loaded().broken == []


def test_what_is_missing_is_named(folder):
    write(folder, "one.py", "from _helper import x\n")
    write(folder, "two.py", "from ._helper import x\n")
    write(folder, "three.py", "from _broken import x\n")
    write(folder, "four.py", "from _empty import x\n")
    write(folder, "_empty.py", "")
    write(folder, "_broken.py", "x = 1\nx = (\n")
    reasons = {broken.source.name: broken.reason for broken in loaded().broken}
    assert reasons["one"] == "ModuleNotFoundError: No module named '_helper'"
    assert "_helper" in reasons["two"]
    assert "'(' was never closed (_broken.py, line 2)" in reasons["three"]
    assert "cannot import name 'x' from" in reasons["four"]
    assert str(folder / "_empty.py") in reasons["four"]


def test_a_change_of_a_neighbour_is_a_change_of_the_plugin(folder):
    file = write(folder, "tiny.py", with_import("import _helper"))
    before = file_source(file).identity
    helper = write(folder, "_helper.py", "from ._more import WIDTH\n")
    found = [file_source(file).identity]
    more = write(folder, "_more.py", "WIDTH = 1\n")
    found.append(file_source(file).identity)
    write(folder, "_more.py", "WIDTH = 2\n")
    found.append(file_source(file).identity)
    write(folder, "_unused.py", "WIDTH = 2\n")
    assert file_source(file).identity == found[-1]
    assert len({before, *found}) == 4
    assert neighbours(file) == [helper, more]
    write(folder, "_more.py", "from _helper import WIDTH\nfrom tiny import Tiny\n")
    assert neighbours(file) == [helper, more]  # in a circle


def test_who_raised_in_a_helper_is_the_plugin_that_imports_it(folder):
    write(folder, "_helper.py", HELPER.format(width=5))
    file = write(folder, "tiny.py", "from _helper import fails\n")
    other = write(folder, "other.py", "")
    module = import_file(file)
    with pytest.raises(ValueError, match="here") as caught:
        module.fails()
    named = raised_in(caught.value, [file_source(other), file_source(file)])
    assert named == f" in tiny ({folder / '_helper.py'}, line 5)"


def test_a_test_beside_it_imports_it_as_a_module(folder):
    write(folder, "_helper.py", HELPER.format(width=5))
    file = write(folder, "tiny.py", with_import("import _helper"))
    import_file(file)  # leaves no bytecode that the next import would find
    code = "import tiny; assert tiny.Tiny().width == 5; assert tiny._helper.WIDTH == 5"
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)
