"""One run and its only writer: its records, their contracts, and its end."""

import logging
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from configs.errors import ContractsError, UsageError
from tasks.artifacts.contracts import Contract, VolumeContract
from tasks.artifacts.manifest import (
    CONTRACTS_FILE,
    PLAIN,
    Contracts,
    ManifestEntry,
    file_digest,
    manifest_entry,
    read_contracts,
)
from tasks.files.lock import Process
from tasks.volume.nifti import anonymous_copy
from workflow.tracking import mlflow_api
from workflow.tracking.inputs import InputVolume, dataset_input
from workflow.tracking.models import logged_with, model_entries
from workflow.tracking.store import RunAddress, experiment_id, opened_store, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

METRICS_PER_REQUEST = 500
FLUSH_SECONDS = 5.0
INPUT_TRIES = 3
PARENT_TAG = "mlflow.parentRunId"
NOTE_TAG = "mlflow.note.content"
CONTRACTS_TAG = "voxlift.contracts"
PROCESS_TAG = "voxlift.process"


class Recorder:
    """Writes one run: metrics in batches, and every artifact with its manifest entry.

    Args:
        client: Of the store.
        address: Of the run.
        steps: Last step of each metric that an earlier part of the run has logged; none up to it is logged again.
        entries: Manifest entries of the artifacts that it has logged.
        had_finished: Whether the run had finished before it was resumed.
    """

    def __init__(
        self,
        client: "MlflowClient",
        address: RunAddress,
        steps: Mapping[str, int] | None = None,
        entries: Mapping[str, ManifestEntry] | None = None,
        *,
        had_finished: bool = False,
    ) -> None:
        self.address, self.had_finished = address, had_finished
        self.failed = False  # set by work that ends without an exception and has nothing to show for it
        self.model_id: str | None = None  # of the logged model that `scores` are about
        self._client = client
        self._pending: list[tuple[str, float, int, int, str | None]] = []
        self._steps = dict(steps or {})
        self._entries = dict(entries or {})
        self._together = False
        self._lock = threading.RLock()
        self._flushed = time.monotonic()

    def parameters(self, values: Mapping[str, str]) -> None:
        """Record parameters by name."""
        params = [mlflow_api.Param(key, value) for key, value in values.items()]
        self._client.log_batch(self.address.run_id, params=params)

    def scores(self, values: Mapping[str, float], step: int = 0) -> None:
        """Record metrics of the run that are shown with its model too."""
        self.metrics(values, step, self.model_id)

    def metrics(self, values: Mapping[str, float], step: int = 0, model_id: str | None = None) -> None:
        """Record metrics at a step, of the run and of a logged model; they are sent in batches and at the end."""
        now = int(time.time() * 1000)
        with self._lock:
            new = {key: value for key, value in values.items() if step > self._steps.get(key, -1)}
            self._pending += [(key, value, now, step, model_id) for key, value in new.items()]
            if len(self._pending) >= METRICS_PER_REQUEST or time.monotonic() - self._flushed > FLUSH_SECONDS:
                self.flush()

    def flush(self) -> None:
        """Send the metrics that are waiting."""
        with self._lock:
            while batch := self._pending[:METRICS_PER_REQUEST]:
                self._client.log_batch(self.address.run_id, metrics=[mlflow_api.Metric(*entry) for entry in batch])
                del self._pending[:METRICS_PER_REQUEST]
            self._flushed = time.monotonic()

    def next_step(self, prefix: str) -> int:
        """Return the first step that no metric of that prefix had when the run was opened."""
        return 1 + max((step for key, step in self._steps.items() if key.startswith(prefix)), default=-1)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Record how long the block takes, as the metric `seconds/NAME`."""
        started = time.perf_counter()
        yield
        self.metrics({f"seconds/{name}": time.perf_counter() - started})

    def artifact(
        self, path: Path, folder: str | None = None, contract: Contract = PLAIN, *, name: str | None = None
    ) -> ManifestEntry:
        """Read a file back, check its contract, and record it in a folder of the run's artifacts.

        Args:
            path: The file.
            folder: Of the run's artifacts.
            contract: Of the file.
            name: Instead of the file's own, which may identify a person.

        Raises:
            ContractError: The file violates its contract.
        """
        if name is not None:
            with tempfile.TemporaryDirectory() as scratch:
                return self.artifact(Path(shutil.copyfile(path, Path(scratch) / name)), folder, contract)
        entry = manifest_entry(path, contract)
        self._client.log_artifact(self.address.run_id, str(path), folder)
        self._entries[f"{folder}/{path.name}" if folder else path.name] = entry
        # Not only at the end: a run that is killed and resumed still has its contracts.
        if not self._together:
            self._log_contracts()
        return entry

    @contextmanager
    def together(self) -> Iterator[None]:
        """Log the contracts once, after all artifacts that the block records, instead of after each."""
        self._together = True
        try:
            yield
        finally:
            self._together = False
        self._log_contracts()

    def volume(self, path: Path, folder: str, contract: VolumeContract, *, with_header: bool) -> ManifestEntry:
        """Record a volume, with only the geometry of its header unless `with_header`.

        Raises:
            ContractError: The volume violates its contract.
        """
        if with_header:
            return self.artifact(path, folder, contract)
        with tempfile.TemporaryDirectory() as scratch:
            copy = Path(scratch) / path.name
            anonymous_copy(path, copy)
            return self.artifact(copy, folder, contract)

    def text(self, content: str, name: str) -> None:
        """Record a text as the artifact `name`."""
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / name
            path.write_text(content, encoding="utf-8")
            self.artifact(path)

    def holds(self, artifact: str) -> bool:
        """Return whether the run, or an earlier part of it, has recorded an artifact of that path."""
        return artifact in self._entries

    def inputs(self, volumes: Sequence[InputVolume]) -> None:
        """Record the volumes that the run works on: digest, geometry and role."""
        for attempt in range(INPUT_TRIES):
            try:
                self._client.log_inputs(self.address.run_id, datasets=[dataset_input(volume) for volume in volumes])
            except mlflow_api.MlflowException:
                # Of runs that make the entry of one volume at once, all but the first find it at the next attempt.
                if attempt == INPUT_TRIES - 1:
                    raise
            else:
                return

    def uses(self, digest: str) -> None:
        """Record the logged model with a file of that digest as the one that the run works with, if there is one."""
        self.model_id = logged_with(self._client, digest)
        if self.model_id is not None:
            models = [mlflow_api.LoggedModelInput(self.model_id)]
            self._client.log_inputs(self.address.run_id, models=models)

    def tags(self, values: Mapping[str, str]) -> None:
        """Record tags by name."""
        tags = [mlflow_api.RunTag(key, value) for key, value in values.items()]
        self._client.log_batch(self.address.run_id, tags=tags)

    def describe(self, markdown: str) -> None:
        """Describe the run in Markdown, at the top of its page."""
        self.tags({NOTE_TAG: markdown})

    def end(self, status: str, end_time: int | None = None) -> None:
        """Send what is waiting, log the contracts of models too, and end the run, now or at a time in milliseconds."""
        try:
            self.flush()
            run = self._client.get_run(self.address.run_id)
            with tempfile.TemporaryDirectory() as scratch:
                self._entries = model_entries(self._client, run, Path(scratch)) | self._entries
            self.tags({CONTRACTS_TAG: self._log_contracts()})
        except Exception:
            status = "FAILED"
            raise
        finally:
            self._client.set_terminated(self.address.run_id, status, end_time)

    def _log_contracts(self) -> str:
        """Log the manifest; returns its digest."""
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / CONTRACTS_FILE
            path.write_text(Contracts(run_id=self.address.run_id, seals=self._entries).text())
            self._client.log_artifact(self.address.run_id, str(path))
            return file_digest(path)


@contextmanager
def recorded_run(
    experiment: str,
    name: str,
    run_id: str | None = None,
    *,
    killed: Process | None = None,
    parent: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> Iterator[Recorder]:
    """Record what happens inside the block as one run, which ends with it.

    The run ends FINISHED, FAILED after an exception or if its recorder is marked as `failed`, KILLED after an
    interrupt, an exit or a SIGTERM. A run that is resumed ends as it had before if it had finished, or if resuming it
    is refused. Runs of the experiment whose process on this machine was killed are ended as KILLED first.

    Args:
        experiment: Name of the experiment; made if it is not there.
        name: Name of the run.
        run_id: A run of that experiment to resume: no step of a metric is logged again. If it was deleted, a new one is
            opened.
        killed: Without a `run_id`, a process whose run of this name is resumed: it was killed before it noted the id.
        parent: Id of the run whose child this one is.
        tags: Recorded before anything else.

    Yields:
        The run's only writer.

    Raises:
        InputError: The store cannot be used.
    """
    with exit_on_sigterm():
        uri = tracking_uri()
        with opened_store("record", uri) as client:
            own = experiment_id(client, uri, experiment)
            left = {run.info.run_name: run for run, process in _end_killed(client, own) if process == killed}
            known = _known(client, run_id) if run_id else left.get(name)
            if known is not None:
                recorder = _resumed(client, RunAddress(uri, experiment, known.info.run_id), known)
            else:
                started = {
                    **(tags or {}),
                    PROCESS_TAG: Process.this().text(),
                    **({PARENT_TAG: parent} if parent else {}),
                }
                run = client.create_run(own, run_name=name, tags=started)
                recorder = Recorder(client, RunAddress(uri, experiment, run.info.run_id))
        status, end_time = "FAILED", None
        try:
            with SystemSampler(recorder.metrics, recorder.next_step(SYSTEM_PREFIX)):
                yield recorder
            status = "FAILED" if recorder.failed else "FINISHED"
        except (KeyboardInterrupt, SystemExit):
            status = "KILLED"
            raise
        except UsageError:
            if known is not None:
                status, end_time = _ended(known)
            raise
        finally:
            if known is not None and recorder.had_finished:
                status, end_time = _ended(known)
            with uninterrupted():
                recorder.end(status, end_time)


def _end_killed(client: "MlflowClient", experiment: str) -> list[tuple["Run", Process]]:
    """End the runs of an experiment whose process on this machine was killed; returns them with their processes."""
    running = client.search_runs([experiment], "attributes.status = 'RUNNING'")
    recorded = ((run, Process.of(run.data.tags.get(PROCESS_TAG, ""))) for run in running)
    left = [(run, process) for run, process in recorded if process is not None and process.is_gone]
    for run, _ in left:
        client.set_terminated(run.info.run_id, "KILLED")
    return left


def _known(client: "MlflowClient", run_id: str) -> "Run | None":
    """Find a run that is to be resumed; None if it was deleted."""
    try:
        run: Run = client.get_run(run_id)
    except mlflow_api.MlflowException as error:
        if error.error_code != mlflow_api.ErrorCode.Name(mlflow_api.RESOURCE_DOES_NOT_EXIST):
            raise
        return None
    return run if run.info.lifecycle_stage == mlflow_api.LifecycleStage.ACTIVE else None


def _ended(run: "Run") -> tuple[str, int | None]:
    """Return how and when a run had ended, before it was resumed."""
    return ("KILLED" if run.info.status == "RUNNING" else run.info.status), run.info.end_time


def _resumed(client: "MlflowClient", address: RunAddress, run: "Run") -> Recorder:
    """Continue a run where it stopped; one that has finished stays so."""
    run_id = run.info.run_id
    steps = {key: max(metric.step for metric in client.get_metric_history(run_id, key)) for key in run.data.metrics}
    with tempfile.TemporaryDirectory() as scratch:
        entries: Mapping[str, ManifestEntry] = {}
        if any(entry.path == CONTRACTS_FILE for entry in client.list_artifacts(run_id)):
            client.download_artifacts(run_id, CONTRACTS_FILE, scratch)
            with suppress(ContractsError):
                entries = read_contracts(Path(scratch)).seals
    client.set_tag(run_id, PROCESS_TAG, Process.this().text())
    had_finished = run.info.status == "FINISHED"
    if not had_finished:
        client.update_run(run_id, status="RUNNING")
    return Recorder(client, address, steps, entries, had_finished=had_finished)


INTERRUPTS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Turn SIGTERM into an exit, so that the run is ended as KILLED; only the main thread may."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    status = 128 + signal.SIGTERM
    reported = False

    def leave(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - what a handler is called with
        nonlocal reported
        if not reported:  # batch systems send it more than once: what is being saved goes on
            reported = True
            sys.exit(status)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    except SystemExit as left:
        if reported:  # Ray, waiting for its workers, changes the status
            left.code = status
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C and SIGTERM back until the block has ended, so that it completes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    before = {number: signal.signal(number, lambda number, _: received.append(number)) for number in INTERRUPTS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        signal.raise_signal(received[0])


SYSTEM_PREFIX = "system/"
SAMPLE_SECONDS = 5.0


class SystemSampler:
    """Samples the machine in a thread, and once more at the end.

    Args:
        write: Takes the metrics by name, and their step.
        first_step: Number of the first sample.
    """

    def __init__(self, write: Callable[[Mapping[str, float], int], None], first_step: int = 0) -> None:
        self._write = write
        self._step = first_step
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample_until_ended, name="system-metrics", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _sample_until_ended(self) -> None:
        logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)  # it reports GPUs that are not there
        monitors = mlflow_api.SystemMetricsMonitor("not written by it").monitors
        for monitor in monitors:
            monitor.collect_metrics()  # the first share of CPU time covers no interval
            monitor.clear_metrics()
        ended = False
        while not ended:
            ended = self._ended.wait(SAMPLE_SECONDS)
            found: dict[str, float] = {}
            for monitor in monitors:
                monitor.collect_metrics()
                found |= monitor.aggregate_metrics()
                monitor.clear_metrics()
            self._write({SYSTEM_PREFIX + name: float(value) for name, value in found.items()}, self._step)
            self._step += 1
