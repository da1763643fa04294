"""Restoration of one shard by a worker: resample what it reads, restore it, return the core as it is stored."""

import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from configs.axes import NetworkShape, triple
from configs.degradation import Degradation
from configs.errors import NotFiniteError, RunError
from configs.precision import Precision
from models.network.receptive_field import ReceptiveField
from models.network.streaming import Stream
from tasks.imaging.acquisition import detail_weight
from tasks.imaging.consistency import Correction, interpolation_correction, noise_level
from tasks.imaging.labels import resample_labels
from tasks.imaging.resample import Window, resample_window, window_rows
from tasks.machine.cpus import CPU_INFO, limit_vectors
from tasks.machine.shared_memory import Windowed
from tasks.machine.worker import lean_keras
from tasks.sharding.comparison import Comparison
from tasks.sharding.plan import MIB, Box, Shard
from tasks.volume.encoding import Encoding
from tasks.volume.intensity import Intensity, normalise
from tasks.volume.padding import Padding

if TYPE_CHECKING:
    from tasks.sharding.compiled import CompiledNetwork, Voxels
    from tasks.sharding.on_device import DeviceVolume

COMPARED = 64  # voxels along each axis of the window that is computed in float32 too
# Between a precision and float32, dB of the intensity range: below the first no rounding explains it, above the second
# the rounding of float32 itself differs.
MIN_PSNR, MAX_PSNR = 40.0, 150.0
LEEWAY = 0.05  # share of the input's range by which sharper edges may exceed it
ENCODED_VOXELS = 1 << 20  # at once, of a core
MIRRORS = tuple(axes for count in (1, 2, 3) for axes in combinations(range(3), count))


class PrecisionError(RunError, ValueError):
    """A precision in which a device computes wrongly, as it would on every try; the problem is a clause about it."""


@dataclass(frozen=True, eq=False)
class CoarseVolume:
    """A volume to restore, as every worker has it.

    Args:
        voxels: `(depth, height, width)`, in the unit of the file.
        target_shape: The grid to restore on, over the same field of view.
        intensity: Which intensities are 0 and 1 to the network.
        correction: What makes the interpolated volume consistent with this one, in the unit of the file; None for a
            network that takes it as it is.
        detail: Weight of what the network adds to its input.
        labels: Whether it is a label map, which is resampled by label instead of being restored.
        level: Subtracted from all voxels, and added to the output.
        limits: Lowest and highest voxel of the file, padding left out.
        padding: What was filled and stays as it is.
        encoding: Of the output, in which its cores are returned; None for float32 without the level, of which more than
            the output is made.
        comparison: Of the restored volume with this one, of which each core is returned with its part; None for none.
    """

    voxels: NDArray[Any]
    target_shape: NetworkShape
    intensity: Intensity
    correction: Correction | None = None
    detail: float = 1.0
    labels: bool = False
    level: float = 0.0
    limits: tuple[float, float] = (-np.inf, np.inf)
    padding: tuple[Padding, ...] = ()
    encoding: Encoding | None = None
    comparison: Comparison | None = None
    token: str = field(init=False, default_factory=lambda: uuid4().hex)  # of this object, also in other processes

    @property
    def readable(self) -> NDArray[Any]:
        """The voxels, to be read by windows; an array does not stay mapped."""
        return cast("NDArray[Any]", Windowed(self.voxels)) if isinstance(self.voxels, np.ndarray) else self.voxels

    def input_window(self, window: Window) -> NDArray[np.float32]:
        """Return what the network reads of the target grid; beyond the grid its edge values are repeated."""
        resampled = resample_window(self.readable, self.target_shape, window, "cubic")
        if self.correction is not None:
            rows = [window_rows(side, size) for side, size in zip(window, self.target_shape, strict=True)]
            inside = [slice(row[0], row[-1] + 1) for row in rows]
            added = self.correction.window(*inside)
            resampled += added[np.ix_(*(row - row[0] for row in rows))]
        return resampled

    def finish(self, voxels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Add the level to target voxels, in place, and clip them at 0 where no voxel of the file is negative."""
        if self.level:
            voxels += np.float32(self.level)
        if self.limits[0] >= 0:
            np.maximum(voxels, 0, out=voxels)
        return voxels

    @property
    def bounds(self) -> tuple[float, float]:
        """The range of the file with `LEEWAY` of it to spare at either end; infinite for a file of one value."""
        low, high = self.limits
        leeway = LEEWAY * (high - low)
        return (low - leeway, high + leeway) if leeway else (-np.inf, np.inf)

    def outside(self, voxels: NDArray[np.float32]) -> int:
        """Count finished voxels that are outside `bounds`."""
        low, high = self.bounds
        return int(np.count_nonzero((voxels < low) | (voxels > high)))

    def compared(self, core: NDArray[Any], encoding: Encoding) -> NDArray[np.float32]:
        """Return a core, as it is stored, as the output of an encoding has it, but without the level."""
        voxels = np.empty(core.shape, np.float32)
        for planes in _some_planes(core):
            stored = core[planes] if self.encoding is not None else encoding.encode(self.finish(core[planes].copy()))
            voxels[planes] = encoding.decode(stored)
        voxels -= np.float32(self.level)
        return voxels


def coarse_volume(
    voxels: NDArray[Any],
    target_shape: NetworkShape,
    intensity: Intensity,
    acquisition: Degradation | None,
    certainty: float = 1.0,
) -> CoarseVolume:
    """Prepare a volume for the workers.

    Args:
        voxels: `(depth, height, width)`, in the unit of the file.
        target_shape: The grid to restore on, over the same field of view.
        intensity: Which intensities are 0 and 1 to the network.
        acquisition: What leads from the target grid to `voxels`, for a network whose input is made consistent with
            them; None for one that takes the interpolated volume.
        certainty: Of the acquisition, as in `tasks.imaging.acquisition.Acquisition`.
    """
    if acquisition is None:
        return CoarseVolume(voxels, target_shape, intensity)
    normalised = normalise(voxels, intensity)
    noise = noise_level(normalised, target_shape, acquisition)
    found = interpolation_correction(normalised, target_shape, acquisition, noise)
    span = np.float32(intensity.high - intensity.low)
    correction = None if found is None else replace(found, coefficients=found.coefficients * span)
    return CoarseVolume(voxels, target_shape, intensity, correction, detail_weight(certainty, noise))


@dataclass(frozen=True, eq=False)
class RestoredCore:
    """The core of a shard, restored.

    Args:
        voxels: Of the core's shape: float32 in the unit of the file or, once `stored`, as the output has them.
        resample_seconds: Time spent resampling; on a GPU, which works asynchronously, it counts as the network's.
        network_seconds: Time spent in the network, intensities mapped there and back.
        rss_mib: The largest resident memory that the worker has had, MiB.
        device: That did the work.
        precision_psnr: Of the precision against float32, measured once for a volume in each worker; None otherwise.
        outside: Voxels outside the range of the input (`CoarseVolume.outside`), counted before they are rounded.
        part: Of the comparison of the volume with its input, once `stored`; None where there is none.

    Raises:
        NotFiniteError: A voxel is NaN or infinite.
    """

    voxels: NDArray[Any]
    resample_seconds: float
    network_seconds: float
    rss_mib: float
    device: str = "CPU"
    precision_psnr: float | None = None
    outside: int = 0
    part: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        require_finite(self.voxels)

    def stored(self, volume: CoarseVolume, shard: Shard) -> "RestoredCore":
        """Return the core as it is stored: in the encoding of the output if the volume has one, and with its part."""
        voxels, outside, part = self.voxels, 0, None
        if volume.encoding is not None:
            voxels = np.empty(self.voxels.shape, volume.encoding.dtype)
            for planes in _some_planes(voxels):
                finished = volume.finish(self.voxels[planes].copy())
                require_finite(finished)
                outside += volume.outside(finished)
                voxels[planes] = volume.encoding.encode(finished)
        if volume.comparison is not None:
            encoding = volume.comparison.encoding
            compared = voxels if encoding is None else volume.compared(voxels, encoding)
            part = volume.comparison.part(compared, shard.core, volume.target_shape)
        return replace(self, voxels=voxels, outside=outside, part=part)


def _some_planes(core: NDArray[Any]) -> Iterator[slice]:
    """Divide a core into planes that are encoded at a time."""
    step = max(1, ENCODED_VOXELS // core[0].size)
    return (slice(start, start + step) for start in range(0, len(core), step))


def require_finite(restored: NDArray[Any]) -> None:
    """Check restored voxels; NotFiniteError if one is NaN or infinite."""
    bad = restored.size - int(np.count_nonzero(np.isfinite(restored)))
    if bad:
        raise NotFiniteError(
            f"the network made {bad} of {restored.size} voxels NaN or infinite.",
            "Check the range of the input, or use another model.",
        )


class Restorer:
    """A network, loaded once in a process that restores shard after shard.

    Args:
        name: The model's file name.
        content: The bytes of the `.keras` file.
        threads: CPU threads that TensorFlow may use; None leaves TensorFlow as this process has configured it.
        flips: 8 to restore and average every mirror image, which a network does not restore alike; or 1.
        precision: Of the network's layers. Another than float32 is compared with it on a window of each volume.
        on_device: Whether windows are made and cores encoded on the device, to which each volume is moved once; None
            does so on GPUs alone.

    Raises:
        InputError: The bytes are no model that safe mode admits, or the device does not compute in the precision.
    """

    def __init__(
        self,
        name: str,
        content: bytes,
        threads: int | None,
        flips: int = 1,
        precision: Precision = "float32",
        *,
        on_device: bool | None = None,
    ) -> None:
        # Drivers name this class without loading TensorFlow, whose environment the worker has settled by now.
        from tasks.sharding.compiled import CompiledNetwork  # noqa: PLC0415 - in the worker alone

        self._network = CompiledNetwork(name, content, threads, precision)
        self._exact = None if precision == "float32" else CompiledNetwork(name, content, None)
        self._precision, self._compared = precision, ""
        self._mirrors = MIRRORS[: flips - 1]
        self._walk: _Walk | None = None
        self._on_device = self._network.on_gpu if on_device is None else on_device
        self._moved: DeviceVolume | None = None

    def restored(self, resampled: "Voxels", intensity: Intensity) -> "Voxels":
        """Restore a resampled volume in the unit of the file, `(depth, height, width)` in multiples of the stride.

        Returns:
            An array for an array, a tensor for a tensor.
        """
        scale = intensity.low, intensity.high - intensity.low
        total = self._network.restored(resampled, *scale)
        for axes in self._mirrors:
            mirror = tuple(slice(None, None, -1 if axis in axes else 1) for axis in range(3))
            total = total + self._network.restored(resampled[mirror], *scale)[mirror]
        return total / np.float32(1 + len(self._mirrors)) if self._mirrors else total

    def __call__(self, volume: CoarseVolume, shard: Shard) -> RestoredCore:
        """Restore one shard, or resample it where it is of a label map.

        A slab takes one step where it follows the one before it, and a warm-up otherwise; its voxels are the same.
        """
        if volume.labels:
            return label_core(volume, shard)
        psnr = self._compare_once(volume)
        clock = _Clock()
        if shard.streamed is None:
            self._walk = None
            resampled, crop = self._source(volume).input_window(shard.read), shard.crop
            clock.resampled()
            made = self.restored(resampled, volume.intensity)
        else:
            if self._walk is None or not self._walk.leads_to(volume, shard):
                self._walk = None  # and with it what it holds, before another begins
                self._walk = _Walk(self._network, volume, self._source(volume), shard)
            made, resampled, crop = self._walk.restored(shard, clock)
            if self._walk.done:
                self._walk = None
        core = made[crop]
        if volume.detail < 1:
            interpolated = resampled[crop]
            core = interpolated + np.float32(volume.detail) * (core - interpolated)
        stored = self._stored(volume, shard, core)
        voxels, outside, part = stored or (np.asarray(core), 0, None)
        clock.computed()
        seconds = clock.resample_seconds, clock.network_seconds
        restored = RestoredCore(voxels, *seconds, peak_rss() / MIB, self._network.device, psnr, outside, part)
        return restored if stored else restored.stored(volume, shard)

    def _stored(
        self, volume: CoarseVolume, shard: Shard, core: "Voxels"
    ) -> tuple[NDArray[Any], int, NDArray[np.float32] | None] | None:
        """Return voxels, voxels out of bounds and part of `RestoredCore.stored`; None where that has to make them."""
        if not self._on_device:
            return None
        from tasks.sharding.on_device import degraded, encoded  # noqa: PLC0415 - in the worker alone

        level, negative, made, part = volume.level, volume.limits[0] < 0, None, None
        if volume.encoding is not None:
            made = encoded(core, volume.encoding, level=level, negative=negative, bounds=volume.bounds)
            if made is None:
                return None
        if volume.comparison is not None:
            given = core, shard.core, volume.target_shape, volume.comparison
            part = degraded(*given, level=level, negative=negative)
        voxels, outside = made or (np.asarray(core), 0)
        return voxels, outside, part

    def _source(self, volume: CoarseVolume) -> "CoarseVolume | DeviceVolume":
        """Return what makes the windows of a volume."""
        if not self._on_device:
            return volume
        from tasks.sharding.on_device import DeviceVolume  # noqa: PLC0415 - in the worker alone

        if self._moved is None or self._moved.token != volume.token:
            self._walk = self._moved = None  # before there is another
            self._moved = DeviceVolume(volume.voxels, volume.target_shape, volume.correction, volume.token)
        return self._moved

    def _compare_once(self, volume: CoarseVolume) -> float | None:
        """Compare the precision with float32 in the middle of a volume; returns the PSNR, None if nothing is compared.

        Raises:
            PrecisionError: They differ by more than rounding.
        """
        if self._exact is None or self._compared == volume.token:
            return None
        window = _middle(volume.target_shape, self._network.field)
        resampled = self._source(volume).input_window(window)
        low, high = volume.intensity.low, volume.intensity.high
        found, exact = (np.asarray(one.restored(resampled, low, high - low)) for one in (self._network, self._exact))
        error = float(np.mean(np.square((found - exact) / np.float32(high - low), dtype=np.float64)))
        psnr = min(MAX_PSNR, -10 * np.log10(error)) if error else MAX_PSNR
        if not psnr >= MIN_PSNR:
            raise PrecisionError(
                f"{self._precision} gives another result than float32 on this device: {psnr:.1f} dB PSNR between them,"
                f" and at least {MIN_PSNR:.0f} dB by rounding.",
                "Restore in float32; `voxlift doctor` checks each precision of the device.",
            )
        self._compared = volume.token
        return psnr


def _middle(shape: NetworkShape, field: ReceptiveField) -> Box:
    """Return a window in the middle of a grid, aligned to the strides of a network."""
    sides = []
    for size, stride in zip(shape, field.strides, strict=True):
        length = -(-min(size, COMPARED) // stride) * stride
        start = max(0, size - length) // 2 // stride * stride
        sides.append((start, start + length))
    return triple(sides)


class _Clock:
    """Seconds spent resampling and in the network, in turns."""

    def __init__(self) -> None:
        self.resample_seconds = self.network_seconds = 0.0
        self._since = time.perf_counter()

    def resampled(self) -> None:
        """Count the time since the last call as that of resampling."""
        self.resample_seconds += self._lap()

    def computed(self) -> None:
        """Count the time since the last call as that of the network."""
        self.network_seconds += self._lap()

    def _lap(self) -> float:
        since, self._since = self._since, time.perf_counter()
        return self._since - since


class _Walk:
    """A walk through a strip of a volume, from a slab on.

    Args:
        network: The network.
        volume: The volume.
        source: Makes its windows.
        shard: The first slab that is wanted.
    """

    def __init__(
        self, network: "CompiledNetwork", volume: CoarseVolume, source: "CoarseVolume | DeviceVolume", shard: Shard
    ) -> None:
        if shard.streamed is None:
            raise ValueError("a box is not part of a strip")
        self._network, self._volume, self._source = network, volume, source
        self._strip, self._streamed = shard.read, shard.streamed
        axis = shard.streamed.axis
        self._stream = Stream(network.field.axes[axis], shard.read[axis][1], shard.streamed.height)
        self._next = self._stream.warm_up(self._number(shard))
        strip = NetworkShape(*(stop - start for start, stop in shard.read))
        self._pieces = network.blank(self._stream.step(self._next), axis, strip)
        self._resampled: list[tuple[int, NDArray[np.float32]]] = []  # first plane and planes, until the output is there

    def leads_to(self, volume: CoarseVolume, shard: Shard) -> bool:
        """True if a slab is cheaper to reach from here than by another walk."""
        same = (self._volume.token, self._strip, self._streamed) == (volume.token, shard.read, shard.streamed)
        return same and self._stream.warm_up(self._number(shard)) <= self._next <= self._number(shard)

    @property
    def done(self) -> bool:
        """True if the strip has no more slabs."""
        return self._next == self._stream.steps

    def restored(self, shard: Shard, clock: _Clock) -> "tuple[Voxels, Voxels, tuple[slice, slice, slice]]":
        """Restore a slab; returns its planes, what was resampled there, and where its core is in both."""
        number, intensity = self._number(shard), self._volume.intensity
        crop = list(shard.crop)
        crop[self._streamed.axis] = slice(shard.shape[self._streamed.axis])
        while True:
            entry = self._read(*self._stream.entry(self._next))
            beneath = self._beneath(*self._stream.output(self._next), counts=self._next == number)
            clock.resampled()
            found, self._pieces = self._network.step(
                self._stream.step(self._next, number),
                self._streamed.axis,
                entry,
                beneath,
                self._pieces,
                intensity.low,
                intensity.high - intensity.low,
            )
            clock.computed()
            self._next += 1
            if found is not None and beneath is not None:
                return found, beneath, triple(crop)

    def _number(self, shard: Shard) -> int:
        return shard.core[self._streamed.axis][0] // self._streamed.height

    def _window(self, start: int, stop: int) -> Box:
        axis = self._streamed.axis
        return triple((start, stop) if other == axis else side for other, side in enumerate(self._strip))

    def _read(self, start: int, stop: int) -> "Voxels":
        """Resample the planes that a step is given."""
        if start == stop:
            return np.empty([high - low for low, high in self._window(start, stop)], np.float32)
        planes = self._source.input_window(self._window(start, stop))
        if self._source is self._volume:  # on a GPU, making planes again takes less than keeping them
            self._resampled.append((start, planes))
        return planes

    def _beneath(self, start: int, stop: int, *, counts: bool) -> "Voxels | None":
        """Return the resampled planes at those of the output; None for an output that does not count."""
        self._resampled = [(first, planes) for first, planes in self._resampled if first + self._count(planes) > start]
        if not counts:
            return None
        if not self._resampled or self._resampled[0][0] > start:  # for a network that does not read them itself
            return self._source.input_window(self._window(start, stop))
        axis = self._streamed.axis
        parts = [
            planes.take(range(max(start - first, 0), min(stop - first, self._count(planes))), axis)
            for first, planes in self._resampled
            if first < stop
        ]
        return np.concatenate(parts, axis)

    def _count(self, planes: NDArray[np.float32]) -> int:
        count: int = planes.shape[self._streamed.axis]
        return count


def worker_restorer(name: str, content: bytes, threads: int, flips: int, precision: Precision) -> Restorer:
    """Make a restorer in a process that does nothing else; arguments and errors as of `Restorer`."""
    if precision == "float32":  # bfloat16 is computed by instructions for wide vectors alone
        limit_vectors(CPU_INFO)
    with lean_keras():
        return Restorer(name, content, threads, flips, precision)


def label_core(volume: CoarseVolume, shard: Shard) -> RestoredCore:
    """Resample the core of a shard of a label map."""
    started = time.perf_counter()
    core = resample_labels(volume.readable, volume.target_shape, shard.core)
    return RestoredCore(core, time.perf_counter() - started, 0.0, peak_rss() / MIB).stored(volume, shard)


def peak_rss() -> int:
    """The largest resident memory that this process has had, bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not `ru_maxrss`: that begins with what the parent held when it forked.
        (peak,) = (line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
