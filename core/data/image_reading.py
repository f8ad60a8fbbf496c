"""How image files become pixels: settings of every data set that reads image files."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator

Level = Annotated[int, Field(ge=0, le=255)]


class ImageReading(BaseModel):
    """What is done with image files that are not plain 8-bit images.

    They stand beside a data set's own parameters in a configuration, as `dataset.background`.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    background: tuple[Level, Level, Level] = Field(
        (255, 255, 255),
        description="colour behind transparent images: a name, #rrggbb or [red, green, blue]",
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
