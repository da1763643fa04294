"""Where runs are recorded: the store, its experiments, and the sentence when it cannot be used."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.errors import InputError

if TYPE_CHECKING:
    from mlflow import MlflowClient

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# A server that is not there is told after seconds, not after minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
# Progress bars of uploads and downloads would stand between those of the work.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")


@dataclass(frozen=True)
class RunAddress:
    """Where a run is: handed to every process that needs it, so that none has to guess.

    Args:
        tracking_uri: Of the store.
        experiment: Name of the experiment.
        run_id: Of the run.
    """

    tracking_uri: str
    experiment: str
    run_id: str


def tracking_uri() -> str:
    """The store: `MLFLOW_TRACKING_URI`, or a SQLite file in the working directory."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path.cwd() / 'mlflow.db'}"


@contextmanager
def opened_store(doing: str, uri: str | None = None) -> Iterator["MlflowClient"]:
    """Open the store; what MLflow says against it becomes one sentence.

    Args:
        doing: What is being done, to follow "Cannot".
        uri: Of the store; `tracking_uri()` by default.

    Raises:
        InputError: The store cannot be used.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    uri = uri or tracking_uri()
    try:
        yield MlflowClient(tracking_uri=uri)
    except MlflowException as error:
        raise InputError(
            f"Cannot {doing} in the tracking store {uri}: {' '.join(str(error).split())[:200]}. "
            "Start the server, or set MLFLOW_TRACKING_URI to a store that is there."
        ) from error


def experiment_id(client: "MlflowClient", uri: str, name: str) -> str:
    """Return the id of an experiment, made if it is not there.

    Raises:
        InputError: It was deleted.
    """
    found = client.get_experiment_by_name(name)
    if found is None:
        return str(client.create_experiment(name, artifact_location=_artifact_location(uri)))
    if found.lifecycle_stage == "deleted":
        raise InputError(
            f"Cannot record in the experiment {name}: it was deleted in {uri}. Restore it, or take another name with "
            "--set tracking.experiment=NAME."
        )
    return str(found.experiment_id)


def _artifact_location(uri: str) -> str | None:
    """Artifacts of a SQLite store lie beside its file; a server knows its own place."""
    if not uri.startswith("sqlite:///"):
        return None
    return (Path(uri.removeprefix("sqlite:///")).resolve().parent / "mlruns").as_uri()
