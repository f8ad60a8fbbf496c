"""The HTTP API of a model, asked as its clients ask."""

import io
import json
import re
import signal
import threading
import time

import anyio
import httpx
import numpy as np
import pytest
from PIL import Image
from starlette.requests import Request
from starlette.testclient import TestClient

import torchyard
from torchyard.core.data.dataset import PreparedDataset
from torchyard.core.data.files import cache_folder
from torchyard.core.errors import RunError, UserError
from torchyard.core.tracking.queries.recorded import logged_model_id, recorded_confidence
from torchyard.core.tracking.registry.classifier import Classifier
from torchyard.core.tracking.store import open_existing, tracking_uri
from torchyard.pipelines.serving import request_body
from torchyard.pipelines.serving.app import application
from torchyard.pipelines.serving.served_model import ServedModel

ADDRESS = "http://127.0.0.1:8123"


@pytest.fixture(scope="module")
def runs(workspace):
    """Two runs, of which the first is the champion."""
    calibrated = ("train.validation=0.2", "evaluate.temperature=true")
    made = [
        torchyard.run("digits", f"train.epochs={n}", *more, quiet=True)
        for n, more in ((1, ()), (2, calibrated))
    ]
    workspace.invoke("promote", made[0].run_id, "model=served", "gates=[]")
    return made


@pytest.fixture(scope="module")
def served(runs):
    return ServedModel.load("served")


@pytest.fixture(scope="module")
def client(served):
    with TestClient(application(served, local=True, poll_seconds=600), base_url=ADDRESS) as client:
        yield client


@pytest.fixture(scope="module")
def pictures():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32), dtype=np.uint8)
    return pixels[:, None]


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels[0]).save(file, "PNG")
    return file.getvalue()


def prepared(run):
    """The folder of the arrays that a run was tested on."""
    [folder] = [
        file.parent
        for file in (cache_folder()).rglob("manifest.json")
        if PreparedDataset.open(file.parent).test_digest == run.prediction_table.test_digest
    ]
    return folder


def shares(row):
    return {each["class"]: each["probability"] for each in row["classes"]}


def test_what_is_served_is_said(client, runs):
    digest = runs[0]._run.data.tags["weights_digest"]
    assert client.get("/").json() == {
        "model": "served/1",
        "digest": digest,
        "asked_for": "served",
        "takes": {"kind": "images", "shape": [1, 32, 32], "dtype": "uint8"},
        "classes": list("0123456789"),
    }
    assert client.get("/health").json() == {"status": "ok", "model": "served/1", "digest": digest}


def test_an_image_as_a_body_a_form_and_json_gives_what_the_model_gives(client, runs, pictures):
    expected = np.stack(runs[0].model.predict(pictures)["probabilities"])
    raw = client.post("/predict?top=10", content=png(pictures[0])).json()
    assert raw["model"] == "served/1"
    [row] = raw["predictions"]
    assert row["sample"] == 0
    assert np.allclose(list(shares(row).values()), np.sort(expected[0])[::-1], atol=1e-6)

    files = [("file", (f"{at}.png", png(each))) for at, each in enumerate(pictures)]
    form = client.post("/predict?top=10", files=files).json()["predictions"]
    assert [row["sample"] for row in form] == ["0.png", "1.png", "2.png"]
    listed = client.post("/predict?top=10", json={"samples": pictures.tolist()}).json()
    assert [row["sample"] for row in listed["predictions"]] == [0, 1, 2]
    for rows in (form, listed["predictions"]):
        found = [[shares(row)[name] for name in "0123456789"] for row in rows]
        assert np.allclose(found, expected, atol=1e-6)
    assert (
        len(client.post("/predict", content=png(pictures[0])).json()["predictions"][0]["classes"])
        == 3
    )


@pytest.mark.parametrize(
    ("query", "request_", "status", "said"),
    [
        ("", {"content": b"no image"}, 422, "0: "),
        ("", {"content": b""}, 422, "0: "),
        ("?top=0", {"content": b"x"}, 422, "top: must be a number of classes, 1 or more, not '0'"),
        ("?top=a", {"content": b"x"}, 422, "top: must be a number of classes, 1 or more, not 'a'"),
        ("", {"files": [("f", ("bad.png", b"x"))]}, 422, "bad.png: "),
        ("", {"json": {"samples": [[1, 2]]}}, 422, "0: it is of 2, and the model takes 1x32x32"),
        ("", {"json": {"samples": [[1, [2]]]}}, 422, "0: it is not an array of integers"),
        ("", {"json": {"samples": []}}, 400, "there is no sample in it"),
        ("", {"json": [1]}, 400, 'the JSON is not an object {"samples": […]}'),
        (
            *("", {"content": b"{", "headers": {"content-type": "application/json"}}),
            *(400, "the body is not JSON: "),
        ),
        (
            f"?top={'9' * 5000}",
            {"content": b"x"},
            422,
            "top: must be a number of classes, 1 or more",
        ),
        (
            *("", {"content": b"{", "headers": {"content-type": "multipart/form-data"}}),
            *(400, "the multipart/form-data names no boundary"),
        ),
        (
            *(
                "",
                {"content": b"x", "headers": {"content-type": "multipart/form-data; boundary=b"}},
            ),
            *(400, "the multipart/form-data cannot be read: "),
        ),
    ],
)
def test_a_request_that_cannot_be_answered_is_told_why(client, query, request_, status, said):
    answer = client.post(f"/predict{query}", **request_)
    assert answer.status_code == status
    [problem] = answer.json()["errors"]
    assert problem.startswith(said)


def test_every_file_that_cannot_be_read_is_named(client, pictures):
    files = [
        ("f", (name, body)) for name, body in (("a", b"1"), ("b", png(pictures[0])), ("c", b""))
    ]
    problems = client.post("/predict", files=files).json()["errors"]
    assert [problem.partition(":")[0] for problem in problems] == ["a", "c"]


def test_too_much_is_refused(client, monkeypatch):
    monkeypatch.setattr(request_body, "MAX_BYTES", 1000)
    answer = client.post("/predict", content=(b"x" * 300 for _ in range(4)))
    assert (answer.status_code, answer.json()["errors"]) == (
        *(413, ["the body has more than 1,000 bytes"]),
    )
    huge = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(huge, "PNG")
    monkeypatch.undo()
    answer = client.post("/predict", content=huge.getvalue())
    assert answer.status_code == 422
    assert "pixels" in answer.json()["errors"][0]


def test_a_client_that_falls_silent_or_goes_is_given_up(monkeypatch):
    monkeypatch.setattr(request_body, "SILENCE_SECONDS", 0.01)

    async def gone():
        return {"type": "http.disconnect"}

    async def silent():
        await anyio.sleep_forever()

    for receive, status in ((gone, 400), (silent, 408)):
        with pytest.raises(request_body.RefusedError) as caught:
            anyio.run(request_body.read_body, Request({"type": "http"}, receive))
        assert caught.value.status == status


def test_another_path_or_method_is_told_what_there_is(client):
    for answer in (client.get("/predict"), client.get("/nothing")):
        assert answer.status_code in (404, 405)
        assert "POST /predict, GET /health, GET /" in answer.json()["errors"][0]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "evil.example"}, 403),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": ADDRESS}, 200),
    ],
)
def test_pages_of_other_sites_get_no_answer(client, headers, status):
    assert client.get("/health", headers=headers).status_code == status


def test_sets_of_classes_are_served_where_a_validation_says_how(client, runs):
    """What is served has the probabilities and sets that the evaluation recorded."""
    run = runs[1]
    confidence = recorded_confidence(open_existing(tracking_uri()), run._run)
    temperature = run.metrics["calibration/temperature"]
    assert confidence.temperature == temperature != 1
    assert run.metrics["test/calibration_error"] == pytest.approx(confidence.error)
    assert run.metrics["test/calibration_error_before"] != confidence.error
    recorded = run.prediction_table.predictions.probabilities
    images = PreparedDataset.open(prepared(run)).test.samples[:20]
    expected = [
        [str(each) for each in np.argsort(-row, kind="stable")[:size]]
        for row, size in zip(
            recorded, confidence.sets(recorded[:20], 0.99).sum(axis=1), strict=False
        )
    ]
    app = application(ServedModel.load(run.run_id), local=True, poll_seconds=600)
    with TestClient(app, base_url=ADDRESS) as calibrated:
        body = {"samples": images.tolist()}
        rows = calibrated.post("/predict?sets=0.99", json=body).json()["predictions"]
        assert [[each["class"] for each in row["classes"]] for row in rows] == expected
        assert {len(row) for row in expected} > {1}
        shown = rows[0]["classes"][0]
        assert shown["probability"] == pytest.approx(recorded[0].max(), abs=1e-5)
        for wrong in ("1", "0", "many"):
            refused = calibrated.post(f"/predict?sets={wrong}", json=body)
            assert refused.status_code == 422
            assert "sets: must be between 0 and 1" in refused.text
    # The first run has no validation split.
    refused = client.post("/predict?sets=0.9", json=body)
    assert refused.status_code == 422
    assert "sets: run" in refused.text
    assert "train.validation" in refused.text


def test_predict_prints_sets(workspace, runs, pictures, tmp_path):
    file = tmp_path / "noise.png"
    file.write_bytes(png(pictures[0]))
    ask = ("predict", runs[1].run_id, str(file), "--json")
    classes = [
        len(json.loads(workspace.invoke(*ask, "--sets", share))[0]["classes"])
        for share in ("0.5", "0.9", "0.999")
    ]
    assert classes == sorted(classes)
    assert classes[0] >= 1
    assert classes[-1] == 10  # of so few samples of validation none can say
    with pytest.raises(UserError, match="--sets: must be between 0 and 1"):
        workspace.invoke(*ask, "--sets", "95")
    with pytest.raises(UserError, match=r"--sets: run .* had no validation split"):
        workspace.invoke("predict", runs[0].run_id, str(file), "--sets", "0.9")


def test_bound_to_the_network_it_answers_to_every_name(served):
    with TestClient(application(served, local=False), base_url="http://machine:1") as client:
        assert client.get("/health").status_code == 200


def test_the_champion_that_comes_takes_over_and_requests_end_with_the_old(
    workspace, runs, pictures
):
    served = ServedModel.load("served@champion")
    before, resumed, asked = served.classifier, threading.Event(), threading.Event()
    whole = type(before).classify

    class Slow(type(before)):
        def classify(self, samples, *asked_for):
            asked.set()
            assert resumed.wait(60)
            return whole(self, samples, *asked_for)

    held = Slow(**{key: vars(before)[key] for key in before.__dataclass_fields__})
    held.model  # noqa: B018
    served.classifier = held
    app = application(served, local=True, poll_seconds=0.2)
    answers = []
    with TestClient(app, base_url=ADDRESS) as client:

        def ask():
            answers.append(client.post("/predict", content=png(pictures[0])).json())

        thread = threading.Thread(target=ask)
        thread.start()
        assert asked.wait(60)
        workspace.invoke("promote", runs[1].run_id, "model=served", "gates=[]")
        try:
            while client.get("/health").json()["model"] == "served/1":
                time.sleep(0.1)
            resumed.set()
            thread.join()
            assert answers[0]["model"] == "served/1"
            after = client.post("/predict", content=png(pictures[0])).json()
            assert after["model"] == "served/2"
            assert after["digest"] == runs[1]._run.data.tags["weights_digest"]
        finally:
            workspace.invoke("rollback", "served")


def test_a_model_that_cannot_be_had_leaves_the_one_that_is_served(workspace, runs, monkeypatch):
    served = ServedModel.load("served")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert not served.update()
    assert "does not answer" in served.trouble
    with TestClient(application(served, local=True), base_url=ADDRESS) as client:
        assert "does not answer" in client.get("/health").json()["trouble"]
    monkeypatch.undo()
    assert not served.update()
    assert served.trouble is None


def test_a_run_and_a_version_are_served_and_weights_are_checked(workspace, runs):
    assert ServedModel.load(runs[1].name).classifier.version == runs[1].name
    assert ServedModel.load("served/1").classifier.version == "served/1"
    with pytest.raises(UserError, match="served/9: no such version"):
        ServedModel.load("served/9")
    theirs, ours = (
        next(workspace.folder.glob(f"mlruns/artifacts/**/{each}/**/model.pt2"))
        for each in (logged_model_id(found._run) for found in reversed(runs))
    )
    content = ours.read_bytes()
    ours.write_bytes(theirs.read_bytes())
    try:
        with pytest.raises(RunError, match="served/1: its weights are not those"):
            ServedModel.load("served")
    finally:
        ours.write_bytes(content)


def test_vectors_are_taken_as_json_alone(workspace):
    run = torchyard.run(
        "digits", "dataset=random_vectors", "model=mlp", "train.epochs=1", quiet=True
    )
    [size] = run.model.shape
    served = ServedModel.load(run.run_id)
    with TestClient(application(served, local=True), base_url=ADDRESS) as client:
        assert client.get("/").json()["takes"] == {
            "kind": "vectors",
            "shape": [size],
            "dtype": "float32",
        }
        answer = client.post("/predict", json={"samples": [[0.5] * size, [0] * size]})
        assert len(answer.json()["predictions"]) == 2
        refused = client.post("/predict", content=b"image")
        assert refused.status_code == 415
        assert refused.json()["errors"] == [
            'the model takes vectors: send application/json with {"samples": […]}'
        ]


def test_it_answers_what_the_server_of_mlflow_answers(client, runs, pictures):
    from mlflow.pyfunc.scoring_server import init

    with TestClient(init(Classifier.find(runs[0].run_id).model)) as theirs:
        answer = theirs.post("/invocations", json={"inputs": pictures.tolist()})
    logits = np.array(answer.json()["predictions"], np.float32)
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    expected = exponentials / exponentials.sum(axis=1, keepdims=True)
    files = [("file", (f"{at}.png", png(each))) for at, each in enumerate(pictures)]
    rows = client.post("/predict?top=10", files=files).json()["predictions"]
    found = [[shares(row)[name] for name in "0123456789"] for row in rows]
    assert np.allclose(found, expected, atol=1e-6)


@pytest.mark.slow
def test_the_command_serves_until_it_is_interrupted(workspace, runs, pictures):
    process = workspace.begin(
        "serve", "served", "--port", "0", cwd=workspace.folder, env=workspace.environment
    )
    try:
        line = process.stdout.readline()
        address = re.search(r"takes images at (http://127\.0\.0\.1:\d+/predict)", line)[1]
        answer = httpx.post(address, content=png(pictures[0]), timeout=60)
        assert answer.json()["predictions"][0]["classes"][0]["probability"] > 0
        assert process.stdout.readline() == "Ctrl-C stops it.\n"
        port = address.split(":")[2].partition("/")[0]
        taken = workspace.torchyard("serve", "served", "--port", port)
        assert taken.returncode == 2
        assert f"--port: 127.0.0.1:{port} cannot be served at: another program" in taken.stderr
        process.send_signal(signal.SIGINT)
        printed, errors = process.communicate(timeout=60)
        assert (process.returncode, printed, errors) == (0, "Stopped.\n", "")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
