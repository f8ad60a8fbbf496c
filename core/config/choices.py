"""The settings of what is chosen by name: data set, model and optimizer.

Only torchyard's own settings have types here; the parameters of a plugin are its own
(`core/config/resolve.py` finds and checks them).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from torchyard.core.data.images.reading import ImageReading


def _values(value: float | tuple[float, ...]) -> tuple[float, ...]:
    return value if isinstance(value, tuple) else (value,)


class Choice(BaseModel):
    """A plugin chosen by name; the other keys are the plugin's own parameters."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    name: str


Values = Annotated[tuple[float, ...], Field(min_length=1)]
Deviations = Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]
Normalization = (
    Literal["auto", "statistics"] | tuple[float, PositiveFloat] | tuple[Values, Deviations]
)


class DatasetChoice(ImageReading, Choice):
    """The data set, how its image files are read, and how its pixels are normalized."""

    normalize: Normalization = Field(
        "auto",
        description="'statistics' (mean and std of the training split; token ids stay as they "
        "are), [mean, std], or [[mean, …], [std, …]] of the channels; 'auto': what model.weights "
        "were trained with, where that is known, else 'statistics'",
    )

    audit: bool = Field(
        False,
        description="look for duplicates, leaks between the splits and wrong labels before "
        "training, and report them: docs/audit.md",
    )
    exclude: Literal["audit"] | None = Field(
        None,
        description="audit: train without the training samples that the audit finds, exactly or "
        "nearly, in the test or the data set's validation split, too",
    )

    @property
    def reading(self) -> ImageReading:
        """How image files are read, without the other settings."""
        return ImageReading(**{name: getattr(self, name) for name in ImageReading.model_fields})

    @field_validator("normalize", mode="wrap")
    @classmethod
    def _one_message(cls, value: object, validate: ValidatorFunctionWrapHandler) -> object:
        try:
            return validate(value)
        except ValidationError:
            raise ValueError(
                "must be 'auto', 'statistics', [mean, std] or [[mean, …], [std, …]] with a pair "
                f"for each channel, and std above 0, not {value!r}"
            ) from None

    @field_validator("normalize")
    @classmethod
    def _pairs(cls, value: Normalization) -> Normalization:
        if not isinstance(value, str) and len(set(map(len, map(_values, value)))) > 1:
            raise ValueError(
                f"{len(_values(value[0]))} means, but {len(_values(value[1]))} deviations"
            )
        return value


def _one_is_enough(value: object) -> object:
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        value = (value,)
    # Layers of an nn.Sequential have numbers for names.
    return tuple(str(each) if type(each) is int else each for each in value)


Patterns = Annotated[tuple[str, ...], BeforeValidator(_one_is_enough)]


class ModelChoice(Choice):
    """The model, the weights that it begins with, and which of its parameters are frozen."""

    weights: str | None = Field(
        None,
        description="what training begins with: 'default' or another name of the model's published "
        "weights, a file (.pth, .pt, .safetensors, .pt2), a run, MODEL@ALIAS, models:/MODEL/3",
    )
    freeze: Patterns = Field(
        (), description="patterns of parameter names that are not trained, e.g. [conv*]"
    )
    freeze_epochs: PositiveInt | None = Field(
        None, description="after so many epochs what is frozen learns, too; none: never"
    )
    freeze_statistics: bool = Field(
        False, description="the running statistics of frozen batch norms stay as they are"
    )

    @model_validator(mode="after")
    def _something_is_frozen(self) -> ModelChoice:
        if not self.freeze and (self.freeze_epochs or self.freeze_statistics):
            setting = "freeze_epochs" if self.freeze_epochs else "freeze_statistics"
            raise ValueError(f"{setting} is for what model.freeze names: set that, too")
        return self


class ParameterGroup(BaseModel):
    """Parameters with settings of their own; the other keys are the optimizer's parameters."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    match: Patterns = Field(
        min_length=1, description="patterns of parameter names or layers, e.g. fc*"
    )

    @property
    def settings(self) -> dict[str, Any]:
        """The optimizer's parameters that the group sets."""
        return dict(self.model_extra or {})


class OptimizerChoice(Choice):
    """The optimizer, and the groups of parameters that it treats differently."""

    groups: tuple[ParameterGroup, ...] = Field(
        (), description="parameters with settings of their own, e.g. [{match: fc*, lr: 0.01}]"
    )
    layer_decay: float | None = Field(
        None,
        gt=0,
        le=1,
        description="each block's learning rate, as a share of that of the block after it",
    )
    decay_norms: bool = Field(
        True, description="weight decay also of norms and biases: of parameters of one dimension"
    )
