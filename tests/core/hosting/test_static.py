"""What a plugin registers is read from its text, without an import."""

import pytest

from tests.core.hosting.plugin_texts import TINY, loaded, write
from torchyard.core.hosting.host import host


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('register("tiny", Tiny)', ["tiny"]),
        ('register("tiny", Tiny); register("other", Tiny)', ["tiny", "other"]),
        ('for name in "ab": register(f"family/{name}", Tiny)', ["family/*"]),
        ('for name in "ab": register("family/" + name, Tiny)', ["family/*"]),
        ('for name in "ab": register(name, Tiny)', ["*"]),
        ('register(name="tiny", params=Tiny)', ["*"]),
        ("list(map(register, ['tiny'], [Tiny]))", ["*"]),
    ],
)
def test_names_are_read_as_far_as_they_are_written(folder, text, names):
    write(folder, "mine.py", TINY.replace('register("tiny", Tiny)', text))
    mine = [found for _, found in host().listed("model") if not found.builtin]
    assert [found.name for found in mine] == sorted(names)
    assert {found.status for found in mine} == {"not loaded"}
    known = {name for name, found in loaded().listed("model") if not found.builtin}
    assert known in ({"tiny"}, {"tiny", "other"}, {"family/a", "family/b"}, {"a", "b"})


@pytest.mark.parametrize(
    "text", ["from mine_inner import *", "from mine_inner import register_models"]
)
def test_a_hook_from_another_module_is_asked_for_every_name(folder, monkeypatch, text):
    monkeypatch.syspath_prepend(folder / "inner")
    (folder / "inner").mkdir()
    write(folder / "inner", "mine_inner.py", TINY)
    write(folder, "mine.py", text)
    assert "*" in names_listed("model")
    assert host().find("model", "tiny").source.name == "mine"


def names_listed(kind):
    return [name for name, _ in host().listed(kind)]
