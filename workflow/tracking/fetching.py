"""A recorded run's artifacts, fetched to a folder to be looked at again."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from configs.errors import InputError
from workflow.tracking import mlflow_api
from workflow.tracking.models import fetch_models
from workflow.tracking.recorder import CONTRACTS_TAG
from workflow.tracking.store import opened_store, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient


@dataclass(frozen=True)
class FetchedRun:
    """A run's artifacts on disk.

    Args:
        folder: Holds the run's artifacts, and its models as `model`.
        run_id: Of the run.
        contracts_digest: SHA-256 of the `contracts.json` that the run logged when it ended; None if it logged none.
    """

    folder: Path
    run_id: str
    contracts_digest: str | None


@contextmanager
def fetched_run(run_id: str) -> Iterator[FetchedRun]:
    """Fetch all artifacts of a run into a folder that goes with the block.

    Raises:
        InputError: There is no such run, or its artifacts cannot be fetched.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with opened_store(f"find the run {run_id}") as client:
            try:
                run = client.get_run(run_id)
            except mlflow_api.MlflowException as error:
                raise InputError(
                    f"Cannot find the run {run_id} in the tracking store {tracking_uri()}: name a run id or a folder, "
                    "or set MLFLOW_TRACKING_URI to the store that has it."
                ) from error
            for path in _files(client, run_id):
                with tempfile.TemporaryDirectory(dir=folder) as partial:
                    fetched = Path(client.download_artifacts(run_id, path, partial))
                    (folder / path).parent.mkdir(parents=True, exist_ok=True)
                    fetched.rename(folder / path)
            fetch_models(client, run, folder)
        yield FetchedRun(folder, run_id, run.data.tags.get(CONTRACTS_TAG))


def _files(client: "MlflowClient", run_id: str, folder: str | None = None) -> Iterator[str]:
    """Name every file: a folder that has lost its files cannot be fetched as one."""
    for entry in client.list_artifacts(run_id, folder):
        if entry.is_dir:
            yield from _files(client, run_id, entry.path)
        else:
            yield entry.path
