"""Every hook: what is registered by it is found and built; and the page documents all of them."""

import inspect
import re
from pathlib import Path

import pytest

import torchyard
from torchyard import hookimpl, testing
from torchyard.core.hosting import hookspecs
from torchyard.core.hosting.hookspecs import HOOKS
from torchyard.core.hosting.host import Host
from torchyard.core.hosting.params import KINDS
from torchyard.core.hosting.sources import Source

PAGE = (Path(__file__).parents[3] / "docs" / "plugins.md").read_text("utf-8")


def built(kind, hook, *arguments):
    """What a plugin builds that is registered by a hook, with the arguments it was given."""

    class Thing(KINDS[kind]):
        """A thing."""

        size: int = 3

        def build(self, *given):
            return self.size, given

    def implementation(register):
        register("thing", Thing)

    host = Host()
    plugin = type("Plugin", (), {hook: hookimpl(staticmethod(implementation))})
    host.load(Source("mine", "mine 1.0", "mine==1.0"), lambda: plugin)
    assert host.broken == []
    assert [name for name, _ in host.registrations(kind)] == ["thing"]
    found = host.find(kind, "thing")
    assert (found.kind, found.summary, found.source.identity) == (kind, "A thing.", "mine==1.0")
    inspect.signature(KINDS[kind].build).bind(None, *arguments)  # as the host calls it
    return found.params(size=5).build(*arguments)


def test_register_datasets(tmp_path):
    assert built("dataset", "register_datasets", tmp_path) == (5, (tmp_path,))


def test_register_augmentations():
    assert built("augmentation", "register_augmentations", (3, 8, 8)) == (5, ((3, 8, 8),))


def test_register_models():
    assert built("model", "register_models", (3, 8, 8), 10) == (5, ((3, 8, 8), 10))


def test_register_losses():
    assert built("loss", "register_losses", 10) == (5, (10,))


def test_register_optimizers():
    assert built("optimizer", "register_optimizers", []) == (5, ([],))


def test_register_schedulers():
    assert built("scheduler", "register_schedulers", None, 100) == (5, (None, 100))


def test_register_gates():
    assert built("gate", "register_gates") == (5, ())


def test_register_metrics():
    assert built("metric", "register_metrics", ["a", "b"]) == (5, (["a", "b"],))


def test_every_hook_has_a_kind_a_test_and_a_check_for_authors():
    hooks = [name for name in vars(hookspecs) if name.startswith("register_")]
    assert sorted(hooks) == sorted(HOOKS.values())
    assert HOOKS.keys() == KINDS.keys()
    assert [hook for hook in hooks if f"test_{hook}" not in globals()] == []
    assert [kind for kind in HOOKS if f"assert_{kind}_plugin" not in testing.__all__] == []


# ---- docs/plugins.md


def signature(function):
    # Annotations are texts there: `build(self, num_classes: 'int')`.
    return f"{function.__name__}{inspect.signature(function)}".replace("'", "")


@pytest.mark.parametrize("kind", KINDS)
def test_a_hook_and_what_its_plugins_implement_are_documented(kind):
    base = KINDS[kind]
    specification = getattr(hookspecs, HOOKS[kind])
    arguments = ", ".join(inspect.signature(specification).parameters)
    _, found, section = PAGE.partition(f"\n### {HOOKS[kind]}({arguments})\n")
    assert found
    block = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1].splitlines()
    assert block == [f"class {base.__name__}:", *members(base)]


@pytest.mark.parametrize("base", [torchyard.MixingParams, torchyard.RegionParams])
def test_the_augmentations_of_a_special_kind_are_documented(base):
    block = PAGE.partition(f"\nclass {base.__name__}(AugmentationParams):\n")[2]
    assert block.partition("```")[0].splitlines()[: len(members(base))] == members(base)


def members(base):
    """The lines in which the page documents what a base class declares."""
    declared = inspect.get_annotations(base)
    settings = [f"    {name}: {type_} = {getattr(base, name)}" for name, type_ in declared.items()]
    methods = [
        each
        for name, each in vars(base).items()
        if inspect.isfunction(each) and not name.startswith("_")
    ]
    return [*settings, *(f"    def {signature(each)}" for each in methods)]


def test_the_page_tells_of_no_hook_that_is_none():
    assert set(re.findall(r"^### (\w+)", PAGE, re.MULTILINE)) == set(HOOKS.values())


def test_the_page_has_every_public_name_and_every_assertion_as_it_is():
    missing = [name for name in torchyard.__all__ if not re.search(rf"\b{name}\b", PAGE)]
    assert missing == []
    for name in (name for name in testing.__all__ if name.startswith("assert_")):
        parameters = inspect.signature(getattr(testing, name)).parameters
        given = [each.name for each in parameters.values() if each.kind != each.KEYWORD_ONLY]
        assert f"`{name}({', '.join(given)})`" in PAGE


def test_the_table_of_public_names_lists_them_and_no_other():
    table = PAGE.partition("\nEverything a plugin may import is in `torchyard`:\n")[2]
    rows = re.findall(r"^\|([^|]*)\|[^|]+\|$", table.partition("\n\nSamples")[0], re.MULTILINE)
    assert sorted(re.findall(r"`(\w+)`", "".join(rows))) == torchyard.__all__


def test_the_page_begins_with_a_model_of_about_ten_lines_that_is_right(tmp_path):
    text = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1]
    assert len([line for line in text.splitlines() if line.strip()]) <= 12
    file = tmp_path / "small.py"
    file.write_text(text)
    params = testing.plugin_in_file(file, torchyard.ModelParams, "small")
    testing.assert_model_plugin(params(width=8), input_shape=(1, 32, 32))
