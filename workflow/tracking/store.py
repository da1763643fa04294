"""Tracking store: its client, its experiments, and the message when it cannot be used."""

import json
import logging
import os
import re
import shlex
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from configs.errors import InputError, ReadError, chained
from tasks.files.atomic import replacing
from tasks.files.lock import alone_in
from workflow.tracking import mlflow_api

if TYPE_CHECKING:
    from mlflow import MlflowClient

SQLITE = "sqlite:///"
# MLflow's pages show runs, models and charts of such an experiment, and ask nobody for its kind.
MODEL_TRAINING = {"mlflow.experimentKind": "custom_model_development"}
PARENT_TAG = "mlflow.parentRunId"
ANSWER_SECONDS = 10.0
PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# An absent server is reported after seconds, not after minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
# Progress bars of uploads and downloads would stand between those of the work.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# It prints a traceback for every call that a database refuses; what it raises says the same.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


class StoreError(InputError):
    """A tracking store that cannot be used."""


@dataclass(frozen=True)
class RunAddress:
    """Address of a run, passed to every process that needs it: the URI of its store, its experiment and its id."""

    tracking_uri: str
    experiment: str
    run_id: str

    @classmethod
    def read(cls, path: Path) -> "RunAddress | None":
        """Read the file that `write` made; None if there is none.

        Raises:
            ReadError: It names no run.
        """
        try:
            address = cls(**json.loads(path.read_text()))
            if not all(isinstance(value, str) for value in vars(address).values()):
                raise TypeError
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, RecursionError):
            remedy = f"Remove {path} to record the rest as a new run."
            raise ReadError(path.name, "it does not name the run of this folder", remedy) from None
        return address

    def write(self, path: Path) -> None:
        """Write the address to a file, for resuming the run."""
        with replacing(path) as partial:
            partial.write_text(json.dumps(asdict(self)))

    @property
    def instructions(self) -> str:
        """The run, and the command that shows it in a browser, or the address of the server that does."""
        run = f"MLflow run {self.run_id} of the experiment {self.experiment}"
        if self.tracking_uri.startswith("http"):
            return f"{run}: {shown(self.tracking_uri)}"
        command = ["mlflow", "ui", "--backend-store-uri", self.tracking_uri, "--host", "127.0.0.1", "--port", "5000"]
        return f"{run}:\n  {shlex.join(command)}\n  then open http://127.0.0.1:5000"


def tracking_uri() -> str:
    """The store: `MLFLOW_TRACKING_URI`, or a SQLite file in the working directory."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path.cwd() / 'mlflow.db'}"


def check_store(doing: str) -> None:
    """Check that the store answers, without loading MLflow where it can; arguments and errors as of `opened_store`."""
    uri = tracking_uri()
    try:
        require_answer(uri)
    except Exception as error:
        raise _refusal(doing, uri, error) from error


@contextmanager
def opened_store(doing: str, uri: str | None = None) -> Iterator["MlflowClient"]:
    """Open the store; an error of MLflow becomes one message.

    Args:
        doing: Verb phrase that follows "Cannot" in the message.
        uri: Of the store; `tracking_uri()` by default.

    Raises:
        StoreError: The store cannot be used.
    """
    uri = uri or tracking_uri()
    try:
        client = store_client(uri)
    except Exception as error:
        raise _refusal(doing, uri, error) from error
    try:
        yield client
    except mlflow_api.MlflowException as error:
        raise _refusal(doing, uri, error) from error


def shown(uri: str) -> str:
    """The URI of a store without the name and password in it.

    >>> shown("https://jane:secret@mlflow.example.org/team")
    'https://mlflow.example.org/team'
    """
    return re.sub(r"//[^/@]*@", "//", uri)


def experiment_id(client: "MlflowClient", uri: str, name: str) -> str:
    """Return the id of an experiment, which is made if it is not there.

    Raises:
        InputError: It was deleted.
    """
    found = require_experiment(client, uri, name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=artifact_location(uri), tags=MODEL_TRAINING))
        except mlflow_api.MlflowException:
            # Another process may have made it meanwhile.
            found = require_experiment(client, uri, name)
            if found is None:
                raise
    return found


def require_experiment(client: "MlflowClient", uri: str, name: str) -> str | None:
    """Return the id of an experiment that runs may be recorded in, None if it is not there yet.

    Raises:
        InputError: It was deleted.
    """
    found = client.get_experiment_by_name(name)
    if found is not None and found.lifecycle_stage == "deleted":
        raise InputError(
            f"Cannot record in the experiment {name}: it was deleted in {shown(uri)}.",
            "Restore it, or use another name with --set tracking.experiment=NAME.",
        )
    return str(found.experiment_id) if found is not None else None


def artifact_location(uri: str) -> str | None:
    """Return the place of artifacts of a new experiment: next to a SQLite file; None for a server's own."""
    file = sqlite_file(uri)
    return (file.parent / "mlruns").as_uri() if file else None


def sqlite_file(uri: str) -> Path | None:
    """Return the file of a SQLite store, None for any other store."""
    return Path(uri.removeprefix(SQLITE).partition("?")[0]).resolve() if uri.startswith(SQLITE) else None


def local_folder(uri: str) -> Path | None:
    """Return the folder of this machine that a URI names, None if it names another place."""
    address = urlsplit(uri)
    return Path(unquote(address.path)) if address.scheme in {"file", ""} else None


def store_client(uri: str) -> "MlflowClient":
    """Open a store, which makes the tables of a SQLite file that has none; any error if it does not answer."""
    file = sqlite_file(uri)
    # Processes that make the tables of a SQLite file at once disturb each other.
    with alone_in(file.parent) if file else nullcontext():
        require_answer(uri)
        return mlflow_api.MlflowClient(tracking_uri=uri)


def require_answer(uri: str, *, locks: bool = False) -> None:
    """Check that a store answers within seconds: MLflow itself tries for minutes.

    Args:
        uri: Of the store.
        locks: Whether a SQLite file must be ours to lock, as for writing.

    Raises:
        Exception: It does not; of any type.
    """
    if file := sqlite_file(uri):
        file.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(file, timeout=ANSWER_SECONDS, isolation_level=None)) as database:
            database.execute("PRAGMA schema_version")
            if locks:
                database.execute("BEGIN IMMEDIATE")
                database.execute("ROLLBACK")
        return
    address = urlsplit(uri)
    port = address.port or PORTS.get(address.scheme.partition("+")[0])
    behind_proxy = address.scheme in getproxies() and not proxy_bypass(address.hostname or "")
    if address.hostname and port and not behind_proxy:
        socket.create_connection((address.hostname, port), ANSWER_SECONDS).close()
    if address.scheme in {"http", "https"}:
        reported_version(uri)


def reported_version(uri: str) -> str:
    """Ask a tracking server for its version; the HTTP status where it does not report it."""
    # MLflow's own request, which brings the credentials and certificates that MLflow is configured with.
    credentials = mlflow_api.get_default_host_creds(uri)
    answer = mlflow_api.http_request(
        credentials, "/version", "GET", max_retries=0, timeout=ANSWER_SECONDS, raise_on_status=False
    )
    return str(answer.text).strip() if answer.status_code == 200 else f"unknown, HTTP status {answer.status_code}"


def first_line(error: BaseException) -> str:
    """Return why a store could not be used, in a line without a full stop."""
    *_, root = chained(error)
    # The system's message is plainer than that of the clients on top of it.
    reported = root if isinstance(root, OSError | sqlite3.Error) else error
    said = (isinstance(reported, OSError) and reported.strerror) or str(reported) or type(reported).__name__
    return said.strip().splitlines()[0][:200].rstrip(". ").replace(". ", "; ")


def _refusal(doing: str, uri: str, error: Exception) -> StoreError:
    return StoreError(
        f"Cannot {doing} in the tracking store {shown(uri)}: {first_line(error)}.",
        "Start the server, or set MLFLOW_TRACKING_URI to a store that is there.",
    )
