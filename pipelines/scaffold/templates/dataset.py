"""The data set `new_thing`: bright squares on noise, generated."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, PositiveInt

from torchyard import ArraySplit, DatasetParams, RawData, Register, SampleSpec, hookimpl

CLASSES = ["top left", "top right", "bottom left", "bottom right"]


class NewThing(DatasetParams):
    """Grey images of 16x16 with a bright square in one corner; the class is which."""

    length: PositiveInt = Field(400, ge=4, description="training samples")
    test_length: PositiveInt = Field(100, ge=4, description="test samples")
    seed: int = Field(0, ge=0, description="of the noise")

    def build(self, downloads: Path) -> RawData:
        """Draw uint8 length x 1 x 16 x 16 and test_length x 1 x 16 x 16.

        Other samples are float32 vectors N x D, signals N x C x L, or integers N x L: token ids.
        """
        import numpy as np  # here, so that `torchyard plugins` stays quick

        random = np.random.default_rng(self.seed)

        def split(count: int) -> ArraySplit:
            labels = np.arange(count) % len(CLASSES)
            images = random.integers(0, 128, (count, 1, 16, 16), dtype=np.uint8)
            for image, label in zip(images, labels, strict=True):
                row, column = 8 * (label // 2), 8 * (label % 2)
                image[0, row : row + 8, column : column + 8] += 100
            return ArraySplit(images, labels)

        return RawData(
            classes=CLASSES,
            train=split(self.length),
            test=split(self.test_length),
            source=f"numpy.random.default_rng({self.seed})",
        )

    def describe(self) -> SampleSpec:
        """Shape and classes, so that a model that does not fit is refused before `build`.

        Of token ids also the type: SampleSpec((200,), 2, "int64").
        """
        return SampleSpec((1, 16, 16), len(CLASSES))


@hookimpl
def register_datasets(register: Register) -> None:
    """Registers `new_thing`."""
    register("new_thing", NewThing)
