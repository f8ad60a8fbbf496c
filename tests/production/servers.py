"""A team's servers on this machine: PostgreSQL, an S3 bucket, MLflow and Prefect on top of them."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.ports import free_port
from tests.production import webhooks

SECONDS = 400.0  # the machine may be busy
PASSWORD = "sesame-open"
LOCAL = "127.0.0.1"
BUCKET = "runs"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "me",
    "AWS_SECRET_ACCESS_KEY": "a-secret-key",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@contextmanager
def postgresql() -> Iterator[str]:
    """A cluster in a folder of its own, with two databases; yields NAME:PASSWORD@HOST:PORT.

    Debian's or any on the PATH; as root it runs as the user postgres, because it refuses root.
    """
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    found = shutil.which("initdb") or (programs and programs[-1] / "initdb")
    if not found:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    programs_folder = Path(found).parent
    user: list[str] = []
    folder = Path(tempfile.mkdtemp(prefix="torchyard-postgresql-"))
    if os.geteuid() == 0:
        try:
            owner = pwd.getpwnam("postgres")
        except KeyError:
            owner = pwd.getpwnam("nobody")
        os.chown(folder, owner.pw_uid, owner.pw_gid)
        user = ["setpriv", f"--reuid={owner.pw_uid}", f"--regid={owner.pw_gid}", "--clear-groups"]
    port, data = free_port(), folder / "data"

    def run(program: str, *arguments: str) -> None:
        command = [*user, str(programs_folder / program), *arguments]
        subprocess.run(command, check=True, capture_output=True, cwd=folder)

    (folder / "password").write_text(PASSWORD)
    (folder / "password").chmod(0o644)
    run(
        *("initdb", "-D", str(data), "-U", "team", "-A", "scram-sha-256", "--no-sync"),
        *("-E", "UTF8", "--no-instructions", f"--pwfile={folder}/password"),
    )
    options = f"-p {port} -k {folder} -c listen_addresses=0.0.0.0 -c fsync=off"
    with (data / "pg_hba.conf").open("a") as rules:
        rules.write("host all all samenet scram-sha-256\n")
    run("pg_ctl", "-D", str(data), "-o", options, "-l", str(folder / "log"), "-w", "start")
    try:
        import psycopg2

        address = f"team:{PASSWORD}@{LOCAL}:{port}"
        connection = psycopg2.connect(f"postgresql://{address}/postgres")
        connection.autocommit = True
        for name in ("mlflow", "prefect"):
            connection.cursor().execute(f"create database {name}")
        connection.close()
        yield address
    finally:
        run("pg_ctl", "-D", str(data), "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def s3_bucket() -> Iterator[Any]:
    """moto's S3 server with a bucket; its client."""
    moto = pytest.importorskip("moto.server")
    boto3 = pytest.importorskip("boto3")
    server = moto.ThreadedMotoServer(ip_address="0.0.0.0", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    client = boto3.client(
        "s3",
        endpoint_url=f"http://{LOCAL}:{port}",
        aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        region_name=CREDENTIALS["AWS_DEFAULT_REGION"],
    )
    client.create_bucket(Bucket=BUCKET)
    try:
        yield client
    finally:
        server.stop()


@dataclass
class Service:
    """A server process that can be killed and started again at its address."""

    name: str
    command: list[str]
    environment: dict[str, str]
    health: str
    folder: Path
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def start(self) -> None:
        with (self.folder / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                env=self.environment,
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self) -> None:
        end = time.monotonic() + SECONDS
        while True:
            assert self.process is not None
            log = (self.folder / f"{self.name}.log").read_text("utf-8", "replace")[-3000:]
            assert self.process.poll() is None, log
            try:
                if httpx.get(self.health, timeout=2).status_code == 200:
                    return
            except httpx.HTTPError:
                assert time.monotonic() < end, log
            time.sleep(0.3)

    def kill(self) -> None:
        """End it and its children at once, as a crash of its machine would."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, 9)
            self.process.wait()


@dataclass(frozen=True)
class Team:
    """The servers, and how a member reaches them.

    Attributes:
        mlflow, prefect: the servers.
        bucket: client of the S3 bucket with the artifacts.
        folder: for working folders.
        environment: of a member's shell: two addresses and a password, no key of the bucket.
    """

    mlflow: Service
    prefect: Service
    bucket: Any
    folder: Path
    environment: dict[str, str]

    def torchyard(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*options.pop("prefix", ()), sys.executable, "-m", "torchyard", *arguments],
            cwd=options.pop("cwd", self.folder),
            env=self.environment | options.pop("env", {}),
            capture_output=True,
            text=True,
            timeout=400,
        )

    def begin(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*options.pop("prefix", ()), sys.executable, "-m", "torchyard", *arguments],
            cwd=self.folder,
            env=self.environment | options.pop("env", {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def objects(self) -> set[str]:
        """The keys in the bucket."""
        pages = self.bucket.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
        return {each["Key"] for page in pages for each in page.get("Contents", [])}


@contextmanager
def team(folder: Path, host: str = LOCAL) -> Iterator[Team]:
    """All servers, as docs/production.md starts them, listening on `host`."""
    with postgresql() as database, s3_bucket() as bucket:
        plain = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PREFECT_", "MLFLOW_", "TORCHYARD_", "AWS_"))
        }
        plain |= {"DO_NOT_TRACK": "1", "OMP_NUM_THREADS": "1", "no_proxy": f"{LOCAL},{host}"}
        ports = free_port(), free_port()
        own = (
            CREDENTIALS
            | webhooks.SETTINGS
            | {
                "MLFLOW_S3_ENDPOINT_URL": bucket.meta.endpoint_url,
                "MLFLOW_BACKEND_STORE_URI": f"postgresql+psycopg2://{database}/mlflow",
                "MLFLOW_ARTIFACTS_DESTINATION": f"s3://{BUCKET}",
                "MLFLOW_DISABLE_TELEMETRY": "true",
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            }
        )
        mlflow = Service(
            "mlflow",
            [
                *(sys.executable, "-m", "mlflow", "server", "--workers", "1"),
                *("--host", host, "--port", str(ports[0]), "--allowed-hosts", "*"),
            ],
            plain | own,
            f"http://{host}:{ports[0]}/health",
            folder,
        )
        authorization = f"me:{PASSWORD}"
        prefect = Service(
            "prefect",
            [
                *(sys.executable, "-m", "prefect", "server", "start"),
                *("--host", host, "--port", str(ports[1])),
            ],
            plain
            | {
                "PREFECT_HOME": str(folder / "prefect-server"),
                "PREFECT_SERVER_API_AUTH_STRING": authorization,
                "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
                "PREFECT_SERVER_DATABASE_CONNECTION_URL": (
                    f"postgresql+asyncpg://{database}/prefect"
                ),
            },
            f"http://{host}:{ports[1]}/api/health",
            folder,
        )
        environment = plain | {
            "MLFLOW_TRACKING_URI": f"http://{host}:{ports[0]}",
            "PREFECT_API_URL": f"http://{host}:{ports[1]}/api",
            "PREFECT_API_AUTH_STRING": authorization,
            "PREFECT_HOME": str(folder / "prefect"),
            "TORCHYARD_CACHE": str(folder / "cache"),
            "XDG_DATA_HOME": str(folder / "data"),
        }
        try:
            for server in (mlflow, prefect):
                server.start()
            for server in (mlflow, prefect):
                server.wait()
            yield Team(mlflow, prefect, bucket, folder, environment)
        finally:
            for server in (mlflow, prefect):
                server.kill()
