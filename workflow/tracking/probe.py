"""Probe of the tracking store: a run is opened, written, read back and deleted."""

import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from configs.errors import InputError
from workflow.tracking import mlflow_api, store

if TYPE_CHECKING:
    from mlflow import MlflowClient

PARAMETER, METRIC, ARTIFACT = ("probe", "written"), ("probe", 0.5), ("probe.txt", "written")


@dataclass(frozen=True)
class StoreProbe:
    """A store that returned what was written to it.

    Args:
        uri: Of the store, without a password.
        artifacts: Location of the artifacts of an experiment.
        seconds: Time to open, write, read and delete a run, including the import of MLflow.
        left: What could not be deleted, and why; None when nothing is left but what `mlflow gc` removes.
    """

    uri: str
    artifacts: str
    seconds: float
    left: str | None


def probe_store(uri: str | None = None) -> StoreProbe:
    """Write a parameter, a metric and an artifact to a run of an experiment of its own, read them back, delete both.

    Args:
        uri: Of the store; `store.tracking_uri()` by default.

    Raises:
        InputError: The store cannot be used, or does not return what was written.
    """
    started = time.monotonic()
    uri = uri or store.tracking_uri()
    with _one_message(uri):
        store.require_answer(uri, locks=True)
        with store.opened_store("record", uri) as client:
            # A unique name: probes at the same time do not delete each other's experiment.
            experiment = store.experiment_id(client, uri, f"voxlift-probe-{uuid.uuid4().hex}")
    run_id = None
    try:
        with _one_message(uri):
            run = client.create_run(experiment, run_name="probe")
            run_id = run.info.run_id
            differing = _differing(client, run_id)
    finally:
        left = _delete(client, experiment, run_id)
    if differing:
        raise InputError(
            f"Cannot record in the tracking store {store.shown(uri)}: it does not return what was written"
            f" ({', '.join(differing)}).",
            "Look into the server's log, or set MLFLOW_TRACKING_URI to another store.",
        )
    artifacts = run.info.artifact_uri.split(f"/{run_id}")[0]
    return StoreProbe(store.shown(uri), artifacts, time.monotonic() - started, left)


def try_store(experiments: Sequence[str]) -> StoreProbe:
    """Probe the store and check that experiments may be recorded in.

    For a SQLite file that is not there yet, one in a scratch folder next to it is probed.

    Args:
        experiments: Names; those that are not there would be made by the run.

    Raises:
        InputError: The store cannot be used, or an experiment was deleted.
    """
    uri = store.tracking_uri()
    file = store.sqlite_file(uri)
    if file is not None and not file.exists():
        existing = next(folder for folder in file.parents if folder.exists())
        with (
            _one_message(uri),
            tempfile.TemporaryDirectory(dir=existing, prefix=".voxlift-probe-", ignore_cleanup_errors=True) as scratch,
        ):
            probe = probe_store(f"{store.SQLITE}{scratch}/{file.name}")
        return StoreProbe(store.shown(uri), str(store.artifact_location(uri)), probe.seconds, None)
    probe = probe_store(uri)
    with store.opened_store("record", uri) as client:
        for name in experiments:
            store.require_experiment(client, uri, name)
    return probe


def server_version(uri: str) -> str:
    """Ask a tracking server for its version.

    Args:
        uri: Begins with `http://` or `https://`.

    Returns:
        The version, or the HTTP status where the server does not report it.

    Raises:
        InputError: The server does not answer.
    """
    with _one_message(uri):
        store.require_answer(uri)
        return store.reported_version(uri)


def _differing(client: "MlflowClient", run_id: str) -> list[str]:
    """Write, read back, and name the differences."""
    stamp = int(time.time() * 1000)
    client.log_batch(run_id, metrics=[mlflow_api.Metric(*METRIC, stamp, 0)], params=[mlflow_api.Param(*PARAMETER)])
    name, content = ARTIFACT
    with tempfile.TemporaryDirectory() as scratch:
        written, fetched = Path(scratch) / name, Path(scratch) / "fetched"
        written.write_text(content)
        client.log_artifact(run_id, str(written))
        fetched.mkdir()
        read = Path(client.download_artifacts(run_id, name, str(fetched))).read_text()
    data = client.get_run(run_id).data
    found = {
        "the parameter": data.params.get(PARAMETER[0]) == PARAMETER[1],
        "the metric": data.metrics.get(METRIC[0]) == METRIC[1],
        "the artifact": read == content,
    }
    return [what for what, same in found.items() if not same]


def _delete(client: "MlflowClient", experiment: str, run_id: str | None) -> str | None:
    """Delete what the probe made; returns what is left. A store that never deletes can still be used."""
    try:
        if run_id is not None:
            _delete_artifact(client.get_run(run_id).info.artifact_uri)
            client.delete_run(run_id)
        client.delete_experiment(experiment)
    except Exception as error:  # noqa: BLE001 - whatever a store's backend raises
        return f"the experiment {experiment} could not be deleted: {store.first_line(error)}"
    return None


def _delete_artifact(artifact_uri: str) -> None:
    """Delete the one file, never a prefix, which on some stores reaches further; then the folders that it leaves."""
    mlflow_api.get_artifact_repository(artifact_uri).delete_artifacts(ARTIFACT[0])
    if artifacts := store.local_folder(artifact_uri):
        with suppress(OSError):  # one that is not empty, or gone
            for folder in (artifacts, artifacts.parent, artifacts.parents[1]):
                folder.rmdir()


@contextmanager
def _one_message(uri: str) -> Iterator[None]:
    """Turn any error of the store into one message, without the password that the URI may hold."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        remedy = "Make room there and check that you may write" if uri.startswith(store.SQLITE) else "Start the server"
        raise InputError(
            f"Cannot record in the tracking store {store.shown(uri)}: {store.first_line(error)}.",
            f"{remedy}, or set MLFLOW_TRACKING_URI to a store that is there.",
        ) from error
