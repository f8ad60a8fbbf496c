"""The data sets `mnist` and `fashion_mnist`."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torchyard import ArraySplit, RawData, Register, SampleSpec, UserError, hookimpl
from torchyard.plugins.datasets.downloads import fetch
from torchyard.plugins.datasets.published import PublishedDataset

if TYPE_CHECKING:
    import numpy.typing as npt


class Mnist(PublishedDataset):
    """A data set in MNIST's format: 70,000 grey images of 28x28 in four files."""

    mirrors: ClassVar[tuple[str, ...]]
    classes: ClassVar[tuple[str, ...]]
    checksums: ClassVar[tuple[str, ...]]  # md5 of the compressed files
    files = (
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    )

    def build(self, downloads: Path) -> RawData:
        """Read the four files.

        Raises:
            UserError: no connection, a wrong checksum, or a damaged file.
        """
        if self.path is not None:
            source, paths = str(self.path), self._unpacked(("", ".gz"))
        else:
            bases = [self.mirror.rstrip("/") + "/"] if self.mirror else list(self.mirrors)
            source = bases[0]
            paths = {
                name: fetch(
                    downloads / self.dataset / f"{name}.gz",
                    [f"{base}{name}.gz" for base in bases],
                    checksum,
                )
                for name, checksum in zip(self.files, self.checksums, strict=True)
            }
        train, train_labels, test, test_labels = (read_idx(paths[name]) for name in self.files)
        return RawData(
            self.classes,
            ArraySplit(train[:, None], train_labels),
            ArraySplit(test[:, None], test_labels),
            source,
        )

    def describe(self) -> SampleSpec:
        """One channel of 28x28, ten classes."""
        return SampleSpec((1, 28, 28), len(self.classes))


class MNIST(Mnist):
    """MNIST: 70,000 handwritten digits, grey, 28x28 (LeCun, Cortes and Burges, 1998)."""

    dataset = "mnist"
    folders = ("MNIST/raw", "raw")
    mirrors = (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "http://yann.lecun.com/exdb/mnist/",
    )
    classes = tuple("0123456789")
    checksums = (
        "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "d53e105ee54ea40749a09fcbcd1e9432",
        "9fb629c4189551a2d022fa330f9573f3",
        "ec29112dd5afa0611ce80d1b7f02629c",
    )


class FashionMNIST(Mnist):
    """Fashion-MNIST: 70,000 pieces of clothing, grey, 28x28 (Xiao, Rasul, Vollgraf, 2017)."""

    dataset = "fashion_mnist"
    folders = ("FashionMNIST/raw", "raw")
    mirrors = ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",)
    classes = (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    )
    checksums = (
        "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "25c81989df183df01b3e8a0aad5dffbe",
        "bef4ecab320f06d8554ea6380940ec79",
        "bb300cfdad3c16e7a12a480ee83cd310",
    )


def read_idx(path: Path) -> npt.NDArray[Any]:
    """Read an IDX file of unsigned bytes, gzipped or not.

    The format: two zero bytes, the type (8: unsigned byte), the number of dimensions, each
    dimension as a big-endian 32-bit number, the data (Y. LeCun, "The MNIST Database", "The IDX
    file format").

    Raises:
        UserError: the file is damaged, cut short, or of another format.
    """
    import numpy as np

    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(f"{path} is damaged or cut short: {error}") from error
    if data[:3] != b"\0\0\x08" or len(data) < 4 + 4 * data[3]:
        raise UserError(f"{path} is not an IDX file of unsigned bytes")
    start = 4 + 4 * data[3]
    shape = np.frombuffer(data[4:start], ">u4").tolist()
    if len(data) - start != np.prod(shape, dtype=np.int64):
        raise UserError(f"{path} is damaged or cut short: {len(data)} bytes for {shape}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


@hookimpl
def register_datasets(register: Register) -> None:
    """Registers `mnist` and `fashion_mnist`."""
    register(MNIST.dataset, MNIST)
    register(FashionMNIST.dataset, FashionMNIST)
