"""The data set `random_vectors`: normal vectors and a rule to learn, made on the spot."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, PositiveInt

from torchyard import ArraySplit, DatasetParams, RawData, Register, SampleSpec, hookimpl

if TYPE_CHECKING:
    import numpy.typing as npt


class RandomVectors(DatasetParams):
    """Normal random vectors, each of the class whose direction it points along most.

    The RandomDataset(5, 100) of the 60-minute blitz's page on data parallelism, with labels: the
    directions are random too, and a linear model can find them.
    https://docs.pytorch.org/tutorials/beginner/blitz/data_parallel_tutorial.html
    """

    size: int = Field(5, ge=2, description="components of a vector")
    length: PositiveInt = Field(100, description="training samples")
    test_length: PositiveInt = Field(20, description="test samples")
    num_classes: int = Field(2, ge=2, description="directions")
    seed: int = Field(0, ge=0, description="which vectors and directions those are")

    def build(self, downloads: Path) -> RawData:
        """Draw float32 length x size and test_length x size."""
        import numpy as np

        # A stream each: more training samples leave directions and test samples as they are.
        directions, train, test = (
            np.random.default_rng([self.seed, stream]) for stream in range(3)
        )
        # Of length 1, so that no class outdoes the others by its length.
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
        """One vector, and the number of directions."""
        return SampleSpec((self.size,), self.num_classes)


@hookimpl
def register_datasets(register: Register) -> None:
    """Registers `random_vectors`."""
    register("random_vectors", RandomVectors)
