"""The data set `digits`: handwritten digits from scikit-learn, no download."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from torchyard import (
    ArraySplit,
    DatasetParams,
    RawData,
    Register,
    SampleSpec,
    hookimpl,
    stratified_split,
)

if TYPE_CHECKING:
    import numpy.typing as npt

OWN_SIZE = 8
TABLE = "datasets/data/digits.csv.gz"  # in scikit-learn


class Digits(DatasetParams):
    """1,797 handwritten digits of 8x8 grey pixels, from scikit-learn (no download).

    The test part of the UCI "Optical Recognition of Handwritten Digits" data set (E. Alpaydin
    and C. Kaynak, 1998).
    """

    image_size: int = Field(
        32, ge=OWN_SIZE, le=1024, description="height and width to scale to, bilinear"
    )
    test_fraction: float = Field(0.2, gt=0, lt=1, description="fraction of each digit for testing")
    seed: int = Field(0, ge=0, description="seed of the random choice of test images")

    def build(self, downloads: Path) -> RawData:
        """Scale the images to uint8 N x 1 x image_size x image_size."""
        import numpy as np

        table = _table()
        images = table[:, :-1].reshape(-1, OWN_SIZE, OWN_SIZE)  # 0 to 16
        labels = table[:, -1].astype(np.int64)
        scale = _bilinear(OWN_SIZE, self.image_size)
        pixels = np.rint(scale @ images @ scale.T * (255 / 16)).astype(np.uint8)[:, None]
        rest, part = stratified_split(labels, self.test_fraction, self.seed)
        return RawData(
            classes=[str(digit) for digit in range(10)],
            train=ArraySplit(pixels[rest], labels[rest]),
            test=ArraySplit(pixels[part], labels[part]),
            source="sklearn.datasets.load_digits",
        )

    def describe(self) -> SampleSpec:
        """One grey channel, ten classes."""
        return SampleSpec((1, self.image_size, self.image_size), 10)


def _table() -> npt.NDArray[Any]:
    """1,797 x 65: 64 pixels and the label.

    Read directly from the file that `load_digits` reads, where it is at its usual path: importing
    `sklearn.datasets` takes seconds.
    """
    import numpy as np

    spec = importlib.util.find_spec("sklearn")
    file = Path(spec.origin).parent / TABLE if spec and spec.origin else None
    if file and file.is_file():
        return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits

    digits = load_digits()
    return np.column_stack([digits.data, digits.target])


def _bilinear(size: int, target: int) -> npt.NDArray[Any]:
    """target x size: the matrix that scales a row of pixels as `torch.nn.functional.interpolate`.

    Pixel centres are at halves (align_corners=False); beyond the outer ones, values are constant.
    """
    import numpy as np

    centres = np.clip((np.arange(target) + 0.5) * size / target - 0.5, 0, size - 1)
    weights: npt.NDArray[Any] = np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(size)))
    return weights


@hookimpl
def register_datasets(register: Register) -> None:
    """Registers `digits`."""
    register("digits", Digits)
