"""Classifying with a logged model, image files among others.

MLflow is asked first and the files are read before torch, seconds of import, is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from torchyard.core.data.images.reading import READING, ImageReading
from torchyard.core.errors import RunError, UserError
from torchyard.core.formatting import dimensions
from torchyard.core.tracking.location.errors import store_errors
from torchyard.core.tracking.mlflow_format import DATA, LOADER
from torchyard.core.tracking.queries.lookup import find_run
from torchyard.core.tracking.queries.recorded import logged_model_id, recorded_confidence
from torchyard.core.tracking.queries.runs import DIGEST
from torchyard.core.tracking.registry.versions import registered_version
from torchyard.core.tracking.store import current_store, if_there, open_existing, tracking_uri

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.models.model import ModelInfo
    from mlflow.pyfunc import PyFuncModel

    from torchyard.core.evaluation.conformal import Confidence

BATCH_BYTES = 16 * 2**20  # of float32


@dataclass(frozen=True)
class Guess:
    """One class and how probable the model finds it, 0 to 1."""

    name: str
    probability: float


@dataclass(frozen=True)
class Classifier:
    """A logged model.

    Attributes:
        uri: "models:/<id>", or that of a registered version.
        shape: of one sample.
        classes: the names, in the order of the outputs.
        reading: how the image files were read that it was trained on.
        dtype: of the samples: uint8 for images, float32, or int64 for token ids.
        digest: sha256 of the weights, as the run recorded it; None for a run that did not.
        version: "NAME/3" of a registered one, else the run's name.
        weights: sha256 of the weights as they were exported; older models have none.
        run: that logged it; None where that is deleted.
    """

    uri: str
    shape: tuple[int, ...]
    classes: tuple[str, ...]
    reading: ImageReading = READING
    dtype: str = "uint8"
    digest: str | None = None
    version: str = ""
    weights: str | None = None
    run: Run | None = None

    @classmethod
    def find(cls, wanted: str) -> Classifier:
        """Find a model, an `ImageClassifier` if it takes images; it is not loaded yet.

        Args:
            wanted: a registered model's name, of which the champion is taken; NAME/3, a
                version of it; NAME@ALIAS; or a run, as `lookup.find_run` accepts it.

        Raises:
            UserError: there is no such thing, or it has no model.
            RunError: the store is out of reach.
        """
        uri = tracking_uri()
        client = open_existing(uri)
        import mlflow

        with store_errors(uri), current_store(uri):
            address, version, run = found_model(client, wanted)
            info = mlflow.models.get_model_info(address)
        metadata = info.metadata or {}
        named = metadata.get("classes")
        not_ours = UserError(f"{wanted}: its model is not one that torchyard logged.")
        if not _is_ours(info) or info.signature is None or not named:
            raise not_ours
        [spec] = info.signature.inputs.inputs
        shape = tuple(int(side) for side in spec.shape[1:])
        try:
            reading = ImageReading.model_validate(metadata.get("image_reading", {}))
        except ValidationError as error:
            raise not_ours from error
        digest = run.data.tags.get(DIGEST) if run else None
        images = spec.type == "uint8" and len(shape) == 3 and shape[0] in (1, 3)
        made = ImageClassifier if images else Classifier
        return made(
            *(address, shape, tuple(named), reading, spec.type.name, digest, version),
            metadata.get("weights"),
            run,
        )

    @property
    def kind(self) -> str:
        """What its samples are: "images", "vectors", "signals" or "token ids"."""
        if self.dtype == "uint8" and len(self.shape) == 3:
            return "images"
        return "token ids" if self.dtype == "int64" else ("vectors", "signals")[len(self.shape) > 1]

    def sample(self, values: npt.ArrayLike) -> npt.NDArray[Any]:
        """One sample as the model takes it, from numbers.

        Raises:
            ValueError: they are of another shape or type, or not finite.
        """
        import numpy as np

        integers = self.dtype != "float32"
        try:
            array = np.asarray(values)
        except (ValueError, OverflowError):  # lists of different lengths
            array = np.empty(0, object)
        if array.dtype.kind not in ("iu" if integers else "iuf"):
            raise ValueError(f"it is not an array of {'integers' if integers else 'numbers'}")
        if array.shape != self.shape:
            size = f"it is of {dimensions(array.shape)}" if array.ndim else "it is one number"
            raise ValueError(f"{size}, and the model takes {dimensions(self.shape)}")
        with np.errstate(over="ignore"):
            taken = array.astype(self.dtype)
        if not (np.array_equal(taken, array) if integers else np.isfinite(taken).all()):
            raise ValueError(f"it has values that are not {self.dtype}")
        return taken

    @cached_property
    def model(self) -> PyFuncModel:
        """The model as MLflow loads it, which imports torch.

        Raises:
            RunError: it cannot be loaded, or its weights are not those that were exported.
        """
        import mlflow

        with store_errors(tracking_uri()), current_store(tracking_uri()):
            model: PyFuncModel = mlflow.pyfunc.load_model(self.uri)
        if self.weights is not None:
            from torchyard.core.training.network import weights_digest

            network = model.get_raw_model()  # type: ignore[no-untyped-call]
            if weights_digest(network, by_name=True) != self.weights:
                raise RunError(
                    f"{self.version}: its weights are not those that were exported: the file of "
                    "the model was changed, or is damaged."
                )
        return model

    def probabilities(self, samples: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """The probability of each class, N x classes.

        Args:
            samples: N x shape, of `dtype`.

        Raises:
            RunError: the model cannot be loaded, or its output is not finite.
        """
        import numpy as np

        from torchyard.core.data.predictions import Predictions

        if not len(samples):
            return np.empty((0, len(self.classes)), np.float32)
        rows = max(1, BATCH_BYTES // (4 * samples[0].size))
        batches = [samples[start : start + rows] for start in range(0, len(samples), rows)]
        logits = np.concatenate([np.asarray(self.model.predict(batch)) for batch in batches])
        if not np.isfinite(logits).all():
            raise RunError("The model's output is NaN or infinite: its weights are not usable.")
        return Predictions(logits, np.zeros(len(logits), np.int64)).probabilities

    def classify(
        self, samples: npt.NDArray[Any], top: int, coverage: float | None = None
    ) -> list[list[Guess]]:
        """The `top` most probable classes of each sample, the most probable first.

        Args:
            samples: N x shape, of `dtype`.
            top: how many.
            coverage: between 0 and 1: instead as many as it takes for the true one to be among
                them with that probability.

        Raises:
            UserError: a coverage is asked for, and `confidence` raises it.
            RunError: as `probabilities` does.
        """
        import numpy as np

        shares = self.probabilities(samples)
        counts = np.full(len(shares), top)
        if coverage is not None:
            counts = self.confidence.sets(shares, coverage).sum(axis=1)
        order = np.argsort(-shares, axis=1, kind="stable")
        return [
            [Guess(self.classes[index], float(row[index])) for index in best[:count]]
            for row, best, count in zip(shares, order, counts, strict=True)
        ]

    @cached_property
    def confidence(self) -> Confidence:
        """What the validation split of its run said of the probabilities.

        Raises:
            UserError: there was none, or the run is deleted.
            RunError: the store is out of reach, or the file is damaged.
        """
        if self.run is None:
            raise UserError(f"{self.version}: the run that it is from is deleted")
        uri = tracking_uri()
        client = open_existing(uri)
        with store_errors(uri):
            return recorded_confidence(client, self.run)


class ImageClassifier(Classifier):
    """A logged model that classifies images: uint8 C x H x W, grey or RGB."""

    @classmethod
    def find(cls, wanted: str) -> ImageClassifier:
        """`Classifier.find` a model of images.

        Raises:
            UserError: also where it takes something else.
        """
        found = super().find(wanted)
        if isinstance(found, ImageClassifier):
            return found
        size = dimensions(found.shape)
        if found.kind == "images":
            raise UserError(f"{wanted}: its model takes {size}: neither grey nor RGB.")
        raise UserError(f"{wanted}: its model takes {found.kind} of {size}, not images.")

    def read(self, path: Path) -> npt.NDArray[np.uint8]:
        """Decode and scale an image file to C x H x W, as preparation does.

        Raises:
            UserError: it cannot be read.
        """
        try:
            return self.decode(path.read_bytes())
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: {getattr(error, 'strerror', error)}") from error

    def decode(self, data: bytes) -> npt.NDArray[np.uint8]:
        """`read` the contents of an image file.

        Raises:
            ValueError: they cannot be decoded.
        """
        from torchyard.core.data.images.decoding import decode_image

        channels, height, width = self.shape
        return decode_image(data, (channels, height, width), reading=self.reading)


def _is_ours(info: ModelInfo) -> bool:
    """Whether loading it runs nothing that came with it: an MLmodel file can bring code."""
    torch, generic = (info.flavors.get(flavor, {}) for flavor in ("pytorch", "python_function"))
    return (
        torch.get("model_data") == DATA
        and generic.get("loader_module") == LOADER
        and not (torch.get("code") or generic.get("code"))
    )


def found_model(client: MlflowClient, wanted: str) -> tuple[str, str, Run | None]:
    """The address of a model, how to name it, and the run that it is from, if that is there."""
    version = registered_version(client, wanted)
    if version is None:
        try:
            named = find_run(client, wanted)
            return f"models:/{logged_model_id(named)}", str(named.info.run_name), named
        except UserError as error:
            registered = [found.name for found in client.search_registered_models()]
            models = f"  (registered models: {', '.join(registered)})" if registered else ""
            raise UserError(f"{error}{models}") from error
    run = if_there(client.get_run, str(version.run_id)) if version.run_id else None
    name = f"{version.name}/{version.version}"
    return f"models:/{name}", name, run
