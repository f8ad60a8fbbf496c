"""The data sets `cifar10`, `cifar100`, `mnist` and `fashion_mnist`, from their publishers.

Addresses and checksums are torchvision's, written out here: importing torchvision for them
takes seconds. A test holds the two equal.
"""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from core import ArraySplit, DatasetParams, RawData, Register, SampleSpec, UserError, hookimpl
from plugins.downloads import checksum_of, fetch
from plugins.existing_path import ExistingPath, state_of

if TYPE_CHECKING:
    import numpy.typing as npt


def web_address(address: str) -> str:
    """Validator: http, https or file.

    Raises:
        ValueError: it is not.
    """
    if urlsplit(address).scheme not in ("http", "https", "file"):
        raise ValueError(f"'{address}' does not begin with http://, https:// or file://")
    return address


Checksum = Annotated[
    str,
    Field(pattern="^([0-9a-f]{32}|[0-9a-f]{64})$", description="md5 or sha256 of the archive"),
]


class PublishedDataset(DatasetParams):
    """What the published data sets share: where to take them from."""

    mirror: Annotated[str, AfterValidator(web_address)] | None = Field(
        None, description="address to download from instead: the folder's, or the archive's own"
    )
    path: ExistingPath | None = Field(
        None, description="folder with the archive or the unpacked files; nothing is downloaded"
    )

    dataset: ClassVar[str]  # the name it is registered under
    folders: ClassVar[tuple[str, ...]]  # where the unpacked files may lie, in `path`
    files: ClassVar[tuple[str, ...]]  # unpacked

    def fingerprint(self) -> str:
        """State of the files in `path`; a download is held to its checksum."""
        if self.path is None:
            return ""
        if self.path.is_file():
            return state_of([self.path])
        places = [self.path / folder for folder in ("", *self.folders)]
        return state_of(
            file
            for place in places
            if place.is_dir()
            for file in sorted(place.iterdir())
            if file.is_file()
        )

    def _unpacked(self, endings: tuple[str, ...] = ("",)) -> dict[str, Path]:
        """The unpacked files in `path`, by name.

        Raises:
            UserError: some are missing.
        """
        assert self.path is not None
        best: dict[str, Path] = {}
        for folder in ("", *self.folders):
            found = {
                name: place
                for name in self.files
                for ending in reversed(endings)
                if (place := self.path / folder / (name + ending)).is_file()
            }
            best = max(best, found, key=len)
        missing = [name for name in self.files if name not in best]
        if missing:
            raise UserError(
                f"{self.path} holds neither {self.dataset}'s archive nor all of its files; "
                f"missing: {', '.join(missing)}"
            )
        return best


class Cifar(PublishedDataset):
    """CIFAR: 60,000 colour images of 32x32.

    A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images" (2009); the format is
    on https://www.cs.toronto.edu/~kriz/cifar.html, "Dataset layout, Python".
    """

    checksum: Checksum

    url: ClassVar[str]
    archive: ClassVar[str]
    meta: ClassVar[str]
    names_key: ClassVar[str]
    labels_key: ClassVar[str]
    tests: ClassVar[tuple[str, ...]]  # which of the files hold the test part
    num_classes: ClassVar[int]

    def build(self, downloads: Path) -> RawData:
        """Read the batches straight from the archive.

        Raises:
            UserError: no connection, a wrong checksum, a damaged archive, or contents that
                are not what they should be.
        """
        import numpy as np

        source, members = self._members(downloads)
        batches = {}
        for name, data in members:
            batches[name] = _unpickle(data, f"{name} in {source}")
        missing = [name for name in self.files if name not in batches]
        if missing:
            raise UserError(f"{source} is not {self.dataset}: it lacks {', '.join(missing)}")

        def split(names: Sequence[str]) -> ArraySplit:
            try:
                pixels = np.concatenate([batches[name]["data"] for name in names])
                labels = np.concatenate([batches[name][self.labels_key] for name in names])
                return ArraySplit(pixels.reshape(-1, 3, 32, 32), labels)
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(
                    f"{source} is not in {self.dataset}'s format: {', '.join(names)} should hold "
                    f"'data' and '{self.labels_key}' ({type(error).__name__}: {error})"
                ) from error

        try:
            classes = [str(name) for name in batches[self.meta][self.names_key]]
        except (KeyError, TypeError) as error:
            raise UserError(f"{source} has no '{self.names_key}' in {self.meta}") from error
        train = [name for name in self.files if name not in (*self.tests, self.meta)]
        return RawData(classes, split(train), split(self.tests), source)

    def describe(self) -> SampleSpec:
        """Three channels of 32x32."""
        return SampleSpec((3, 32, 32), self.num_classes)

    def _members(self, downloads: Path) -> tuple[str, Iterator[tuple[str, bytes]]]:
        """Where the batches come from, and (name, bytes) of each."""
        if self.path is None:
            address = self._address()
            archive = fetch(downloads / self.dataset / self.archive, [address], self.checksum)
            return address, self._archived(archive)
        archive = self.path / self.archive if self.path.is_dir() else self.path
        if not archive.is_file():
            unpacked = self._unpacked()
            return str(self.path), ((name, file.read_bytes()) for name, file in unpacked.items())
        found = checksum_of(archive, self.checksum)
        if found != self.checksum:
            raise UserError(
                f"{archive} is damaged, cut short or another file: its checksum is {found}, not "
                f"{self.checksum} (dataset.checksum says which is right)"
            )
        return str(archive), self._archived(archive)

    def _address(self) -> str:
        if self.mirror is None:
            return self.url
        if urlsplit(self.mirror).path.endswith((".tar.gz", ".tgz")):
            return self.mirror
        return f"{self.mirror.rstrip('/')}/{self.archive}"

    def _archived(self, archive: Path) -> Iterator[tuple[str, bytes]]:
        # A stream, so the archive is decompressed once; nothing is unpacked to the disk.
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


class ArrayUnpickler(pickle.Unpickler):
    """Reads pickles of plain values and numpy arrays; anything else is refused.

    A pickle is a program; these files come from the network.
    """

    def find_class(self, module: str, name: str) -> Any:
        """Only what rebuilds an array.

        Raises:
            UnpicklingError: something else is named.
        """
        import codecs

        import numpy as np

        # numpy moved its module in version 2; the function an array names is the same.
        reconstruct = np.empty(0).__reduce__()[0]
        allowed = {
            ("numpy.core.multiarray", "_reconstruct"): reconstruct,
            ("numpy._core.multiarray", "_reconstruct"): reconstruct,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("_codecs", "encode"): codecs.encode,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no array needs")
        return allowed[module, name]


def _unpickle(data: bytes, what: str) -> Any:
    """A batch of CIFAR, a dictionary.

    Raises:
        UserError: it is damaged, or holds what has no place in it.
    """
    try:
        # The files are of Python 2, whose byte strings "latin1" keeps as they are.
        batch = ArrayUnpickler(io.BytesIO(data), encoding="latin1").load()
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise UserError(f"{what} is refused or damaged: {error}") from error
    if not isinstance(batch, dict):
        raise UserError(f"{what} is not a dictionary")
    return batch


class Mnist(PublishedDataset):
    """MNIST's format: 70,000 grey images of 28x28 in four files."""

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
        UserError: the file is damaged, cut short, or something else.
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
    """Registers the four."""
    for params in (CIFAR10, CIFAR100, MNIST, FashionMNIST):
        register(params.dataset, params)
