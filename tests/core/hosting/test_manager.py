"""The plugin host: it finds every plugin, and no plugin can break it."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchyard import ModelParams, OptimizerParams, hookimpl
from torchyard.core.config.resolve import resolve
from torchyard.core.hosting.hookspecs import HOOKS
from torchyard.core.hosting.manager import Host, host
from torchyard.core.hosting.params import KINDS
from torchyard.core.hosting.sources import Source, file_source, import_file

ROOT = Path(__file__).parents[3]

# About ten lines: what the README promises a model of one's own takes.
TINY = '''\
from torchyard import ModelParams, hookimpl

class Tiny(ModelParams):
    """One hidden layer."""
    width: int = 8

    def build(self, input_shape, num_classes):
        from math import prod
        from torch import nn
        features = prod(input_shape)
        return nn.Sequential(nn.Flatten(), nn.Linear(features, self.width), nn.ReLU(),
                             nn.Linear(self.width, num_classes))

@hookimpl
def register_models(register):
    register("tiny", Tiny)
'''


@pytest.fixture(scope="module")
def strangers(tmp_path_factory):
    """Files that use one another's names, and one that cannot be imported."""
    folder = tmp_path_factory.mktemp("strangers")
    head, _, hook = TINY.partition("@hookimpl")
    for name, registered in STRANGERS.items():
        lines = [f'    register("{each}", Tiny)\n' for each in registered or ["x"]]
        failing = "" if registered else "    1 / 0\n"
        text = f"{head}@hookimpl{hook.partition('    register(')[0]}{''.join(lines)}{failing}"
        (folder / f"{name}.py").write_text(text)
    return folder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A plugin folder; `host()` is read anew for the test and again after it."""
    monkeypatch.setenv("TORCHYARD_PLUGINS", str(tmp_path))
    host.cache_clear()
    yield tmp_path
    host.cache_clear()


def loaded():
    """The plugins of this process, all of them imported."""
    host().load_all()
    return host()


def write(folder, name, text):
    file = folder / name
    file.write_text(textwrap.dedent(text))
    return file


def plugin(name, hooks):
    """An object with hooks, as pluggy takes one."""
    return type(name, (), {hook: hookimpl(staticmethod(function)) for hook, function in hooks})


def registering(kind, *names, params=None):
    class Thing(params or KINDS[kind]):
        """A thing that is never built."""

        def build(self, *arguments):
            raise AssertionError("not built")

    def hook(register):
        for name in names:
            register(name, Thing)

    return plugin("Given", [(HOOKS[kind], hook)])


def source(name):
    return Source(name, f"{name} 1.0", f"{name}==1.0")


def names(of, kind):
    return [name for name, _ in of.registrations(kind)]


# ---- what is found


def test_the_built_ins_are_there_and_none_is_set_aside():
    assert host().broken == []
    assert {"digits", "cifar10", "cifar100", "mnist", "fashion_mnist", "image_folder"} <= set(
        names(host(), "dataset")
    )
    assert {"lenet", "linear", "mlp", "resnet18"} <= set(names(host(), "model"))
    assert {"cross_entropy", "focal", "mse", "nll"} <= set(names(host(), "loss"))
    assert {"adagrad", "adam", "gradient_descent", "sgd"} <= set(names(host(), "optimizer"))
    assert names(host(), "scheduler") == ["constant", "cosine", "one_cycle", "step"]


def test_every_built_in_says_what_it_is_and_where_it_comes_from():
    for kind in KINDS:
        for name, found in host().registrations(kind):
            assert found.summary.endswith((".", ")")), (kind, name)
            assert found.builtin
            assert found.source.identity.startswith("torchyard==")
            assert found.kind == kind


def test_a_model_from_a_file_trains(folder):
    write(folder, "tiny.py", TINY)
    import torch

    resolved = resolve({"dataset": "digits", "model": {"name": "tiny", "width": "5"}}, host())
    assert host().broken == []
    torch.manual_seed(0)
    network = resolved.model.build((1, 8, 8), 10)
    assert network[1].out_features == 5
    loss_function = resolved.loss.build(10)
    optimizer = resolve(
        {"dataset": "digits", "optimizer": {"name": "sgd", "lr": 0.5}}, host()
    ).optimizer.build(network.parameters())
    samples, targets = torch.rand(16, 1, 8, 8), torch.arange(16) % 10
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = loss_function(network(samples), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


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
from torchyard.core.hosting.manager import host
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


# ---- what is broken is set aside


def test_a_file_that_fails_leaves_no_half_made_module(folder):
    write(folder, "half_made.py", "x = 1\nraise ValueError")
    write(folder, "made.py", TINY)
    assert [broken.reason for broken in loaded().broken] == ["ValueError: "]
    assert any(name.endswith("_made") for name in sys.modules)  # pydantic looks there
    assert not any(name.endswith("_half_made") for name in sys.modules)


def test_what_cannot_be_read_is_set_aside(folder):
    (folder / "directory.py").mkdir()
    (folder / "dangling.py").symlink_to(folder / "nowhere")
    write(folder, "tiny.py", TINY)
    assert {broken.source.name for broken in loaded().broken} == {"directory", "dangling"}
    assert host().find("model", "tiny")


def test_a_name_of_a_broken_plugin_is_answered_with_the_reason(folder):
    file = write(folder, "mine.py", "import no_such_module")
    with pytest.raises(LookupError) as caught:
        host().find("model", "tiny")
    assert f"{file} (ModuleNotFoundError: No module named 'no_such_module')" in str(caught.value)


def test_a_plugin_that_failed_can_be_loaded_again():
    own = Host()

    def fails():
        raise RuntimeError("not yet")

    own.load(source("mine"), fails)
    own.load(source("mine"), lambda: registering("model", "tiny"))
    assert names(own, "model") == ["tiny"]
    assert [broken.reason for broken in own.broken] == ["RuntimeError: not yet"]


def test_ctrl_c_is_not_a_broken_plugin():
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Host().load(source("mine"), interrupted)


# ---- names


def test_a_built_in_keeps_its_name_and_the_other_is_qualified():
    own = Host()
    own.load(source("torchyard"), lambda: registering("model", "lenet"), builtin=True)
    own.load(source("mine"), lambda: registering("model", "lenet"))
    assert names(own, "model") == ["lenet", "mine/lenet"]
    assert own.find("model", "lenet").builtin
    assert own.find("model", "mine/lenet").source.name == "mine"
    assert own.find("model", "torchyard/lenet").builtin


def test_two_strangers_of_one_name_are_both_qualified():
    own = Host()
    own.load(source("one"), lambda: registering("loss", "focal", "hinge"))
    own.load(source("two"), lambda: registering("loss", "focal"))
    assert names(own, "loss") == ["one/focal", "two/focal", "hinge"]
    for qualified in ("one/focal", "two/focal"):
        assert f"{own.find('loss', qualified).source.name}/focal" == qualified
    with pytest.raises(LookupError) as caught:
        own.find("loss", "focal")
    assert str(caught.value) == ("several plugins are named 'focal': choose one/focal or two/focal")


def test_sources_of_one_name_are_told_apart_by_their_files():
    own = Host()
    first, second = Source("one", "/here/one.py", ""), Source("one", "/there/one.py", "")
    own.load(first, lambda: registering("model", "tiny"))
    own.load(second, lambda: registering("model", "tiny", "other"))
    assert own.broken == []
    assert own.find("model", "other").source == second
    for name in ("tiny", "one/tiny"):
        with pytest.raises(LookupError) as caught:
            own.find("model", name)
        assert str(caught.value) == (
            "several plugins are named 'one/tiny', of /here/one.py and /there/one.py: rename one"
        )


def test_a_qualified_name_always_finds():
    own = Host()
    own.load(source("one"), lambda: registering("model", "tiny"))
    assert names(own, "model") == ["tiny"]
    assert own.find("model", "one/tiny") is own.find("model", "tiny")
    with pytest.raises(LookupError, match="no model named 'two/tiny'"):
        own.find("model", "two/tiny")


def test_kinds_have_names_of_their_own():
    own = Host()
    own.load(source("one"), lambda: registering("model", "same"))
    own.load(source("two"), lambda: registering("loss", "same"))
    assert own.find("model", "same").kind == "model"
    assert own.find("loss", "same").kind == "loss"
    with pytest.raises(LookupError):
        own.find("optimizer", "same")


def test_the_nearest_name_is_suggested_else_those_there_are():
    with pytest.raises(LookupError, match=r"no optimizer named 'adm'\. Did you mean 'adam'\?"):
        host().find("optimizer", "adm")
    with pytest.raises(LookupError, match=r"\(there are: constant, cosine, one_cycle, step\)"):
        host().find("scheduler", "zzz")
    with pytest.raises(LookupError, match=r"`torchyard plugins model` lists the \d+ there are"):
        host().find("model", "zzz")


def test_names_are_listed_in_order():
    own = Host()
    own.load(source("one"), lambda: registering("model", "b", "c", "a"))
    assert names(own, "model") == ["a", "b", "c"]


STRANGERS = {
    "one": ("a", "b"),
    "two": ("b", "c"),
    "three": ("c", "lenet"),
    "four": (),  # cannot be imported
}


def offered(folder, order):
    own = Host()
    own.load(source("torchyard"), lambda: registering("model", "lenet"), builtin=True)
    for name in order:
        file = folder / f"{name}.py"
        own.add(file_source(file), lambda file=file: import_file(file))
    return own


def answer(own, name):
    try:
        return own.find("model", name).source.name
    except LookupError as error:
        return str(error)


@given(
    order=st.permutations(list(STRANGERS)),
    asked=st.permutations(["a", "b", "c", "lenet", "two/b", "three/lenet", "four/x", "x"]),
)
@settings(deadline=None, max_examples=40)
def test_neither_the_order_of_discovery_nor_that_of_asking_matters(strangers, order, asked):
    expected = offered(strangers, STRANGERS)
    own = offered(strangers, order)
    assert {name: answer(own, name) for name in asked} == {
        name: answer(expected, name) for name in sorted(asked)
    }
    assert own.find("model", "lenet").builtin
    own.load_all()
    assert names(own, "model") == [
        *("a", "one/b", "two/b", "three/c", "two/c", "lenet", "three/lenet")
    ]


@given(name=st.text(max_size=12), kind=st.sampled_from(list(KINDS)))
def test_any_name_is_found_or_sets_its_plugin_aside(name, kind):
    own = Host()
    own.load(source("mine"), lambda: registering(kind, name))
    usable = bool(name) and not set(name) & set(" =,*")
    assert names(own, kind) == [name] * usable
    assert [broken.reason for broken in own.broken] == [
        f"ValueError: {kind} '{name}': not a usable name"
    ] * (not usable)
    if usable:
        assert own.find(kind, name) is own.find(kind, f"mine/{name}")


# ---- what is read without an import


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


# ---- what a plugin declares


def test_parameters_are_typed_frozen_and_no_others_are_taken():
    class Own(OptimizerParams):
        lr: float = 1.0

        def build(self, parameters):
            raise AssertionError("not built")

    with pytest.raises(ValueError, match="frozen"):
        Own().lr = 2.0
    with pytest.raises(ValueError, match="Extra inputs"):
        Own(lrr=1)
    assert Own(lr="0.5").lr == 0.5


def test_a_class_without_build_cannot_be_made():
    class Unfinished(ModelParams):
        pass

    with pytest.raises(TypeError, match="abstract"):
        Unfinished()


def test_a_parameter_may_be_called_model_something():
    class Own(ModelParams):
        model_width: int = 3

        def build(self, input_shape, num_classes):
            raise AssertionError("not built")

    assert Own().model_width == 3
