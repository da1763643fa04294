"""Super-resolve many volumes through one queue, read ahead and written behind; a failure stays with its volume."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from itertools import zip_longest
from pathlib import Path
from unicodedata import normalize

from configs.errors import AbandonedError, ContractError, InputError, ReadError
from configs.schema import Resources
from tasks.artifacts.network_file import NetworkFile
from tasks.files.atomic import sweep_folders
from tasks.files.lock import Process, locked
from tasks.files.outputs import check_destination, sidecar_name, split_name
from tasks.files.trees import remove
from tasks.sharding.plan import runs
from tasks.volume.encoding import writable_name
from tasks.volume.inspection import inspect_volume
from tasks.volume.nifti import check_format
from tasks.volume.sidecar import write_sidecar
from workflow.restore.local import LocalPool, local_restorer
from workflow.restore.processes import process_restorers
from workflow.restore.restoration import Progress, Tally, restorers
from workflow.restore.worker_pool import Job, Outcome, WorkerPool
from workflow.terminal.options import naming_options
from workflow.upscale.plan import UpscaleRequest, plan_volume
from workflow.upscale.report import Timings, UpscaleReport, VolumeReport, plan_report, sidecar, volume_report
from workflow.upscale.volume_work import Frame, Output, VolumeWork, release

# By the place of a request.
STARTS: Mapping[str, Callable[[NetworkFile, Resources, int], AbstractContextManager[WorkerPool | LocalPool]]] = {
    "cluster": restorers,
    "processes": process_restorers,
    "here": local_restorer,
}

OnWritten = Callable[[VolumeWork, Output], object]


def started(
    request: UpscaleRequest, network: NetworkFile, shards: int
) -> AbstractContextManager[WorkerPool | LocalPool]:
    """Start the workers of a request that hold a network, at most one per shard; they end with the context.

    Raises:
        ConfigError: The cluster has no room for the workers.
    """
    if request.elastic:
        return restorers(network, request.resources, shards, elastic=True)
    return STARTS[request.place](network, request.resources, shards)


def require_new(outputs: Sequence[Path]) -> None:
    """Check that none of the outputs is there already.

    Raises:
        InputError: One is.
    """
    found = [path.name for path in outputs if path.exists()]
    if found:
        others = f" and {len(found) - 1} other(s)" if len(found) > 1 else ""
        raise InputError(
            f"Cannot write {found[0]}{others}: an earlier run has written it.",
            "Give --resume to keep what is finished, --overwrite to replace it, or another --out.",
        )


@contextmanager
def only_writer(works: Sequence[VolumeWork]) -> Iterator[Process | None]:
    """Hold a lock for each output, so that several runs may write different outputs into one folder.

    Yields:
        A process that held one of them and was killed, if one was.

    Raises:
        InputError: Another process writes one of them.
    """
    killed = None
    with ExitStack() as locks:
        for output in (work.plan.output for work in works):
            stem, _ = split_name(output.name)  # which its sidecar and QC page share
            name = f"{normalize('NFC', stem).casefold()}.lock"
            killed = locks.enter_context(locked(output.parent / ".voxlift" / name, output.name)).killed or killed
        outs = {work.plan.output.parent for work in works}
        sweep_folders([*outs, *(out / ".voxlift" for out in outs)])
        yield killed


def plan_volumes(request: UpscaleRequest) -> list[VolumeWork | InputError]:
    """Check every volume to its last byte and plan it, before any work.

    Returns:
        For each source its work, or why it cannot be used.

    Raises:
        InputError: Two outputs would collide, or their dtype cannot be written; or a source cannot be used, and is the
            only one or the request is to fail fast.
    """
    if request.dtype is not None:
        writable_name(request.dtype)
    planned: list[VolumeWork | InputError] = []
    for source, output in zip(request.sources, request.outputs, strict=True):
        try:
            with naming_options():
                planned.append(_planned(request, source, output))
        except InputError as error:
            if request.fail_fast or len(request.sources) == 1:
                raise
            release(error)
            planned.append(error)
    return planned


def _planned(request: UpscaleRequest, source: Path, output: Path) -> VolumeWork:
    began = time.perf_counter()
    try:
        inspected = inspect_volume(source)
    except OSError as error:  # it was there a moment ago
        raise ReadError(source.name, error.strerror or "it is gone", "Check the file.") from error
    plan = plan_volume(request, inspected.scan, output, inspected.extent, inspected.labels)
    extent = inspected.extent
    check_format(output, plan.scan, plan.dtype, (extent.lowest, extent.highest), plan.n_timepoints)
    seconds = time.perf_counter() - began
    work = VolumeWork(plan, inspected, resume=request.resume, seconds=seconds, place=request.place)
    if work.written is None:
        # The cores of all time points wait on disk until the output is written.
        size = plan.core_bytes * plan.n_timepoints
        for path in (output, plan.inferred_output) if plan.writes_inferred else (output,):
            check_destination(path, size)
    return work


def upscale(
    request: UpscaleRequest,
    planned: Sequence[VolumeWork | InputError],
    on_progress: Callable[[Progress], None] | None = None,
    on_written: OnWritten = VolumeWork.conclude,
    ahead: WorkerPool | LocalPool | None = None,
) -> UpscaleReport:
    """Super-resolve the planned volumes, within `cluster()` if that is the place.

    Args:
        request: What to do.
        planned: By `plan_volumes`.
        on_progress: Called whenever a shard is back.
        on_written: Receives every written output, in the thread that writes, and concludes it; the volume fails with
            an exception of it.
        ahead: Workers that were started ahead, with the network of all volumes.

    Raises:
        ConfigError: The cluster has no room for the workers.
        Exception: Why a volume failed, if the request is to fail fast.
    """
    works = [work for work in planned if isinstance(work, VolumeWork)]
    for work in works:
        if work.written is not None:
            work.remove_cores()
    queue, seconds, most = _Queue(request, works, on_written), 0.0, 0
    if works:
        by_network: dict[str, list[VolumeWork]] = {}
        for work in works:
            by_network.setdefault(work.plan.network.digest, []).append(work)
        with queue:
            for alike in by_network.values():
                if all(work.written is not None for work in alike):
                    continue
                shards, before = sum(work.plan.shards for work in alike), seconds
                network = alike[0].plan.network
                with _ended(ahead) if ahead else started(request, network, shards) as pool:
                    for outcome in pool.work(queue.jobs(alike)):
                        seconds, most = before + pool.seconds, max(most, pool.alive)
                        if queue.take(outcome) and on_progress is not None:
                            done, wanted = queue.total, [work.to_compute for work in works]
                            in_all = [sum(counts) for counts in zip(*wanted, strict=True)]
                            on_progress(Progress(done.shards, in_all[0], done.voxels, in_all[1], seconds, pool.alive))
                    seconds = before + pool.seconds
    total = queue.total
    return UpscaleReport(
        volumes=tuple(
            volume_report(one)
            if isinstance(one, VolumeWork)
            else VolumeReport(input=source, status="failed", error=str(one))
            for source, one in zip(request.sources, planned, strict=True)
        ),
        workers=most if request.elastic else request.resources.workers,
        plan=plan_report([work.plan for work in works], request.resources.memory_budget_mib) if works else None,
        peak_rss_mib=total.peak_rss_mib,
        seconds=seconds,
        voxels_per_second=total.voxels / seconds if seconds else 0.0,
        devices=tuple(sorted(total.devices)),
        timings=Timings(
            reading=sum(work.reading.seconds for work in works),
            resampling=total.resample_seconds,
            network=total.network_seconds,
            writing=sum(work.keeping.seconds + work.writing.seconds for work in works),
        ),
    )


@contextmanager
def _ended(workers: WorkerPool | LocalPool) -> Iterator[WorkerPool | LocalPool]:
    """End workers after the block, which need their memory no longer."""
    try:
        yield workers
    finally:
        workers.shut_down()


def _is_wanted(work: VolumeWork) -> bool:
    return work.error is None


class _Queue:
    """Shards of all volumes in one queue, while one thread reads ahead and another writes behind."""

    def __init__(self, request: UpscaleRequest, works: Sequence[VolumeWork], on_written: OnWritten) -> None:
        self.total = Tally()
        self._request, self._works, self._on_written = request, works, on_written
        self._ahead, self._behind = ThreadPoolExecutor(1), ThreadPoolExecutor(1)

    def __enter__(self) -> "_Queue":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self._stop()
            return
        try:
            self._ahead.shutdown()
            self._behind.shutdown()
            self._raise_failures()
        except BaseException:  # an interrupt while the last outputs are written
            self._stop()
            raise

    def _stop(self) -> None:
        for work in self._works:
            work.abandon(InterruptedError("the run was stopped"))
        self._ahead.shutdown(cancel_futures=True)
        self._behind.shutdown(cancel_futures=True)

    def jobs(self, works: Sequence[VolumeWork]) -> Iterator[Job]:
        """Yield every shard that has to be computed, volume after volume, while the next time point is read."""
        steps = [(work, number) for work in works for number in range(work.plan.n_timepoints)]
        reading = self._ahead.submit(self._read, *steps[0])
        for (work, number), following in zip_longest(steps, steps[1:]):
            frame = reading.result()
            if following is not None:
                reading = self._ahead.submit(self._read, *following)
            self._raise_failures()
            if frame is None:
                continue
            if number == 0:
                self._behind.submit(self._write, work)
            for run in runs(frame.to_compute):
                for place, shard in enumerate(run, start=1):
                    if work.error is not None:
                        break
                    key, behind, wanted = (work, number, shard), len(run) - place, partial(_is_wanted, work)
                    takes = work.plan.shard_plan.work_of(shard), work.plan.shard_plan.lead
                    yield Job(key, (frame.coarse, shard), behind, *takes, wanted)

    def take(self, outcome: Outcome) -> bool:
        """Store a core, or abandon its volume; returns whether the core counts."""
        work, number, shard = outcome.key
        error = outcome.error
        if error is None:
            try:
                work.arrive(number, shard, outcome.value)
            except OSError as failure:
                error = failure
        if error is not None:
            work.abandon(error)
        kept = work.error is None
        if kept:
            self.total.count(outcome)
            work.tally.count(outcome)
        self._raise_failures()
        return kept

    def _raise_failures(self) -> None:
        """Raise the error of any failed volume, if the request is to fail fast."""
        for work in self._works if self._request.fail_fast else ():
            if (failure := work.failure) is not None:
                raise failure

    def _read(self, work: VolumeWork, number: int) -> Frame | None:
        """Read the next time point in the thread that reads ahead; None if its volume has failed or is done."""
        try:
            frame = next(work.frames) if work.error is None and work.written is None else None
            if frame is None or number + 1 == work.plan.n_timepoints:
                work.frames.close()  # which holds the time point that it has yielded
            return frame
        except Exception as error:  # noqa: BLE001 - any error fails this volume alone
            work.abandon(error)
        return None

    def _write(self, work: VolumeWork) -> None:
        """Write an output and its sidecar, in the thread that writes behind."""
        try:
            output, path = work.write(), work.plan.output
            write_sidecar(path.with_name(sidecar_name(path.name)), sidecar(work, output, self._request))
            self._on_written(work, output)
        except AbandonedError:
            pass
        except Exception as error:  # noqa: BLE001 - any error fails this volume alone
            if isinstance(error, ContractError):  # nobody is to take the output for a good one
                path = work.plan.output
                for wrong in (path, path.with_name(sidecar_name(path.name)), work.plan.inferred_output):
                    remove(wrong)
            work.abandon(error)
