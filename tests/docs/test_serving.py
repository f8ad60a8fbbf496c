"""docs/serving.md: every command, typed into a shell in the order of the page."""

import json
import subprocess

import pytest
from PIL import Image

from tests.ports import free_port

pytestmark = pytest.mark.slow  # a run, a server and three exports

DOCUMENT = "serving.md"


def test_every_command_of_the_page_works(workspace, folder, document):
    pytest.importorskip("onnxruntime")
    for name in ("seven.png", "one.png"):
        Image.new("L", (20, 20), 99).save(folder / name)
    port = free_port()
    workspace.invoke("run", "digits", "train.epochs=1", "--quiet")
    server, answers = None, {}
    try:
        for line in document.commands:
            if line.startswith("torchyard serve"):
                server = subprocess.Popen(
                    workspace.command(*line.split()[1:], "--port", str(port)),
                    cwd=folder, env=workspace.environment, stdout=subprocess.PIPE, text=True,
                )  # fmt: skip
                assert f"at http://127.0.0.1:{port}/predict" in server.stdout.readline()
                continue
            if line.startswith("torchyard"):
                workspace.invoke(*line.split()[1:])
                continue
            done = subprocess.run(
                ["bash", "-c", line.replace("8123", str(port))],
                cwd=folder, text=True, capture_output=True, timeout=200,
            )  # fmt: skip
            assert done.returncode == 0, done.stdout + done.stderr
            answers[line.split()[-1].strip('"').rpartition("/")[2]] = done.stdout
    finally:
        if server is not None:
            server.terminate()
            server.wait()
    assert json.loads(answers["health"])["model"] == "digits/1"
    assert len(json.loads(answers["predict"])["predictions"]) == 1
    several = json.loads(answers["predict?top=1"])["predictions"]
    assert [row["sample"] for row in several] == ["seven.png", "one.png"]
    for ending in ("pt2", "safetensors", "onnx"):
        assert (folder / f"digits.{ending}").stat().st_size > 100_000
