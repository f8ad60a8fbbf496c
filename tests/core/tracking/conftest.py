"""A data set, an exported network, and real MLflow stores: SQLite files and a server over HTTP."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.core.tracking.runs import CLASSES, SHAPE, Server, start
from torchyard.core.data.dataset import MANIFEST, PreparedDataset
from torchyard.core.tracking.record import RunRecord


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    folder = tmp_path_factory.mktemp("prepared")
    random = np.random.default_rng(0)
    counts = {"train": 20, "test": 9}
    for part, count in counts.items():
        samples = random.integers(0, 256, (count, *SHAPE), dtype=np.uint8)
        np.save(folder / f"{part}_samples.npy", samples)
        np.save(folder / f"{part}_labels.npy", np.arange(count) % 3)  # none of the last class
    manifest = {
        "name": "toy",
        "classes": CLASSES,
        "shape": SHAPE,
        "dtype": "uint8",
        "mean": [0.1, 0.2, 0.3],
        "std": [1.0, 1.0, 1.0],
        "counts": counts,
        "digest": "0123456789abcdef" * 4,
        "source": "https://example.org/toy.zip",
        "sizes": {path.name: path.stat().st_size for path in folder.glob("*.npy")},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest), "utf-8")
    return PreparedDataset.open(folder)


@pytest.fixture(scope="module")
def network():
    import torch

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(math.prod(SHAPE), len(CLASSES))

        def forward(self, pixels):
            return self.linear(pixels.flatten(1).float() / 255)

    return Network().eval()


@pytest.fixture(scope="module")
def exported(network, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    path = tmp_path_factory.mktemp("exported") / "model.pt2"
    rows = torch.zeros((2, *SHAPE), dtype=torch.uint8)
    batch = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(network, (rows,), dynamic_shapes=batch), path)
    return path


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("a workspace 场") / "mlruns"
    return f"sqlite:///{folder}/mlflow.db"


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def workspace(environment: None, monkeypatch: pytest.MonkeyPatch, database: str) -> str:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    return database


@pytest.fixture
def record(workspace: str) -> Iterator[RunRecord]:
    record = start()
    yield record
    record.finish("KILLED")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    from mlflow.server import constants, handlers

    folder = tmp_path_factory.mktemp("server")
    with pytest.MonkeyPatch.context() as patch:
        # A server in a process of its own would change its own environment, not that of the tests.
        patch.setattr(handlers.utils, "set_tracking_uri", lambda uri: None)
        patch.setattr(handlers.registry_utils, "set_registry_uri", lambda uri: None)
        patch.setenv(constants.BACKEND_STORE_URI_ENV_VAR, f"sqlite:///{folder}/mlflow.db")
        patch.setenv(constants.ARTIFACT_ROOT_ENV_VAR, "mlflow-artifacts:/")
        patch.setenv(constants.ARTIFACTS_DESTINATION_ENV_VAR, str(folder / "artifacts"))
        patch.setenv(constants.SERVE_ARTIFACTS_ENV_VAR, "true")
        server = Server()
        yield server
        server.stop()


@pytest.fixture
def server(running: Server, environment: None, monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", running.url)
    return running
