"""Where hosts meet: who is let in, and what is said of what cannot be."""

import pickle
import socket
import threading
from pathlib import Path

import pytest
import torch
from torch.distributed import FileStore
from torch.distributed.elastic.rendezvous import RendezvousParameters, RendezvousStateError
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend

from tests.ports import free_port
from torchyard.core.config.resolve import resolve
from torchyard.core.data.dataset import PreparedDataset
from torchyard.core.errors import UnreachableError, UserError
from torchyard.core.hosting.host import host
from torchyard.core.training.parallel import nodes as nodes_module
from torchyard.core.training.parallel.nodes import KEY, Nodes, check_first_host, interface_to
from torchyard.pipelines.worker.stages import preparation, training

LOCAL = "127.0.0.1"


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv(KEY, "a key of two hosts")


@pytest.fixture
def endpoint():
    return f"{LOCAL}:{free_port()}"


def test_a_host_that_joins_is_told_what_the_first_one_trains(endpoint):
    first = Nodes.serve(endpoint, {"config": "é"})
    other, about = Nodes.join(endpoint, 60)
    assert about == {"config": "é"}
    other.ready()
    first.wait_for_others(2, 60, lambda there, count: None)
    other.fail(["run", "the first error", ""])
    other.fail(["run", "another", ""])
    assert first.failure() == ["run", "the first error", ""]


def test_what_another_without_the_key_says_is_not_told(endpoint, caplog):
    first = Nodes.serve(endpoint, {})
    intruder = Nodes(first.endpoint, nodes_module.connect(*first.endpoint), b"a guess", False)
    intruder.refuse("\x1b[2Jrun this")
    intruder.fail(["user", ["run this"]])
    with pytest.raises(UnreachableError, match="1 of them came"):
        first.wait_for_others(2, 0, lambda there, count: None)
    assert first.failure() is None
    assert "run this" not in caplog.text


def test_what_answers_otherwise_is_no_first_host(endpoint, monkeypatch):
    monkeypatch.setattr(nodes_module, "STORE_SECONDS", 0.5)
    host, _, port = endpoint.rpartition(":")
    before = threading.enumerate()
    with (
        socket.create_server((host, int(port))),  # which says nothing
        pytest.raises(UnreachableError, match="is no first host of a training"),
    ):
        Nodes.join(endpoint, 60)
    for thread in {*threading.enumerate()} - {*before}:
        thread.join(60)
        assert not thread.is_alive()


def test_it_listens_at_its_address_alone(endpoint):
    first = Nodes.serve(endpoint, {})
    host, port = first.endpoint
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.2", port), timeout=5)
    socket.create_connection((host, port), timeout=5).close()


def test_another_key_is_refused(endpoint, monkeypatch):
    first = Nodes.serve(endpoint, {"config": "secret"})
    monkeypatch.setenv(KEY, "another key, as long")
    with pytest.raises(UserError, match=f"{KEY} is not the one of the first host"):
        Nodes.join(endpoint, 60)
    assert first.failure() is None


@pytest.mark.parametrize(("key", "problem"), [("", "is not set"), ("short", "fewer than 16")])
def test_a_key_is_needed(endpoint, monkeypatch, key, problem):
    monkeypatch.setenv(KEY, key)
    for begin in (lambda: check_first_host(endpoint), lambda: Nodes.join(endpoint, 1)):
        with pytest.raises(UserError, match=problem):
            begin()


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("192.0.2.1:29400", "192.0.2.1 is no address of this machine"),
        ("0.0.0.0:29400", "every address"),
        ("no-such-host.invalid:29400", "no host named 'no-such-host.invalid'"),
    ],
)
def test_an_address_that_is_not_the_first_hosts_is_refused(address, problem):
    with pytest.raises(UserError, match=problem):
        check_first_host(address)


def test_a_port_in_use_and_one_where_nobody_is(endpoint):
    in_use = socket.create_server((LOCAL, int(endpoint.partition(":")[2])))
    with in_use, pytest.raises(UserError, match="in use"):
        check_first_host(endpoint)
    check_first_host(endpoint)
    with pytest.raises(UnreachableError, match="does not answer"):
        Nodes.join(endpoint, 0.1)


def test_hosts_that_do_not_come_are_counted(endpoint):
    first, shown = Nodes.serve(endpoint, {}), []
    with pytest.raises(UnreachableError, match=f"1 of them .*torchyard join {endpoint}"):
        first.wait_for_others(3, 0.1, lambda *counts: shown.append(counts))
    assert shown == [(1, 3)]


class Unpickled:
    """Tells that it was."""

    seen = False

    def __setstate__(self, state):
        Unpickled.seen = True


def test_a_state_without_the_key_is_not_unpickled(tmp_path):
    store = FileStore(str(tmp_path / "store"))
    other = Nodes((LOCAL, 1), store, b"a key", is_first=False)
    parameters = RendezvousParameters(
        "torchyard", LOCAL, "torchyard", 1, 2, nodes=other, join_timeout=5, goes_on=False
    )
    handler = nodes_module._create_handler(parameters)
    assert handler.num_nodes_waiting() == 0
    intruder = Unpickled()
    intruder.name = "x"
    plain = C10dRendezvousBackend(store, "torchyard")
    found = plain.get_state()
    plain.set_state(pickle.dumps(intruder), found and found[1])
    handler._state_holder._last_sync_time = -1
    with pytest.raises(RendezvousStateError, match="not signed"):
        handler.num_nodes_waiting()
    assert not Unpickled.seen


def test_the_interface_is_the_one_that_leads_there():
    assert interface_to(LOCAL) in ("lo", "lo0")


@pytest.mark.parametrize(
    ("differs", "problem"),
    [
        ({"versions": {"torchyard": "0.0", "torch": "1.0"}}, "torch 1.0 there, .* here"),
        ({"data": "0" * 64}, "the samples here are not those of the first host"),
        ({"device": "cuda"}, "device: cpu here, cuda on the first host"),
    ],
)
def test_a_host_that_would_train_something_else_says_so_on_both(
    endpoint, tmp_path, differs, problem, caplog
):
    config = {
        "dataset": {"name": "random_vectors"},
        "model": {"name": "linear"},
        "train": {"parallel": "ddp", "nodes": 2, "rendezvous": endpoint},
        "device": "cpu",
    }
    full = resolve(config, host()).config.model_dump(mode="json")
    folder = preparation.prepare(full, str(tmp_path / "cache"), lambda event: None)["folder"]
    digest = PreparedDataset.open(Path(folder)).digest
    about = {"config": full, "data": digest, "device": "cpu", "versions": training._versions()}
    first = Nodes.serve(endpoint, about | differs)
    with pytest.raises(UserError, match=problem):
        training.join(endpoint, 60, str(tmp_path / "cache"), lambda event: None)
    with pytest.raises(UnreachableError):
        first.wait_for_others(2, 0, lambda there, count: None)
    assert "A host cannot join" in caplog.text
    assert not torch.distributed.is_initialized()
