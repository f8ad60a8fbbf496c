"""How image files are kept and become pixels: settings of every data set that reads them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator

Level = Annotated[int, Field(ge=0, le=255)]


class ImageReading(BaseModel):
    """How image files are kept, scaled, and converted where they are no plain 8-bit images.

    They stand beside a data set's own parameters in a configuration, as `dataset.background`.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    storage: Literal["auto", "arrays", "encoded"] = Field(
        "auto",
        description="arrays: images are decoded once, to one size; encoded: the files are kept "
        "and decoded when they are needed; auto: encoded for images of several sizes, and where "
        "arrays would be larger than the files, unless they become small (64x64)",
    )
    resize: Literal["crop", "pad", "squash"] | None = Field(
        None,
        description="how images of another shape fit into image_size; crop: the largest part in "
        "the middle; pad: all of it, between bars of the background; squash: all of it, "
        "distorted; none: crop for encoded images, squash for arrays",
    )
    crop_ratio: float = Field(
        1.0,
        gt=0,
        le=1,
        description="for resize=crop: the share of that part's sides that is kept (ImageNet's "
        "usual 224 of 256 is 0.875)",
    )
    background: tuple[Level, Level, Level] = Field(
        (255, 255, 255),
        description="colour behind transparent images, and of bars: a name, #rrggbb or "
        "[red, green, blue]",
    )
    value_range: tuple[float, float] | None = Field(
        None,
        description="of images with more than 8 bits: the values that become 0 and 255; "
        "none: the least and the greatest of the set",
    )
    max_pixels: PositiveInt | None = Field(
        None, description="refuse larger images; none: Pillow's limit, 179 million"
    )
    broken: Literal["refuse", "skip"] = Field(
        "refuse", description="image files that cannot be read; skip: left out, and recorded"
    )
    verify: bool = Field(
        False,
        description="compare the contents of image files and of the prepared arrays, "
        "not only names, sizes and times",
    )

    @field_validator("background", mode="before")
    @classmethod
    def _colour(cls, value: object) -> object:
        if isinstance(value, int) and not isinstance(value, bool):
            return (value,) * 3
        if not isinstance(value, str):
            return value
        from PIL import ImageColor  # only where a colour is named: it takes a while

        try:
            return ImageColor.getrgb(value)[:3]
        except ValueError:
            raise ValueError(
                f"must be a colour's name, #rrggbb or [red, green, blue], not {value!r}"
            ) from None

    @field_validator("value_range")
    @classmethod
    def _rises(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and value[0] >= value[1]:
            raise ValueError(f"must be [least, greatest], not {list(value)}")
        return value


READING = ImageReading()  # the defaults
