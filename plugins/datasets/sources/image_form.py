"""The form that image files are decoded to: settings of every data set of a user's own images."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, PositiveInt

from torchyard import DatasetParams, EncodedSplit, SampleSpec

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class ImageForm(DatasetParams):
    """The size and the channels of images."""

    image_size: PositiveInt | tuple[PositiveInt, PositiveInt] | None = Field(
        None,
        description="size to scale to: one number, or (height, width); none: all are of one size",
    )
    channels: Literal["auto", "grey", "rgb"] = Field(
        "auto", description="auto: rgb if any image has colour"
    )

    def image_split(
        self,
        read: Callable[[Any], bytes],
        references: Sequence[Any],
        names: Sequence[str],
        labels: npt.NDArray[np.int64],
    ) -> EncodedSplit:
        """A split of image files, to be decoded to this form."""
        return EncodedSplit(
            read=read,
            references=references,
            names=names,
            labels=labels,
            shape=self._shape,
            resize=self.image_size is not None,
            size_advice="set dataset.image_size to scale all images to one size",
        )

    def form_of(self, first_image: Callable[[], bytes]) -> SampleSpec | None:
        """The shape, from the parameters and the first image, which is read where it is needed.

        None where that image is grey, as others may have colour, or cannot be read: `build`
        reports what is wrong with the source.
        """
        channels, height, width = self._shape
        try:
            if channels is None or height is None or width is None:
                first_size, coloured = _glance(first_image())
                channels = channels or (3 if coloured else None)
                height, width = (height, width) if height and width else first_size
        except Exception:
            return None
        return SampleSpec((channels, height, width)) if channels else None

    @property
    def _shape(self) -> tuple[int | None, int | None, int | None]:
        """(C, H, W), as far as the parameters say."""
        channels = {"auto": None, "grey": 1, "rgb": 3}[self.channels]
        size = self.image_size
        return (channels, *((size, size) if size is None or isinstance(size, int) else size))


def _glance(data: bytes) -> tuple[tuple[int, int], bool]:
    """(height, width) of an image as displayed, and whether it certainly has colour."""
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    bands = {band.tobytes() for band in image.convert("RGB").split()}
    return (image.height, image.width), len(bands) > 1 and not image.has_transparency_data
