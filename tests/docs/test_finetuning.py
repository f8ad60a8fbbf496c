"""docs/finetuning.md: its commands, one after the other."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.ports import free_port
from torchyard.pipelines.worker.process import shared_worker

pytestmark = pytest.mark.slow  # nine runs

DOCUMENT = "finetuning.md"
WAY = ("photos", "pets")  # what the commands of the first section are about


@pytest.mark.timeout(900)
def test_every_command_of_the_page_works(workspace, folder, document):
    for line in document.commands:
        if any(word in line for word in WAY):
            continue
        printed = workspace.invoke(*shlex.split(line)[1:])
        assert "of 359 test samples right" in printed
        if "model.weights=latest" in line:
            said = r"10 of 10 tensors from latest, lenet·adam·digits #\d+; normalized as for them"
            assert re.search(said, printed)


@pytest.mark.timeout(900)
def test_photos_and_a_file_of_weights_become_a_server(workspace, folder, document):
    import torch
    from PIL import Image
    from torchvision.models import resnet18

    shared_worker().close()  # it may be of another folder, and the weights are named from this one
    random = np.random.default_rng(3)
    for label, count in (("cat", 14), ("dog", 10), ("owl", 7)):
        (folder / "photos" / label).mkdir(parents=True)
        for number in range(count):
            size = (40 + 3 * number, 60 - number)
            pixels = random.integers(0, 256, (4, 4, 3), dtype="uint8")
            file = folder / "photos" / label / f"{number}.jpg"
            Image.fromarray(pixels).resize(size).save(file)
    (folder / "weights").mkdir()
    torch.save(resnet18().state_dict(), folder / "weights" / "resnet18.pth")
    page = (Path(__file__).parents[2] / "docs" / DOCUMENT).read_text("utf-8")
    [settings] = re.findall(r"```yaml\n(# pets.yaml\n.*?)```", page, re.DOTALL)
    small = settings.replace("image_size: 128", "image_size: 32").replace("epochs: 5", "epochs: 2")
    (folder / "pets.yaml").write_text(small, "utf-8")
    port = str(free_port())
    server, answer = None, {}
    try:
        for line in document.commands:
            if not any(word in line for word in WAY):
                continue
            words = [word.replace("8123", port) for word in shlex.split(line)]
            if words[:2] == ["torchyard", "serve"]:
                server = subprocess.Popen(
                    [sys.executable, "-m", *words, "--port", port],
                    cwd=folder,
                    env=workspace.environment,
                    stdout=subprocess.PIPE,
                    text=True,
                )
                assert f"at http://127.0.0.1:{port}/predict" in server.stdout.readline()
            elif words[0] == "curl":
                done = subprocess.run(
                    words, cwd=folder, capture_output=True, check=True, timeout=200
                )
                answer = json.loads(done.stdout)
            else:
                printed = workspace.invoke(*words[1:])
                if words[1] == "run":
                    assert "120 of 122 tensors from weights/resnet18.pth; new: fc.weight" in printed
    finally:
        if server is not None:
            server.terminate()
            server.wait()
    assert answer["model"] == "pets/1"
    assert {each["class"] for each in answer["predictions"][0]["classes"]} == {"cat", "dog", "owl"}
