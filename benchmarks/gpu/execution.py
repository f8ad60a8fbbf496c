"""How the arithmetic of a step is best carried out on this device: what `auto` should choose."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks.gpu.job import Job, Stopwatch
from torchyard.core.training import network

SGD = ("optimizer.lr=0.01", "optimizer.momentum=0.9")


@dataclass(frozen=True)
class Cell:
    """A model and a batch size; `overrides` of the preset choose model and optimizer."""

    name: str
    batch_size: int
    preset: str
    overrides: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} at {self.batch_size}"


def _cells(*named: tuple[str, int]) -> list[Cell]:
    return [
        Cell(name, size, "cifar10-fast")
        if name == "quicknet"
        else Cell(name, size, "cifar10", (f"model={name}", *SGD))
        for name, size in named
    ]


EAGER = _cells(
    ("resnet18", 128),
    ("lenet", 128),
    ("quicknet", 256),
    ("resnet18", 1024),
    ("lenet", 512),
    ("lenet", 4),
)
GRAPHS = _cells(("lenet", 4), ("lenet", 128), ("resnet18", 128), ("quicknet", 256), ("lenet", 512))
COMPILED = _cells(("lenet", 4), ("resnet18", 128), ("quicknet", 256), ("lenet", 128))
TINY = _cells(("lenet", 16), ("quicknet", 16))


@dataclass(frozen=True)
class Way:
    """One way to carry a step out.

    Attributes:
        precision: "float32", "tf32" (float32 rounded for the tensor cores) or "bfloat16".
        tuned: whether cuDNN tries its algorithms out (`cudnn.benchmark`).
        threads: of the CPU; None leaves them.
        mode: None, or torch.compile's.
    """

    precision: str = "convolutions tf32"
    channels_last: bool = False
    tuned: bool = False
    threads: int | None = None
    mode: str | None = None

    def __str__(self) -> str:
        parts = [self.precision] + ["channels last"] * self.channels_last
        parts += ["tuned"] * self.tuned + [f"{self.threads} threads"] * (self.threads is not None)
        return ", ".join(parts + [f"compiled, {self.mode}"] * (self.mode is not None))


class Step:
    """A training step as `fit()` has it: batch, forward, loss, backward, update, sums.

    Args:
        job: whose data it trains on.
        cell: what is trained.
        way: how.
    """

    def __init__(self, job: Job, cell: Cell, way: Way) -> None:
        _set_up(way)
        resolved = job.resolved(cell.preset, *cell.overrides)
        data, device = job.data, job.device
        torch.manual_seed(0)
        model = resolved.model.build(data.shape, len(data.classes))
        net = network.Network(model, data, resolved.config.dataset.normalize).to(device)
        if way.channels_last:
            net.to(memory_format=torch.channels_last)
            assert isinstance(net.normalize, network.Normalize)
            net.normalize.order = torch.channels_last
        net.train()
        trained = [weight for weight in net.parameters() if weight.requires_grad]
        self.network, self.optimizer = net, resolved.optimizer.build(trained)
        self._loss = resolved.loss.build(len(data.classes))
        self._forward: Callable[[torch.Tensor], torch.Tensor] = net
        if way.mode is not None:
            # The test of the benchmark has no minute for the compiler.
            options: dict[str, Any] = {"backend": "aot_eager"} if job.tiny else {"mode": way.mode}
            self._forward = torch.compile(net, dynamic=False, **options)
        self._autocast: Any = nullcontext()
        if way.precision == "bfloat16":
            self._autocast = torch.autocast(device.type, torch.bfloat16, cache_enabled=False)
        self._samples, self._labels = job.on_device
        generator = torch.Generator().manual_seed(0)
        self._order = torch.randperm(len(self._labels), generator=generator).to(device)
        self._batch_size, self._at = cell.batch_size, 0
        self.losses = torch.zeros(1, device=device)
        self._correct = torch.zeros((), dtype=torch.int64, device=device)

    def next_index(self) -> torch.Tensor:
        """The places of the next batch's samples."""
        if self._at + self._batch_size > len(self._order):
            self._at = 0
        index = self._order[self._at : self._at + self._batch_size]
        self._at += self._batch_size
        return index

    def train(self, index: torch.Tensor) -> None:
        """Do the step for some samples."""
        self.optimizer.zero_grad(set_to_none=True)  # first: CUDA graphs use their memory again
        inputs = self._samples.index_select(0, index)
        targets = self._labels.index_select(0, index)
        with self._autocast:
            logits = self._forward(inputs)
            loss = self._loss(logits, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.losses[0] = loss.detach()
        self._correct += (logits.detach().argmax(1) == targets).sum()

    def __call__(self) -> None:
        """Train on the next batch."""
        self.train(self.next_index())


def _set_up(way: Way) -> None:
    cudnn: Any = torch.backends.cudnn
    cudnn.allow_tf32 = way.precision != "float32"
    torch.set_float32_matmul_precision("high" if way.precision == "tf32" else "highest")
    cudnn.benchmark = way.tuned
    if way.threads is not None:
        torch.set_num_threads(way.threads)


def _rate(job: Job, batch_size: int, step: Callable[[], None]) -> dict[str, float]:
    watch = Stopwatch(job, batch_size, seconds=0.6)
    step()
    while watch.press():
        step()
    return watch.result


def eager(job: Job) -> None:
    """Precision, order in memory, cuDNN's tuning; then threads of the CPU."""
    ways = [
        *(Way(channels_last=last) for last in (False, True)),
        *(Way("bfloat16", last) for last in (False, True)),
        *(Way("tf32", last) for last in (False, True)),
        Way("bfloat16", True, tuned=True),
        Way("float32"),
    ]
    cells = TINY if job.tiny else EAGER
    for cell in cells:
        _compare(job, cell, ways[::3] if job.tiny else ways, seconds=1.5)
    threads = torch.get_num_threads()
    for cell in cells:
        if cell.name == "lenet":
            threaded = replace(cell, name=f"{cell.name} by threads")
            _compare(job, threaded, [Way(threads=n) for n in (threads, 1, 4)], seconds=1.5)
            torch.set_num_threads(threads)


def _compare(job: Job, cell: Cell, ways: Sequence[Way], seconds: float) -> None:
    rates: dict[str, float] = {}
    for way in ways:
        keys = str(cell), str(way)
        if job.allows(seconds, *keys):
            with job.report.attempt(*keys):
                figures = _rate(job, cell.batch_size, Step(job, cell, way))
                job.report.add(figures, *keys)
                rates[str(way)] = figures["median"]
    if len(rates) > 1:
        best, first = max(rates, key=lambda way: rates[way]), next(iter(rates))
        job.report.add(f"{rates[best] / rates[first]:.2f} x {first}: {best}", str(cell), "best")


def compiled(job: Job) -> None:
    """The network through torch.compile, with CUDA graphs of its own or without."""
    for cell in TINY[:1] if job.tiny else COMPILED:
        last = cell.name != "lenet"
        plain = Way("bfloat16" if last else "convolutions tf32", last)
        _compare(job, cell, [plain], seconds=2)
        for mode in ("reduce-overhead", "default"):
            way = replace(plain, mode=mode)
            keys = str(cell), str(way)
            if not job.allows(15, *keys):
                continue
            with job.report.attempt(*keys):
                torch.compiler.reset()
                step = Step(job, cell, way)
                started = time.perf_counter()
                step()
                job.synchronize()
                seconds = time.perf_counter() - started
                figures = _rate(job, cell.batch_size, step) | {"first_step_seconds": seconds}
                job.report.add(figures, *keys)


def graphs(job: Job) -> None:
    """A whole step as one CUDA graph, from the choice of samples to the update of the weights.

    https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
    """
    for cell in TINY[:1] if job.tiny else GRAPHS:
        precisions = ("convolutions tf32", "bfloat16")
        for way in (Way(each, each == "bfloat16" and cell.name != "lenet") for each in precisions):
            keys = str(cell), str(way)
            if not job.allows(4, *keys):
                continue
            with job.report.attempt(*keys):
                eager_losses = _losses(Step(job, cell, way))
                step = Step(job, cell, way)
                started = time.perf_counter()
                graphed = Graphed(job, step)
                job.synchronize()
                seconds = time.perf_counter() - started
                replayed = _losses(graphed)
                job.report.add(
                    {
                        **_rate(job, cell.batch_size, graphed),
                        "eager": _rate(job, cell.batch_size, Step(job, cell, way)),
                        "capture_seconds": seconds,
                        "losses_differ_by": max(
                            abs(a - b) / abs(a) for a, b in zip(eager_losses, replayed, strict=True)
                        ),
                    },
                    *keys,
                )


class Graphed:
    """A step that is captured once and replayed; on a CPU, which has no graphs, it just runs.

    The steps that warm the capture up leave the weights as they were.
    """

    WARM_UP = 3

    def __init__(self, job: Job, step: Step) -> None:
        self._step = step
        self._index = step.next_index().clone()
        step._at = 0
        weights = {name: value.clone() for name, value in step.network.state_dict().items()}
        self._graph: torch.cuda.CUDAGraph | None = None
        if job.device.type == "cuda":
            self._graph = torch.cuda.CUDAGraph()
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                self._warm_up()
            torch.cuda.current_stream().wait_stream(side)
            step.optimizer.zero_grad(set_to_none=True)
            with torch.cuda.graph(self._graph):
                step.train(self._index)
        else:
            self._warm_up()
        step.network.load_state_dict(weights)  # copies into the tensors that the graph knows
        for state in step.optimizer.state.values():
            for value in state.values():
                if isinstance(value, torch.Tensor):
                    value.zero_()

    @property
    def losses(self) -> torch.Tensor:
        """The last step's."""
        return self._step.losses

    def _warm_up(self) -> None:
        for _ in range(self.WARM_UP):
            self._step.train(self._index)

    def __call__(self) -> None:
        """Train on the next batch."""
        self._index.copy_(self._step.next_index())
        if self._graph is None:
            self._step.train(self._index)
        else:
            self._graph.replay()


def _losses(step: Step | Graphed, count: int = 5) -> list[float]:
    found = []
    for _ in range(count):
        step()
        found.append(step.losses.item())
    return found
