"""Base classes of plugins: the fields are the parameters, `build` makes the object.

A plugin subclasses one of these, declares its parameters as pydantic fields under
PyTorch's own names and defaults, and registers itself by name through the hook of its
kind (see `core/hosting/hookspecs.py`). Import torch inside `build`, not at the top of the file, so
that `torchyard --help` and a misspelled setting answer at once.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    from torchyard.core.data.predictions import PredictionTable
    from torchyard.core.data.raw import RawData, SampleSpec


@dataclass(frozen=True)
class Verdict:
    """A gate's judgement.

    Attributes:
        passed: whether the model may become the champion, as far as this gate goes.
        reason: one clause with the figures it is based on, "96.9 % of 359 is at least 90 %".
        figures: those figures by name, for machines.
    """

    passed: bool
    reason: str
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Pretrained:
    """Published weights of a model, as `ModelParams.pretrained` names them.

    Attributes:
        file: a state dict: of tensors alone, .safetensors or what `torch.save` writes.
        url: where that can be fetched from, if it is not there. A name that ends with `-` and 8 or
            more digits of its sha256 before the suffix, as torchvision's do, is compared with it.
        mean, std: of each channel, of images on the scale 0 to 1, that they were trained with.
        image_size: side of the images that they were trained for, in pixels.
    """

    file: Path
    url: str = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    image_size: int | None = None


Loss = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]
Augmentation = Callable[["torch.Tensor", "torch.Tensor", int], "torch.Tensor"]
Mixing = Callable[
    ["torch.Tensor", "torch.Tensor", "torch.Tensor", int], tuple["torch.Tensor", "torch.Tensor"]
]
Gate = Callable[["PredictionTable", "PredictionTable | None"], "Verdict"]
Metric = Callable[
    ["npt.NDArray[np.float32]", "npt.NDArray[np.int64]"], "float | Mapping[str, float]"
]


class PluginParams(BaseModel):
    """What all kinds share: immutable, typed, and no unknown parameter."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        protected_namespaces=(),
        validate_default=True,
    )

    kind: ClassVar[str]


class DatasetParams(PluginParams):
    """A data set. `build` returns its raw splits; preparation stores them once."""

    kind = "dataset"

    @abstractmethod
    def build(self, downloads: Path) -> RawData:
        """Read the raw splits, downloading into the folder `downloads` if need be.

        Raises:
            UserError: the source is missing, damaged, or not what it should be.
        """

    def describe(self) -> SampleSpec | None:
        """What one sample looks like, where that is known without reading the data.

        With it a model that cannot take the samples is refused before any download.
        """
        return None

    def fingerprint(self) -> str:
        """The state of a source that can change under the same parameters.

        Part of the key under which the prepared arrays are stored: names, sizes and times
        of a folder's files, for instance. A source that never changes needs none.
        """
        return ""


class ModelParams(PluginParams):
    """A network from normalized float32 samples, or int64 token ids, to logits."""

    kind = "model"

    @abstractmethod
    def build(self, input_shape: tuple[int, ...], num_classes: int) -> torch.nn.Module:
        """Make the network: N x input_shape float32 in, logits N x num_classes out.

        Token ids come in as int64, unless `dataset.normalize=[mean, std]` is asked for.

        Args:
            input_shape: shape of one sample: (C, H, W) of an image, (D,) of a vector, (C, L) of a
                signal, (L,) of token ids.
            num_classes: the number of logits.

        Raises:
            ValueError: the network cannot take such samples; the message says why.
        """

    def published_weights(self, name: str) -> Pretrained:
        """The published weights that `model.weights=NAME` asks for; "default" are the best ones.

        Files, runs and registered models need no method: they serve every model. What fits the
        network by name and shape is loaded, and the rest, such as the last layer, stays new.

        Raises:
            ValueError: there are none of that name; the message says which there are.
        """
        raise ValueError(f"no weights named '{name}' are published for this model")


class LossParams(PluginParams):
    """A loss on logits and class indices.

    Attributes:
        takes_soft_targets: whether targets may be float32 N x num_classes as well, with rows that
            sum to 1, as a `MixingParams` makes them. One-hot ones give the loss of their indices.
    """

    kind = "loss"
    takes_soft_targets: ClassVar[bool] = False

    @abstractmethod
    def build(self, num_classes: int) -> Loss:
        """Make a callable (logits N x num_classes, int64 targets N) -> scalar.

        An `nn.Module` is moved to the training device with the network.
        """

    def with_class_counts(self, counts: Sequence[int]) -> Self:
        """The same parameters, with filled in what follows from how frequent the classes are.

        Called before `build`, for a parameter such as `weight=balanced`. What it changes is
        recorded with the run. A loss that does not depend on the counts needs none.

        Args:
            counts: the training samples of each class, in the order of the class indices,
                without those held out for validation; some may be 0.

        Raises:
            ValueError: it cannot do with such counts; the message says why.
        """
        return self


class OptimizerParams(PluginParams):
    """An optimizer.

    Attributes:
        needs_closure: whether its `step` is given a function that computes the loss of the batch
            and its gradients anew, and returns the loss, as torch.optim.LBFGS needs it.
    """

    kind = "optimizer"
    needs_closure: ClassVar[bool] = False

    @abstractmethod
    def build(self, parameters: Iterable[Any]) -> torch.optim.Optimizer:
        """Make the optimizer of these parameters.

        Args:
            parameters: `torch.nn.Parameter`s. Where a configuration asks for groups (`optimizer.
                groups`, `layer_decay`, `decay_norms`), mappings as torch.optim takes them: the
                parameters under "params", and what the group sets under the names in `defaults`.
        """


class SchedulerParams(PluginParams):
    """A learning-rate schedule, stepped after every batch.

    Attributes:
        follows_metric: whether it is stepped at the end of each epoch instead, with the
            validation's `train.monitor` (1 less a figure that is to be high), as
            torch.optim.lr_scheduler.ReduceLROnPlateau needs it.
    """

    kind = "scheduler"
    follows_metric: ClassVar[bool] = False

    @abstractmethod
    def build(
        self, optimizer: torch.optim.Optimizer, total_steps: int
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Make the schedule for a run of `total_steps` batches.

        Raises:
            ValueError: the schedule does not fit the optimizer or the length.
        """


class AugmentationParams(PluginParams):
    """A random change of the training samples, new in every epoch."""

    kind = "augmentation"

    @abstractmethod
    def build(self, input_shape: tuple[int, ...]) -> Augmentation | Mixing:
        """Make a callable (samples, indices, epoch) -> samples, for one batch at a time.

        samples: as stored, on the training device: uint8 N x C x H x W, float32 N x D or
        N x C x L, int64 N x L. What is returned has the same shape and type, and the input is
        left as it is.
        indices: int64 N, each sample's place in its split. epoch: counted from 1.
        Random numbers come from torch's generator of the samples' device, which a run seeds
        and saves in checkpoints; each sample gets its own. Only a `MixingParams` makes a `Mixing`.

        Raises:
            ValueError: it cannot take such samples; the message says why.
        """


class MixingParams(AugmentationParams):
    """A random mixture of training samples, and of their targets; a kind of augmentation.

    What it makes of the targets only a loss with `takes_soft_targets` takes.
    """

    @abstractmethod
    def build(self, input_shape: tuple[int, ...]) -> Mixing:
        """Make a callable (samples, targets, indices, epoch) -> (samples, targets).

        targets: float32 N x classes, rows that sum to 1: one-hot, or mixed already. What is
        returned has the same shape and type, and the input is left as it is. All else is as in
        `AugmentationParams`.

        Raises:
            ValueError: it cannot take such samples; the message says why.
        """


class RegionParams(AugmentationParams):
    """A random part of each image, scaled to the input size; a kind of augmentation.

    Where photos are decoded anew in every epoch, the first augmentation may be one: `region` is
    asked for the part of the original photo, and nothing else of it is decoded. On images that are
    stored at the input size `build` does the same to a batch. Only as the first of the
    augmentations can it be taken on photos.
    """

    @abstractmethod
    def region(
        self, height: int, width: int, generator: np.random.Generator
    ) -> tuple[int, int, int, int]:
        """Draw a part of an image of this size: top, left, height and width in pixels.

        It is not empty, and nothing of it is outside of the image. Random numbers come from
        `generator` alone.
        """


class GateParams(PluginParams):
    """A condition on a model that is to become the champion."""

    kind = "gate"

    @abstractmethod
    def build(self) -> Gate:
        """Make a callable (candidate, champion) -> Verdict.

        candidate, champion: what the run and the champion's run predicted of their test
        samples; champion is None where there is none yet. The test samples need not be the
        same: `torchyard.compare` raises a UserError then, which counts as a refusal.
        """

    def with_ask(self, number: int) -> Self:
        """The same parameters, with filled in how often the test samples have been asked.

        Called before `build` where there is a champion. Whoever compares again and again on the
        same samples finds a difference by chance in the end; a gate that tests for one asks for
        more the more often that was done. A gate that does not test needs none.

        Args:
            number: from 1, how often a candidate for this registered model was judged by these
                test samples, this time included.
        """
        return self

    def figures_used(self) -> Collection[str]:
        """The figures of the candidate that it reads from `PredictionTable.figures`.

        A run that will not have one of them is refused before it begins.
        """
        return ()


class MetricParams(PluginParams):
    """Figures of predictions, of the validation after each epoch and of the test at the end.

    Attributes:
        lower_is_better: of its figures, where `train.monitor` names one.
    """

    kind = "metric"
    lower_is_better: ClassVar[bool] = False

    @abstractmethod
    def build(self, classes: Sequence[str]) -> Metric:
        """Make a callable (logits, targets) -> a number, or numbers by name.

        logits: float32 N x K, before the softmax. targets: int64 N, class indices. Both are
        NumPy's. A number is recorded under the plugin's name, numbers by name as
        `<plugin>/<name>`; NaN where a figure is not defined, as where a class has no sample.

        Args:
            classes: the K names, in the order of the class indices.

        Raises:
            ValueError: it is not for so many classes; the message says why.
        """


KINDS = {base.kind: base for base in PluginParams.__subclasses__()}
