"""Classifying image files with a logged model.

MLflow is asked first and the files are read before torch, seconds of import, is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from torchyard.core.data.image_reading import READING, ImageReading
from torchyard.core.errors import RunError, UserError, suggestion
from torchyard.core.formatting import dimensions
from torchyard.core.tracking.lookup import find_run, logged_model_id
from torchyard.core.tracking.mlflow_format import DATA, LOADER
from torchyard.core.tracking.registry import champion_of, versions_of
from torchyard.core.tracking.store import current_store, open_existing, store_errors, tracking_uri

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from mlflow import MlflowClient
    from mlflow.models.model import ModelInfo

BATCH_BYTES = 16 * 2**20  # of float32


@dataclass(frozen=True)
class Guess:
    """One class and how probable the model finds it, 0 to 1."""

    name: str
    probability: float


@dataclass(frozen=True)
class ImageClassifier:
    """A logged model that classifies images.

    Attributes:
        uri: "models:/<id>".
        shape: (C, H, W) of one image, uint8.
        classes: the names, in the order of the outputs.
        reading: how the image files were read that it was trained on.
    """

    uri: str
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    reading: ImageReading = READING

    @classmethod
    def find(cls, wanted: str) -> ImageClassifier:
        """Find a model; it is not loaded yet.

        Args:
            wanted: a registered model's name, of which the champion is taken; NAME/3, a
                version of it; NAME@ALIAS; or a run, as `lookup.find_run` accepts it.

        Raises:
            UserError: there is no such thing, it has no model, or one that takes no images.
            RunError: the store is out of reach.
        """
        uri = tracking_uri()
        client = open_existing(uri)
        import mlflow

        with store_errors(uri), current_store(uri):
            address = model_address(client, wanted)
            info = mlflow.models.get_model_info(address)
        metadata = info.metadata or {}
        named = metadata.get("classes")
        if not _is_ours(info) or info.signature is None or not named:
            raise UserError(f"{wanted}: its model is not one that torchyard logged.")
        [spec] = info.signature.inputs.inputs
        shape = tuple(int(side) for side in spec.shape[1:])
        size = dimensions(shape)
        if len(shape) != 3 or spec.type != "uint8":
            kind = "token ids" if spec.type == "int64" else ("vectors", "signals")[len(shape) > 1]
            raise UserError(f"{wanted}: its model takes {kind} of {size}, not images.")
        if shape[0] not in (1, 3):
            raise UserError(f"{wanted}: its model takes {size}: neither grey nor RGB.")
        try:
            reading = ImageReading.model_validate(metadata.get("image_reading", {}))
        except ValidationError as error:
            raise UserError(f"{wanted}: its model is not one that torchyard logged.") from error
        return cls(address, shape, tuple(named), reading)

    def read(self, path: Path) -> npt.NDArray[np.uint8]:
        """Decode and scale an image file to C x H x W, as preparation does.

        Raises:
            UserError: it cannot be read.
        """
        from torchyard.core.data.image_file import decode_image

        try:
            return decode_image(path.read_bytes(), self.shape, reading=self.reading)
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: {getattr(error, 'strerror', error)}") from error

    def classify(self, images: npt.NDArray[np.uint8], top: int) -> list[list[Guess]]:
        """The `top` most probable classes of each image, the most probable first.

        Raises:
            RunError: the model cannot be loaded, or its output is not finite.
        """
        import mlflow
        import numpy as np

        from torchyard.core.data.predictions import Predictions

        with store_errors(tracking_uri()), current_store(tracking_uri()):
            model = mlflow.pyfunc.load_model(self.uri)
        rows = max(1, BATCH_BYTES // (4 * images[0].size))
        batches = [images[start : start + rows] for start in range(0, len(images), rows)]
        logits = np.concatenate([np.asarray(model.predict(batch)) for batch in batches])
        if not np.isfinite(logits).all():
            raise RunError("The model's output is NaN or infinite: its weights are not usable.")
        shares = Predictions(logits, np.zeros(len(logits), np.int64)).probabilities
        order = np.argsort(-shares, axis=1, kind="stable")[:, :top]
        return [
            [Guess(self.classes[index], float(row[index])) for index in best]
            for row, best in zip(shares, order, strict=True)
        ]


def _is_ours(info: ModelInfo) -> bool:
    """Whether loading it runs nothing that came with it: an MLmodel file can bring code."""
    torch, generic = (info.flavors.get(flavor, {}) for flavor in ("pytorch", "python_function"))
    return (
        torch.get("model_data") == DATA
        and generic.get("loader_module") == LOADER
        and not (torch.get("code") or generic.get("code"))
    )


def model_address(client: MlflowClient, wanted: str) -> str:
    """The `models:/…` of a model that is wanted, as `ImageClassifier.find` takes it."""
    registered = [found.name for found in client.search_registered_models()]
    name, slash, number = wanted.rpartition("/")
    if wanted in registered:
        version = champion_of(client, wanted)
        if version is None:
            raise UserError(f"{wanted}: it has no champion; name a version: {wanted}/1")
    elif slash and name in registered:
        versions = {str(found.version): found for found in versions_of(client, name)}
        if number not in versions:
            known = sorted(versions, key=int)
            raise UserError(f"{wanted}: no such version.{suggestion(number, known)}")
        version = versions[number]
    else:
        try:
            return f"models:/{logged_model_id(find_run(client, wanted))}"
        except UserError as error:
            models = f"  (registered models: {', '.join(registered)})" if registered else ""
            raise UserError(f"{error}{models}") from error
    return f"models:/{version.name}/{version.version}"
