"""Several hosts that train one network: where they meet, and whom they trust.

The first host serves torch's TCPStore at `train.rendezvous`, on that address alone, and the others
connect to it. Neither the store nor gloo or NCCL knows passwords or encryption
(https://docs.pytorch.org/docs/stable/distributed.html), and the elastic rendezvous keeps its state
there as a pickle, which whoever connects could replace by code of his own. So what the hosts take
from one another is signed with a key that all of them are given: an unsigned state is not unpickled
and an unsigned configuration not read. Who reaches the ports can still disturb a training and see
its weights and gradients: the hosts are to have a network of their own.
"""

from __future__ import annotations

import contextlib
import errno
import hmac
import ipaddress
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psutil
import torch.distributed as dist
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousError,
    RendezvousGracefulExitError,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStateError,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import (
    DynamicRendezvousHandler,
    RendezvousBackend,
    RendezvousTimeout,
)

from torchyard.core.config.schema import split_endpoint
from torchyard.core.errors import RunError, UnreachableError, UserError

logger = logging.getLogger(__name__)

KEY = "TORCHYARD_NODES_KEY"
SHORTEST_KEY = 16
STORE_SECONDS = 60.0  # for an answer of the store
BACKEND = "torchyard"  # its name among torch's rendezvous backends

# A host is lost after so many of its signs of life, each so many seconds, did not come; those that
# are left wait so long for one another before they go on.
SIGN_OF_LIFE_SECONDS, SIGNS_MISSED, LAST_CALL_SECONDS = 2, 6, 5

_DIGEST = "sha256"
_SIZE = 32


class NodeLostError(RendezvousError):
    """A host gives no sign of life."""


def nodes_key() -> bytes:
    """The key that all hosts of a training have.

    Raises:
        UserError: there is none, or it can be guessed.
    """
    key = os.environ.get(KEY, "")
    if len(key) < SHORTEST_KEY:
        is_not = f"has fewer than {SHORTEST_KEY} characters" if key else "is not set"
        raise UserError(
            f"{KEY} {is_not}: all hosts of a training need the same, e.g. "
            f"export {KEY}=$(openssl rand -hex 32), and then the same text on the others"
        )
    return os.fsencode(key)


def check_first_host(endpoint: str) -> None:
    """Find out whether this machine can be the first host of a training.

    Raises:
        UserError: there is no key, or it cannot serve that address.
    """
    nodes_key()
    _listen(endpoint).close()


@dataclass(frozen=True)
class Nodes:
    """The hosts of one training, as one of them sees them.

    Attributes:
        endpoint: (host, port) of the first one.
        store: what they share; the first one serves it.
        key: with which what they take from one another is signed.
        is_first: whether this host is the first one, which writes and reports.
    """

    endpoint: tuple[str, int]
    store: Store
    key: bytes
    is_first: bool

    @classmethod
    def serve(cls, endpoint: str, about: dict[str, Any]) -> Nodes:
        """Be the first host.

        Args:
            about: what the others are to train, as plain values.

        Raises:
            UserError: as `check_first_host` raises it.
        """
        key, listening = nodes_key(), _listen(endpoint)
        address, port = listening.getsockname()[:2]
        # Otherwise it would listen on every address of the machine.
        store = TCPStore(
            *(address, port),
            is_master=True,
            wait_for_workers=False,
            master_listen_fd=listening.detach(),
            timeout=timedelta(seconds=STORE_SECONDS),
        )
        nodes = cls((address, port), store, key, is_first=True)
        about_text = json.dumps(about).encode()
        store.set("about", _signed(key, "about", about_text))  # type: ignore[arg-type]
        return nodes

    @classmethod
    def join(cls, endpoint: str, seconds: float) -> tuple[Nodes, dict[str, Any]]:
        """Be one of the other hosts; returns also what they train.

        Args:
            seconds: how long to wait for the first one.

        Raises:
            UserError: there is no key here, or the first host has another.
            UnreachableError: nothing answers, or it is no first host.
        """
        key, (host, port) = nodes_key(), split_endpoint(endpoint)
        deadline = time.monotonic() + seconds
        while True:
            try:
                with socket.create_connection((host, port), timeout=5):
                    break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise UnreachableError(
                        f"{endpoint} does not answer ({error.strerror or error}): is it "
                        "train.rendezvous of a run that has come to its training?"
                    ) from None
                time.sleep(0.5)
        if (answer := _ask(host, port)) is None:
            raise UnreachableError(f"What answers at {endpoint} is no first host of a training")
        store, about = answer
        found = _opened(key, "about", about)
        if found is None:
            raise UserError(f"{KEY} is not the one of the first host, {endpoint}")
        return cls((host, port), store, key, is_first=False), json.loads(found)

    # ---- before the training

    def ready(self) -> None:
        """Tell the first host that this one can begin."""
        self.store.add("ready", 1)

    def refuse(self, why: str) -> None:
        """Tell the first host that this one cannot begin."""
        signed = _signed(self.key, "refused", why.encode())
        self.store.set("refused", signed)  # type: ignore[arg-type]

    def wait_for_others(self, count: int, seconds: float, show: Callable[[int, int], None]) -> None:
        """Wait until so many hosts, this one included, can begin.

        Args:
            seconds: how long.
            show: called with how many there are, and how many there are to be.

        Raises:
            UnreachableError: some did not come.
        """
        deadline, shown = time.monotonic() + seconds, -1
        while (there := 1 + self.store.add("ready", 0)) < count:
            if there != shown:
                show(there, count)
                shown = there
            if self.store.check(["refused"]):
                if why := _opened(self.key, "refused", bytes(self.store.get("refused"))):
                    logger.warning("A host cannot join: %s", why.decode())
                self.store.delete_key("refused")
            if time.monotonic() > deadline:
                address, port = self.endpoint
                raise UnreachableError(
                    f"train.nodes={count}: {there} of them came within "
                    f"train.join_timeout={seconds:g} seconds; on each of the others: "
                    f"torchyard join {address}:{port}"
                )
            time.sleep(0.2)

    # ---- in it

    def fail(self, error: list[Any]) -> None:
        """Tell the others why the training cannot go on."""
        signed = _signed(self.key, "failure", json.dumps(error).encode())
        self.store.compare_set("failure", "", signed)  # type: ignore[arg-type]

    def failure(self) -> list[Any] | None:
        """Why it cannot, if one has reported."""
        try:
            if not self.store.check(["failure"]):
                return None
            reported = _opened(self.key, "failure", bytes(self.store.get("failure")))
        except (dist.DistError, RuntimeError):  # the first host is gone
            return None
        return json.loads(reported) if reported else None


def connect(host: str, port: int) -> Store:
    """The store that a first host serves."""
    return TCPStore(host, port, is_master=False, timeout=timedelta(seconds=STORE_SECONDS))


def _ask(host: str, port: int) -> tuple[Store, bytes] | None:
    """The store that a first host serves, and what it tells; None where that does not come.

    torch waits without end for whatever else answers there: in a thread, which is left behind.
    """
    found: list[tuple[Store, bytes]] = []

    def ask() -> None:
        with contextlib.suppress(dist.DistError, RuntimeError, MemoryError, ValueError):
            store = connect(host, port)
            found.append((store, bytes(store.get("about"))))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(STORE_SECONDS)
    return found[0] if found else None


def interface_to(host: str) -> str:
    """The network interface of this machine through which it reaches a host."""
    family, *_, address = socket.getaddrinfo(host, 1, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(address)  # sends nothing
        own = probe.getsockname()[0]
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address.partition("%")[0] == own for each in addresses):
            return name
    raise RunError(f"no network interface of this machine has the address {own}")


# ---- torch's elastic rendezvous, signed


class _SignedBackend(RendezvousBackend):
    """Keeps the state of a rendezvous in a store, and takes only what was signed with the key."""

    def __init__(self, backend: RendezvousBackend, key: bytes) -> None:
        self._backend, self._key = backend, key

    @property
    def name(self) -> str:
        return BACKEND

    def get_state(self) -> tuple[bytes, Any] | None:
        found = self._backend.get_state()
        return (self._checked(found[0]), found[1]) if found else None

    def set_state(self, state: bytes, token: Any = None) -> tuple[bytes, Any, bool] | None:
        found = self._backend.set_state(_signed(self._key, "state", state), token)
        return (self._checked(found[0]), *found[1:]) if found else None

    def _checked(self, state: bytes) -> bytes:
        opened = _opened(self._key, "state", state)
        if opened is None:
            raise RendezvousStateError(f"it is not signed with {KEY}")
        return opened


class _Handler(DynamicRendezvousHandler):
    """Has the first process of the first host be rank 0, and notices a host that falls silent."""

    nodes: Nodes
    goes_on: bool  # without a host that is lost, or with another in its place
    _count = 0

    def next_rendezvous(self) -> RendezvousInfo:
        if self.nodes.failure() is not None:  # it would fail again
            raise RendezvousClosedError
        try:
            info = super().next_rendezvous()
        except RendezvousGracefulExitError as error:  # the launcher would go on without a result
            raise RendezvousClosedError from error
        if self.nodes.is_first:
            number = self.nodes.store.add("rounds", 1)
            info.store.set("round", json.dumps([number, info.rank]))
        number, first = json.loads(info.store.get("round"))
        # For the processes that are started now: what they meet under.
        os.environ |= {"TORCHYARD_ROUND": str(number), "TORCHYARD_FIRST_NODE": str(first)}
        self._count = info.world_size
        # The processes meet in the same store.
        there = RendezvousStoreInfo(*self.nodes.endpoint)
        return RendezvousInfo(info.store, info.rank, info.world_size, there)

    def num_nodes_waiting(self) -> int:
        waiting = super().num_nodes_waiting()
        # By itself the launcher takes no notice: the processes here wait for those of the lost one.
        lost = self._count - len(self._state_holder.state.participants)
        if lost > 0 and not self.goes_on:
            raise NodeLostError
        return waiting + max(0, lost)


def _create_handler(parameters: RendezvousParameters) -> _Handler:
    nodes: Nodes = parameters.config["nodes"]
    backend = _SignedBackend(C10dRendezvousBackend(nodes.store, parameters.run_id), nodes.key)
    handler: _Handler = _Handler.from_backend(
        parameters.run_id,
        nodes.store,
        backend,
        parameters.min_nodes,
        parameters.max_nodes,
        f"{socket.gethostname()}-{secrets.token_hex(4)}",  # containers may share a name
        RendezvousTimeout(
            join=timedelta(seconds=parameters.config["join_timeout"]),
            last_call=timedelta(seconds=LAST_CALL_SECONDS),
        ),
        keep_alive_interval=SIGN_OF_LIFE_SECONDS,
        keep_alive_max_attempt=SIGNS_MISSED,
    )
    handler.nodes, handler.goes_on = nodes, parameters.config["goes_on"]
    return handler


rendezvous_handler_registry.register(BACKEND, _create_handler)


def _signed(key: bytes, what: str, data: bytes) -> bytes:
    return hmac.digest(key, what.encode() + b"\0" + data, _DIGEST) + data


def _opened(key: bytes, what: str, signed: bytes) -> bytes | None:
    data = signed[_SIZE:]
    genuine = hmac.compare_digest(signed, _signed(key, what, data))
    return data if genuine else None


def _listen(endpoint: str) -> socket.socket:
    host, port = split_endpoint(endpoint)
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        if ipaddress.ip_address(str(address[0]).partition("%")[0]).is_unspecified:
            raise UserError(f"train.rendezvous: {host} is every address: name one")
        return socket.create_server(address, family=family)
    except socket.gaierror as error:
        raise UserError(f"train.rendezvous: no host named '{host}': {error.strerror}") from None
    except OSError as error:
        problem = error.strerror or str(error)
        if error.errno == errno.EADDRNOTAVAIL:
            problem = f"{host} is no address of this machine, which is to be the first host"
        elif error.errno == errno.EADDRINUSE:
            problem = f"port {port} of {host} is in use: choose another"
        raise UserError(f"train.rendezvous: {problem}") from None
