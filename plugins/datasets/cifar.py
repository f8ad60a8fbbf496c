"""The data sets `cifar10` and `cifar100`."""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

from torchyard import ArraySplit, RawData, Register, SampleSpec, UserError, hookimpl
from torchyard.plugins.datasets.batches import integers, read_batch
from torchyard.plugins.datasets.downloads import checksum_of, fetch
from torchyard.plugins.datasets.published import Checksum, PublishedDataset


class Cifar(PublishedDataset):
    """CIFAR: 60,000 colour images of 32x32.

    A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images" (2009). The file format:
    https://www.cs.toronto.edu/~kriz/cifar.html, "Dataset layout, Python".
    """

    checksum: Checksum

    url: ClassVar[str]
    archive: ClassVar[str]
    meta: ClassVar[str]
    names_key: ClassVar[str]
    labels_key: ClassVar[str]
    tests: ClassVar[tuple[str, ...]]  # those of the files with test images
    num_classes: ClassVar[int]

    def build(self, downloads: Path) -> RawData:
        """Read the batches directly from the archive.

        Raises:
            UserError: no connection, a wrong checksum, a damaged archive, or other contents.
        """
        import numpy as np

        source, members = self._members(downloads)
        batches = {name: read_batch(data, f"{name} in {source}") for name, data in members}
        missing = [name for name in self.files if name not in batches]
        if missing:
            raise UserError(f"{source} is not {self.dataset}: it lacks {', '.join(missing)}")

        def split(names: Sequence[str]) -> ArraySplit:
            try:
                pixels = np.concatenate([integers(batches[name]["data"]) for name in names])
                labels = np.concatenate(
                    [integers(batches[name][self.labels_key]) for name in names]
                )
                return ArraySplit(pixels.reshape(-1, 3, 32, 32), labels)
            except (KeyError, TypeError, ValueError, OverflowError) as error:
                raise UserError(
                    f"{source} is not in {self.dataset}'s format: {', '.join(names)} should hold "
                    f"'data' and '{self.labels_key}' ({type(error).__name__}: {error})"
                ) from error

        try:
            classes = batches[self.meta][self.names_key]
        except KeyError:
            classes = None
        if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
            raise UserError(f"{source} has no '{self.names_key}' in {self.meta}")
        train = [name for name in self.files if name not in (*self.tests, self.meta)]
        return RawData(classes, split(train), split(self.tests), source)

    def describe(self) -> SampleSpec:
        """Three channels of 32x32."""
        return SampleSpec((3, 32, 32), self.num_classes)

    def _members(self, downloads: Path) -> tuple[str, Iterator[tuple[str, bytes]]]:
        """The address or path of the batches, and (name, bytes) of each."""
        if self.path is None:
            address = self._address()
            archive = fetch(downloads / self.dataset / self.archive, [address], self.checksum)
            return address, self._archived(archive)
        archive = self.path / self.archive if self.path.is_dir() else self.path
        if not archive.is_file():
            unpacked = self._unpacked()
            return str(self.path), ((name, file.read_bytes()) for name, file in unpacked.items())
        actual = checksum_of(archive, self.checksum)
        if actual != self.checksum:
            raise UserError(
                f"{archive} is damaged, cut short or another file: its checksum is {actual}, not "
                f"{self.checksum} (set dataset.checksum if the file is right)"
            )
        return str(archive), self._archived(archive)

    def _address(self) -> str:
        if self.mirror is None:
            return self.url
        if urlsplit(self.mirror).path.endswith((".tar.gz", ".tgz")):
            return self.mirror
        return f"{self.mirror.rstrip('/')}/{self.archive}"

    def _archived(self, archive: Path) -> Iterator[tuple[str, bytes]]:
        # As a stream, so that it is decompressed once; nothing is unpacked to the disk.
        try:
            with tarfile.open(archive, "r|gz") as stream:
                for member in stream:
                    name = member.name.rpartition("/")[2]
                    if name in self.files and (file := stream.extractfile(member)):
                        yield name, file.read()
        except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(f"{archive} is damaged or cut short: {error}") from error


class CIFAR10(Cifar):
    """CIFAR-10: 60,000 colour images of 32x32 in 10 classes (A. Krizhevsky, 2009)."""

    checksum: Checksum = "c58f30108f718f92721af3b95e74349a"

    dataset = "cifar10"
    url = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
    archive = "cifar-10-python.tar.gz"
    folders = ("cifar-10-batches-py",)
    files = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta")
    tests = ("test_batch",)
    meta = "batches.meta"
    names_key = "label_names"
    labels_key = "labels"
    num_classes = 10


class CIFAR100(Cifar):
    """CIFAR-100: 60,000 colour images of 32x32 in 100 fine classes (A. Krizhevsky, 2009)."""

    checksum: Checksum = "eb9058c3a382ffc7106e4002c42a8d85"

    dataset = "cifar100"
    url = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"
    archive = "cifar-100-python.tar.gz"
    folders = ("cifar-100-python",)
    files = ("train", "test", "meta")
    tests = ("test",)
    meta = "meta"
    names_key = "fine_label_names"
    labels_key = "fine_labels"
    num_classes = 100


@hookimpl
def register_datasets(register: Register) -> None:
    """Registers `cifar10` and `cifar100`."""
    register(CIFAR10.dataset, CIFAR10)
    register(CIFAR100.dataset, CIFAR100)
