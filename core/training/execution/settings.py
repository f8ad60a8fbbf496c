"""How the arithmetic of a training is carried out: threads, precision, memory format, compiling.

The choices follow from the model, the batch and the length of the run alone, so that two runs of
one configuration have equal weights, bit for bit. The thresholds were measured
(`benchmarks/reasons/execution.md`); a setting overrides each of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from torchyard.core.config.schema import RunConfig
from torchyard.core.errors import UserError
from torchyard.core.training.execution.kernels import trim_kernels
from torchyard.core.training.execution.private_torch import private_parts_refused
from torchyard.core.training.network import DryRun, Normalize

THREADS = torch.get_num_threads()
# Floating-point operations of a batch forward. With less work, a second thread mostly waits.
WORTH_THREADS = 30e6
# With less work, torch's own convolutions beat oneDNN's, which prepare anew at each call.
WORTH_ONEDNN = 8e6
# With less work, neither channels-last memory nor bfloat16 makes a difference.
HEAVY_BATCH_FLOPS = 100e6
# Operations per weight and batch: weights are reordered and rounded once per batch, which pays
# where each is used often enough for the processor's bfloat16 instructions.
WORTH_REORDERING = 1000
WORTH_ROUNDING = {"amx_bf16": 1000, "avx512_bf16": 400}
# With more work, a GPU is busy while Python launches the next kernels.
LITTLE_FOR_A_GPU = 100e9
# With less work, a GPU gains nothing by bfloat16 and channels-last memory.
HEAVY_FOR_A_GPU = 1e9
# Steps of a run. With fewer, compiling with an empty cache takes longer than it saves.
WORTH_COMPILING = 50_000
WORTH_A_GRAPH = 100


@dataclass(frozen=True)
class Execution:
    """What was chosen.

    Attributes:
        threads: of the CPU.
        onednn: whether convolutions are oneDNN's.
        channels_last: whether images are kept in memory with their channels last.
        precision: of the forward pass: float32, bfloat16 or float16.
        compiled: whether the step of a whole batch is one compiled function, on a GPU one graph.
        plain_torch: why nothing is compiled and no kernel trimmed, where they might have been.
    """

    threads: int
    onednn: bool
    channels_last: bool
    precision: str
    compiled: bool
    plain_torch: str | None = None

    @classmethod
    def choose(
        cls,
        config: RunConfig,
        model: nn.Module,
        size: DryRun,
        steps: int,
        device: torch.device,
        needs_closure: bool = False,
    ) -> Execution:
        """Choose for one training.

        Args:
            config: its settings overrule the choice.
            model: what is trained.
            size: of the model, and the work of one sample.
            steps: batches of the whole run.
            device: where it is trained.
            needs_closure: whether a step of the optimizer computes the gradients more than once.

        Raises:
            UserError: train.compile is asked for where it cannot be.
        """
        settings = config.train
        on_cpu, on_gpu = device.type == "cpu", device.type == "cuda"
        work = size.flops * settings.known_batch_size // settings.accumulate
        grouped = any(getattr(layer, "groups", 1) > 1 for layer in model.modules())
        uses = work / max(1, size.parameters)
        heavy = on_cpu and work >= HEAVY_BATCH_FLOPS
        changing = needs_closure or config.model.freeze_epochs is not None
        little, enough = (
            (LITTLE_FOR_A_GPU, WORTH_A_GRAPH) if on_gpu else (WORTH_ONEDNN, WORTH_COMPILING)
        )
        alone = settings.parallel == "none" and settings.accumulate == 1 and not changing
        worth_compiling = alone and work < little and steps >= enough
        precision: str = config.precision
        if precision == "auto":
            fast = heavy and uses >= _worth_rounding() and not (grouped or settings.compile)
            if on_gpu and work >= HEAVY_FOR_A_GPU:
                # Kernel by kernel a small step waits for Python, and rounding is more kernels.
                as_graph = settings.compile or (settings.compile is None and worth_compiling)
                fast = _rounds(device) and (as_graph or work >= little)
            precision = "bfloat16" if fast else "float32"
        channels_last = settings.channels_last
        if channels_last is None:
            often = uses >= WORTH_REORDERING or precision == "bfloat16"
            channels_last = heavy and (grouped or often)
            if on_gpu:
                channels_last = precision == "bfloat16" and work >= HEAVY_FOR_A_GPU
        plain_torch = private_parts_refused() if on_cpu else None
        compiled = settings.compile
        takes = {"cpu": ("float32",), "cuda": ("float32", "bfloat16")}.get(device.type, ())
        if compiled and precision not in takes:
            raise UserError(
                "train.compile: is for float32 on a CPU, and for float32 and bfloat16 on a CUDA "
                f"GPU, not for {precision} on {device}"
            )
        if compiled and plain_torch:
            raise UserError(f"train.compile: cannot be had: {plain_torch}")
        if compiled and changing:
            what = "an optimizer that needs a closure" if needs_closure else "model.freeze_epochs"
            raise UserError(f"train.compile: is not for {what}")
        if compiled is None:
            compiled = worth_compiling and precision in takes and not plain_torch
        return cls(
            threads=settings.threads
            or (1 if work < WORTH_THREADS else max(1, THREADS // settings.processes_here)),
            onednn=work >= WORTH_ONEDNN or grouped,
            channels_last=channels_last,
            precision=precision,
            compiled=compiled,
            plain_torch=plain_torch,
        )

    def apply(self, network: nn.Module) -> None:
        """Set the process and the network up for it."""
        torch.set_num_threads(self.threads)
        torch.backends.mkldnn.enabled = self.onednn  # type: ignore[assignment]
        if self.channels_last:
            # A convolution's output takes the order of its weights.
            network.to(memory_format=torch.channels_last)
            # Otherwise the first convolution reorders the images twice, forward and backward.
            for layer in network.modules():
                if isinstance(layer, Normalize) and layer.factor.ndim == 4:
                    layer.order = torch.channels_last
        on_cpu = next(network.parameters()).device.type == "cpu"
        # Not measured on GPUs, nor beside what the compiler makes of convolutions.
        if on_cpu and not (self.compiled or self.plain_torch):
            trim_kernels(network)

    def __str__(self) -> str:
        parts = [self.precision, f"{self.threads} thread{'s' * (self.threads > 1)}"]
        parts += ["channels last"] * self.channels_last
        return ", ".join(parts + [f"plain torch: {self.plain_torch}"] * bool(self.plain_torch))


def set_up_evaluation(threads: int | None) -> None:
    """Set the process up for predictions; None: as many threads as torch chose."""
    torch.set_num_threads(threads or THREADS)
    torch.backends.mkldnn.enabled = True  # type: ignore[assignment]


def _rounds(gpu: torch.device) -> bool:
    """Whether a GPU multiplies in bfloat16 by itself: from Ampere on."""
    return torch.cuda.get_device_capability(gpu) >= (8, 0)


def _worth_rounding() -> float:
    """From how many uses of a weight on this processor multiplies faster in bfloat16."""
    able = torch.cpu.get_capabilities()
    if str(able.get("cpu_name", "")).startswith("Intel"):
        able = {**able, "avx512_bf16": False}
    return next((uses for name, uses in WORTH_ROUNDING.items() if able.get(name)), math.inf)
