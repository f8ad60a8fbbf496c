"""The plugin host: it finds every plugin, and no plugin can break it."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.hosting.plugin_texts import TINY, names, registering, source, write
from torchyard.core.config.resolve import resolve
from torchyard.core.hosting.host import Host, host
from torchyard.core.hosting.neighbours import import_file
from torchyard.core.hosting.params import KINDS
from torchyard.core.hosting.sources import Source, file_source

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def third_party(tmp_path_factory):
    """Files that use one another's names, and one that cannot be imported."""
    folder = tmp_path_factory.mktemp("third_party")
    head, _, hook = TINY.partition("@hookimpl")
    for name, registered in THIRD_PARTY.items():
        lines = [f'    register("{each}", Tiny)\n' for each in registered or ["x"]]
        failing = "" if registered else "    1 / 0\n"
        text = f"{head}@hookimpl{hook.partition('    register(')[0]}{''.join(lines)}{failing}"
        (folder / f"{name}.py").write_text(text)
    return folder


# ---- what is found


def test_the_built_ins_are_there_and_none_is_set_aside():
    assert host().broken == []
    assert {"digits", "cifar10", "cifar100", "mnist", "fashion_mnist", "image_folder"} <= set(
        names(host(), "dataset")
    )
    assert {"lenet", "linear", "mlp", "resnet18"} <= set(names(host(), "model"))
    assert {"cross_entropy", "focal", "mse", "nll"} <= set(names(host(), "loss"))
    assert {"adagrad", "adam", "gradient_descent", "sgd"} <= set(names(host(), "optimizer"))
    assert names(host(), "scheduler") == [
        "constant",
        "cosine",
        "one_cycle",
        "piecewise",
        "plateau",
        "step",
    ]


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


# ---- what fails to load


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


# ---- names


def test_a_built_in_keeps_its_name_and_the_other_is_qualified():
    own = Host()
    own.load(source("torchyard"), lambda: registering("model", "lenet"), builtin=True)
    own.load(source("mine"), lambda: registering("model", "lenet"))
    assert names(own, "model") == ["lenet", "mine/lenet"]
    assert own.find("model", "lenet").builtin
    assert own.find("model", "mine/lenet").source.name == "mine"
    assert own.find("model", "torchyard/lenet").builtin


def test_two_plugins_of_one_name_are_both_qualified():
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
            "several plugins are named 'one/tiny' (/here/one.py and /there/one.py): rename one"
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
    with pytest.raises(LookupError, match=r"\(there are: constant, cosine, one_cycle, p"):
        host().find("scheduler", "zzz")
    with pytest.raises(LookupError, match=r"`torchyard plugins model` lists all \d+"):
        host().find("model", "zzz")


def test_names_are_listed_in_order():
    own = Host()
    own.load(source("one"), lambda: registering("model", "b", "c", "a"))
    assert names(own, "model") == ["a", "b", "c"]


THIRD_PARTY = {
    "one": ("a", "b"),
    "two": ("b", "c"),
    "three": ("c", "lenet"),
    "four": (),  # cannot be imported
}


def added(folder, order):
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
    order=st.permutations(list(THIRD_PARTY)),
    asked=st.permutations(["a", "b", "c", "lenet", "two/b", "three/lenet", "four/x", "x"]),
)
@settings(deadline=None, max_examples=40)
def test_neither_the_order_of_discovery_nor_that_of_asking_matters(third_party, order, asked):
    expected = added(third_party, THIRD_PARTY)
    own = added(third_party, order)
    assert {name: answer(own, name) for name in asked} == {
        name: answer(expected, name) for name in sorted(asked)
    }
    assert own.find("model", "lenet").builtin
    own.load_all()
    assert names(own, "model") == [
        *("a", "one/b", "two/b", "three/c", "two/c", "lenet", "three/lenet")
    ]
