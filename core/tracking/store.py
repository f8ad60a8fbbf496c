"""The MLflow store runs are kept in: where it is, opening it, and what its errors mean."""

from __future__ import annotations

import contextlib
import http.client
import logging
import os
import re
import shutil
import ssl
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.message import Message
from functools import lru_cache
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from torchyard.core.errors import RunError, StoreUnavailableError, UserError
from torchyard.core.tracking.provenance import user_name

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run


T = TypeVar("T")

TRACKING_URI = "MLFLOW_TRACKING_URI"
EXPERIMENT = "torchyard"
LOCAL_UI = "http://127.0.0.1:5000"
LOCK_TIMEOUT_SECONDS = 120.0  # creating the database under the lock takes seconds

# MLflow's documented switches, where the user has not set them.
_SETTINGS = {
    # A run at night connects to no host that the user has not configured.
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    # The terminal belongs to the run: no address printed at its end, no bars for uploads.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # A lost server is reported after half a minute; MLflow's own 7 retries take four.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "4",
}

# A pattern of a store's error, the error raised for it, and its message.
_TROUBLES: tuple[tuple[str, type[UserError | RunError], str], ...] = (
    ("database is locked", StoreUnavailableError, "is locked by another program"),
    (
        "disk is full|No space left|quota exceeded",
        StoreUnavailableError,
        "has no space left on its disk",
    ),
    ("readonly database|Permission denied|Read-only", StoreUnavailableError, "cannot be written"),
    ("unable to open database", StoreUnavailableError, "cannot be written"),
    (
        "out-of-date database schema|Can't locate revision",
        UserError,
        "was made by another version of MLflow; back it up, then 'mlflow db upgrade {uri}'",
    ),
    ("file is not a database|malformed", UserError, "is not a readable MLflow database"),
    ("Max retries exceeded|Connection|[Tt]imed out", StoreUnavailableError, "does not answer"),
)


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI if that is set, otherwise the database in ./mlruns."""
    chosen = os.environ.get(TRACKING_URI, "").strip()
    return chosen or f"sqlite:///{Path.cwd().as_posix()}/mlruns/mlflow.db"


def check_writable(uri: str) -> None:
    """Find out before any work whether runs can be recorded.

    Raises:
        UserError: the store is of a kind MLflow no longer has, or its folder cannot be
            created or written.
    """
    if uri.startswith("file:") or (":" not in uri and uri not in ("databricks", "uc")):
        raise UserError(
            f"MLFLOW_TRACKING_URI: MLflow no longer keeps runs in plain files ('{uri}'); give "
            "sqlite:////FOLDER/mlflow.db or a server's address, or leave it unset."
        )
    database = database_of(uri)
    if database is None:
        return
    folder = database.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"\0" * 4096)  # an empty file fits on a full disk
            probe.flush()
    except OSError as error:
        reason = "it is not a folder" if isinstance(error, FileExistsError) else error.strerror
        raise UserError(f"The runs' folder {folder} cannot be written: {reason}.") from error
    # Only asked, never opened: closing a second handle would drop SQLite's locks on the file.
    if database.exists() and not (database.is_file() and os.access(database, os.R_OK | os.W_OK)):
        raise UserError(f"The runs' database {database} cannot be written.")


def load_mlflow() -> None:
    """Import MLflow, quiet and with the settings the user has not made."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    import mlflow  # noqa: F401

    if "MLFLOW_LOGGING_LEVEL" not in os.environ:
        # This logger announces a new database's tables, and prints a traceback for each
        # locked or full one, which our error reports.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


@lru_cache
def open_store(uri: str) -> MlflowClient:
    """One client per store: opening it takes seconds, more if MLflow has to make the database."""
    from mlflow import MlflowClient

    copy_template_database("mlflow", uri)
    return MlflowClient(tracking_uri=uri)


def open_existing(uri: str) -> MlflowClient:
    """The client of a store that has runs; a database that is not there is not made.

    Raises:
        UserError: there is none, or it cannot be written.
    """
    database = database_of(uri)
    if database is not None and not database.exists():
        raise UserError(f"There is no run yet: {database} is not there.")
    check_writable(uri)
    load_mlflow()
    with store_errors(uri):
        return open_store(uri)


def if_there(get: Callable[..., T], *names: str) -> T | None:
    """What a client's method returns, or None where MLflow has nothing of these names."""
    from mlflow.exceptions import MlflowException

    try:
        return get(*names)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return None


def chosen_experiment(client: MlflowClient, uri: str) -> Experiment:
    """The experiment the environment names, as MLflow documents it; otherwise torchyard's own.

    Raises:
        UserError: there is no such experiment, it is deleted, or two are named.
    """
    identity = os.environ.get("MLFLOW_EXPERIMENT_ID")
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME")
    if identity and not name:
        experiment = if_there(client.get_experiment, identity)
        if experiment is None:
            raise UserError(f"MLFLOW_EXPERIMENT_ID: there is no experiment {identity}.")
    else:
        experiment = _named_experiment(client, uri, name or EXPERIMENT)
        if identity and identity != experiment.experiment_id:
            raise UserError(
                f"MLFLOW_EXPERIMENT_ID is {identity}, but MLFLOW_EXPERIMENT_NAME '{name}' is "
                f"experiment {experiment.experiment_id}; set one of them."
            )
    if experiment.lifecycle_stage != "active":
        raise UserError(
            f"The MLflow experiment '{experiment.name}' is deleted; bring it back with "
            f"'mlflow experiments restore -x {experiment.experiment_id}', or name another one "
            "in MLFLOW_EXPERIMENT_NAME."
        )
    return experiment


def _named_experiment(client: MlflowClient, uri: str, name: str) -> Experiment:
    from mlflow.exceptions import MlflowException

    if found := client.get_experiment_by_name(name):
        return found
    database = database_of(uri)
    # By default MLflow puts artifacts into ./mlruns/<experiment>, wherever the run was started.
    location = None if database is None else (database.parent / "artifacts").as_uri()
    # Without its kind the UI guesses one and asks for a confirmation.
    tags = {"mlflow.experimentKind": "custom_model_development"}
    try:
        return client.get_experiment(client.create_experiment(name, location, tags))
    except MlflowException:
        if found := client.get_experiment_by_name(name):  # another machine was quicker
            return found
        raise


@contextmanager
def store_lock(uri: str) -> Iterator[None]:
    """Hold the store's lock among the processes of this machine.

    MLflow fills an empty database table by table, and of two that do so at once one fails.
    """
    from filelock import FileLock

    database = database_of(uri)
    if database is None:
        key = sha256(f"{uri} {user_name()}".encode()).hexdigest()[:16]
        path = Path(tempfile.gettempdir()) / f"torchyard-{key}.lock"
    else:
        path = database.parent / ".torchyard.lock"
    with FileLock(path, timeout=LOCK_TIMEOUT_SECONDS):
        yield


@contextmanager
def locked_store() -> Iterator[MlflowClient]:
    """The client of the environment's store, with `store_errors`; other starts here wait."""
    uri = tracking_uri()
    check_writable(uri)
    load_mlflow()
    with store_errors(uri), store_lock(uri):
        yield open_store(uri)


@contextmanager
def current_store(uri: str) -> Iterator[None]:
    """Make a store the one that MLflow's functions without a client use."""
    import mlflow

    # MLflow sets the variable, too, so putting that back puts back what anybody had set.
    before = os.environ.get(TRACKING_URI)
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
        if before is not None:
            os.environ[TRACKING_URI] = before


@contextmanager
def store_errors(uri: str) -> Iterator[None]:
    """Turn what the store raises into one message; other exceptions pass.

    Raises:
        UserError: the store is of another version of MLflow, or not a store at all.
        StoreUnavailableError: it is locked, full, read-only or out of reach.
        RunError: it refused.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        text = str(error).strip() or type(error).__name__
        says = f"refused: {text.splitlines()[0][:300]}"
        kind: type[UserError | RunError] = RunError
        for sign, known, meaning in _TROUBLES:
            if re.search(sign, text):
                kind, says = known, f"{meaning.format(uri=redacted_uri(uri))}."
                break
        message = f"The MLflow store {redacted_uri(uri)} {says}"
        raise (kind(message, text) if issubclass(kind, RunError) else kind(message)) from error


def is_server(uri: str) -> bool:
    """Whether the store is a server, which can be asked whether it answers."""
    return uri.startswith(("http://", "https://"))


def redacted_uri(uri: str) -> str:
    """An address without the user name and password in it."""
    return re.sub(r"//[^@/]*@", "//", uri)


ANSWER_SECONDS = 2.0


def answers(url: str) -> bool:
    """Whether anything answers there at once, be it with a refusal."""
    try:
        http_get(url, ANSWER_SECONDS)
    except (OSError, http.client.HTTPException):
        return False
    return True


def http_get(url: str, timeout: float) -> tuple[Message, bytes]:
    """Headers and body of any HTTP answer, also a refusing one: something answers there.

    Raises:
        TimeoutError: nothing does within `timeout` seconds.
        OSError, http.client.HTTPException: nothing does, or it speaks no HTTP.
    """
    parts = urlsplit(url)
    # A proxy would not know this machine's own address; urllib takes a password for the port.
    proxies = urllib.request.ProxyHandler({} if parts.hostname == "127.0.0.1" else None)
    address = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    try:
        with urllib.request.build_opener(proxies).open(address, timeout=timeout) as answer:
            return answer.headers, answer.read()
    except urllib.error.HTTPError as refusal:
        with refusal:
            return refusal.headers, refusal.read()
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLError):  # its certificate is for the client to judge
            return Message(), b""
        if isinstance(error.reason, TimeoutError):
            raise error.reason from error
        raise


def template_database(program: str) -> Path:
    """Where the template lies: one for each version of the program in this environment."""
    return Path(sys.prefix) / "share" / "torchyard" / f"{program}-{version(program)}.db"


def copy_template_database(program: str, url: str) -> None:
    """Copy the template database to where "prefect" or "mlflow" would make one, if none is there.

    A `url` that names no SQLite file is left to the program.
    """
    template, database = template_database(program), database_of(url)
    if database is None or ":memory:" in url or database.exists():
        return
    # A link is made at once: another process may be creating the database at this moment.
    with (
        contextlib.suppress(OSError),
        tempfile.TemporaryDirectory(dir=database.parent) as scratch,
    ):
        os.link(shutil.copyfile(template, Path(scratch) / "copy"), database)


def database_of(url: str) -> Path | None:
    """The file of a SQLite database; None for any other."""
    match = re.match(r"sqlite(\+\w+)?:///([^?]+)", url)
    return Path(match[2]).absolute() if match else None


FOLDER = "torchyard.folder"  # tag of a run: the folder that its own folder was made in


def runs_folder(uri: str) -> Path:
    """Where the folders of new runs are made: beside a SQLite database, otherwise in ./mlruns."""
    database = database_of(uri)
    return (database.parent if database else Path("mlruns").absolute()) / "runs"


def run_folder(uri: str, run: Run) -> Path:
    """The folder of a run, with its log and checkpoints, on this machine; it may not exist.

    A server does not say where a run's files are, so for one the run's tag decides, as long as
    this machine has that folder: the run may have started in another working folder.
    """
    folder, run_id = runs_folder(uri), str(run.info.run_id)
    tagged = Path(run.data.tags.get(FOLDER, folder))
    return (tagged if database_of(uri) is None and (tagged / run_id).is_dir() else folder) / run_id
