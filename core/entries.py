"""What goes into an MLflow run, in the form MLflow takes: keys, values, metrics, data sets."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from core.dataset import PreparedDataset

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

# MLflow's limits. It cuts longer values without a word, and refuses longer keys and batches.
MAX_PARAMETER, MAX_TAG, MAX_KEY = 6000, 8000, 250
MAX_METRICS, MAX_ENTRIES = 1000, 100
SHORT_DIGEST = 16  # MLflow takes 36 characters; its tables show about this many


def class_metric_keys(classes: Sequence[str], prefix: str = "test/recall/") -> list[str]:
    """One metric key a class: safe for MLflow, and different for every class.

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
    """The text if it fits, else its beginning (whole lines, if it has some) and its length."""
    if len(text) <= limit:
        return text
    note = f"… ({len(text)} characters in all)"
    head = text[: limit - len(note)]
    lines = head[:-2].rpartition("\n")[0]
    return f"{lines}\n\n{note}" if lines else head + note


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


def batches(entries: list[Any], size: int) -> Iterator[list[Any]]:
    """The entries, at most `size` at a time."""
    return (entries[start : start + size] for start in range(0, len(entries), size))


def metrics_now(values: Mapping[str, float], step: int) -> list[dict[str, Any]]:
    """Metrics of this moment, as the arguments of mlflow.entities.Metric."""
    now = time.time_ns() // 1_000_000
    # MLflow stores an infinity as 1.8e308, which flattens every chart it is in; NaN is a gap.
    return [
        {
            "key": safe_key(key),
            "value": float(value) if math.isfinite(value) else math.nan,
            "timestamp": now,
            "step": step,
        }
        for key, value in values.items()
    ]


def dataset_links(prepared: PreparedDataset, part: str) -> dict[str, str]:
    """What names one split of a data set in MLflow."""
    # MLflow keeps one input for a name and a digest, so each split has a name of its own.
    return {
        "dataset_name": f"{prepared.name} {part}",
        "dataset_digest": prepared.digest[:SHORT_DIGEST],
    }


def dataset_inputs(prepared: PreparedDataset) -> list[DatasetInput]:
    """Both splits as MLflow inputs: digest, schema, source, and a profile the UI lists."""
    import numpy as np
    from mlflow.data.schema import TensorDatasetSchema
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.types import Schema, TensorSpec

    schema = TensorDatasetSchema(
        Schema([TensorSpec(np.dtype(prepared.dtype), (-1, *prepared.shape))]),
        Schema([TensorSpec(np.dtype(np.int64), (-1,))]),
    )
    # The UI makes a link of a source of the kind "http", and shows the path of a "local" one.
    if re.match("https?://", prepared.source):
        kind, source = "http", {"url": prepared.source}
    else:
        kind, source = "local", {"uri": prepared.source or str(prepared.folder)}
    inputs = []
    for part, split in (("train", prepared.train), ("test", prepared.test)):
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
        dataset = Dataset(
            name=links["dataset_name"],
            digest=links["dataset_digest"],
            source_type=kind,
            source=json.dumps(source, ensure_ascii=False),
            schema=json.dumps(schema.to_dict()),
            profile=json.dumps(profile, ensure_ascii=False),
        )
        inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", part)]))
    return inputs
