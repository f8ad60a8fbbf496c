"""deploy/: what can be said of its files where neither Docker nor Kubernetes is."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import FlowRun

from torchyard.core.errors import UserError
from torchyard.pipelines.services.scheduling.job_variables import fit_variables

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
POOL = json.loads((DEPLOY / "kubernetes-pool.json").read_text("utf-8"))


def test_what_the_dockerfile_copies_is_there():
    text = (DEPLOY / "Dockerfile").read_text("utf-8")
    lines = [shlex.split(line)[1:-1] for line in text.splitlines() if line.startswith("COPY")]
    assert lines
    for name in chain.from_iterable(lines):
        assert (ROOT / name).exists(), name
    uv = re.search(r"uv==([\d.]+)", (ROOT / "Makefile").read_text("utf-8"))
    assert uv is not None
    assert uv[0] in text


def test_the_compose_file_names_what_there_is():
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
    services = compose["services"]
    assert set(services) == {"postgresql", "bucket", "make-bucket", "mlflow", "prefect", "worker"}
    for name, service in services.items():
        assert "image" in service, name
        assert set(service.get("depends_on", ())) <= set(services), name
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            assert source in compose["volumes"] or (DEPLOY / source).exists(), volume
        # Each address in its environment is one of another service, or of the browser.
        for value in map(str, service.get("environment", {}).values()):
            for host in re.findall(r"(?:@|http://)([a-z][a-z-]*)(?=[:/])", value):
                assert host in services or host == "localhost", value
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), port
    text = (DEPLOY / "compose.yaml").read_text("utf-8")
    assert not re.search(r"PASSWORD: (?!\$\{\w+:\?\})", text), "a password is written in it"


@pytest.mark.slow  # the worker's import, and a server for it
@pytest.mark.parametrize("gpus", [None, 2])
def test_prefects_kubernetes_worker_makes_a_job_of_the_template(workspace, gpus):
    worker = pytest.importorskip("prefect_kubernetes.worker")
    values = {"image": "torchyard:1", "gpus": gpus, "env": {"A": "b"}}
    made = worker.KubernetesWorkerJobConfiguration.from_template_and_values(POOL, values)
    configuration = asyncio.run(made)
    configuration.prepare_for_flow_run(FlowRun(flow_id=uuid4(), name="a run"))
    manifest = configuration.job_manifest
    [box] = manifest["spec"]["template"]["spec"]["containers"]
    assert box["resources"]["limits"].get("nvidia.com/gpu") == gpus
    assert box["image"] == "torchyard:1"
    # Through Kubernetes' own model and back: a field that it does not know would be lost.
    limits = box["resources"]["limits"]
    limits |= {name: str(amount) for name, amount in limits.items()}
    assert asyncio.run(through_model(manifest)) == manifest


async def through_model(manifest):
    from kubernetes_asyncio import client

    async with client.ApiClient() as api:
        job = api.deserialize(SimpleNamespace(data=json.dumps(manifest)), "V1Job")
        return api.sanitize_for_serialization(job)


@pytest.mark.slow
def test_the_server_takes_the_template_and_a_deployment_its_variables(workspace):
    with get_client(sync_client=True) as prefect:
        pool = WorkPoolCreate(name=f"gpus-{uuid4()}", type="kubernetes", base_job_template=POOL)
        found = prefect.read_work_pool(prefect.create_work_pool(pool).name)
    wanted = {"gpus": 2, "image": "torchyard:1", "claim": "mine"}
    assert fit_variables(wanted, found.base_job_template) == wanted
    with pytest.raises(UserError, match="gpu"):
        fit_variables({"gpu": 2}, found.base_job_template)
