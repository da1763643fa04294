"""Super-resolve many volumes: one queue over volumes and shards, read ahead and written behind, failures kept apart."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from math import prod
from pathlib import Path

from configs.errors import AbandonedError, InputError
from tasks.files.outputs import check_destination, output_paths, sidecar_name
from tasks.sharding.plan import Shard
from tasks.sharding.restore import RestoredCore
from tasks.volume.encoding import writable_name
from tasks.volume.inspection import inspect_volume
from tasks.volume.sidecar import write_sidecar
from workflow.restore.restoration import Progress, Tally, restorers
from workflow.restore.worker_pool import Job, Outcome
from workflow.terminal.options import naming_options
from workflow.upscale.plan import UpscaleRequest, plan_volume
from workflow.upscale.report import Timings, UpscaleReport, VolumeReport, plan_report, sidecar, volume_report
from workflow.upscale.volume_work import Frame, Output, VolumeWork

OnWritten = Callable[[VolumeWork, Output], object]


def plan_volumes(order: UpscaleRequest) -> list[VolumeWork | InputError]:
    """Check every volume to its last byte and plan it, before any work.

    Returns:
        For each source its work, or why there is none.

    Raises:
        InputError: Two outputs would collide, or their dtype is not one that is written; or, asked to fail fast or with
            a single source, one that cannot be used.
    """
    if order.dtype is not None:
        writable_name(order.dtype)
    planned: list[VolumeWork | InputError] = []
    for source, output in zip(order.sources, output_paths(order.sources, order.out), strict=True):
        try:
            with naming_options():
                planned.append(_planned(order, source, output))
        except InputError as error:
            if order.fail_fast or len(order.sources) == 1:
                raise
            planned.append(error)
    return planned


def _planned(order: UpscaleRequest, source: Path, output: Path) -> VolumeWork:
    began = time.perf_counter()
    inspected = inspect_volume(source)
    plan = plan_volume(order, inspected.scan, output)
    work = VolumeWork(plan, inspected, resume=order.resume, seconds=time.perf_counter() - began)
    if work.written is None:
        # The cores of all time points wait on disk as float32 until the output is written.
        check_destination(output, 4 * plan.times * prod(plan.target.shape))
    return work


def upscale(
    order: UpscaleRequest,
    planned: Sequence[VolumeWork | InputError],
    on_progress: Callable[[Progress], None] | None = None,
    on_written: OnWritten = VolumeWork.conclude,
) -> UpscaleReport:
    """Super-resolve the planned volumes, within `cluster()`.

    Args:
        order: What is to be done.
        planned: By `plan_volumes`.
        on_progress: Called whenever a shard is back.
        on_written: Receives every written output, in the thread that writes, and concludes it; what it raises fails
            the volume.

    Raises:
        ConfigError: The cluster has no room for the workers.
        Exception: Why a volume failed, if it was asked to fail fast.
    """
    works = [work for work in planned if isinstance(work, VolumeWork)]
    queue, seconds = _Queue(order, works, on_written), 0.0
    if works:
        shards = sum(work.plan.shards for work in works)
        with queue, restorers(order.network, order.resources, shards) as pool:
            for outcome in pool.work(queue.jobs()):
                if queue.take(outcome) and on_progress is not None:
                    wanted = sum(work.shards_to_compute for work in works)
                    on_progress(Progress(queue.total.shards, wanted, queue.total.voxels, pool.seconds, pool.alive))
            seconds = pool.seconds
    total = queue.total
    return UpscaleReport(
        volumes=tuple(
            volume_report(one) if isinstance(one, VolumeWork) else VolumeReport(source, "failed", error=str(one))
            for source, one in zip(order.sources, planned, strict=True)
        ),
        workers=order.resources.workers,
        plan=plan_report([work.plan for work in works], order.resources.memory_budget_mib) if works else None,
        peak_rss_mib=total.peak_rss_mib,
        seconds=seconds,
        voxels_per_second=total.voxels / seconds if seconds else 0.0,
        timings=Timings(
            reading=sum(work.reading.seconds for work in works),
            resampling=total.resample_seconds,
            network=total.network_seconds,
            writing=sum(work.keeping.seconds + work.writing.seconds for work in works),
        ),
    )


class _Queue:
    """The shards of all volumes in one row, while one thread reads ahead and another writes behind."""

    def __init__(self, order: UpscaleRequest, works: Sequence[VolumeWork], on_written: OnWritten) -> None:
        self.total = Tally()
        self._order, self._works, self._on_written = order, works, on_written
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
            self._heed_failures()
        except BaseException:  # an interrupt while the last outputs are written
            self._stop()
            raise

    def _stop(self) -> None:
        for work in self._works:
            work.abandon(InterruptedError("the run was stopped"))
        self._ahead.shutdown(cancel_futures=True)
        self._behind.shutdown(cancel_futures=True)

    def jobs(self) -> Iterator[Job]:
        """Every shard that has to be computed, volume after volume; the next time point is read meanwhile."""
        steps = [(work, number) for work in self._works for number in range(work.plan.times)]
        reading = self._ahead.submit(self._read, steps[0][0])
        for (work, number), following in zip_longest(steps, steps[1:]):
            frame = reading.result()
            if following is not None:
                reading = self._ahead.submit(self._read, following[0])
            self._heed_failures()
            if frame is None:
                continue
            if number == 0:
                self._behind.submit(self._write, work)
            for shard in frame.missing:
                if work.error is not None:
                    break
                yield Job((work, number, shard), (frame.coarse, shard))

    def take(self, outcome: Outcome) -> bool:
        """Keep a core, or give its volume up; returns whether it was kept."""
        work, number, shard = outcome.key
        kept = outcome.error is None and self._kept(work, number, shard, outcome.value)
        if kept:
            self.total.count(outcome)
            work.tally.count(outcome)
        elif outcome.error is not None:
            work.abandon(outcome.error)
        self._heed_failures()
        return kept

    def _heed_failures(self) -> None:
        """Raise why a volume failed, whichever it is and in whichever thread, if asked to fail fast."""
        for work in self._works if self._order.fail_fast else ():
            if (failure := work.failure) is not None:
                raise failure

    def _kept(self, work: VolumeWork, number: int, shard: Shard, core: RestoredCore) -> bool:
        try:
            work.arrive(number, shard, core)
        except OSError as error:
            work.abandon(error)
        return work.error is None

    def _read(self, work: VolumeWork) -> Frame | None:
        """Read the next time point, unless its volume has failed or is done; in the thread that reads ahead."""
        try:
            if work.error is None and work.written is None:
                return next(work.frames)
            work.frames.close()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this volume's alone
            work.abandon(error)
        return None

    def _write(self, work: VolumeWork) -> None:
        """Write an output and what stands next to it; in the thread that writes behind."""
        try:
            output, path = work.write(), work.plan.output
            write_sidecar(path.with_name(sidecar_name(path.name)), sidecar(work, output, self._order.run_id))
            self._on_written(work, output)
        except AbandonedError:
            pass
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this volume's alone
            work.abandon(error)
