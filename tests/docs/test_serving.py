"""docs/serving.md: every command, typed into a shell in the order of the page."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.ports import free_port

pytestmark = pytest.mark.slow  # a run, a server and three exports

DOCUMENT = "serving.md"


def test_every_command_of_the_page_works(workspace, document):
    pytest.importorskip("onnxruntime")
    for name in ("seven.png", "one.png"):
        Image.new("L", (20, 20), 99).save(workspace.folder / name)
    port = free_port()
    path = f"{Path(sys.executable).parent}:{workspace.environment['PATH']}"
    environment = workspace.environment | {"PATH": path}
    workspace.invoke("run", "digits", "train.epochs=1", "--quiet")
    server, answers = None, {}
    try:
        for line in document.commands:
            words = line.replace("8123", str(port)).replace("torchyard", "python -m torchyard")
            if line.startswith("torchyard serve"):
                words = [*words.split(), "--port", str(port)]
                server = subprocess.Popen(
                    words, cwd=workspace.folder, env=environment, stdout=subprocess.PIPE, text=True
                )
                assert f"at http://127.0.0.1:{port}/predict" in server.stdout.readline()
                continue
            done = subprocess.run(
                ["bash", "-c", words],
                cwd=workspace.folder,
                env=environment,
                text=True,
                capture_output=True,
                timeout=200,
            )
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
        assert (workspace.folder / f"digits.{ending}").stat().st_size > 100_000
