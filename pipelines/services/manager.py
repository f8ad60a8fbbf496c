"""The yard: what `torchyard up` keeps up, `status` tells of and `down` ends.

| piece           | what it is                                                             |
|-----------------|------------------------------------------------------------------------|
| `server`        | the Prefect server, with its scheduler                                 |
| `worker`        | `prefect worker`: begins what is scheduled on this machine             |
| `mlflow-<hash>` | the MLflow UI, one for each store that `up` was asked for              |
| `keeper`        | starts the others, starts them again when they die, and keeps watch    |

That the yard is wanted is said by `yard.json`, whether a piece lives by its lock (see
`daemon.py`). So each can be killed at any moment and `status` tells the truth: the keeper
starts the others again, and they go on without it until the next `up`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from torchyard.core.data.files import atomic_write
from torchyard.core.errors import RunError, UserError
from torchyard.core.tracking.provenance import user_name
from torchyard.core.tracking.store import answers, check_writable, is_server, shown, tracking_uri
from torchyard.pipelines.services.daemon import Facts, Piece, books
from torchyard.pipelines.services.prefect_server import LASTING, WANTED, found_server, state_folder
from torchyard.pipelines.services.prefect_settings import configured_api_url

START_SECONDS = 180  # on a busy machine; a quiet one takes 20
STARTS = 2  # a piece that dies so often while it starts will not come up
UP, FOUND, STARTING, DOWN = "up", "found", "starting", "down"


@dataclass(frozen=True)
class Part:
    """One thing of the yard, as a person sees it.

    Attributes:
        name: Prefect, MLflow, worker, keeper.
        state: up; found, if somebody else's; starting; down.
        address: where a person opens it, or what it works for.
        api: of a Prefect server.
        facts: of the piece that torchyard started.
        log: of that piece.
    """

    name: str
    state: str
    address: str = ""
    facts: Facts | None = None
    api: str = ""
    log: Path | None = None


class Yard:
    """The pieces of one PREFECT_HOME.

    Raises:
        UserError: PREFECT_HOME or Prefect's settings cannot be used.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or state_folder()
        self.server = Piece(self.folder, "server")
        self.worker = Piece(self.folder, "worker")
        self.keeper = Piece(self.folder, "keeper")

    @property
    def stores(self) -> list[str]:
        """The tracking stores that `up` was asked for; none if the yard is not wanted."""
        try:
            stores: list[str] = json.loads((self.folder / WANTED).read_text("utf-8"))
        except FileNotFoundError:
            return []
        return stores

    def mlflow(self, store: str) -> Piece:
        """The MLflow UI of a store."""
        return Piece(self.folder, f"mlflow-{hashlib.sha256(store.encode()).hexdigest()[:8]}")

    def up(self) -> list[Part]:
        """Bring up what is not up, and wait until all of it answers.

        Raises:
            UserError: the store of the runs cannot be used.
            RunError: something does not come up; the message says what its log says.
        """
        store = tracking_uri()
        check_writable(store)
        with books(self.folder):
            before = self.stores
            if store not in before:
                with atomic_write(self.folder / WANTED) as file:
                    file.write(json.dumps([*before, store]).encode())
            if not self.keeper.found():
                program = [
                    sys.executable,
                    "-P",
                    "-m",
                    "torchyard.pipelines.services.supervisor",
                    str(self.folder),
                ]
                self.keeper.start(lambda life: [*program, str(life)], "")
        end = time.monotonic() + START_SECONDS
        starts: set[tuple[str, str]] = set()
        while late := [part for part in self.parts() if part.state not in (UP, FOUND)]:
            starts |= {(part.name, part.facts.since) for part in late if part.facts}
            again = any(sum(name == part.name for name, _ in starts) > STARTS for part in late)
            gone = any(part.name == "keeper" for part in late)
            if again or gone or time.monotonic() > end:
                if not before:
                    self.down()
                raise RunError(_complaint(late))
            time.sleep(0.3)
        return self.parts()

    def down(self) -> tuple[list[str], bool]:
        """End what `up` started; gives the names of what ended, and whether the server stays.

        The Prefect server stays for as long as runs that were started by hand use it. Runs that
        the worker began are ended, KILLED with their checkpoint.
        """
        with books(self.folder):
            (self.folder / WANTED).unlink(missing_ok=True)
            uis = [Piece(self.folder, path.stem) for path in self.folder.glob("mlflow-*.lock")]
            pieces = [piece for piece in (self.keeper, self.worker, *uis) if piece.found()]
            for piece in (self.keeper, self.worker, *uis):
                piece.stop()
            served = self.server.found()
        names = [piece.name.partition("-")[0] for piece in pieces]
        end = time.monotonic() + 20
        while served and self._server() == served and time.monotonic() < end:
            time.sleep(0.2)
        stays = served is not None and self._server() == served
        return names + ["server"] * (served is not None and not stays), stays

    def _server(self) -> Facts | None:
        with books(self.folder):
            return self.server.found()

    def parts(self) -> list[Part]:
        """What there is now. What torchyard did not start is asked whether it answers."""
        with books(self.folder):
            stores = self.stores
            server, worker, keeper = (
                piece.found() for piece in (self.server, self.worker, self.keeper)
            )
            uis = {store: self.mlflow(store).found() for store in stores}
        parts = [self._prefect(server)]
        for store, facts in uis.items():
            if is_server(store):
                parts.append(Part("MLflow", FOUND if answers(store) else DOWN, shown(store)))
                continue
            state = _state(facts, facts is not None and answers(f"{facts.address}/health"))
            address = facts.address if facts else shown(store)
            parts.append(Part("MLflow", state, address, facts, log=self.mlflow(store).log))
        for piece, facts in ((self.worker, worker), (self.keeper, keeper)):
            address = "" if piece is self.keeper else self._for_pool(facts)
            parts.append(Part(piece.name, _state(facts, True), address, facts, log=piece.log))
        return parts

    def _for_pool(self, facts: Facts | None) -> str:
        return f"pool {pool_name(facts.address)}" if facts else ""

    def _prefect(self, facts: Facts | None) -> Part:
        if url := configured_api_url() or (None if facts else found_server()):
            state = FOUND if answers(f"{url}/health") else DOWN
            return Part("Prefect", state, _page(url), api=url)
        ready = facts is not None and facts.state == LASTING and answers(f"{facts.address}/health")
        url = facts.address if facts else ""
        return Part("Prefect", _state(facts, ready), _page(url), facts, url, self.server.log)


def ui_address(store: str) -> str | None:
    """Where the MLflow UI of a store answers, if `torchyard up` keeps one up."""
    with contextlib.suppress(UserError):  # a PREFECT_HOME that cannot be used has no yard
        yard = Yard()
        with books(yard.folder):
            facts = yard.mlflow(store).found()
        return facts.address if facts else None
    return None


def pool_name(api_url: str) -> str:
    """The work pool of what is scheduled on this machine.

    A server that several machines share has one for each: the other's worker has not the files.
    """
    if urlsplit(api_url).hostname in ("127.0.0.1", "localhost"):
        return "torchyard"
    return f"torchyard-{user_name()}-{platform.node()}"


def _state(facts: Facts | None, ready: bool) -> str:
    return DOWN if facts is None else UP if ready else STARTING


def _page(api_url: str) -> str:
    return shown(api_url).removesuffix("/").removesuffix("/api")


def _complaint(late: list[Part]) -> str:
    lines = []
    for part in late:
        lines.append(f"{part.name} is {part.state}.")
        if part.log is not None and (words := Piece(part.log.parent, part.log.stem).last_words()):
            lines.append(f"Its log is {part.log} and ends with:")
            lines += [f"    {line}" for line in words]
    return "\n".join(lines)
