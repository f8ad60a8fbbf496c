"""The model that a run logged, given image files.

MLflow is asked first and the files are read before torch, seconds of import, is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import RunError, UserError
from core.runs import find_run
from core.store import open_existing, store_errors, tracking_uri

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from mlflow import MlflowClient

BATCH_BYTES = 16 * 2**20  # of float32


@dataclass(frozen=True)
class Guess:
    """One class and how probable the model finds it, 0 to 1."""

    name: str
    probability: float


@dataclass(frozen=True)
class ServedModel:
    """A logged model of images.

    Attributes:
        uri: "models:/<id>".
        shape: (C, H, W) of one image, uint8.
        classes: the names, in the order of the outputs.
    """

    uri: str
    shape: tuple[int, int, int]
    classes: tuple[str, ...]

    @classmethod
    def of_run(cls, run_id: str) -> ServedModel:
        """Find the model of a run (its id, its name, or "latest"); it is not loaded yet.

        Raises:
            UserError: there is no such run, it has no model, or one that takes no images.
            RunError: the store is out of reach.
        """
        uri = tracking_uri()
        client = open_existing(uri)
        import mlflow

        mlflow.set_tracking_uri(uri)
        with store_errors(uri):
            address = f"models:/{_logged_model(client, run_id)}"
            info = mlflow.models.get_model_info(address)
        named = (info.metadata or {}).get("classes")
        if "pytorch" not in info.flavors or info.signature is None or not named:
            raise UserError(f"run {run_id}: its model is not one that torchyard logged.")
        [spec] = info.signature.inputs.inputs
        shape = tuple(int(side) for side in spec.shape[1:])
        size = "x".join(map(str, shape))
        if len(shape) != 3 or spec.type != "uint8":
            raise UserError(f"run {run_id}: its model takes vectors of {size}, not images.")
        if shape[0] not in (1, 3):
            raise UserError(f"run {run_id}: its model takes {size}: neither grey nor RGB.")
        return cls(address, shape, tuple(named))

    def read(self, paths: Sequence[Path]) -> npt.NDArray[np.uint8]:
        """Decode and scale image files to N x C x H x W, as preparation does.

        Raises:
            UserError: with every file that cannot be read.
        """
        import numpy as np

        from core.image_files import decode_image

        problems, images = [], []
        for path in paths:
            try:
                images.append(decode_image(path.read_bytes(), self.shape))
            except OSError as error:
                problems.append(f"{path}: {error.strerror}")
            except ValueError as error:
                problems.append(f"{path}: {error}")
        if problems:
            raise UserError(problems)
        return np.stack(images)

    def classify(self, images: npt.NDArray[np.uint8], top: int) -> list[list[Guess]]:
        """The `top` most probable classes of each image, the most probable first.

        Raises:
            RunError: the model cannot be loaded, or its output is not finite.
        """
        import mlflow
        import numpy as np

        from core.evaluation import Predictions

        with store_errors(tracking_uri()):
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


def _logged_model(client: MlflowClient, wanted: str) -> str:
    run = find_run(client, wanted)
    models = run.outputs.model_outputs if run.outputs else []
    if not models:
        reason = run.data.tags.get("model_not_logged") or f"it is {run.info.status}"
        raise UserError(f"run {run.info.run_id} ({run.info.run_name}) has no model: {reason}")
    newest: Any = max(models, key=lambda output: output.step)
    return str(newest.model_id)
