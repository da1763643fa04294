"""Super-resolve many volumes: one queue over volumes and shards, read ahead and written behind, failures kept apart."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import zip_longest
from math import prod
from pathlib import Path

from configs.degradation import Degradation
from configs.errors import InputError
from configs.schema import Resources
from tasks.artifacts.model_card import ModelCard
from tasks.artifacts.network_file import NetworkFile
from tasks.files.destination import check_destination
from tasks.files.naming import output_paths, sidecar_name
from tasks.imaging.consistency import recipe_at
from tasks.sharding.plan import Shard, plan_shards
from tasks.sharding.restore import RestoredCore
from tasks.volume.encoding import writable_name
from tasks.volume.grid import Grid, NetworkAxes, network_axes
from tasks.volume.inspection import preflight
from tasks.volume.nifti import open_volume
from tasks.volume.sidecar import write_sidecar
from tasks.volume.target import Three, target_grid
from workflow.cluster import share
from workflow.restore.restoration import Progress, Tally, restorers
from workflow.restore.worker_pool import Job, Outcome
from workflow.terminal.options import naming_options
from workflow.upscale.report import Timings, UpscaleReport, VolumeReport, plan_report, sidecar, volume_report
from workflow.upscale.volume_work import AbandonedError, Frame, VolumeWork

OnWritten = Callable[[VolumeWork], None]


@dataclass(frozen=True)
class UpscaleRequest:
    """Request to super-resolve volumes.

    Args:
        sources: Volumes.
        out: Folder for the outputs.
        network: What restores.
        resources: Workers, what each takes, the memory budget.
        scale: Target voxels per voxel along (i, j, k); without it and a spacing, that of the model's card.
        spacing: Wanted mm along (i, j, k), instead of a scale.
        slice_axis: The file axis across the slices, 0, 1 or 2; without it the one of the largest spacing.
        dtype: Of the outputs on disk; None keeps integers.
        correct: Make outputs consistent with their inputs, as far as the model's card gives the degradation.
        resume: Go on with what an interrupted run left.
        fail_fast: Stop at the first volume that fails.
        run_id: Of the MLflow run that records it, for the files next to the outputs.
    """

    sources: Sequence[Path]
    out: Path
    network: NetworkFile
    resources: Resources
    scale: Three | None = None
    spacing: Three | None = None
    slice_axis: int | None = None
    dtype: str | None = None
    correct: bool = True
    resume: bool = False
    fail_fast: bool = False
    run_id: str | None = None


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
    # What an earlier run has finished need not be read again: a run that is resumed looks for that first.
    findings = None if order.resume else preflight(source)
    work = plan_volume(order, source, output)
    work.findings, work.read_seconds = findings, time.perf_counter() - began
    work.check()
    if work.written is None:
        # The cores of all time points wait on disk as float32 until the output is written.
        check_destination(output, 4 * work.times * prod(work.target.shape))
    return work


def plan_volume(order: UpscaleRequest, source: Path, output: Path) -> VolumeWork:
    """Plan a volume by its header.

    Args:
        order: What is to be done.
        source: The volume.
        output: Where its output goes.

    Raises:
        InputError: It cannot be super-resolved.
    """
    scan = open_volume(source)
    axes, card = network_axes(scan.grid, order.slice_axis), order.network.card
    scale = order.scale
    if scale is None and order.spacing is None:
        if card is None:
            raise InputError(
                f"Cannot choose the target grid of {source.name}: the model carries no card that says what scale it was"
                " trained for.",
                "Give --scale I,J,K or --spacing I,J,K.",
            )
        scale = axes.of_network(card.degradation.scale)
    target = target_grid(scan.grid, scale, order.spacing)
    budget = order.resources.memory_budget_mib
    resident = prod(scan.grid.shape) * 4
    plan = plan_shards(
        axes.of_file(target.shape), order.network.cost, budget, resident_bytes=resident, name=source.name
    )
    fine, coarse = plan.target_shape, axes.of_file(scan.grid.shape)
    finer = all(size >= given for size, given in zip(fine, coarse, strict=True))
    recipe = recipe_at(card.degradation if card else Degradation(name="mean"), fine, coarse) if finer else None
    return VolumeWork(
        scan,
        output,
        target,
        axes,
        plan,
        order.network,
        order.resources,
        order.dtype,
        recipe=recipe,
        corrects=order.correct and card is not None and recipe is not None,
        remarks=range_remarks(card, axes, scan.grid, target),
        resume=order.resume,
    )


def range_remarks(card: ModelCard | None, axes: NetworkAxes, grid: Grid, target: Grid) -> tuple[str, ...]:
    """List where a volume is outside the range that the model was trained for."""
    if card is None:
        return ()
    depth, height, width = (
        fine / coarse for fine, coarse in zip(axes.of_file(target.shape), axes.of_file(grid.shape), strict=True)
    )
    return tuple(card.remarks((depth, height, width), axes.of_file(target.spacing)))


def upscale(
    order: UpscaleRequest,
    planned: Sequence[VolumeWork | InputError],
    on_progress: Callable[[Progress], None] | None = None,
    on_written: OnWritten = lambda _: None,
) -> UpscaleReport:
    """Super-resolve the planned volumes, within `cluster()`.

    Args:
        order: What is to be done.
        planned: By `plan_volumes`.
        on_progress: Called whenever a shard is back.
        on_written: Receives every written output, in the thread that writes; what it raises fails the volume.

    Raises:
        ConfigError: The cluster has no room for the workers.
        Exception: Why a volume failed, if it was asked to fail fast.
    """
    works = [work for work in planned if isinstance(work, VolumeWork)]
    queue, seconds = _Queue(order, works, on_written), 0.0
    if works:
        shards = sum(work.shards for work in works)
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
        plan=plan_report(works, order.resources.memory_budget_mib) if works else None,
        peak_rss_mib=total.peak_rss_mib,
        seconds=seconds,
        voxels_per_second=total.voxels / seconds if seconds else 0.0,
        timings=Timings(
            reading=sum(work.read_seconds for work in works),
            resampling=total.resample_seconds,
            network=total.network_seconds,
            writing=sum(work.write_seconds for work in works),
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
        steps = [(work, number) for work in self._works for number in range(work.times)]
        reading = self._ahead.submit(self._read, *steps[0])
        for (work, number), following in zip_longest(steps, steps[1:]):
            frame = reading.result()
            if following is not None:
                reading = self._ahead.submit(self._read, *following)
            self._heed_failures()
            if frame is None:
                continue
            if number == 0:
                self._behind.submit(self._write, work)
            coarse = share(frame.coarse)
            for shard in frame.missing:
                if work.error is not None:
                    break
                yield Job((work, number, shard), (coarse, shard))

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

    def _read(self, work: VolumeWork, number: int) -> Frame | None:
        """Read a time point, unless its volume has failed or is done; in the thread that reads ahead."""
        try:
            return None if work.error is not None or work.written is not None else work.frame(number)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this volume's alone
            work.abandon(error)
            return None

    def _write(self, work: VolumeWork) -> None:
        """Write an output and what stands next to it; in the thread that writes behind."""
        try:
            work.write()
            write_sidecar(work.output.with_name(sidecar_name(work.output.name)), sidecar(work, self._order.run_id))
            self._on_written(work)
            work.conclude()
        except AbandonedError:
            pass
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this volume's alone
            work.abandon(error)
