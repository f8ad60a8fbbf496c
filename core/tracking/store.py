"""The MLflow store runs are kept in: where it is, and opening it."""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from torchyard.core.data.files import check_folder, make_folder
from torchyard.core.errors import StoreUnavailableError, UserError
from torchyard.core.proxies import check_proxy, settle_proxies
from torchyard.core.redaction import redacted_uri
from torchyard.core.tracking.location.address import (
    check_address,
    database_of,
    is_server,
    local_address,
)
from torchyard.core.tracking.location.errors import check_answer, store_errors
from torchyard.core.tracking.location.relocation import FOLDER, RUNS_NAME, relocate
from torchyard.core.tracking.ownership.folders import is_own, user_folder

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run


T = TypeVar("T")

TRACKING_URI = "MLFLOW_TRACKING_URI"
EXPERIMENT = "torchyard"
AUDITS = "torchyard audits"
MAX_EXPERIMENT = 256  # characters of an experiment's name, the column's width in a database
LOCAL_UI = "http://127.0.0.1:5000"
RUNS = "TORCHYARD_RUNS"  # environment variable: the folder of the runs' own folders
START_SECONDS = 30.0  # how long a start waits for a server that is coming up
LOCK_TIMEOUT_SECONDS = 120.0  # creating the database under the lock takes seconds

# MLflow's documented switches, where the user has not set them.
_SETTINGS = {
    # A run at night connects to no host that the user has not configured.
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    # The terminal belongs to the run: no address printed at its end, no bars for uploads.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # A server that accepts and never answers is given up after half a minute; by MLflow's own
    # settings that takes a quarter of an hour.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",  # it may say an hour
}

_CURRENT_STORE = threading.RLock()
_ARTIFACT_ROOT = "_MLFLOW_SERVER_ARTIFACT_ROOT"  # where MLflow looks for it as it opens a database


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI if that is set, otherwise the database in ./mlruns."""
    chosen = os.environ.get(TRACKING_URI, "").strip()
    return chosen or local_address(Path.cwd() / "mlruns/mlflow.db")


def check_writable(uri: str) -> None:
    """Find out before any work whether runs can be recorded; the proxies are settled for it.

    Raises:
        UserError: the address is none of a store, its folder cannot be created or written, or the
            environment's experiment cannot be of that name.
    """
    settle_proxies()  # commands, Python and a flow run of Prefect's worker all begin here
    check_address(uri, redacted_uri(uri))
    _check_experiment_name(os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT)
    if is_server(uri):
        check_proxy(uri)
    database = database_of(uri)
    if database is None:
        return
    check_folder(database.parent, "runs' folder")
    # Only asked, never opened: closing a second handle would drop SQLite's locks on the file.
    if database.exists() and not (database.is_file() and os.access(database, os.R_OK | os.W_OK)):
        raise UserError(f"The runs' database {database} cannot be written.")


def _check_experiment_name(name: str) -> None:
    variable = f"MLFLOW_EXPERIMENT_NAME: {name[:60]!r}"
    if name == AUDITS:
        raise UserError(f"{variable} is where audits are recorded, not runs: give another name")
    if len(name) > MAX_EXPERIMENT or name != name.strip() or not name.isprintable():
        raise UserError(
            f"{variable} is no name of an experiment: it has at most {MAX_EXPERIMENT} characters, "
            "none of them invisible, and no space at its ends"
        )


def load_mlflow() -> None:
    """Import MLflow, quiet and with the settings the user has not made."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    import mlflow  # noqa: F401

    if "MLFLOW_LOGGING_LEVEL" not in os.environ:
        # This logger announces a new database's tables, and prints a traceback for each
        # locked or full one, which our error reports.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
        # And this one each try to reach a server that is away.
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)


@lru_cache
def open_store(uri: str) -> MlflowClient:
    """One client per store: opening it takes seconds, more if MLflow has to make the database."""
    from mlflow import MlflowClient

    copy_template_database("mlflow", uri)
    database = database_of(uri)
    if database is None:
        return MlflowClient(tracking_uri=uri)
    relocate(database)
    # What runs record is the user's alone; the files that SQLite makes beside it are as it is.
    database.touch(mode=0o600)
    make_folder(database.parent / "artifacts")
    # MLflow writes the place of its own experiment into SQL as it is, without regard to quotes.
    os.environ[_ARTIFACT_ROOT] = (database.parent / "artifacts").as_uri()
    try:
        return MlflowClient(tracking_uri=uri)
    finally:
        del os.environ[_ARTIFACT_ROOT]


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
    identity = os.environ.get("MLFLOW_EXPERIMENT_ID", "").strip()
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME")
    if identity and not name:
        # Its ids are 64-bit integers.
        experiment = if_there(client.get_experiment, identity) if len(identity) < 19 else None
        if experiment is None:
            raise UserError(f"MLFLOW_EXPERIMENT_ID: there is no experiment {identity}.")
        check_answer(experiment.experiment_id, identity)
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


def run_experiments(client: MlflowClient) -> list[str]:
    """The ids of the experiments that have runs: all but that of the audits."""
    return [found.experiment_id for found in client.search_experiments() if found.name != AUDITS]


def audits_experiment(client: MlflowClient, uri: str) -> Experiment:
    """The experiment of the audits of data sets."""
    return _named_experiment(client, uri, AUDITS)


def _named_experiment(client: MlflowClient, uri: str, name: str) -> Experiment:
    from mlflow.exceptions import MlflowException

    if found := client.get_experiment_by_name(name):
        check_answer(found.name, name)
        return found
    database = database_of(uri)
    # By default MLflow puts artifacts into ./mlruns/<experiment>, wherever the run was started.
    location = None if database is None else (database.parent / "artifacts").as_uri()
    # Without its kind the UI guesses one and asks for a confirmation.
    tags = {"mlflow.experimentKind": "custom_model_development"}
    if database is not None:
        tags[FOLDER] = str(database.parent / RUNS_NAME)
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
        path = user_folder("locks") / f"{sha256(uri.encode()).hexdigest()[:16]}.lock"
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
        client = open_store(uri)
        if is_server(uri):
            _wait_for_server(client)
        yield client


def _wait_for_server(client: MlflowClient) -> None:
    """Wait a while for a server that is coming up, or restarted behind its proxy.

    Raises:
        StoreUnavailableError: it does not answer, or something else does.
    """
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            with store_errors(client.tracking_uri):
                client.search_experiments(max_results=1)
                return
        except StoreUnavailableError as error:
            coming_up = re.search(r"does not answer|status 50[234]", str(error))
            if not coming_up or time.monotonic() > deadline:
                raise
            time.sleep(1.0)


def get_run(client: MlflowClient, run_id: str) -> Run:
    """A run of the store.

    Raises:
        OSError: the answer is of another run, or of none: it is not MLflow that answers.
        MlflowException: there is no such run, or MLflow is out of reach.
    """
    try:
        run = client.get_run(run_id)
    except (ValueError, TypeError, AttributeError) as error:
        raise OSError(f"status 200, with what is no run: {error}") from error
    check_answer(run.info.run_id, run_id)
    return run


@contextmanager
def current_store(uri: str) -> Iterator[None]:
    """Make a store the one that MLflow's functions without a client use."""
    import mlflow

    # MLflow sets the variable, too, for the whole process: one at a time, else what another thread
    # set is put back. MLflow removes it only where it set it last, not where this is nested.
    with _CURRENT_STORE:
        before = os.environ.get(TRACKING_URI)
        mlflow.set_tracking_uri(uri)
        try:
            yield
        finally:
            mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
            os.environ.pop(TRACKING_URI, None)
            if before is not None:
                os.environ[TRACKING_URI] = before


def template_database(program: str) -> Path:
    """Where the template lies: one for each version of the program in this environment."""
    return Path(sys.prefix) / "share" / "torchyard" / f"{program}-{version(program)}.db"


def copy_template_database(program: str, url: str) -> None:
    """Copy the template database to where "prefect" or "mlflow" would make one, if none is there.

    A `url` that names no SQLite file is left to the program.
    """
    template, database = template_database(program), database_of(url)
    if database is None or database.exists():
        return
    # A link is made at once: another process may be creating the database at this moment.
    with (
        suppress(OSError),
        tempfile.TemporaryDirectory(dir=database.parent) as scratch,
    ):
        copy = shutil.copyfile(template, Path(scratch) / "copy")
        copy.chmod(0o600)
        os.link(copy, database)


def runs_folder(uri: str) -> Path:
    """Where the folders of new runs are made.

    TORCHYARD_RUNS, which several machines may share; otherwise beside a SQLite database. A run on
    a server may begin in any working folder, and be resumed from another: for it, a folder of the
    user's.
    """
    if chosen := os.environ.get(RUNS):
        return Path(chosen).expanduser().absolute()
    database = database_of(uri)
    return database.parent / RUNS_NAME if database else user_folder(RUNS_NAME)


def run_folder(uri: str, run: Run) -> Path:
    """The folder of a run, with its log and checkpoints, on this machine; it may not exist.

    What the store says of it is not asked: whoever can write to the store could name any folder.
    """
    run_id = re.sub(r"[^A-Za-z0-9_-]", "_", str(run.info.run_id))  # one name, no path
    folder = runs_folder(uri) / run_id
    earlier = Path("mlruns/runs").absolute() / run_id  # where torchyard 0.2 kept it
    return earlier if not folder.exists() and is_own(earlier) else folder


def page_address(uri: str, experiment_id: str, run_id: str) -> str:
    """The address of a run's page in the MLflow UI of a store."""
    server = redacted_uri(uri) if is_server(uri) else LOCAL_UI
    page = f"{server.rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}"
    # Without it the UI opens on its side for language models, where metrics do not show.
    return f"{page}?workflowType=machine_learning"
