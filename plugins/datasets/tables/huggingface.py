"""The data set `huggingface`: one of Hugging Face's library `datasets`."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from torchyard import RawData, Register, UnreachableError, UserError, hookimpl
from torchyard.plugins.datasets.paths import state_of
from torchyard.plugins.datasets.tables.columns import AUTO, Rows
from torchyard.plugins.datasets.tables.image_rows import ImageRows
from torchyard.plugins.datasets.tables.packed import PackedFiles
from torchyard.plugins.datasets.tables.vector_table import VectorSettings

LIBRARY = "datasets"
SPLIT = "split of the data set"  # a column that says which of its splits a row is of
SAVED = ("dataset_dict.json", "state.json")  # what `save_to_disk` writes into its folder


class HuggingFace(ImageRows, VectorSettings):
    """A data set of Hugging Face's library: a folder of `save_to_disk`, or a name on the hub.

    Its image column is read as `image_table` reads one; without one, its other columns are
    encoded as those of `table`. Its splits are the parts. Needs `torchyard[huggingface]`.
    """

    path: str = Field(description="a folder that `save_to_disk` wrote, or a name on the hub")
    config: str | None = Field(None, description="which configuration of it, on the hub")
    revision: str | None = Field(None, description="commit, tag or branch, on the hub")
    image: str | None = Field(AUTO, description="column of the images; auto: the first; none: none")

    @field_validator("path")
    @classmethod
    def _saved_or_a_name(cls, path: str) -> str:
        folder = Path(path).expanduser()
        if not folder.is_dir() and path.startswith(("/", ".", "~")):
            raise ValueError(f"no such folder: {path}")
        if folder.is_dir() and not any((folder / name).is_file() for name in SAVED):
            raise ValueError(f"{folder} is no folder that `save_to_disk` wrote")
        return path

    @model_validator(mode="after")
    def _can_be_read(self) -> Self:
        spec = importlib.util.find_spec(LIBRARY)
        if spec is None or spec.origin is None:  # a folder of that name is no library
            raise ValueError(
                "needs Hugging Face's library: python -m pip install 'torchyard[huggingface]'"
            )
        return self

    def build(self, downloads: Path) -> RawData:
        """Read the rows; images are to be decoded later.

        Raises:
            UserError: there is no such data set, or what `image_table` and `table` refuse.
            UnreachableError: the hub does not answer.
        """
        import pandas as pd

        splits = self._loaded(downloads)
        features = next(iter(splits.values())).features
        if others := [name for name, split in splits.items() if {*split.features} != {*features}]:
            raise UserError(f"{self.path}: the columns of {', '.join(others)} differ from the rest")
        image = self._image_in(features)
        columns = self.columns_in([name for name in features if name != image])
        frames = []
        for name, split in splits.items():
            others = [each for each in features if each != image]
            frame = _decoded(split.select_columns(others).to_pandas(), features)
            frames.append(frame.assign(**{SPLIT: name}))
        frame = pd.concat(frames, ignore_index=True)
        if len(splits) > 1 and self.split is not None:
            columns["split"] = SPLIT
        rows = Rows.of(frame, columns, self)
        if image is None:
            names = [name for name in frame if name != SPLIT]
            return self.encoded(rows, frame[self.features_in(names, columns)], self.path)
        files = PackedFiles.of(_image_files(splits, image), downloads)
        return self.image_data(rows, files, self.path)

    def fingerprint(self) -> str:
        """Names, sizes and times of the files of a folder."""
        if self._folder is None:
            return ""
        return state_of(path for path in sorted(self._folder.rglob("*")) if path.is_file())

    @property
    def _folder(self) -> Path | None:
        folder = Path(self.path).expanduser()
        return folder if folder.is_dir() else None

    def _loaded(self, downloads: Path) -> dict[str, Any]:
        """The data set's splits by their names."""
        import datasets

        try:
            if self._folder:
                found = datasets.load_from_disk(str(self._folder))
            else:
                found = datasets.load_dataset(
                    self.path,
                    self.config,
                    revision=self.revision,
                    cache_dir=str(downloads / "huggingface"),
                )
        except ConnectionError as error:
            raise UnreachableError(
                f"{self.path}: Hugging Face's hub does not answer ({error}). A folder of that name "
                "there is none; one that `save_to_disk` wrote on another machine is read as "
                "dataset.path=FOLDER"
            ) from error
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path} cannot be read: {error}") from error
        return dict(found) if isinstance(found, dict) else {"train": found}

    def _image_in(self, features: dict[str, Any]) -> str | None:
        """The image column, if there is one."""
        images = [name for name, kind in features.items() if type(kind).__name__ == "Image"]
        if self.image in (None, AUTO):
            return None if self.image is None or not images else images[0]
        if self.image not in images:
            raise UserError(
                f"dataset.image: '{self.image}' is no column of images  "
                f"(has: {', '.join(images) or 'none'})"
            )
        return self.image


def _decoded(frame: Any, features: dict[str, Any]) -> Any:
    """The names of classes in place of their numbers; -1 is a label that is missing."""
    for name, kind in features.items():
        if type(kind).__name__ == "ClassLabel" and name in frame:
            names = dict(enumerate(kind.names))
            frame[name] = [names.get(number) for number in frame[name].tolist()]
    return frame


def _image_files(splits: dict[str, Any], column: str) -> Iterator[dict[str, Any] | None]:
    """The contents of the image files, as they are stored."""
    import datasets

    for split in splits.values():
        images = split.select_columns([column])
        for row in images.cast_column(column, datasets.Image(decode=False)):
            cell = row[column]
            if cell and not cell["bytes"] and cell["path"]:
                cell = cell | {"bytes": Path(cell["path"]).read_bytes()}
            yield cell


@hookimpl
def register_datasets(register: Register) -> None:
    """Registers `huggingface`."""
    register("huggingface", HuggingFace)
