"""A model as a file, loaded by others as they load such files."""

import json
import re

import numpy as np
import pytest

import torchyard
from torchyard.core.data.dataset import PreparedDataset
from torchyard.core.errors import RunError, UserError
from torchyard.pipelines.serving import model_file
from torchyard.pipelines.worker.process import shared_worker


@pytest.fixture(scope="module")
def run(workspace):
    return torchyard.run("digits", "train.epochs=1", quiet=True)


@pytest.fixture(scope="module")
def samples(workspace, run):
    arguments = {"config": run.config, "cache": str(workspace.folder / "cache")}
    folder = shared_worker().call("prepare", **arguments)["folder"]
    return PreparedDataset.open(workspace.folder / folder).test.samples[:5]


def expected(run):
    return np.stack(run.predictions["logits"].head(5))


def check_about(text, run):
    assert json.loads(text) == {
        "model": run.name,
        "digest": run._run.data.tags["weights_digest"],
        "classes": list("0123456789"),
    }


def export(workspace, run, kind, to):
    printed = workspace.invoke("export", run.run_id, "--format", kind, "--to", str(to))
    assert re.search(r"On 256 test samples its logits differ by at most [\d.e-]+ from", printed)
    assert f"{run.name} is in {to}" in printed


def test_pt2_is_loaded_by_torch(workspace, run, samples, tmp_path):
    import torch

    export(workspace, run, "pt2", tmp_path / "model.pt2")
    extra = {model_file.METADATA: ""}
    with (tmp_path / "model.pt2").open("rb") as file:
        network = torch.export.load(file, extra_files=extra).module()
    found = network(torch.from_numpy(np.array(samples))).detach().numpy()
    assert np.allclose(found, expected(run), atol=1e-4)
    check_about(extra[model_file.METADATA], run)


def test_safetensors_has_the_weights(workspace, run, tmp_path):
    from safetensors import safe_open

    export(workspace, run, "safetensors", tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", "np") as file:
        check_about(file.metadata()[model_file.METADATA], run)
        assert file.get_tensor("model.fc3.weight").shape == (10, 84)
        assert "normalize.factor" in file.keys()  # noqa: SIM118


def test_onnx_is_run_by_its_runtime(workspace, run, samples, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    export(workspace, run, "onnx", tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(
        str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    for count in (1, 5):
        [found] = session.run(["logits"], {"samples": np.array(samples[:count])})
        assert np.allclose(found, expected(run)[:count], atol=1e-4)
    check_about(session.get_modelmeta().custom_metadata_map[model_file.METADATA], run)


def test_a_file_that_predicts_otherwise_is_not_written(workspace, run, tmp_path, monkeypatch):
    monkeypatch.setattr(model_file, "ALLOWED_DIFFERENCE", -1)
    with pytest.raises(RunError, match=r"is not written: it predicts otherwise. On 256 test"):
        workspace.invoke("export", run.run_id, "--format", "pt2", "--to", f"{tmp_path}/m.pt2")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_is_refused(workspace, run, tmp_path, monkeypatch):
    def refused(*words):
        with pytest.raises(UserError) as raised:
            workspace.invoke("export", *words)
        [problem] = raised.value.problems
        return problem

    assert refused(run.run_id, "--format", "onx").startswith(
        "--format: no format 'onx'. Did you mean 'onnx'?"
    )
    nowhere = str(tmp_path / "no" / "m.pt2")
    assert refused(run.run_id, "--format", "pt2", "--to", nowhere) == (
        f"--to: {nowhere}: there is no such folder"
    )
    assert "no run with the id or name 'nothing'" in refused("nothing", "--format", "pt2")
    monkeypatch.setattr(model_file, "find_spec", lambda name: None)
    assert refused(run.run_id, "--format", "onnx") == (
        "--format: onnx needs onnx and onnxscript and onnxruntime: pip install 'torchyard[onnx]'"
    )
