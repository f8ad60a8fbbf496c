"""The data set `image_folder`: the user's own images, in a folder or archive of class folders."""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, PositiveInt

from torchyard import (
    DatasetParams,
    EncodedSplit,
    RawData,
    Register,
    SampleSpec,
    UserError,
    hookimpl,
    stratified_split,
)
from torchyard.plugins.datasets.archives import ImageSource, open_source, stream_files, walk
from torchyard.plugins.datasets.paths import ExistingPath, state_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

logger = logging.getLogger(__name__)

SUFFIXES = tuple(
    ".bmp .gif .jfif .jpeg .jpg .pbm .pgm .png .pnm .ppm .tif .tiff .webp".split()  # noqa: SIM905
)
TRAIN = "train"
TEST = ("test", "val", "valid", "validation")  # the first that exists is used
GREY_MODES = ("1", "L", "LA", "La", "I", "F")


class ImageFolder(DatasetParams):
    """Images in class folders: a folder, .zip, .tar or .tar.gz.

    The class folders lie at the top, or in `train/` and `test/` (or `val/`, `valid/`,
    `validation/`); one folder around everything is skipped. Without a test part, a fraction of
    each class is drawn for testing. Classes and images are in the order of their names, so a
    folder and an archive of it are the same data set.
    """

    path: ExistingPath = Field(description="the folder or archive")
    image_size: PositiveInt | tuple[PositiveInt, PositiveInt] | None = Field(
        None,
        description="size to scale to: one number, or (height, width); none: all are of one size",
    )
    channels: Literal["auto", "grey", "rgb"] = Field(
        "auto", description="auto: grey if the first image is"
    )
    test_fraction: float = Field(
        0.2, gt=0, lt=1, description="fraction of each class for testing, if there is no test part"
    )
    seed: int = Field(0, ge=0, description="seed of the random choice of test images")

    def build(self, downloads: Path) -> RawData:
        """List the images, to be decoded later.

        Raises:
            UserError: the archive is damaged, there are no images, fewer than two classes, an
                empty class folder, or a test class that is not in the training part.
        """
        source = open_source(self.path, downloads)
        try:
            return self._raw(source)
        except BaseException:
            if source.close:
                source.close()
            raise

    def describe(self) -> SampleSpec | None:
        """The shape, from the parameters or the first image."""
        try:
            return SampleSpec(self._shape(self._first_image, "the first image"))
        except Exception:  # `build` reports what is wrong with the source
            return None

    def fingerprint(self) -> str:
        """Path, size and modification time of the archive, or of every file."""
        if not self.path.is_dir():
            return state_of([self.path])
        state = hashlib.sha256(str(self.path.resolve()).encode())
        for name, entry in walk(self.path):
            if entry.is_file():
                status = entry.stat()
                line = f"\0{name}\0{status.st_size}\0{status.st_mtime_ns}"
                state.update(line.encode("utf-8", "surrogateescape"))
        return state.hexdigest()

    def _raw(self, source: ImageSource) -> RawData:
        layout = Layout(source, self.path)
        names, labels = layout.images(layout.train)
        shape = self._shape(lambda: source.read(source.files[names[0]]), names[0])

        def split(names: list[str], labels: npt.NDArray[np.int64]) -> EncodedSplit:
            return EncodedSplit(
                read=source.read,
                references=[source.files[name] for name in names],
                names=FolderPaths(self.path, names),
                labels=labels,
                shape=shape,
                resize=self.image_size is not None,
                size_advice="set dataset.image_size to scale all images to one size",
            )

        if layout.test is None:
            train, test = (
                split([names[i] for i in part], labels[part])
                for part in stratified_split(labels, self.test_fraction, self.seed)
            )
        else:
            train, test = split(names, labels), split(*layout.images(layout.test))
        return RawData(layout.classes, train, test, str(self.path), source.close)

    def _shape(self, read_first: Callable[[], bytes], name: str) -> tuple[int, int, int]:
        """(C, H, W), from the parameters, else from the first image."""
        size, grey = self.image_size, self.channels == "grey"
        if isinstance(size, int):
            size = (size, size)
        if size is None or self.channels == "auto":
            own_size, own_grey = _header(read_first(), name)
            size = size or own_size
            grey = grey or (self.channels == "auto" and own_grey)
        return (1 if grey else 3, *size)

    def _first_image(self) -> bytes:
        return next(read() for name, read in stream_files(self.path) if _is_image(name))


class Layout:
    """The part and class of each image file of a source.

    Attributes:
        train, test: names of image files by class; test is None where there is no test part.
        classes: sorted names of the training part's classes.

    Raises:
        UserError: with every problem of the layout.
    """

    def __init__(self, source: ImageSource, path: Path) -> None:
        # Strings, because pathlib's objects are slow; split anew in each loop to save memory.
        images = [name for name in sorted(source.files) if _is_image(name)]
        if not images:
            raise UserError(
                f"no images in {path}; it must hold class folders with images "
                f"({', '.join(SUFFIXES)})"
            )
        top = images[0].split("/")[0]
        skipped = 1 if _is_around(top, images) else 0
        paths = (name.split("/") for name in images)
        depths = {len(path) - skipped for path in paths if path[skipped].lower() == TRAIN}
        # A folder "train" with images directly in it is a class (a vehicle), not a part.
        divided = bool(depths) and min(depths) >= 3
        level = skipped + divided  # of the class folders

        parts: dict[str, dict[str, list[str]]] = {}
        for name in images:
            image = name.split("/")
            if len(image) > level + 1:
                part = image[skipped].lower() if divided else TRAIN
                parts.setdefault(part, {}).setdefault(image[level], []).append(name)
        self.train = parts.get(TRAIN, {})
        self.test = next((parts[part] for part in TEST if part in parts), None)
        self.classes = sorted(self.train)
        if not self.train:
            raise UserError(f"{path}: all {len(images)} images lie outside class folders")

        used = sum(len(names) for part in (self.train, self.test or {}) for names in part.values())
        if used < len(source.files):
            left_out = len(source.files) - used
            text = "%s: %d of %d files are not images of a class and are left out."
            logger.info(text, path, left_out, len(source.files))
        problems = []
        for folder in sorted(source.folders):
            names = folder.split("/")
            if len(names) != level + 1 or _is_hidden(folder) or (skipped and names[0] != top):
                continue
            if names[level] not in self.train and (not divided or names[skipped].lower() == TRAIN):
                problems.append(f"the class folder {path}/{folder} holds no images")
        unknown = sorted({*(self.test or ())} - {*self.train})
        if unknown:
            problems.append(
                f"{path}: classes of the test part are not in the training part: "
                + ", ".join(unknown)
            )
        if len(self.classes) == 1:
            problems.append(
                f"{path}: there is only one class with images, '{self.classes[0]}'; "
                "a classifier needs two"
            )
        if problems:
            raise UserError(problems)

    def images(self, part: dict[str, list[str]]) -> tuple[list[str], npt.NDArray[np.int64]]:
        """The names of a part's images and their class indices, sorted by class, then name."""
        import numpy as np

        present = [index for index, name in enumerate(self.classes) if name in part]
        lists = [part[self.classes[index]] for index in present]
        labels = np.repeat(np.array(present, dtype=np.int64), [len(names) for names in lists])
        return [name for names in lists for name in names], labels


class FolderPaths(Sequence[str]):
    """Paths in a folder, joined when they are asked for, to save memory."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self._folder, self._names = folder, names

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: Any) -> Any:  # of one path: no slice is needed
        return f"{self._folder}/{self._names[index]}"


def _is_around(top: str, images: list[str]) -> bool:
    """Whether `top` is one folder around all class folders or parts."""
    return top.lower() not in (TRAIN, *TEST) and all(
        name.startswith(f"{top}/") and name.count("/") > 1 for name in images
    )


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not _is_hidden(name)


def _is_hidden(name: str) -> bool:
    """Whether a file or folder in the name begins with a dot (also "..") or is macOS's own."""
    return "/." in f"/{name}" or "/__MACOSX/" in f"/{name}/"


def _header(data: bytes, name: str) -> tuple[tuple[int, int], bool]:
    """(height, width) as displayed, and whether the image is grey.

    Raises:
        UserError: it is not an image.
    """
    from PIL import Image, ImageOps

    try:
        image: Image.Image = Image.open(io.BytesIO(data))
        grey = image.mode in GREY_MODES or image.mode.startswith("I;16")
        image = ImageOps.exif_transpose(image)
    except Exception as error:  # Pillow raises nearly anything on damaged files
        raise UserError(f"{name} cannot be read: {error}") from error
    return (image.height, image.width), grey


@hookimpl
def register_datasets(register: Register) -> None:
    """Registers `image_folder`."""
    register("image_folder", ImageFolder)
