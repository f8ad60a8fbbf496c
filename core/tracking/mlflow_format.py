"""What goes into an MLflow run, in the form MLflow takes: keys, values, metrics, data sets."""

from __future__ import annotations

import json
import math
import platform
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import yaml

from torchyard.core.data.dataset import PreparedDataset
from torchyard.core.redaction import without_passwords
from torchyard.core.training.events import BatchSplit, EpochDone, Event, GradientNorms, RunningLoss
from torchyard.core.training.run_log import Line

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput


# MLflow's limits. It cuts longer values silently, and refuses longer keys and batches.
MAX_PARAMETER, MAX_TAG, MAX_KEY = 6000, 8000, 250
MAX_METRICS, MAX_ENTRIES = 1000, 100
BEST = "best/"  # before the name of a metric: its value in the epoch whose weights were kept
SHORT_DIGEST = 16  # MLflow takes 36 characters; its tables show about this many


def class_metric_keys(classes: Sequence[str], prefix: str = "test/recall/") -> list[str]:
    """One metric key per class: safe for MLflow, and different for every class.

    A name keeps its letters in any script; what MLflow refuses becomes "_", and names that
    would then be equal (MySQL ignores case too) are numbered.
    """
    keys: list[str] = []
    taken: set[str] = set()
    for index, name in enumerate(classes):
        safe = re.sub(r"[^\w.\- ]", "_", name).strip(" .")[: MAX_KEY - len(prefix) - 10].rstrip()
        if not any(character.isalnum() for character in safe):
            safe = f"class {index}"
        key, copies = safe, 1
        while key.casefold() in taken:
            copies += 1
            key = f"{safe} {copies}"
        taken.add(key.casefold())
        keys.append(prefix + key)
    return keys


def safe_key(key: str) -> str:
    """A key MLflow takes: it allows few characters, and no path that means another one."""
    parts = (part.strip(" .") for part in re.sub(r"[^/\w.\- ]", "_", key).split("/"))
    return "/".join(part for part in parts if part)[:MAX_KEY].rstrip("/ .") or "_"


def shortened(text: str, limit: int) -> str:
    """The text if it fits, otherwise its beginning (whole lines, if it has some) and its length."""
    if len(text) <= limit:
        return text
    note = f"… ({len(text)} characters in all)"
    head = text[: limit - len(note)]
    lines = head[:-2].rpartition("\n")[0]
    return f"{lines}\n\n{note}" if lines else head + note


def mlflow_tags(tags: Mapping[str, Any]) -> dict[str, str]:
    """Tags as MLflow takes them; one that is too long ends with its length."""
    return {safe_key(key): shortened(str(value), MAX_TAG) for key, value in tags.items()}


def flattened(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as ("optimizer.lr", "0.001"); what is not text is written as JSON."""
    for name, value in nested.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            yield from flattened(value, f"{key}.")
        elif isinstance(value, str):
            yield key, value
        else:
            yield key, json.dumps(value, ensure_ascii=False, default=str)


def event_metrics(event: Event) -> tuple[dict[str, float], int]:
    """The metrics of an event of the training, and their step, which for an epoch is its number."""
    match event:
        case RunningLoss(step, loss):
            return {"train/running_loss": loss}, step
        case GradientNorms(step, norms):
            layers = {layer.removeprefix("model."): norm for layer, norm in norms.items()}
            return {f"gradient_norm/{layer}": norm for layer, norm in layers.items()}, step
        case BatchSplit(step, parts):
            return {"train/accumulate": parts}, step
        case EpochDone():
            metrics = {
                "train/loss": event.loss,
                "train/accuracy": event.accuracy,
                "train/learning_rate": event.learning_rate,
                "train/images_per_second": event.images_per_second,
                "train/epoch_seconds": event.seconds,
            }
            if event.validation_loss is not None and event.validation_accuracy is not None:
                metrics["val/loss"] = event.validation_loss
                metrics["val/accuracy"] = event.validation_accuracy
            metrics |= {f"val/{name}": value for name, value in event.validation_figures.items()}
            return metrics, event.epoch
        case _:
            return {}, 0


def metric_points(line: Line) -> list[dict[str, Any]]:
    """The metrics in a line of a run's log, as the arguments of mlflow.entities.Metric."""
    if "metrics" in line.values:
        # A model's step is its epoch; its test figures have one value each, which is no curve.
        values, step = line.values["metrics"], 0 if line.kind == "model" else line.values["step"]
    else:
        values, step = event_metrics(line.event)
    # MLflow stores an infinity as 1.8e308, which flattens every chart it is in; NaN is a gap.
    return [
        {
            "key": safe_key(key),
            "value": value if math.isfinite(value) else math.nan,
            "timestamp": line.time,
            "step": step,
        }
        for key, value in values.items()
    ]


def dataset_links(prepared: PreparedDataset, part: str) -> dict[str, str]:
    """What names one split of a data set in MLflow."""
    # MLflow keeps one input per name and digest, so each split has its own name.
    return {
        "dataset_name": f"{prepared.name} {part}",
        "dataset_digest": prepared.digest[:SHORT_DIGEST],
    }


def described_model(
    prepared: PreparedDataset, torch_version: str, digest: str | None
) -> dict[str, Any]:
    """What `write_model` has to know of a network and its data, in plain values."""
    return {
        "dtype": prepared.dtype,
        "shape": prepared.shape,
        "classes": prepared.classes,
        "image_reading": prepared.reading.model_dump(mode="json", exclude_defaults=True),
        "encoding": prepared.encoding,
        "torch_version": torch_version,
        "digest": digest,
    }


def described_dataset(prepared: PreparedDataset) -> list[dict[str, str]]:
    """The splits in plain texts: digest, schema, source, and a profile the UI lists."""
    import numpy as np
    from mlflow.data.schema import TensorDatasetSchema
    from mlflow.types import Schema, TensorSpec

    schema = TensorDatasetSchema(
        Schema([TensorSpec(np.dtype(prepared.dtype), (-1, *prepared.shape))]),
        Schema([TensorSpec(np.dtype(np.int64), (-1,))]),
    )
    # The UI makes a link of a source of the kind "http", and shows the path of a "local" one.
    if re.match("https?://", prepared.source):
        kind, source = "http", {"url": without_passwords(prepared.source)}
    else:
        kind, source = "local", {"uri": prepared.source or str(prepared.folder)}
    described = []
    for part, split in prepared.splits.items():
        counts = np.bincount(split.labels, minlength=len(prepared.classes)).tolist()
        profile = {
            "rows": len(split),
            "sample": f"{prepared.dtype} {prepared.shape}",
            "classes": len(prepared.classes),
            "rows per class": list(zip(prepared.classes, counts, strict=True)),
            "training mean": [round(value, 6) for value in prepared.mean],
            "training std": [round(value, 6) for value in prepared.std],
            "sha256": prepared.digest,
        }
        links = dataset_links(prepared, part)
        described.append(
            {
                "context": part,
                "name": links["dataset_name"],
                "digest": links["dataset_digest"],
                "source_type": kind,
                "source": json.dumps(source, ensure_ascii=False),
                "schema": json.dumps(schema.to_dict()),
                "profile": json.dumps(profile, ensure_ascii=False),
            }
        )
    return described


def dataset_inputs(described: Iterable[Mapping[str, str]]) -> list[DatasetInput]:
    """The same as MLflow's inputs of a run."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    inputs = []
    for split in described:
        values = dict(split)
        context = InputTag("mlflow.data.context", values.pop("context"))
        inputs.append(DatasetInput(Dataset(**values), [context]))
    return inputs


DATA, WEIGHTS = "data", "model.pt2"
LOADER = "mlflow.pytorch"
CLASSES = "extra_files/classes.json"
REQUIREMENTS = "requirements.txt"
CONDA, VIRTUALENV = "conda.yaml", "python_env.yaml"


def write_model(
    folder: Path,
    exported: Path,
    *,
    dtype: str,
    shape: Sequence[int],
    classes: Sequence[str],
    image_reading: Mapping[str, Any] = MappingProxyType({}),
    encoding: Mapping[str, Any] = MappingProxyType({}),
    torch_version: str,
    digest: str | None = None,
    run_id: str,
    model_id: str,
    location: str,
) -> None:
    """Fill an empty folder with an MLflow model of the flavors pytorch and python_function.

    Args:
        folder: where to write.
        exported: the archive of torch.export.save.
        dtype, shape: of one sample.
        classes: their names, in the order of the logits.
        image_reading: how image files were read, as JSON; older runs' logs have none.
        encoding: how a sample is made of its source, as JSON; empty: as it is there.
        torch_version: torch.__version__ of the process that exported.
        digest: of the weights; older runs' logs have none.
        run_id, model_id, location: the run, the logged model, and where it will be kept.

    Raises:
        OSError: the archive cannot be read, or the folder cannot be written.
    """
    import mlflow
    import numpy as np
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    (folder / DATA).mkdir()
    shutil.copyfile(exported, folder / DATA / WEIGHTS)
    (folder / CLASSES).parent.mkdir()
    (folder / CLASSES).write_text(json.dumps(classes, ensure_ascii=False), "utf-8")

    requirements = [
        f"mlflow=={mlflow.__version__}",
        f"torch=={torch_version.partition('+')[0]}",
        f"numpy=={version('numpy')}",
    ]
    python = platform.python_version()
    tools = ["pip", "setuptools", "wheel"]
    virtualenv = {
        "python": python,
        "build_dependencies": tools,
        "dependencies": ["-r " + REQUIREMENTS],
    }
    packages = [f"python={python}", "pip", {"pip": requirements}]
    conda = {"name": "mlflow-env", "channels": ["conda-forge"], "dependencies": packages}
    (folder / REQUIREMENTS).write_text("\n".join(requirements))
    for name, environment in ((VIRTUALENV, virtualenv), (CONDA, conda)):
        (folder / name).write_text(yaml.safe_dump(environment, sort_keys=False))

    model = Model(
        artifact_path=location,
        run_id=run_id,
        model_id=model_id,
        model_uuid=model_id,
        signature=ModelSignature(
            Schema([TensorSpec(np.dtype(dtype), (-1, *shape))]),
            Schema([TensorSpec(np.dtype(np.float32), (-1, len(classes)))]),
        ),
        metadata={
            "classes": list(classes),
            "image_reading": dict(image_reading),
            **({"encoding": dict(encoding)} if encoding else {}),
            **({"weights": digest} if digest else {}),
        },
    )
    model.add_flavor(
        "pytorch",
        model_data=DATA,
        pytorch_version=str(torch_version),  # torch's own is a class YAML does not know
        code=None,
        extra_files=[{"path": CLASSES}],
    )
    mlflow.pyfunc.add_to_model(
        model,
        loader_module=LOADER,
        data=DATA,
        conda_env=CONDA,
        python_env=VIRTUALENV,
        # An exported network stays where it was exported; MLflow's default is the GPU wherever
        # there is one, and there it refuses to load a network from the CPU.
        model_config={"device": "cpu"},
    )
    model.model_size_bytes = sum(
        path.stat().st_size for path in folder.rglob("*") if path.is_file()
    )
    model.save(str(folder / "MLmodel"))
