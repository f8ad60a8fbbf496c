"""The data set `random_vectors`: normal random vectors in classes that a linear model learns."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, PositiveInt

from torchyard import ArraySplit, DatasetParams, RawData, Register, SampleSpec, hookimpl

if TYPE_CHECKING:
    import numpy.typing as npt


class RandomVectors(DatasetParams):
    """Normal random vectors; the class is the direction that a vector is nearest to.

    The RandomDataset(5, 100) of the 60-minute blitz's page on data parallelism, with labels. The
    directions are random, too, and a linear model can learn them.
    https://docs.pytorch.org/tutorials/beginner/blitz/data_parallel_tutorial.html
    """

    size: int = Field(5, ge=2, description="components of a vector")
    length: PositiveInt = Field(100, description="training samples")
    test_length: PositiveInt = Field(20, description="test samples")
    num_classes: int = Field(2, ge=2, description="number of directions")
    seed: int = Field(0, ge=0, description="seed of the vectors and directions")

    def build(self, downloads: Path) -> RawData:
        """Draw training and test samples, float32 length x size and test_length x size."""
        import numpy as np

        # A generator each, so that more training samples do not change the others.
        directions, train, test = (
            np.random.default_rng([self.seed, stream]) for stream in range(3)
        )
        # Of length 1, or a class with a longer direction would win more often.
        rule = directions.standard_normal((self.num_classes, self.size))
        rule /= np.linalg.norm(rule, axis=1, keepdims=True)

        def split(generator: np.random.Generator, count: int) -> ArraySplit:
            vectors: npt.NDArray[Any] = generator.standard_normal(
                (count, self.size), dtype=np.float32
            )
            return ArraySplit(vectors, (vectors @ rule.T).argmax(axis=1))

        return RawData(
            classes=[f"direction {index}" for index in range(self.num_classes)],
            train=split(train, self.length),
            test=split(test, self.test_length),
            source=f"numpy.random.default_rng({self.seed})",
        )

    def describe(self) -> SampleSpec:
        """One vector of `size`, `num_classes` classes."""
        return SampleSpec((self.size,), self.num_classes)


@hookimpl
def register_datasets(register: Register) -> None:
    """Registers `random_vectors`."""
    register("random_vectors", RandomVectors)
