"""The data set `image_folder`: the user's own images, in a folder or archive of class folders."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, Field

from torchyard import EncodedSplit, RawData, Register, SampleSpec, hookimpl
from torchyard.plugins.datasets.paths import ExistingPath, state_of
from torchyard.plugins.datasets.sources.folder import is_regular, walk
from torchyard.plugins.datasets.sources.formats import open_source, stream_files
from torchyard.plugins.datasets.sources.image_form import ImageForm
from torchyard.plugins.datasets.sources.layout import Layout
from torchyard.plugins.datasets.sources.names import is_image
from torchyard.plugins.datasets.sources.source import ImageSource
from torchyard.plugins.datasets.tables.division import HeldOut

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


class ImageFolder(ImageForm, HeldOut):
    """Images in class folders: a folder, .zip, .tar or .tar.gz.

    The class folders lie at the top, or in parts: `train/`, `test/` and, where there is one,
    `val/`, or other usual names such as `Training` or `seg_test`. Folders around everything are
    skipped. Without a test part, `val/` is it; without both, a fraction of each class is drawn
    for testing. Classes and images are in the order of their names, so a folder and an archive
    of it are the same data set.
    """

    path: ExistingPath = Field(description="the folder or archive")
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
        return self.form_of(self._first_image)

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
            references = [source.files[name] for name in names]
            shown = FolderPaths(self.path, names, layout.names.text)
            return self.image_split(source.read, references, shown, labels)

        validation = split(*layout.images(layout.validation)) if layout.validation else None
        if layout.test is None:
            train, test = (
                split([names[i] for i in part], labels[part]) for part in self.drawn(labels)
            )
        else:
            self.refuse_folds("there is a test part in the folder")
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


@hookimpl
def register_datasets(register: Register) -> None:
    """Registers `image_folder`."""
    register("image_folder", ImageFolder)
