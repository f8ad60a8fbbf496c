"""Files that parameters name: what is in them is recorded, and a change is said."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, Field, FilePath

from torchyard import DatasetParams, LossParams, ModelParams, hookimpl
from torchyard.core.config import files
from torchyard.core.config.resolve import resolve
from torchyard.core.hosting.host import Host
from torchyard.core.hosting.sources import Source


class Part(BaseModel):
    table: Path = Path("none")


class Pretrained(ModelParams):
    """A model of weights in files."""

    weights: FilePath
    more: list[Path] = Field([])
    by_name: dict[str, Path] = Field({})
    part: Part = Part()
    folder: Path = Path()
    text: str = "weights.pt"

    def build(self, *arguments: Any) -> Any:
        raise AssertionError("not built")


class Table(DatasetParams):
    """A data set of a table."""

    table: FilePath

    def build(self, *arguments: Any) -> Any:
        raise AssertionError("not built")


class Weighted(LossParams):
    """A loss whose weights are in a file, or will be."""

    table: Path | None = None

    def build(self, *arguments: Any) -> Any:
        raise AssertionError("not built")


class Plugins:
    @staticmethod
    @hookimpl
    def register_models(register):
        register("pretrained", Pretrained)

    @staticmethod
    @hookimpl
    def register_datasets(register):
        register("table", Table)

    @staticmethod
    @hookimpl
    def register_losses(register):
        register("cross_entropy", Weighted)

    @staticmethod
    @hookimpl
    def register_optimizers(register):
        from torchyard.plugins.optimizers import SGD

        register("sgd", SGD)

    @staticmethod
    @hookimpl
    def register_schedulers(register):
        from torchyard.plugins.schedulers import Constant

        register("constant", Constant)


@pytest.fixture
def resolved(tmp_path, monkeypatch):
    """Resolves the configuration of a model of these files; relative paths are below the folder."""
    monkeypatch.chdir(tmp_path)
    host = Host()
    host.load(Source("own", "own 1.0", "own==1.0"), lambda: Plugins, builtin=True)
    for name in ("weights.pt", "a.csv", "b.csv", "c.csv", "table.csv"):
        Path(name).write_text(name)
    model = {
        "name": "pretrained",
        "weights": "weights.pt",
        "more": ["a.csv", "missing.csv"],
        "by_name": {"b": "b.csv"},
        "part": {"table": "c.csv"},
    }
    settings = {"dataset": {"name": "table", "table": "table.csv"}, "model": model}
    return lambda config=settings: resolve(config, host)


def identity(name):
    return f"sha256:{hashlib.sha256(Path(name).read_bytes()).hexdigest()} ({name})"


def test_every_file_that_a_parameter_names_is_recorded_with_its_digest(resolved):
    assert resolved().config.plugins == {
        "dataset.table": identity("table.csv"),
        "model.weights": identity("weights.pt"),
        "model.more.0": identity("a.csv"),
        "model.by_name.b": identity("b.csv"),
        "model.part.table": identity("c.csv"),
    }
    assert resolved().changed == []


def test_the_file_that_changed_is_named_and_no_other(resolved):
    recorded = resolved().config.model_dump(mode="json")
    before, gone = identity("weights.pt"), identity("a.csv")
    Path("weights.pt").write_text("other weights")
    Path("a.csv").unlink()
    now = resolved(recorded)
    assert now.changes == {
        "model.weights": (before, identity("weights.pt")),
        "model.more.0": (gone, "No such file or directory (a.csv)"),
    }
    assert now.changed[0] == (
        f"model.weights was of {before}, and is of {identity('weights.pt')} here"
    )


def test_a_data_sets_file_may_change_without_a_warning(resolved, monkeypatch):
    recorded = resolved().config.model_dump(mode="json")
    Path("table.csv").write_text("another table")
    assert list(resolved(recorded).changes) == ["dataset.table"]
    assert resolved(recorded).changed == []
    monkeypatch.setattr(files, "MOST_DATASET_BYTES", 3)
    assert "dataset.table" not in resolved().config.plugins
