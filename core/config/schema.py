"""The schema of a run's configuration: what is chosen, training, evaluation, promotion."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from torchyard.core.config.choices import Choice, DatasetChoice, ModelChoice, OptimizerChoice
from torchyard.core.errors import UserError
from torchyard.core.hosting.params import KINDS

# Figures of every evaluation, and those of which a lower one is better. `top5` is there with more
# than five classes.
STANDARD_FIGURES = ("loss", "accuracy", "macro_f1", "worst_recall", "top5")
LOWER_IS_BETTER = frozenset({"loss"})

# Figures of the test split where the data set is audited: the share of its samples that were also
# trained on, the accuracy of the others, the share of training labels that are likely wrong.
AUDIT_FIGURES = ("leaked", "accuracy_without_leaked", "label_errors")


MOST_THREADS = 4096  # more than any machine has processors: a number that is a slip


def split_endpoint(endpoint: str) -> tuple[str, int]:
    """The host and the port of HOST:PORT.

    Raises:
        ValueError: it is something else.
    """
    host, _, port = endpoint.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ValueError(f"'{endpoint}' is no HOST:PORT, such as 10.0.0.1:29400")
    return host.strip("[]"), int(port)


class TrainConfig(BaseModel):
    """The training loop, independent of what is trained."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    epochs: PositiveInt = Field(5, description="passes over the training split")
    batch_size: PositiveInt | Literal["auto"] = Field(
        32, description="samples per step; 'auto': as many as fit into memory, 1,024 at most"
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] | Literal["per_run"] = Field(
        0,
        description="of initial weights, order of samples and dropout; 'per_run' draws another "
        "for each run, and the number is recorded",
    )
    skip_repeats: bool = Field(
        False,
        description="train nothing if configuration, data and code are those of a finished run",
    )
    max_steps: PositiveInt | None = Field(None, description="stop after so many batches")
    validation: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the training split held out for validation, "
        "unless the data set has a validation split",
    )
    monitor: str = Field(
        "loss",
        description="figure of the validation by which the best weights are chosen: "
        f"{', '.join(STANDARD_FIGURES)}, or one of `metrics`",
    )
    patience: PositiveInt | None = Field(
        None, description="stop early after so many epochs in which `monitor` was not the best"
    )
    sampler: Literal["shuffle", "balanced", "weighted"] | None = Field(
        None,
        description="shuffle: an epoch takes each sample once; balanced: draws each class equally "
        "often, with replacement; weighted: each sample in proportion to the weight that the data "
        "set gives it; none: weighted if it gives weights, else shuffle",
    )
    accumulate: PositiveInt = Field(
        1, description="compute each batch in so many parts: less memory, the same update"
    )
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="decay of an exponential moving average of the weights, which is validated, "
        "kept and evaluated in their place, e.g. 0.999",
    )
    clip_norm: PositiveFloat | None = Field(None, description="clip the gradient's norm to this")
    log_every: PositiveInt = Field(100, description="batches between two recorded training losses")
    log_gradients: bool = Field(
        False, description="also record the norm of each layer's gradient, at the same batches"
    )
    parallel: Literal["none", "data_parallel", "ddp"] = Field(
        "none", description="how several GPUs or processes divide each batch"
    )
    processes: PositiveInt | None = Field(
        None,
        le=MOST_THREADS,
        description="number of processes of ddp on each host; none: 2, of several hosts 1",
    )
    nodes: PositiveInt = Field(
        1, description="hosts of ddp: on each but the first, run `torchyard join HOST:PORT`"
    )
    rendezvous: str | None = Field(
        None, description="HOST:PORT of the first host, where the others join it"
    )
    join_timeout: PositiveInt = Field(600, description="seconds that hosts wait for one another")
    min_nodes: PositiveInt | None = Field(
        None, description="hosts with which training goes on when others are lost; none: all"
    )
    max_restarts: NonNegativeInt = Field(
        0,
        description="how often ddp goes on from the last checkpoint after a process or a host was "
        "lost",
    )
    sync_batch_norm: bool = Field(
        False, description="batch norm's statistics are those of the whole batch of ddp"
    )
    threads: PositiveInt | None = Field(
        None,
        le=MOST_THREADS,
        description="CPU threads; none: one where a batch is little work, else all",
    )
    workers: PositiveInt | None = Field(
        None,
        le=MOST_THREADS,
        description="threads of each process that decode images ahead of the training; none: "
        "one for each core, 16 at most",
    )
    channels_last: bool | None = Field(
        None, description="channels-last memory format; none: where that is faster"
    )
    compile: bool | None = Field(
        None,
        description="one function, on a GPU one CUDA graph, for the step; none: where faster",
    )
    deterministic: bool = Field(
        False, description="equal bits on a GPU, too; operations that cannot raise an error"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> TrainConfig:
        if self.processes is not None and self.parallel != "ddp":
            raise ValueError("processes are those of ddp: set train.parallel=ddp")
        self._hosts_fit_together()
        if self.compile and self.accumulate > 1:
            raise ValueError("compile is for whole batches: leave train.accumulate=1")
        if self.compile and self.parallel != "none":
            raise ValueError("compile is for one process: leave train.parallel=none")
        if self.batch_size == "auto":
            if self.accumulate > 1 or self.parallel == "ddp":
                raise ValueError(
                    "batch_size=auto is for one process that computes whole batches: set a number "
                    "beside train.accumulate or train.parallel=ddp"
                )
            return self
        if self.batch_size < self.world_size:
            processes = self.world_size
            raise ValueError(f"{processes} processes cannot share a batch of {self.batch_size}")
        if self.accumulate > self.batch_size // self.world_size:
            share = self.batch_size // self.world_size
            raise ValueError(f"accumulate={self.accumulate}: a batch has {share} samples to divide")
        return self

    def _hosts_fit_together(self) -> None:
        if self.parallel != "ddp":
            for name in ("nodes", "rendezvous", "min_nodes", "max_restarts", "sync_batch_norm"):
                if getattr(self, name) != TrainConfig.model_fields[name].default:
                    raise ValueError(f"{name} is for ddp: set train.parallel=ddp")
        if self.rendezvous is not None:
            split_endpoint(self.rendezvous)
        if self.nodes > 1 and self.rendezvous is None:
            raise ValueError(
                "several nodes need an address of the first host, which the others reach: set "
                "train.rendezvous=HOST:PORT"
            )
        if self.nodes == 1 and (self.rendezvous or self.min_nodes):
            raise ValueError(
                f"{'rendezvous' if self.rendezvous else 'min_nodes'} is for several hosts: set "
                "train.nodes, e.g. 2"
            )
        if self.min_nodes and self.min_nodes > self.nodes:
            raise ValueError(f"min_nodes={self.min_nodes} is more than nodes={self.nodes}")
        if self.min_nodes and not self.max_restarts:
            raise ValueError("min_nodes is for going on: set train.max_restarts, e.g. 3")

    def check_validation(self, has_own: bool, *others: str) -> None:
        """Find out whether there is a validation split where one is needed.

        Args:
            has_own: whether the data set has one.
            others: settings of other sections that need one.

        Raises:
            UserError: there is none for `patience`, `monitor` or one of the others.
        """
        needing = [*others, *["train.patience"] * (self.patience is not None)]
        needing += ["train.monitor"] * (self.monitor != "loss")
        if needing and self.validation == 0 and not has_own:
            raise UserError(
                f"{setting}: needs a validation split, and the data set has none of its own: "
                "set train.validation, e.g. 0.1"
                for setting in needing
            )

    @property
    def drawn_seed(self) -> int:
        """The seed of a run that has begun: a number."""
        assert self.seed != "per_run"
        return self.seed

    @property
    def known_batch_size(self) -> int:
        """The batch size of a training: a number."""
        assert self.batch_size != "auto"
        return self.batch_size

    @property
    def processes_here(self) -> int:
        """How many processes train on each host."""
        if self.parallel != "ddp":
            return 1
        return self.processes or (2 if self.nodes == 1 else 1)

    @property
    def world_size(self) -> int:
        """How many processes train together, on all hosts."""
        return self.processes_here * self.nodes


class EvaluateConfig(BaseModel):
    """How the trained network is evaluated, and served."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    views: Literal["one", "mirror", "mirror_and_shifts"] = Field(
        "one",
        description="of each image, whose logits are averaged, by the network that is logged, too",
    )
    nearest: NonNegativeInt = Field(
        3,
        le=10,
        description="training images that the report shows beside each of the surest mistakes: "
        "those of the wrong class that are most alike to the network; 0: none",
    )
    temperature: bool = Field(
        False,
        description="divide the logits by a number fitted on the validation split, so that of "
        "predictions with probability 0.8 four of five are right; by the network that is logged, "
        "too",
    )

    @property
    def needing_validation(self) -> tuple[str, ...]:
        """The settings that need a validation split."""
        return ("evaluate.temperature",) * self.temperature


DEFAULT_GATES = (Choice(name="beats_champion"),)


class PromoteConfig(BaseModel):
    """Which registered model a run's network becomes a version of, and the gates before it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(description="the registered model's name", min_length=1, max_length=256)
    gates: tuple[Choice, ...] = Field(DEFAULT_GATES, description="all of them must pass")
    gate_seconds: PositiveFloat = Field(
        120.0, description="a gate that has not judged within so many seconds refuses"
    )

    @field_validator("model")
    @classmethod
    def _a_name(cls, value: str) -> str:
        odd = not value.isprintable() or set(value) & set("/:@'\"`\\")
        if odd or value != value.strip() or value.startswith("..") or value == ".":
            raise ValueError(
                "a model's name has no quotes, backslash, '/', ':', '@' or invisible characters, "
                f"and no space or '..' at its ends: {value!r}"
            )
        return value


class RunConfig(BaseModel):
    """The whole configuration of a run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: DatasetChoice
    augmentations: tuple[Choice, ...] = Field(
        (), description="random changes of the training samples, in this order"
    )
    model: ModelChoice = ModelChoice(name="lenet")
    loss: Choice = Choice(name="cross_entropy")
    optimizer: OptimizerChoice = OptimizerChoice(name="sgd")
    scheduler: Choice = Choice(name="constant")
    metrics: tuple[Choice, ...] = Field(
        (), description="further figures of the validation and the test"
    )
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    device: str = Field("auto", description="auto, cpu, cuda, cuda:N, mps")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of the forward pass in training; weights stay float32"
    )
    plugins: dict[str, str] = Field(
        {},
        description="filled in: the distribution, or file and sha256, of each that is not built "
        "in, and the sha256 of each file that a parameter names",
    )
    promote: PromoteConfig | None = Field(
        None, description="make the network the champion if it passes the gates"
    )

    def check_validation(self, has_own: bool) -> None:
        """`TrainConfig.check_validation`, for what any section needs a validation split for."""
        self.train.check_validation(has_own, *self.evaluate.needing_validation)

    @field_validator("device")
    @classmethod
    def _a_device(cls, value: str) -> str:
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value):
            raise ValueError(f"must be auto, cpu, mps, cuda or cuda:N, not {value!r}")
        return value


# The kinds of plugin of which a run has exactly one.
SINGLE_KINDS = tuple(kind for kind in KINDS if kind in RunConfig.model_fields)


def shared_settings(kind: str) -> Mapping[str, FieldInfo]:
    """Torchyard's own settings in the section of a kind, beside the plugin's parameters."""
    field = RunConfig.model_fields.get(kind)
    return getattr(field.annotation, "model_fields", {}) if field else Choice.model_fields
