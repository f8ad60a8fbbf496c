"""What a row is given: scratch homes, the images in the forms that rows need, and its sizes."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks import archive
from benchmarks.home import PEERS, Finished, Home

QUICK = 10  # by how much `--quick` shortens


class Skipped(Exception):  # noqa: N818 - not an error
    """A row cannot be measured here; the text says why."""


@dataclass(frozen=True)
class Run:
    """What `torchyard run … --json` told of itself.

    Attributes:
        seconds: of the whole process.
        stages: seconds of each stage, as a user sees them: "train" is all of fit(), building the
            network, compiling it and writing checkpoints included.
        epochs: each epoch's figures.
        accuracy: on the test split, 0 to 1.
    """

    seconds: float
    stages: Mapping[str, float]
    epochs: tuple[Mapping[str, Any], ...]
    accuracy: float

    @classmethod
    def of(cls, ended: Finished) -> Run:
        """Read the events."""

        def of(kind: str) -> list[dict[str, Any]]:
            return [event for event in ended.events if event.get("event") == kind]

        return cls(
            ended.seconds,
            {event["stage"]: event["seconds"] for event in of("stage") if "seconds" in event},
            tuple(of("epoch")),
            of("result")[0]["accuracy"],
        )

    @property
    def steps_seconds(self) -> float:
        """In training steps, of all epochs."""
        return float(sum(epoch["seconds"] for epoch in self.epochs))

    @property
    def images(self) -> int:
        """Trained on, over all epochs."""
        epochs = [epoch["seconds"] * epoch["images_per_second"] for epoch in self.epochs]
        return round(float(sum(epochs)))


@dataclass
class Bench:
    """The benchmark under way.

    Attributes:
        scratch: an empty folder that is removed at the end.
        source: the archive of CIFAR-10's images, if there is one.
        quick: try everything in minutes; the figures mean nothing.
    """

    scratch: Path
    source: Path | None
    quick: bool = False
    prefix: str = ""
    _homes: list[Home] = field(default_factory=list)

    def say(self, text: str) -> None:
        """Tell how far it is."""
        print(f"[{self.prefix}] {text}", flush=True)

    def rounds(self, number: int) -> int:
        """How often to repeat."""
        return 1 if self.quick else number

    def images(self, number: int) -> int:
        """How many images to take."""
        return max(256, number // QUICK) if self.quick else number

    @cached_property
    def archive(self) -> Path:
        """All of CIFAR-10 as JPEG files, 5,000 and 1,000 a class."""
        if self.source is None:
            raise Skipped(archive.ABSENT)
        if not self.quick:
            return self.source
        target = self.scratch / "quick.tar.gz"
        archive.repacked(self.source, target, train=500, test=50)
        return target

    @cached_property
    def training_archive(self) -> Path:
        """The whole training split, and 100 images a class to test: for rows that time training."""
        target = self.scratch / "training.tar.gz"
        archive.repacked(self.archive, target, test=100)
        return target

    @cached_property
    def arrays(self) -> Path:
        """What peers train on, decoded."""
        target = self.scratch / "cifar10.npz"
        archive.arrays(self.archive, target)
        return target

    @contextlib.contextmanager
    def home(self, name: str) -> Iterator[Home]:
        """A scratch home; at the end what still runs there is killed, and the folder removed."""
        home = Home(self.scratch / f"{self.prefix}-{name}-{len(self._homes)}")
        self._homes.append(home)
        try:
            yield home
        finally:
            home.end()
            shutil.rmtree(home.folder, ignore_errors=True)

    def peer(self, home: Home, name: str, *arguments: object) -> list[dict[str, Any]]:
        """Run one of the loops in `peers/` in the peers' environment; a result a batch size."""
        if not PEERS.exists():
            raise Skipped("needs the peers in benchmarks/.venv, which `make bench` installs")
        found = home.script(f"peers.{name}", self.arrays, *arguments, python=PEERS)
        jobs: list[dict[str, Any]] = found["jobs"]
        return jobs


def images_of(path: Path) -> list[str]:
    """The overrides that make a preset train on an archive of images."""
    return ["dataset.name=image_folder", f"dataset.path={path}"]
