"""One volume on its way from file to file: read ahead, restored shard by shard, written while shards still come in."""

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from threading import Condition

import numpy as np
from numpy.typing import NDArray

from configs.degradation import Degradation
from configs.errors import InputError, RunError
from configs.schema import Resources
from tasks.artifacts.manifest import file_digest
from tasks.artifacts.network_file import NetworkFile
from tasks.files.atomic import sweep
from tasks.imaging.consistency import Change
from tasks.sharding.assemble import Assembly, Consistency
from tasks.sharding.plan import Shard, ShardPlan
from tasks.sharding.restore import CoarseVolume, RestoredCore
from tasks.sharding.store import ShardStore, content_key, program_versions
from tasks.volume.grid import Grid, NetworkAxes
from tasks.volume.inspection import Findings, preflight
from tasks.volume.intensity import Intensity, find_intensity
from tasks.volume.nifti import write_slabs
from tasks.volume.scan import Scan
from workflow.restore.restoration import Tally
from workflow.upscale.volume_record import Written, note, noted


class AbandonedError(RuntimeError):
    """A volume was given up while its writer waited for shards."""


class VolumeError(RunError):
    """Why a volume failed for no fault of the input, in one line that names it."""


@dataclass(frozen=True, eq=False)
class Frame:
    """One time point of a volume, ready to be restored.

    Args:
        number: Of the time point.
        coarse: As the workers get it.
        missing: Shards that are not in the store, in the order of the file.
    """

    number: int
    coarse: CoarseVolume
    missing: tuple[Shard, ...]


@dataclass(eq=False)
class VolumeWork:
    """One volume on its way.

    Args:
        scan: The input, opened.
        output: Where the output goes.
        target: The grid to restore on.
        axes: Between file axes and network axes.
        plan: How the target grid is cut.
        network: What restores.
        resources: What a worker is given.
        dtype: Of the output on disk.
        recipe: What leads from the output to the input; None where the target grid is coarser along an axis.
        corrects: Whether the output is made to explain the input.
        remarks: Where the volume leaves what the model was trained for.
        resume: Whether what an earlier run left may be used.
        findings: What checking the input found.
        written: What was written, once it is.
        error: Why the volume was given up, if it was.
        tally: What its shards took.
        shards_resumed: Shards that an earlier run had left.
        seconds: Checking the input, and from reading its first time point to the written file.
        read_seconds: Of that, checking and reading.
        write_seconds: Of that, keeping cores and writing.
        intensities: Which intensities are 0 and 1 to the network, of each time point.
    """

    scan: Scan
    output: Path
    target: Grid
    axes: NetworkAxes
    plan: ShardPlan
    network: NetworkFile
    resources: Resources
    dtype: str | None
    recipe: Degradation | None
    corrects: bool
    remarks: tuple[str, ...]
    resume: bool
    findings: Findings | None = None
    written: Written | None = None
    error: Exception | None = None
    tally: Tally = field(default_factory=Tally)
    shards_resumed: int = 0
    seconds: float = 0.0
    read_seconds: float = 0.0
    write_seconds: float = 0.0
    intensities: dict[int, Intensity] = field(default_factory=dict)
    _began: float = 0.0
    _here: set[tuple[int, Shard]] = field(default_factory=set)
    _news: Condition = field(default_factory=Condition)

    @property
    def times(self) -> int:
        """Time points."""
        return self.scan.header.times

    @property
    def shards(self) -> int:
        """Shards over all time points."""
        return self.times * len(self.plan.shards)

    @property
    def shards_to_compute(self) -> int:
        """Shards that this run has computed or will compute, as far as it is known."""
        return self.tally.shards if self.error is not None else self.shards - self.shards_resumed

    @property
    def scale(self) -> tuple[float, float, float]:
        """Target voxels per voxel along (i, j, k)."""
        i, j, k = (fine / size for fine, size in zip(self.target.shape, self.scan.grid.shape, strict=True))
        return i, j, k

    @cached_property
    def key(self) -> str:
        """Everything that determines the output, down to the programs and threads that decide on the last bits."""
        return content_key(
            {
                "output": self.output.name,  # two inputs of the same bytes do not share their cores
                "input": [file_digest(path) for path in sorted({self.scan.path, self.scan.data_path})],
                "model": self.network.digest,
                "target": [self.target.shape, self.axes.order, self.axes.flipped],
                "plan": [(shard.core, shard.read) for shard in self.plan.shards],
                "worker": [self.resources.cpus_per_worker, self.resources.gpus_per_worker],
                "programs": program_versions(),
            }
        )

    def check(self) -> None:
        """See whether an earlier run has finished the volume; if not, read it to its end to know that it is sound.

        Raises:
            InputError: It cannot be super-resolved.
        """
        if self.resume:
            sweep(self.output)
            self.written = noted(self._record, self.output, self._asked)
        if self.written is not None:
            self.shards_resumed = self.shards
        elif self.findings is None:
            with _adding_time(self, "read_seconds"):
                self.findings = preflight(self.scan.path)

    def frame(self, number: int) -> Frame:
        """Read a time point and see which of its shards are there already."""
        if number == 0:
            # The check came before, with those of all other volumes: its time counts, the wait since then does not.
            self._began = time.perf_counter() - self.read_seconds
        with _adding_time(self, "read_seconds"):
            voxels = self.scan.read(number).voxels
            intensity = self._intensity(number, voxels)
            assembly = self._assembly(number)
            if not self.resume:
                assembly.store.clear()
            ordered = assembly.in_file_order()
            missing = tuple(shard for shard in ordered if not (self.resume and assembly.store.holds(shard)))
        self.shards_resumed += len(ordered) - len(missing)
        with self._news:
            self._here |= {(number, shard) for shard in set(ordered) - set(missing)}
            self._news.notify_all()
        # Only what lies in one piece is mapped by the workers; anything else would be copied for every shard.
        coarse = np.ascontiguousarray(self.axes.to_network(voxels))
        return Frame(number, CoarseVolume(coarse, self.plan.target_shape, intensity), missing)

    def arrive(self, number: int, shard: Shard, core: RestoredCore) -> None:
        """Keep a core of a time point that a worker has restored."""
        with _adding_time(self, "write_seconds"):
            self._assembly(number).save(shard, core.voxels)
        with self._news:
            self._here.add((number, shard))
            self._news.notify_all()

    def abandon(self, error: Exception) -> None:
        """Give the volume up; the first error counts."""
        with self._news:
            self.error = self.error or error
            self._news.notify_all()

    @property
    def failure(self) -> Exception | None:
        """Why the volume was given up, if it was, in one line that names it."""
        if self.error is None or isinstance(self.error, InputError):
            return self.error
        return VolumeError(f"Cannot super-resolve {self.scan.path.name}: {self.error}")

    def write(self) -> None:
        """Write the output: while its cores come in, or, corrected, when they are all there.

        Raises:
            AbandonedError: The volume was given up.
        """
        digest = hashlib.sha256()
        checks: list[Consistency] = []
        extent = (self.findings.lowest, self.findings.highest) if self.findings else None
        write_slabs(self.output, self._slabs(digest, checks), self.target, self.scan, self.dtype, extent, self.times)
        with _adding_time(self, "write_seconds"):
            if self.recipe is None:
                written = Written(digest.hexdigest(), None, None, None)
            else:
                over_times = np.array([(check.after, check.before, check.noise) for check in checks])
                after, before, noise = np.sqrt(np.mean(over_times**2, axis=0)).tolist()
                written = Written(digest.hexdigest(), after, before, noise if self.corrects else None)
        self.seconds = time.perf_counter() - self._began
        self.written = written

    def conclude(self) -> None:
        """Note that the output and what stands next to it are done, and drop the cores."""
        if self.written is not None:
            note(self._record, self.output, self._asked, self.written)
            ShardStore(self._record.with_suffix("")).clear()

    @property
    def _asked(self) -> list[str | bool | None]:
        """Everything besides its cores that determines the output."""
        return [self.dtype, self.corrects]

    def _slabs(self, digest: "hashlib._Hash", checks: list[Consistency]) -> Iterator[NDArray[np.float32]]:
        for number in range(self.times):
            assembly, arrived, start = self._assembly(number), partial(self._await, number), 0
            change = self._change(number, assembly, checks) if self.corrects else None
            for slab in assembly.slabs(arrived):
                with _adding_time(self, "write_seconds"):
                    stop = start + slab.shape[2]
                    if change is not None:
                        np.add(slab, assembly.change(change, start, stop), out=slab)
                    start = stop
                    digest.update(slab.T.data)
                    yield slab
            if not self.corrects:
                self._change(number, assembly, checks)

    def _change(self, number: int, assembly: Assembly, checks: list[Consistency]) -> Change | None:
        """Solve the correction of a time point, in the unit of the file, and note its consistency."""
        if self.recipe is None:
            return None
        for shard in assembly.in_file_order():
            self._await(number, shard)
        with _adding_time(self, "write_seconds"):
            coarse = self.axes.to_network(self.scan.read(number).voxels)
            change, check = assembly.correction(
                coarse, self.intensities[number], self.recipe, partial(self._await, number), corrects=self.corrects
            )
            checks.append(check)
            return change

    def _await(self, number: int, shard: Shard) -> None:
        with self._news:
            self._news.wait_for(lambda: self.error is not None or (number, shard) in self._here)
        if self.error is not None:
            raise AbandonedError(self.output.name)

    def _assembly(self, number: int) -> Assembly:
        return Assembly(self.plan, self.axes, ShardStore(self._record.with_suffix("") / str(number)))

    @property
    def _record(self) -> Path:
        """Record of the finished output; the cores are in the folder of that name without suffix."""
        return self.output.parent / ".voxlift" / f"{self.key}.json"

    def _intensity(self, number: int, voxels: NDArray[np.float32]) -> Intensity:
        try:
            self.intensities[number] = find_intensity(voxels)
        except InputError:
            # A constant time point among others goes by the one before it.
            self.intensities[number] = self.intensities.get(number - 1, Intensity(0.0, 1.0))
        return self.intensities[number]


@contextmanager
def _adding_time(work: VolumeWork, to: str) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        with work._news:  # two threads add
            setattr(work, to, getattr(work, to) + time.perf_counter() - started)
