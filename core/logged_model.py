"""An exported network as an MLflow model: the folder mlflow.pytorch would have written.

`mlflow.pytorch.log_model` wants the live network, and so torch, in the process that speaks to
MLflow. What it writes for `serialization_format="pt2"` is small and documented (MLmodel,
requirements, the torch.export archive), so it is written here from the archive alone.
"""

from __future__ import annotations

import json
import platform
import shutil
from importlib.metadata import version
from pathlib import Path

import yaml

from core.dataset import PreparedDataset

DATA = "data"
LOADER = "mlflow.pytorch"
CLASSES = "extra_files/classes.json"
REQUIREMENTS = "requirements.txt"
CONDA, VIRTUALENV = "conda.yaml", "python_env.yaml"


def write_model(
    folder: Path,
    exported: Path,
    prepared: PreparedDataset,
    *,
    torch_version: str,
    run_id: str,
    model_id: str,
    location: str,
) -> None:
    """Fill an empty folder with an MLflow model of the flavors pytorch and python_function.

    Args:
        folder: where to write.
        exported: the archive of torch.export.save.
        prepared: shape and type of a sample, class names.
        torch_version: torch.__version__ of the process that exported.
        run_id, model_id, location: the run, the logged model, and where it will be kept.

    Raises:
        OSError: the archive cannot be read, or the folder cannot be written.
    """
    import mlflow
    import numpy as np
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    (folder / DATA).mkdir()
    shutil.copyfile(exported, folder / DATA / "model.pt2")
    (folder / CLASSES).parent.mkdir()
    (folder / CLASSES).write_text(json.dumps(prepared.classes, ensure_ascii=False), "utf-8")

    requirements = [
        f"mlflow=={mlflow.__version__}",
        f"torch=={torch_version.partition('+')[0]}",
        f"numpy=={version('numpy')}",
    ]
    python = platform.python_version()
    (folder / REQUIREMENTS).write_text("\n".join(requirements))
    _write_yaml(
        folder / VIRTUALENV,
        {
            "python": python,
            "build_dependencies": ["pip", "setuptools", "wheel"],
            "dependencies": [f"-r {REQUIREMENTS}"],
        },
    )
    _write_yaml(
        folder / CONDA,
        {
            "name": "mlflow-env",
            "channels": ["conda-forge"],
            "dependencies": [f"python={python}", "pip", {"pip": requirements}],
        },
    )

    model = Model(
        artifact_path=location,
        run_id=run_id,
        model_id=model_id,
        model_uuid=model_id,
        signature=ModelSignature(
            Schema([TensorSpec(np.dtype(prepared.dtype), (-1, *prepared.shape))]),
            Schema([TensorSpec(np.dtype(np.float32), (-1, len(prepared.classes)))]),
        ),
        metadata={"classes": list(prepared.classes)},
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


def _write_yaml(path: Path, content: dict[str, object]) -> None:
    path.write_text(yaml.safe_dump(content, sort_keys=False), "utf-8")
