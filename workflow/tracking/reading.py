"""Read runs from the store, as plain data."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from configs.errors import InputError
from workflow.tracking import mlflow_api
from workflow.tracking.store import PARENT_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

PAGE = 1000
PICTURES = "pictures"  # folder of a run's artifacts


@dataclass(frozen=True)
class RunRecord:
    """A run as it was recorded.

    Args:
        run_id: Of the run.
        name: Of the run.
        status: "FINISHED", "FAILED", "KILLED" or "RUNNING".
        started: Milliseconds since 1970.
        seconds: From start to end; None while it runs.
        parent: Id of its parent run.
        parameters: By name.
        metrics: The last value of each, without system metrics.
        tags: By name, without MLflow's own.
        inputs: Digests of its input volumes.
        artifacts: URI of the folder of its artifacts.
    """

    run_id: str
    name: str
    status: str
    started: int
    seconds: float | None
    parent: str | None
    parameters: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    inputs: tuple[str, ...]
    artifacts: str


def read_runs(client: "MlflowClient", experiment: str | None = None, run_ids: Sequence[str] = ()) -> list[RunRecord]:
    """Read runs, the newest first.

    Args:
        client: Of the store.
        experiment: All runs of this experiment.
        run_ids: Or these runs, in this order; within the experiment a name or the start of an id suffices.

    Raises:
        InputError: There is no such experiment or run.
    """
    if experiment is None:
        return [_record(client.get_run(run_id)) for run_id in run_ids]
    found = client.get_experiment_by_name(experiment)
    if found is None:
        known = ", ".join(sorted(entry.name for entry in client.search_experiments())) or "none"
        raise InputError(f"Cannot read the experiment {experiment}: there is none.", f"The store has: {known}.")
    records = _all_runs(client, found.experiment_id)
    if not run_ids:
        return records
    return [_named(records, run_id, experiment) for run_id in run_ids]


def read_curves(client: "MlflowClient", run_ids: Sequence[str], metric: str) -> dict[str, list[tuple[int, float]]]:
    """Read the values of a metric by step, for each run that has it."""
    curves = {
        run_id: [(entry.step, entry.value) for entry in client.get_metric_history(run_id, metric)] for run_id in run_ids
    }
    return {run_id: sorted(curve) for run_id, curve in curves.items() if curve}


def read_pictures(client: "MlflowClient", runs: Sequence[RunRecord]) -> dict[str, bytes]:
    """Read the first picture that a run has recorded, as PNG, for each run that has one."""
    pictures = {}
    with tempfile.TemporaryDirectory() as scratch:
        for run in runs:
            # The client's own functions would ask three times for the run to find the folder.
            folder = mlflow_api.get_artifact_repository(run.artifacts, client.tracking_uri)
            entries = folder.list_artifacts(PICTURES)
            path = next((entry.path for entry in entries if entry.path.endswith(".png")), None)
            if path is not None:
                pictures[run.run_id] = Path(folder.download_artifacts(path, scratch)).read_bytes()
    return pictures


def _all_runs(client: "MlflowClient", experiment_id: str) -> list[RunRecord]:
    records: list[RunRecord] = []
    token = None
    while True:
        page = client.search_runs([experiment_id], max_results=PAGE, page_token=token)
        records += map(_record, page)
        token = page.token
        if not token:
            return records


def _named(records: Sequence[RunRecord], run_id: str, experiment: str) -> RunRecord:
    matching = [record for record in records if record.run_id.startswith(run_id) or record.name == run_id]
    if len(matching) != 1:
        raise InputError(
            f"Cannot find the run {run_id}: {len(matching)} runs of the experiment {experiment} have that id or name."
        )
    return matching[0]


def _record(run: "Run") -> RunRecord:
    info, data = run.info, run.data
    inputs = run.inputs.dataset_inputs if run.inputs else []
    return RunRecord(
        run_id=info.run_id,
        name=info.run_name or info.run_id[:8],
        status=info.status,
        started=info.start_time,
        seconds=(info.end_time - info.start_time) / 1000 if info.end_time else None,
        parent=data.tags.get(PARENT_TAG),
        parameters=data.params,
        metrics={key: value for key, value in data.metrics.items() if not key.startswith("system/")},
        tags={key: value for key, value in data.tags.items() if not key.startswith("mlflow.")},
        inputs=tuple(sorted(entry.dataset.digest for entry in inputs)),
        artifacts=info.artifact_uri,
    )
