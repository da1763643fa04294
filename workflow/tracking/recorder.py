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

from rich.console import Console

from configs.axes import NetworkShape
from configs.errors import ContractsError, UsageError
from tasks.artifacts.contracts import Contract, VolumeContract
from tasks.artifacts.manifest import CONTRACTS_FILE, PLAIN, ManifestEntry, manifest_entry, read_contracts
from tasks.files.lock import Process
from tasks.volume.nifti import anonymous_copy
from workflow.tracking import mlflow_api
from workflow.tracking.entries import (
    PROCESS_TAG,
    Address,
    Artifact,
    Batch,
    Ending,
    Inputs,
    Manifest,
    Opening,
    Registration,
    TrainedModel,
    Usage,
    Writer,
    this_process,
)
from workflow.tracking.inputs import InputVolume
from workflow.tracking.pending import Header, PendingRecord
from workflow.tracking.sender import Sender
from workflow.tracking.store import PARENT_TAG, RunAddress, StoreError, experiment_id, opened_store, tracking_uri
from workflow.tracking.upload import upload_left

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

METRICS_PER_REQUEST = 500
FLUSH_SECONDS = 5.0
NOTE_TAG = "mlflow.note.content"


class Recorder:
    """Writes one run: metrics in batches, and every artifact with its manifest entry.

    While the store does not take the record, it waits in memory and on disk, and the work goes on.

    Args:
        writer: Of the run.
        sender: Of its entries.
        steps: Last step of each metric that an earlier part of the run has logged; none up to it is logged again.
        had_finished: Whether the run had finished before it was resumed.
    """

    def __init__(
        self, writer: Writer, sender: Sender, steps: Mapping[str, int] | None = None, *, had_finished: bool = False
    ) -> None:
        self.had_finished = had_finished
        self.failed = False  # set by work that ends without an exception and has nothing to show for it
        self._writer, self._sender = writer, sender
        self._pending: list[tuple[str, float, int, int]] = []
        self._steps = dict(steps or {})
        self._held = set(writer.seals)
        self._together = False
        self._lock = threading.RLock()
        self._flushed = time.monotonic()

    @property
    def address(self) -> RunAddress:
        """Address of the run; that of a run of a sweep has no id before the store has made the run."""
        return self._writer.address

    def note_address(self, file: Path) -> None:
        """Write the address to a file, by which the run is resumed, once it has an id."""
        if self.address.run_id:
            self.address.write(file)
        else:
            self._sender.send(Address(file=file))

    def parameters(self, values: Mapping[str, str]) -> None:
        """Record parameters by name."""
        self._sender.send(Batch(parameters=dict(values)))

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Record metrics at a step; they are sent in batches, every few seconds and at the end."""
        with self._lock:
            self._pending += self._new(values, step)
            if len(self._pending) >= METRICS_PER_REQUEST or time.monotonic() - self._flushed > FLUSH_SECONDS:
                self.flush()

    def scores(self, values: Mapping[str, float], step: int = 0) -> None:
        """Record metrics that are shown with the model of the run too, at a step."""
        if new := self._new(values, step):
            self._sender.send(Batch(metrics=new, of_model=True))

    def _new(self, values: Mapping[str, float], step: int) -> tuple[tuple[str, float, int, int], ...]:
        """Return the metrics that an earlier part of the run has not recorded."""
        now = int(time.time() * 1000)
        return tuple((key, value, now, step) for key, value in values.items() if step > self._steps.get(key, -1))

    def flush(self) -> None:
        """Send the metrics that are waiting."""
        with self._lock:
            while batch := self._pending[:METRICS_PER_REQUEST]:
                self._sender.send(Batch(metrics=tuple(batch)))
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
        self._sender.send(Artifact(file=path, folder=folder, entry=entry))
        self._held.add(f"{folder}/{path.name}" if folder else path.name)
        # Not only at the end: a run that is killed and resumed still has its contracts.
        if not self._together:
            self._sender.send(Manifest())
        return entry

    @contextmanager
    def together(self) -> Iterator[None]:
        """Log the contracts once, after all artifacts that the block records, instead of after each."""
        self._together = True
        try:
            yield
        finally:
            self._together = False
        self._sender.send(Manifest())

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

    def model(self, path: Path, entry: ManifestEntry, example: NetworkShape) -> str:
        """Record a trained model that `checked_model` has checked; returns its URI, the file's where it waits.

        Args:
            path: The `.keras` file.
            entry: Of the file.
            example: Depth, height and width of the example that is logged with it.
        """
        self._sender.send(TrainedModel(file=path, entry=entry, example=example))
        return self._writer.model_uri or str(path)

    def register(self, name: str) -> str | None:
        """Register the model of the run, as `register_model`; returns the URI of its version, None while it waits."""
        self._sender.send(Registration(name=name))
        return self._writer.version.uri if self._writer.version else None

    def holds(self, artifact: str) -> bool:
        """Return whether the run, or an earlier part of it, has recorded an artifact of that path."""
        return artifact in self._held

    def inputs(self, volumes: Sequence[InputVolume]) -> None:
        """Record the volumes that the run works on: digest, geometry and role."""
        self._sender.send(Inputs(volumes=tuple(volumes)))

    def uses(self, digest: str) -> None:
        """Record the logged model with a file of that digest as the one that the run works with, if there is one."""
        self._sender.send(Usage(digest=digest))

    def tags(self, values: Mapping[str, str]) -> None:
        """Record tags by name."""
        self._sender.send(Batch(tags=dict(values)))

    def describe(self, markdown: str) -> None:
        """Describe the run in Markdown, at the top of its page."""
        self.tags({NOTE_TAG: markdown})

    def end(self, status: str, end_time: int | None = None) -> None:
        """Send what is waiting, log the contracts of models too, and end the run, now or at a time in milliseconds."""
        self.flush()
        self._sender.send(Ending(status=status, end_time=end_time or int(time.time() * 1000)))
        self._sender.close()


@contextmanager
def recorded_run(
    experiment: str,
    name: str,
    run_id: str | None = None,
    *,
    killed: Process | None = None,
    parent: str | None = None,
    tags: Mapping[str, str] | None = None,
    folder: Path | None = None,
    console: Console | None = None,
) -> Iterator[Recorder]:
    """Record what happens inside the block as one run, which ends with it.

    The run ends FINISHED, FAILED after an exception or if its recorder is marked as `failed`, KILLED after an
    interrupt, an exit or a SIGTERM. A run that is resumed ends as it had before if it had finished, or if resuming it
    is refused. Runs of the experiment whose process on this machine was killed are ended as KILLED first, and records
    that waited in the folder are uploaded.

    Args:
        experiment: Name of the experiment; made if it is not there.
        name: Name of the run.
        run_id: A run of that experiment to resume: no step of a metric is logged again. If it was deleted, a new one is
            opened.
        killed: Without a `run_id`, a process whose run of this name is resumed: it was killed before it noted the id.
        parent: Id of the run whose child this one is. A new child begins without the store too: its parent had it.
        tags: Recorded before anything else.
        folder: Where what the store does not take waits; the working directory by default.
        console: For messages about the store; standard error by default.

    Yields:
        The run's only writer.

    Raises:
        InputError: The store cannot be used.
    """
    with exit_on_sigterm():
        uri, base = tracking_uri(), (folder or Path.cwd()).resolve()
        started = {**(tags or {}), **this_process(), **({PARENT_TAG: parent} if parent else {})}
        opening, known, steps = None, None, {}
        try:
            with opened_store("record", uri) as client:
                upload_left(base, uri)
                own = experiment_id(client, uri, experiment)
                left = {run.info.run_name: run for run, process in _end_killed(client, own) if process == killed}
                known = _known(client, run_id) if run_id else left.get(name)
                if known is not None:
                    writer = Writer(RunAddress(uri, experiment, known.info.run_id), _seals(client, known), client)
                    steps = _resumed(client, known)
                else:
                    made = client.create_run(own, run_name=name, tags=started)
                    writer = Writer(RunAddress(uri, experiment, made.info.run_id), client=client)
        except StoreError:
            if parent is None or run_id or killed:
                raise
            opening = Opening(name=name, tags=started, start_time=int(time.time() * 1000))
            writer = Writer(RunAddress(uri, experiment, ""))
        recorder = _recorder(writer, base, console or Console(stderr=True), steps, known, opening)
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


def _recorder(
    writer: Writer,
    base: Path,
    console: Console,
    steps: Mapping[str, int],
    known: "Run | None",
    opening: Opening | None,
) -> Recorder:
    """Make the recorder of a run that is known, new, or yet to be opened."""

    def notify(message: str) -> None:
        console.print(message, style="yellow", markup=False, highlight=False, soft_wrap=True)

    record = PendingRecord(base, lambda: Header(run=writer.address, seals=writer.seals))
    sender = Sender(writer, record, notify)
    if opening is not None:
        sender.send(opening)
    return Recorder(writer, sender, steps, had_finished=known is not None and known.info.status == "FINISHED")


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


def _seals(client: "MlflowClient", run: "Run") -> Mapping[str, ManifestEntry]:
    """Return the manifest entries of the artifacts that a run has."""
    run_id = run.info.run_id
    with tempfile.TemporaryDirectory() as scratch:
        if any(entry.path == CONTRACTS_FILE for entry in client.list_artifacts(run_id)):
            client.download_artifacts(run_id, CONTRACTS_FILE, scratch)
            with suppress(ContractsError):
                return read_contracts(Path(scratch)).seals
    return {}


def _resumed(client: "MlflowClient", run: "Run") -> dict[str, int]:
    """Continue a run where it stopped, one that has finished stays so; returns the last step of each metric."""
    run_id = run.info.run_id
    steps = {key: max(metric.step for metric in client.get_metric_history(run_id, key)) for key in run.data.metrics}
    client.set_tag(run_id, PROCESS_TAG, Process.this().text())
    if run.info.status != "FINISHED":
        client.update_run(run_id, status="RUNNING")
    return steps


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
