"""Plugins in files, folders and installed distributions: what is found, and what is left alone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.core.hosting.plugin_texts import TINY, loaded, names, write
from torchyard.core.hosting.host import host
from torchyard.core.hosting.neighbours import import_file
from torchyard.core.hosting.sources import (
    Source,
    file_source,
    module_file,
    raised_in,
    raising_line,
)

ROOT = Path(__file__).parents[3]


def test_a_file_is_recorded_by_its_digest(folder):
    import hashlib

    file = write(folder, "tiny.py", TINY)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    found = host().find("model", "tiny")
    assert found.source.name == "tiny"
    assert found.source.origin == str(file)
    assert found.source.identity == f"sha256:{digest} (tiny.py)"
    assert found.summary == "One hidden layer."
    assert not found.builtin


def test_a_file_of_a_module_that_is_loaded_already_does_not_hide_it(folder):
    write(folder, "json.py", TINY)
    assert host().find("model", "tiny").source.name == "json"
    assert sys.modules["json"] is json


def test_files_that_begin_with_an_underscore_or_a_dot_are_left_alone(folder):
    for name in ("_helper.py", ".hidden.py", "__init__.py", "notes.txt"):
        write(folder, name, "raise SystemExit('imported')")
    assert loaded().broken == []


def test_several_folders_and_one_that_is_missing(tmp_path, folder, monkeypatch):
    first, second = tmp_path / "first", tmp_path / "second"
    for each, name in ((first, "tiny"), (second, "small")):
        each.mkdir()
        write(each, f"{name}.py", TINY.replace('"tiny"', f'"{name}"'))
    missing = tmp_path / "missing"
    monkeypatch.setenv("TORCHYARD_PLUGINS", f"{first}:{missing}::{second}")
    host.cache_clear()
    assert {"tiny", "small"} <= set(names(loaded(), "model"))
    [broken] = host().broken
    assert broken.source.origin == str(missing)
    assert broken.reason == "no such folder (TORCHYARD_PLUGINS)"


def installed(tmp_path, **modules):
    """Folders as an installer leaves them: a module and its metadata each."""
    for name, text in modules.items():
        (tmp_path / f"{name}.py").write_text(text)
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[torchyard]\n{name} = {name}\n")
    script = """
import json
from torchyard.core.hosting.host import host
host().load_all()
found = {kind: [[name, r.source.origin] for name, r in host().registrations(kind)]
         for kind in ("model", "loss")}
print(json.dumps([found, [[b.source.name, b.reason] for b in host().broken]]))
"""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{script}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    found, broken = json.loads(done.stdout.splitlines()[-1])
    return {kind: dict(pairs) for kind, pairs in found.items()}, dict(broken)


def test_installed_distributions_are_found_and_the_broken_ones_set_aside(tmp_path):
    found, broken = installed(
        tmp_path,
        good=TINY,
        clashing=TINY.replace('"tiny"', '"lenet"'),
        failing="import no_such_module",
        exiting="import sys; sys.exit('leave')",
    )
    assert found["model"]["tiny"] == "good 1.0 (good)"
    assert found["model"]["lenet"].startswith("torchyard ")
    assert found["model"]["clashing/lenet"] == "clashing 1.0 (clashing)"
    assert list(found["loss"]) == names(host(), "loss")
    assert broken == {
        "failing": "ModuleNotFoundError: No module named 'no_such_module'",
        "exiting": "SystemExit: leave",
    }


def test_a_file_that_fails_leaves_no_half_made_module(folder):
    write(folder, "half_made.py", "x = 1\nraise ValueError")
    write(folder, "made.py", TINY)
    assert [broken.reason for broken in loaded().broken] == ["ValueError: "]
    assert any(name.endswith(".made") for name in sys.modules)  # pydantic looks there
    assert not any(name.endswith(".half_made") for name in sys.modules)


def test_what_cannot_be_read_is_set_aside(folder):
    (folder / "directory.py").mkdir()
    (folder / "dangling.py").symlink_to(folder / "nowhere")
    write(folder, "tiny.py", TINY)
    assert {broken.source.name for broken in loaded().broken} == {"directory", "dangling"}
    assert host().find("model", "tiny")


def test_who_raised_is_named_by_file_and_line(folder):
    file = write(folder, "mine.py", "def build():\n    int('x')\n")
    source = file_source(file)
    module = import_file(file)
    with pytest.raises(ValueError, match="invalid literal") as caught:
        module.build()
    assert raising_line(caught.value, str(file)) == 2
    assert raised_in(caught.value, [source]) == f" in mine ({file}, line 2)"
    assert raised_in(caught.value, [Source("other", "other 1.0", "")]) == ""
    assert raising_line(caught.value, str(folder / "other.py")) is None


def test_a_modules_file_is_found_without_its_import(tmp_path, monkeypatch):
    package = tmp_path / "around"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit")
    file = write(package, "inner.py", "")
    monkeypatch.syspath_prepend(tmp_path)
    assert module_file("around.inner") == str(file)
    assert module_file("around.none") == module_file("none_around.inner") == ""
