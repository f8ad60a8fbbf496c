"""How the arithmetic of a training is carried out: nothing here changes what is learned.

The choices follow from the model, the batch and the length of the run, never from a
measurement taken on the way: two runs of one configuration choose alike, and their
weights stay comparable bit for bit. The thresholds were measured on two cores, of a Xeon with
AMX, one without and an EPYC with AVX512-BF16; a setting overrides each of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from torchyard.core.config.schema import RunConfig
from torchyard.core.errors import UserError
from torchyard.core.training.execution.kernels import cut_kernels
from torchyard.core.training.network import Normalize, Trial

THREADS = torch.get_num_threads()
# Work of a batch is its floating-point operations forward. With less than this, one thread
# trains: LeNet at batch 4 does 5 million, where two threads gain nothing, and a second busy
# process makes them wait for each other at every operation (1,200 images/s became 300).
WORTH_THREADS = 30e6
# With less work a batch torch's own convolutions are faster than oneDNN's, which prepare
# themselves anew at every call: LeNet at batch 4 trains 2,740 images/s instead of 2,250, at
# batch 8 it is 3,100 instead of 3,500. Grouped convolutions are three times as slow.
WORTH_ONEDNN = 8e6
# From here on the order of channels in memory matters: LeNet at batch 512 trains 18,200
# images/s instead of 16,200 with channels last, a MobileNet twice as many.
WORTH_CHANNELS_LAST = 100e6
# Weights are converted and reordered once a batch, which pays where each is used often:
# operations of a batch by weight. With AMX a ResNet-18 on 32x32 images at batch 128 (850) loses
# 4 % with channels last and 10 % with bfloat16; LeNet at 128 (2,700) gains 60 %, a DenseNet at 64
# (1,060) 56 %. With AVX512-BF16 float32 is slower by comparison: with bfloat16 and channels last
# that ResNet-18 gains 44 %, at batch 64 (430) 8 %, LeNet 40 %, the DenseNet 41 %.
# Grouped convolutions in bfloat16 lose to float32 on both (0.4 to 1.0). On Intel's processors
# AVX512-BF16 is no faster than float32, and the conversions come on top: a Xeon without AMX trains
# 0.65 times as many images/s with it (LeNet at 128 and 512, quicknet 0.7), both with channels last.
WORTH_REORDERING = 1000
WORTH_ROUNDING = {"amx_bf16": 1000, "avx512_bf16": 400}
# Compiling LeNet's step took 17 to 22 s with an empty cache, later 3 s, and saves 0.3 ms a step,
# with SGD 0.5: won back within 50,000 steps even the first time.
WORTH_COMPILING = 50_000


@dataclass(frozen=True)
class Execution:
    """What was chosen.

    Attributes:
        threads: of the CPU.
        onednn: whether convolutions are oneDNN's.
        channels_last: whether images are kept in memory with their channels last.
        precision: of the forward pass: float32, bfloat16 or float16.
        compiled: whether the step of a whole batch is one compiled function.
    """

    threads: int
    onednn: bool
    channels_last: bool
    precision: str
    compiled: bool

    @classmethod
    def choose(
        cls, config: RunConfig, model: nn.Module, trial: Trial, steps: int, place: torch.device
    ) -> Execution:
        """Choose for one training.

        Args:
            config: its settings overrule the choice.
            model: what is trained.
            trial: how large the model is, and the work of one sample.
            steps: batches of the whole run.
            place: the device.

        Raises:
            UserError: train.compile is asked for where it cannot be.
        """
        settings = config.train
        on_cpu = place.type == "cpu"
        work = trial.flops * settings.batch_size
        grouped = any(getattr(layer, "groups", 1) > 1 for layer in model.modules())
        uses = work / max(1, trial.parameters)
        heavy = on_cpu and work >= WORTH_CHANNELS_LAST
        precision: str = config.precision
        if precision == "auto":
            fast = heavy and uses >= _worth_rounding() and not (grouped or settings.compile)
            precision = "bfloat16" if fast else "float32"
        channels_last = settings.channels_last
        if channels_last is None:
            often = uses >= WORTH_REORDERING or precision == "bfloat16"
            channels_last = heavy and (grouped or often)
        compiled = settings.compile
        if compiled and not (on_cpu and precision == "float32"):
            raise UserError(f"train.compile: is for float32 on a CPU, not {precision} on {place}")
        if compiled is None:
            alone = on_cpu and settings.parallel == "none" and precision == "float32"
            compiled = alone and work < WORTH_ONEDNN and steps >= WORTH_COMPILING
        return cls(
            threads=settings.threads
            or (1 if work < WORTH_THREADS else max(1, THREADS // settings.world_size)),
            onednn=work >= WORTH_ONEDNN or grouped,
            channels_last=channels_last,
            precision=precision,
            compiled=compiled,
        )

    def apply(self, network: nn.Module) -> None:
        """Set the process and the network up for it."""
        torch.set_num_threads(self.threads)
        torch.backends.mkldnn.enabled = self.onednn  # type: ignore[assignment]
        if self.channels_last:
            # A convolution's output takes the order of its weights.
            network.to(memory_format=torch.channels_last)
            # Else the first convolution reorders the images twice, forward and backward: 4 % of
            # LeNet's time at batch 512.
            for layer in network.modules():
                if isinstance(layer, Normalize) and layer.factor.ndim == 4:
                    layer.order = torch.channels_last
        # Not measured on GPUs, nor beside what the compiler makes of convolutions.
        if not self.compiled and next(network.parameters()).device.type == "cpu":
            cut_kernels(network)

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        return ", ".join([self.precision, threads] + ["channels last"] * self.channels_last)


def _worth_rounding() -> float:
    """From how many uses of a weight on this processor multiplies faster in bfloat16."""
    able = torch.cpu.get_capabilities()
    if str(able.get("cpu_name", "")).startswith("Intel"):
        able = {**able, "avx512_bf16": False}
    return next((uses for name, uses in WORTH_ROUNDING.items() if able.get(name)), math.inf)
