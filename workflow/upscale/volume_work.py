"""One volume on its way from file to file: read ahead, restored shard by shard, written while shards still arrive.

Three threads share a volume, and each part of its state belongs to one of them:

- the thread that reads ahead runs `VolumeWork.frames` and its clock `reading`;
- the thread that collects results of the workers runs `VolumeWork.arrive`, the clock `keeping` and the tally;
- the thread that writes behind runs `VolumeWork.write` and `conclude`, and the clock `writing`.

They share only `Arrivals`, which has a lock; the plan and the inspected input do not change.
"""

import hashlib
import json
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from math import prod
from threading import Condition
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from configs.errors import AbandonedError, InputError, RunError, chained
from tasks.files.atomic import replacing, sweep
from tasks.files.trees import file_digest, is_stored, remove
from tasks.imaging.consistency import Correction
from tasks.machine.shared_memory import Shared
from tasks.sharding.assemble import Assembly, Consistency
from tasks.sharding.detail import Detail, split_detail
from tasks.sharding.plan import Shard
from tasks.sharding.restore import LEEWAY, CoarseVolume, RestoredCore, require_finite
from tasks.sharding.store import ShardStore
from tasks.volume.encoding import Encoding
from tasks.volume.inspection import InspectedVolume
from tasks.volume.intensity import Intensity
from tasks.volume.nifti import SlabWriter, output_encoding, slab_writer
from workflow.cluster import fetch, share
from workflow.restore.restoration import Tally
from workflow.upscale.plan import VolumePlan, WorkersPlace

MAX_OUTSIDE_SHARE = 0.001  # of the voxels, above which a volume gets a warning


class VolumeError(RunError):
    """Failure of a volume that its input did not cause, in one line that names it."""


@dataclass(frozen=True, eq=False)
class Frame:
    """One time point of a volume, ready to be restored.

    Args:
        coarse: A `CoarseVolume`, shared with the workers if there are any.
        to_compute: Shards that are not in the store, in the order in which they are best computed.
    """

    coarse: Any
    to_compute: tuple[Shard, ...]


@dataclass(frozen=True, kw_only=True)
class Written:
    """Record of a written output, by which a resumed run recognises it; all None where none was written.

    Args:
        sha256: Of the voxels as they are stored, i fastest.
        consistency: Root mean square difference between the output, degraded again, and the input, in normalised
            intensity; of a corrected output before it is clipped and rounded. None for a label map, and where the
            input stayed in its file.
        consistency_before: The same before the correction.
        noise: Standard deviation of the input's noise that the correction used; None where nothing was corrected.
        outside: Share of the voxels that are outside the input's range by more than `LEEWAY` of it.
        inferred_share: Energy of the inferred detail over that of all detail beyond cubic interpolation, from 0 to 1
            (`tasks/sharding/detail.py`); None unless the inferred detail was written.
        precision_psnr: Of the precision against float32 in the middle of the volume, dB of the intensity range; None in
            float32.
    """

    sha256: str | None = None
    consistency: float | None = None
    consistency_before: float | None = None
    noise: float | None = None
    outside: float | None = None
    inferred_share: float | None = None
    precision_psnr: float | None = None

    @property
    def range_warning(self) -> str:
        """The warning about voxels outside the input's range; empty where they are few."""
        if self.outside is None or self.outside <= MAX_OUTSIDE_SHARE:
            return ""
        return (
            f"{self.outside:.2%} of the voxels are outside the input's range by more than {LEEWAY:.0%} of it: look for"
            " ringing at sharp edges"
        )


@dataclass(frozen=True, eq=False)
class Output:
    """An output that this run has written.

    Args:
        written: Its record.
        sha256: Of the file, from its writer.
        intensities: Of each time point, those that are 0 and 1 to the network.
        first: The first time point of the input, as the workers had it.
        inferred_sha256: Of the file of the inferred detail, from its writer; None where it was not asked for.
    """

    written: Written
    sha256: str
    intensities: tuple[Intensity, ...]
    first: CoarseVolume
    inferred_sha256: str | None = None


def release(error: BaseException | None) -> None:
    """Drop the traceback of an error that is kept, and of those behind it: their frames hold whole volumes."""
    for one in chained(error):
        one.__traceback__ = None


class Clock:
    """Seconds that one thread has spent on a volume."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    @contextmanager
    def running(self) -> Iterator[None]:
        """Add the time that the block takes."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - started


class Arrivals:
    """Arrived shards and time points of a volume, and its first error: the state that all threads share."""

    def __init__(self) -> None:
        self._news = Condition()
        self._frames: dict[int, Any] = {}
        self._shards: set[tuple[int, Shard]] = set()
        self.error: Exception | None = None  # the first for which the volume was abandoned

    def add(self, number: int, shards: Iterable[Shard], coarse: Any = None) -> None:  # noqa: ANN401 - of the cluster
        """Report shards of a time point that are in the store, and the time point itself once it was read."""
        with self._news:
            self._shards |= {(number, shard) for shard in shards}
            if coarse is not None and self.error is None:
                self._frames[number] = coarse
            self._news.notify_all()

    def abandon(self, error: Exception) -> None:
        """Abandon the volume; the first error counts."""
        release(error)
        with self._news:
            self.error = self.error or error
            self._frames.clear()
            self._news.notify_all()

    def wait(self, number: int, shard: Shard) -> None:
        """Wait for a shard; AbandonedError if the volume was abandoned."""
        with self._news:
            self._wait_for(lambda: (number, shard) in self._shards)

    def take(self, number: int) -> CoarseVolume:
        """Wait for a time point and release it here; AbandonedError if the volume was abandoned."""
        with self._news:
            self._wait_for(lambda: number in self._frames)
            shared = self._frames.pop(number)
        match shared:
            case CoarseVolume():
                return shared
            case Shared():
                return cast("CoarseVolume", shared.value)
        return cast("CoarseVolume", fetch(shared))

    def _wait_for(self, here: Callable[[], bool]) -> None:
        self._news.wait_for(lambda: self.error is not None or here())
        if self.error is not None:
            raise AbandonedError(f"The volume was given up: {self.error}")


class VolumeWork:
    """One volume on its way.

    Args:
        plan: Of the volume.
        inspected: The input.
        resume: Whether cores and output of an earlier run may be used.
        seconds: That checking the input took.
        place: Of the workers with which time points are shared.
    """

    def __init__(
        self, plan: VolumePlan, inspected: InspectedVolume, *, resume: bool, seconds: float, place: WorkersPlace
    ) -> None:
        self.plan, self.inspected = plan, inspected
        self._resume, self._place, self._arrivals = resume, place, Arrivals()
        self._extent = inspected.extent.lowest, inspected.extent.highest
        self._encoding = output_encoding(plan.scan, plan.dtype, self._extent)
        self._core_encoding = None if plan.core_dtype == np.float32 else self._encoding
        self._comparison = plan.comparison(self._encoding)
        self._record = plan.output.parent / ".voxlift" / f"{plan.key(inspected.digests)}.json"
        self.written = self._read_record() if resume else None
        self.shards_resumed = plan.shards if self.written is not None else 0
        self._voxels_resumed = self._voxels if self.written is not None else 0
        # Of the thread that reads ahead.
        self.reading = Clock(seconds)
        self._read = self._frames()
        self._first: Future[Frame] | None = None
        self.frames = self._ready_frames()
        self._began = 0.0
        # Of the thread that collects.
        self.keeping, self.tally = Clock(), Tally()
        self.precision_psnr: float | None = None
        # Of the thread that writes behind.
        self.writing, self.seconds = Clock(), 0.0

    @property
    def to_compute(self) -> tuple[int, int]:
        """Shards that this run has computed or will compute, as far as it is known, and their voxels."""
        if self.error is not None:
            return self.tally.shards, self.tally.voxels
        return self.plan.shards - self.shards_resumed, self._voxels - self._voxels_resumed

    @property
    def _voxels(self) -> int:
        return self.plan.n_timepoints * prod(self.plan.target.shape)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings of inspecting the input, of planning it, and of the values of the output, once it is written."""
        leaves = self.written.range_warning if self.written is not None else ""
        labels = (self.plan.label_note,) if self.plan.labels else ()
        return (*self.inspected.warnings, *self.plan.warnings, *labels, *([leaves] if leaves else []))

    @property
    def error(self) -> Exception | None:
        """The first error for which the volume was abandoned, if it was."""
        return self._arrivals.error

    @property
    def failure(self) -> Exception | None:
        """The same as an error that names the volume."""
        error = self.error
        if error is None or isinstance(error, InputError | VolumeError):
            return error
        return VolumeError(f"Cannot super-resolve {self.plan.name}: {error}")

    def abandon(self, error: Exception) -> None:
        """Abandon the volume, from any thread; the first error counts."""
        self._arrivals.abandon(error)

    def read_ahead(self, reader: Executor) -> None:
        """Have a thread read the first time point, which `frames` then waits for."""
        self._first = reader.submit(next, self._read)

    def _ready_frames(self) -> Generator[Frame]:
        """Yield one time point after another, the first as it was read ahead."""
        try:
            if self._first is not None:
                yield self._taken_first(self._first)
            yield from self._read
        finally:
            self._read.close()  # which holds the time point that it has yielded

    def _taken_first(self, first: "Future[Frame]") -> Frame:
        self._first = None  # and with it the time point, once it is dealt with
        return first.result()

    def _frames(self) -> Generator[Frame]:
        """Read one time point after another and find which of its shards have to be computed."""
        # The time of the check counts, the wait since then, while other volumes were checked, does not.
        self._began = time.perf_counter() - self.reading.seconds
        intensity, volumes = Intensity(0.0, 1.0), self.inspected.volumes()
        for number in range(self.plan.n_timepoints):
            with self.reading.running():
                if self.plan.by_windows:
                    volume = self.plan.stored_volume(self.inspected.extent)
                else:
                    volume = self.plan.coarse_volume(next(volumes).voxels, intensity)
                intensity = volume.intensity
                volume = replace(volume, encoding=self._core_encoding, comparison=self._comparison)
                coarse = self._shared(volume)
                assembly = self._assembly(number)
                if not self._resume:
                    assembly.store.clear()
                ordered = assembly.in_turn()
                to_compute = tuple(shard for shard in ordered if not (self._resume and assembly.store.holds(shard)))
            known = set(ordered) - set(to_compute)
            self.shards_resumed += len(known)
            self._voxels_resumed += sum(prod(shard.shape) for shard in known)
            self._arrivals.add(number, known, coarse)
            yield Frame(coarse, to_compute)

    def _shared(self, volume: CoarseVolume) -> object:
        """Put a time point where all workers read it without a copy of their own."""
        match self._place:
            case "cluster":
                return share(volume)
            case "processes":
                return Shared(volume)
        return volume

    def arrive(self, number: int, shard: Shard, core: RestoredCore) -> None:
        """Store a core of a time point that a worker has restored."""
        with self.keeping.running():
            self._assembly(number).save(shard, core.voxels, core.outside, core.part)
        if core.precision_psnr is not None:  # before the writer learns of the core, which may be the last
            self.precision_psnr = min(core.precision_psnr, self.precision_psnr or core.precision_psnr)
        self._arrivals.add(number, [shard])

    def write(self) -> Output:
        """Write the output: while its cores arrive, or, corrected, once all have.

        Raises:
            AbandonedError: The volume was abandoned.
        """
        plan = self.plan
        sweep(plan.output)
        with self._inferred_file() as inferred:
            writer = _Writer(
                plan, self.inspected, self._arrivals, self._assembly, self.writing, inferred, self._encoding
            )
            given = plan.output, plan.target, plan.scan, plan.dtype, self._extent, plan.n_timepoints
            with slab_writer(*given) as file:
                for slab in writer.slabs():
                    file.write_stored(slab)
        output = writer.output(file.sha256)
        output = replace(output, written=replace(output.written, precision_psnr=self.precision_psnr))
        self.written, self.seconds = output.written, time.perf_counter() - self._began
        return output

    @contextmanager
    def _inferred_file(self) -> Iterator[SlabWriter | None]:
        """Open the file of the inferred detail, if it is asked for; remove that of an earlier output otherwise."""
        plan = self.plan
        sweep(plan.inferred_output)
        if not plan.writes_inferred:
            remove(plan.inferred_output)
            yield None
            return
        # Without what the header says of the scan's values: its window of display would hide a difference.
        bare = replace(plan.scan, header=replace(plan.scan.header, native=None))
        with slab_writer(plan.inferred_output, plan.target, bare, "float32", None, plan.n_timepoints) as inferred:
            yield inferred

    def conclude(self, output: Output) -> None:
        """Record that output and sidecar are done, and remove the cores."""
        content = {
            "output": output.sha256,
            "inferred": output.inferred_sha256,
            "asked": self._options,
            "written": asdict(output.written),
        }
        with replacing(self._record) as partial:
            partial.write_text(json.dumps(content))
        self.remove_cores()

    def remove_cores(self) -> None:
        """Remove the cores, also those that a killed run left after it had recorded its output."""
        ShardStore(self._record.with_suffix("")).clear()

    def _read_record(self) -> Written | None:
        """Return the record of an output that is unchanged and was made with the same options; None otherwise."""
        output = self.plan.output
        if not self._record.is_file() or not is_stored(output):
            return None
        try:
            content = json.loads(self._record.read_text())
            same = content["asked"] == self._options and content["output"] == file_digest(output)
            if same and self.plan.writes_inferred:
                path = self.plan.inferred_output
                same = is_stored(path) and content["inferred"] == file_digest(path)
            return TypeAdapter(Written).validate_python(content["written"]) if same else None
        except (ValueError, KeyError, TypeError, RecursionError):
            return None

    @property
    def _options(self) -> list[str | bool | None]:
        """Options that determine the output, besides its cores."""
        acquisition = self.plan.acquisition
        return [self.plan.dtype, self.plan.corrects, *([str(acquisition)] if acquisition else [])]

    def _assembly(self, number: int) -> Assembly:
        """The cores of a time point, in a folder named like the record without its suffix."""
        store = ShardStore(self._record.with_suffix("") / str(number), self._core_encoding, self._comparison)
        return Assembly(self.plan.shard_plan, self.plan.axes, store)


@dataclass
class _Writer:
    """Yields the slabs of an output, encoded and in order, and collects its record; of the thread that writes."""

    plan: VolumePlan
    inspected: InspectedVolume
    arrivals: Arrivals
    assembly: Callable[[int], Assembly]
    clock: Clock
    inferred: SlabWriter | None
    encoding: Encoding
    digest: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    checks: list[Consistency] = field(default_factory=list)
    intensities: list[Intensity] = field(default_factory=list)
    firsts: list[CoarseVolume] = field(default_factory=list)
    outside: int = 0
    detail: Detail = field(default_factory=Detail)

    def slabs(self) -> Iterator[NDArray[Any]]:
        for number in range(self.plan.n_timepoints):
            assembly, start = self.assembly(number), 0
            coarse = self.arrivals.take(number)
            low, high = coarse.intensity.low + coarse.level, coarse.intensity.high + coarse.level
            self.intensities.append(Intensity(low, high))
            if number == 0:
                self.firsts.append(coarse)
            correction = self._solve(number, assembly, coarse) if self.plan.corrects else None
            measured = coarse if self.inferred is None else self.plan.measured(coarse)
            for slab in assembly.slabs(partial(self.arrivals.wait, number)):
                with self.clock.running():
                    stop = start + slab.shape[2]
                    padding = self.plan.padding_in_file(coarse, start, stop)
                    stored = slab
                    if coarse.encoding is None:
                        if correction is not None:
                            np.add(slab, assembly.correction_planes(correction, start, stop), out=slab)
                        stored = self._encoded(slab, measured, start, [mask for _, mask in padding])
                    for value, mask in padding:
                        stored[mask] = self.encoding.encode(np.array([value], np.float32))
                    start = stop
                    self.digest.update(stored.T.data)
                    yield stored
            if coarse.encoding is not None:
                self.outside += assembly.outside()
            if self.plan.by_windows:
                self.inspected.require_unchanged()
            elif not self.plan.corrects:
                self._solve(number, assembly, coarse)

    def _encoded(
        self, slab: NDArray[np.float32], measured: CoarseVolume, start: int, padding: Sequence[NDArray[np.bool_]]
    ) -> NDArray[np.generic]:
        """Finish a slab, in place, write its inferred detail, and encode it."""
        self.outside += measured.outside(measured.finish(slab))
        require_finite(slab)  # before the padding, which may itself be NaN
        if self.inferred is not None:
            inferred, detail = split_detail(measured, self.plan.axes, slab, start, padding)
            self.inferred.write(inferred)
            self.detail += detail
        return self.encoding.encode(slab)

    def _solve(self, number: int, assembly: Assembly, coarse: CoarseVolume) -> Correction | None:
        """Compare a time point with its input and solve its correction, in the unit of the file."""
        if coarse.comparison is None:
            return None
        for shard in assembly.plan.shards:
            self.arrivals.wait(number, shard)
        with self.clock.running():
            correction, check = assembly.correction(coarse.voxels, coarse.intensity, coarse.comparison)
            self.checks.append(check)
            return correction

    def output(self, sha256: str) -> Output:
        after = before = noise = None
        if self.checks:
            over_timepoints = np.array([(check.after, check.before, check.noise) for check in self.checks])
            after, before, noise = np.sqrt(np.mean(over_timepoints**2, axis=0)).tolist()
        written = Written(
            sha256=self.digest.hexdigest(),
            consistency=after,
            consistency_before=before,
            noise=noise if self.plan.corrects else None,
            outside=self.outside / prod(self.plan.output_shape),
            inferred_share=None if self.inferred is None else self.detail.inferred_share,
        )
        digest = None if self.inferred is None else self.inferred.sha256
        return Output(written, sha256, tuple(self.intensities), self.firsts[0], digest)
