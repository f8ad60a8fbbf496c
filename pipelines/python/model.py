"""The model of a run, for Python: it takes whatever holds samples."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from torchyard.core.errors import UserError
from torchyard.core.formatting import dimensions
from torchyard.core.tracking.registry.classifier import Classifier, ImageClassifier

if TYPE_CHECKING:
    import pandas as pd
    from PIL.Image import Image

# Without loss in PNG; the other modes of Pillow are in TIFF.
PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16")


class Model:
    """A model that was logged by a run.

    Attributes:
        name: of the run, or "NAME/3" of a registered version.
        classes: the names, in the order of the probabilities.
        shape: of one sample, (C, H, W) of images.
        dtype: of the samples: uint8 of images, float32, or int64 of token ids.
    """

    def __init__(self, classifier: Classifier) -> None:
        self._classifier = classifier
        self.name, self.classes = classifier.version, classifier.classes
        self.shape, self.dtype = classifier.shape, classifier.dtype

    @classmethod
    def find(cls, wanted: str) -> Model:
        """As `torchyard.load(wanted).model`; it is loaded when it first predicts."""
        return cls(Classifier.find(wanted))

    def predict(self, samples: Any) -> pd.DataFrame:
        """Classify samples: a row each with predicted, confidence and probabilities.

        Args:
            samples: one, or a sequence. Of images: paths, Pillow images, or uint8 arrays,
                (C, H, W) as the model takes them, or (H, W), (H, W, 3) of any size, which are
                scaled as files are. Of anything else: arrays of the model's shape.

        Returns:
            predicted: the class; confidence: its probability; probabilities: float32 of each
            class, in the order of `classes`. The index has the paths, or counts from 0.

        Raises:
            UserError: with every sample that cannot be read.
            RunError: the model cannot be loaded, or its weights are not those recorded.
        """
        import pandas as pd

        each, names = self._listed(samples)
        arrays, problems = [], []
        for sample, name in zip(each, names, strict=True):
            try:
                arrays.append(self._array(sample))
            except (OSError, ValueError) as error:
                problems.append(f"{name}: {getattr(error, 'strerror', None) or error}")
            except UserError as error:
                problems += error.problems
        if problems:
            raise UserError(problems)
        stacked = np.stack(arrays) if arrays else np.empty((0, *self.shape), self.dtype)
        shares = self._classifier.probabilities(stacked)
        columns = {
            "predicted": pd.Categorical.from_codes(
                shares.argmax(axis=1), pd.Index(self.classes, dtype=str)
            ),
            "confidence": shares.max(axis=1, initial=0),
            "probabilities": list(shares),
        }
        return pd.DataFrame(columns, pd.Index(names))

    def _listed(self, samples: Any) -> tuple[list[Any], list[Any]]:
        """The samples, and what each is called: its path, or its place."""
        single = _is_path(samples) or _is_picture(samples)
        if hasattr(samples, "ndim"):
            # An image of any size has two or three dimensions, several have four.
            images = isinstance(self._classifier, ImageClassifier)
            single = samples.ndim < 4 if images else samples.ndim == len(self.shape)
        listed = [samples] if single else list(samples)
        return listed, [str(each) if _is_path(each) else at for at, each in enumerate(listed)]

    def _array(self, sample: Any) -> npt.NDArray[Any]:
        """One sample as the model takes it.

        Raises:
            UserError, OSError, ValueError: it cannot be read, or is of another shape.
        """
        found = self._classifier
        if not isinstance(found, ImageClassifier):
            if _is_path(sample) or _is_picture(sample):
                raise UserError(f"{sample}: the model takes {found.kind}, not images")
            return found.sample(sample)
        if _is_path(sample):
            return found.read(Path(sample).expanduser())
        if _is_picture(sample):
            return found.decode(_encoded(sample))
        if getattr(sample, "dtype", None) != np.uint8 or sample.shape == self.shape:
            return found.sample(sample)
        return found.decode(_encoded(_picture(sample)))


def _is_path(sample: Any) -> bool:
    return isinstance(sample, str | os.PathLike)


def _is_picture(sample: Any) -> bool:
    return hasattr(sample, "getbands")  # Pillow's, which need not be imported to know


def _picture(array: npt.NDArray[np.uint8]) -> Image:
    """A picture of an array (H, W), (H, W, 3) or (H, W, 4).

    Raises:
        ValueError: it is none of these.
    """
    from PIL import Image

    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim != 2 and (array.ndim != 3 or array.shape[2] not in (3, 4)):
        raise ValueError(f"it is of {dimensions(array.shape)}, which is no image")
    return Image.fromarray(array)


def _encoded(picture: Image) -> bytes:
    """The file of a picture without loss, which is then read as every file is."""
    file = io.BytesIO()
    kind = "PNG" if picture.mode in PNG_MODES else "TIFF"
    picture.save(file, kind, compress_level=1, exif=picture.getexif())
    return file.getvalue()
