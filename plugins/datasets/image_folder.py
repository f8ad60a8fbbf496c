"""The data set `image_folder`: the user's own images, in a folder or archive of class folders."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field, PositiveInt

from torchyard import (
    DatasetParams,
    EncodedSplit,
    RawData,
    Register,
    SampleSpec,
    hookimpl,
    stratified_split,
)
from torchyard.plugins.datasets.paths import ExistingPath, state_of
from torchyard.plugins.datasets.sources.folder import is_regular, walk
from torchyard.plugins.datasets.sources.formats import open_source, stream_files
from torchyard.plugins.datasets.sources.layout import Layout
from torchyard.plugins.datasets.sources.names import is_image
from torchyard.plugins.datasets.sources.source import ImageSource

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


def text_encoding(name: str) -> str:
    """Validate that Python knows an encoding.

    Raises:
        ValueError: it does not.
    """
    try:
        b"a".decode(name)
    except (LookupError, UnicodeError):
        raise ValueError(
            f"'{name}' is no encoding that Python knows, such as gbk or cp437"
        ) from None
    return name


class ImageFolder(DatasetParams):
    """Images in class folders: a folder, .zip, .tar or .tar.gz.

    The class folders lie at the top, or in parts: `train/`, `test/` and, where there is one,
    `val/`, or other usual names such as `Training` or `seg_test`. Folders around everything are
    skipped. Without a test part, `val/` is it; without both, a fraction of each class is drawn
    for testing. Classes and images are in the order of their names, so a folder and an archive
    of it are the same data set.
    """

    path: ExistingPath = Field(description="the folder or archive")
    image_size: PositiveInt | tuple[PositiveInt, PositiveInt] | None = Field(
        None,
        description="size to scale to: one number, or (height, width); none: all are of one size",
    )
    channels: Literal["auto", "grey", "rgb"] = Field(
        "auto", description="auto: rgb if any image has colour"
    )
    test_fraction: float = Field(
        0.2, gt=0, lt=1, description="fraction of each class for testing, if there is no test part"
    )
    seed: int = Field(0, ge=0, description="seed of the random choice of test images")
    encoding: Annotated[str, AfterValidator(text_encoding)] | None = Field(
        None, description="encoding of names that are not UTF-8, e.g. gbk; none: guessed"
    )

    def build(self, downloads: Path) -> RawData:
        """List the images, to be decoded later.

        Raises:
            UserError: the archive is damaged, there are no images, fewer than two classes, an
                empty class folder, or a test class that is not in the training part.
        """
        source = open_source(self.path, downloads, self.encoding)
        try:
            return self._raw(source)
        except BaseException:
            if source.close:
                source.close()
            raise

    def describe(self) -> SampleSpec | None:
        """The shape, from the parameters and the first image.

        None where that image is grey: others may have colour.
        """
        channels, height, width = self._shape
        try:
            if channels is None or height is None or width is None:
                first_size, coloured = _glance(self._first_image())
                channels = channels or (3 if coloured else None)
                height, width = (height, width) if height and width else first_size
        except Exception:  # `build` reports what is wrong with the source
            return None
        return SampleSpec((channels, height, width)) if channels else None

    def fingerprint(self) -> str:
        """Path, size and modification time of the archive, or of every file."""
        if not self.path.is_dir():
            return state_of([self.path])
        state = hashlib.sha256(str(self.path.resolve()).encode())
        for name, entry in walk(self.path):
            if is_regular(entry):
                status = entry.stat()
                line = f"\0{name}\0{status.st_size}\0{status.st_mtime_ns}"
                state.update(line.encode("utf-8", "surrogateescape"))
        return state.hexdigest()

    def _raw(self, source: ImageSource) -> RawData:
        layout = Layout(source, self.path, self.encoding)
        names, labels = layout.images(layout.train)

        def split(names: list[str], labels: npt.NDArray[np.int64]) -> EncodedSplit:
            return EncodedSplit(
                read=source.read,
                references=[source.files[name] for name in names],
                names=FolderPaths(self.path, names, layout.names.text),
                labels=labels,
                shape=self._shape,
                resize=self.image_size is not None,
                size_advice="set dataset.image_size to scale all images to one size",
            )

        validation = split(*layout.images(layout.validation)) if layout.validation else None
        if layout.test is None:
            train, test = (
                split([names[i] for i in part], labels[part])
                for part in stratified_split(labels, self.test_fraction, self.seed)
            )
        else:
            train, test = split(names, labels), split(*layout.images(layout.test))
        return RawData(
            layout.classes,
            train,
            test,
            str(self.path),
            source.close,
            validation=validation,
            notes=layout.notes,
        )

    @property
    def _shape(self) -> tuple[int | None, int | None, int | None]:
        """(C, H, W), as far as the parameters say."""
        channels = {"auto": None, "grey": 1, "rgb": 3}[self.channels]
        size = self.image_size
        return (channels, *((size, size) if size is None or isinstance(size, int) else size))

    def _first_image(self) -> bytes:
        return next(read() for name, read in stream_files(self.path) if is_image(name))


class FolderPaths(Sequence[str]):
    """Paths in a folder, joined when they are asked for, to save memory.

    Args:
        folder: before all names.
        names: within it.
        text: a name as people read it.
    """

    def __init__(self, folder: Path, names: Sequence[str], text: Callable[[str], str]) -> None:
        self._folder, self._names, self._text = folder, names, text

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: Any) -> Any:  # of one path: no slice is needed
        return f"{self._folder}/{self._text(self._names[index])}"


def _glance(data: bytes) -> tuple[tuple[int, int], bool]:
    """(height, width) of an image as displayed, and whether it certainly has colour."""
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    bands = {band.tobytes() for band in image.convert("RGB").split()}
    return (image.height, image.width), len(bands) > 1 and not image.has_transparency_data


@hookimpl
def register_datasets(register: Register) -> None:
    """Registers `image_folder`."""
    register("image_folder", ImageFolder)
