"""What a section of the GPU benchmark is given: the data, the train stage, the time."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

import torchyard.pipelines
from benchmarks.gpu.report import Report
from torchyard.core.config.resolve import ResolvedConfig, read_config
from torchyard.core.data.dataset import PreparedDataset
from torchyard.core.hosting.host import host
from torchyard.core.training.events import EpochDone, Event, RunningLoss
from torchyard.pipelines.worker.stages import training

PRESETS = Path(torchyard.pipelines.__file__).parent / "presets"


class Stopped(Exception):  # noqa: N818 - not an error
    """A training was left at the step where that was wanted."""


@dataclass(frozen=True)
class Training:
    """A train stage, timed from outside.

    Attributes:
        result: what the stage returned.
        seconds: of the whole stage: building the network, steps, checkpoints.
        losses: (step, mean loss since the last one, time) of each log point, where the loop
            has waited for the device.
        epochs: the figures of each epoch.
    """

    result: dict[str, Any]
    seconds: float
    losses: list[tuple[int, float, float]]
    epochs: list[EpochDone]

    def rates(self, batch_size: int) -> list[float]:
        """Images per second between the log points; the first part is the warm-up."""
        pairs = zip(self.losses[1:], self.losses[2:], strict=False)
        return [(b[0] - a[0]) * batch_size / (b[2] - a[2]) for a, b in pairs]


@dataclass(frozen=True)
class Job:
    """One section's work.

    Attributes:
        device: what is measured.
        source: the file with the JPEGs.
        work: a folder of this benchmark's own.
        ends: when no further figure is begun, on `time.monotonic`'s clock.
        tiny: whether this only tries everything out.
        others: files of other programs to run beside.
    """

    device: torch.device
    source: Path
    work: Path
    report: Report
    ends: float
    tiny: bool = False
    others: tuple[Path, ...] = ()

    @cached_property
    def data(self) -> PreparedDataset:
        """The images, as the section `prepare` left them."""
        return PreparedDataset.open(Path((self.work / "prepared").read_text("utf-8")))

    @cached_property
    def on_device(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The training images, uint8 N x C x H x W, and their labels."""
        split = self.data.train
        images, labels = (
            torch.from_numpy(np.array(each)) for each in (split.samples, split.labels)
        )
        return images.to(self.device), labels.to(self.device)

    @property
    def left(self) -> float:
        """Seconds until `ends`."""
        return self.ends - time.monotonic()

    def allows(self, seconds: float, *keys: str) -> bool:
        """Whether there is time for a figure that takes so long; if not, that is kept."""
        if self.left >= seconds or self.tiny:
            return True
        self.report.add("skipped: no time left", *keys)
        return False

    def synchronize(self) -> None:
        """Wait until the device has done all it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def resolved(self, preset: str, *overrides: str) -> ResolvedConfig:
        """A preset's configuration on the device of this benchmark."""
        return read_config(preset, [f"device={self.device.type}", *overrides], PRESETS, host())

    def train(
        self,
        preset: str,
        *overrides: str,
        folder: Path | None = None,
        stop_at: int | None = None,
    ) -> Training:
        """Run the train stage as a run's worker does.

        Args:
            folder: where the checkpoints are and go; None: one that is removed afterwards.
            stop_at: leave at the first log point from this step on.

        Raises:
            Stopped: it was left.
        """
        config = self.resolved(preset, *overrides).config.model_dump(mode="json")
        losses: list[tuple[int, float, float]] = []
        epochs: list[EpochDone] = []

        def emit(event: Event) -> None:
            if isinstance(event, RunningLoss):
                losses.append((event.step, event.loss, time.perf_counter()))
                if stop_at is not None and event.step >= stop_at:
                    raise Stopped
            elif isinstance(event, EpochDone):
                epochs.append(event)

        with tempfile.TemporaryDirectory(dir=self.work) as scratch:
            target = str(folder or scratch)
            started = time.perf_counter()
            result = training.train(config, str(self.data.folder), target, emit)
            self.synchronize()
            seconds = time.perf_counter() - started
            if folder is None and "weights" in result:
                result["weights"] = str(self._kept(Path(result["weights"])))
        return Training(result, seconds, losses, epochs)

    def _kept(self, weights: Path) -> Path:
        """Move a checkpoint out of a folder that is about to go; the next one takes its place."""
        target = self.work / f"kept-{os.getpid()}.pt"
        weights.replace(target)
        return target


class Stopwatch:
    """Images per second in some windows of time after a warm-up; pressed once a batch.

    Args:
        job: its device is waited for at the windows' ends, and nowhere else.
        seconds: of all windows together.
    """

    WINDOWS = 3

    def __init__(self, job: Job, batch_size: int, seconds: float = 0.9) -> None:
        self._job, self._batch_size = job, batch_size
        self._window = 0.0 if job.tiny else seconds / self.WINDOWS
        self._warm_up = (2, 0.0) if job.tiny else (10, 0.3)  # steps and seconds at least
        self._steps, self._since = 0, time.perf_counter()
        self._warm = False
        self._rates: list[float] = []

    def press(self) -> bool:
        """Count a batch; gives False when it was the last one."""
        self._steps += 1
        passed = time.perf_counter() - self._since
        steps, seconds = (1, self._window) if self._warm else self._warm_up
        if self._steps < steps or passed < seconds:
            return True
        self._job.synchronize()
        now = time.perf_counter()
        if self._warm:
            self._rates.append(self._steps * self._batch_size / (now - self._since))
        self._warm, self._steps, self._since = True, 0, now
        return len(self._rates) < self.WINDOWS

    @property
    def result(self) -> dict[str, float]:
        """Images per second."""
        return spread(self._rates)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest, in figures that a person reads."""
    found = {"median": median(values), "least": min(values), "greatest": max(values)}
    return {name: float(f"{value:.4g}") for name, value in found.items()} | {"n": len(values)}
