"""The request to super-resolve volumes, and the plan of each of them."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from configs.axes import triple
from configs.degradation import Degradation, Profile
from configs.errors import InputError
from configs.schema import Resources
from tasks.artifacts.model_card import ModelCard
from tasks.artifacts.network_file import NetworkFile
from tasks.artifacts.shipped import shipped_network
from tasks.files.bids import bids_uri
from tasks.files.outputs import inferred_name, output_paths
from tasks.imaging.acquisition import Acquisition, default_acquisition, slice_gap
from tasks.imaging.consistency import recipe_at
from tasks.sharding.comparison import Comparison, footprint
from tasks.sharding.plan import ShardPlan, plan_shards, resident_bytes
from tasks.sharding.restore import CoarseVolume, coarse_volume
from tasks.sharding.store import content_key, program_versions
from tasks.volume.encoding import Encoding, stored_name
from tasks.volume.grid import THICK, Grid, NetworkAxes, Three, network_axes, slice_ratio, target_grid
from tasks.volume.inspection import MAX_EXACT_FLOAT32, Extent, require_memory
from tasks.volume.intensity import Intensity, find_intensity, find_level
from tasks.volume.padding import PADDING_VALUES, fill, find_padding
from tasks.volume.scan import Scan
from tasks.volume.sidecar import read_scanner_record
from tasks.volume.windows import StoredVoxels, sampled

WorkersPlace: TypeAlias = Literal["cluster", "processes", "here"]

MAX_HELD_MIB = 1024  # of an input as float32, above which it stays in its file where that is possible
# Of the size of a time point as float32, in the process that prepares it: where it is corrected, and otherwise.
CORRECTED_ARRAYS, PREPARED_ARRAYS = 9, 6
WRITING_BYTES = 128 << 20  # slabs of an output and mapped pages of its cores


@dataclass(frozen=True)
class UpscaleRequest:
    """Request to super-resolve volumes.

    Args:
        sources: Volumes.
        out: Folder for the outputs; None writes each next to its source.
        network: The restorer.
        resources: Workers, what each takes, the memory budget.
        scale: Target voxels per voxel along (i, j, k); without it and a spacing, that of the model's card.
        spacing: Wanted mm along (i, j, k), instead of a scale.
        slice_axis: The file axis across the slices, 0, 1 or 2; without it the one of the largest spacing.
        dtype: Of the outputs on disk; None keeps integers.
        correct: Make outputs consistent with their inputs, as far as the model's card gives the degradation.
        resume: Continue an interrupted run.
        overwrite: Replace finished outputs of an earlier run.
        fail_fast: Stop at the first volume that fails.
        run_id: Of the MLflow run that records it, for the files next to the outputs.
        profile: Of the acquisition; None for what is assumed by default.
        blur: FWHM of a blur on top of it along (i, j, k), in voxels of the input.
        slice_thickness: In mm; what the slice distance leaves of it are gaps.
        kind: "image" or "labels", of all sources; None goes by header, name and values of each.
        thick_network: Restorer of scans that are to be refined along their thick slices alone, as far as its card
            covers that; None restores them by `network` too.
        experts: Where the acquisition of a scan is known, the network that ships for it takes the place of both.
        place: Where volumes are restored: by workers of a cluster, by processes of this machine, or in this process.
        elastic: Take as many workers as the cluster has room for, as it grows and shrinks.
        dataset: Root of the BIDS dataset that the sources are from: `out` becomes one of its derivatives.
        inferred: Also write the inferred detail of each output, next to it.
        output: The output of the only source, instead of a folder; `out` is None then.
        pages: Make QC pages.
    """

    sources: Sequence[Path]
    out: Path | None
    network: NetworkFile
    resources: Resources
    scale: Three | None = None
    spacing: Three | None = None
    slice_axis: int | None = None
    dtype: str | None = None
    correct: bool = True
    resume: bool = False
    overwrite: bool = False
    fail_fast: bool = False
    run_id: str | None = None
    profile: Profile | None = None
    blur: Three | None = None
    slice_thickness: float | None = None
    kind: Literal["image", "labels"] | None = None
    thick_network: NetworkFile | None = None
    experts: bool = False
    place: WorkersPlace = "cluster"
    elastic: bool = False
    dataset: Path | None = None
    inferred: bool = False
    output: Path | None = None
    pages: bool = True

    @property
    def outputs(self) -> list[Path]:
        """The output of each source; InputError if two would be one, or one a source."""
        return output_paths(self.sources, self.out, self.dataset, self.output)

    @property
    def files(self) -> list[Path]:
        """The outputs, and the files of their inferred detail if they are asked for."""
        outputs = self.outputs
        names = [path.with_name(inferred_name(path.name)) for path in outputs] if self.inferred else []
        return [*outputs, *names]

    def source_name(self, source: Path) -> str:
        """Name a source in records next to the outputs: a BIDS URI, or the name of the file."""
        return source.name if self.dataset is None else bids_uri(source, self.dataset)


@dataclass(frozen=True, eq=False)
class VolumePlan:
    """Plan for one volume.

    Args:
        scan: The input, opened.
        output: Where the output goes.
        target: The grid to restore on.
        axes: Between file axes and network axes.
        shard_plan: Division of the target grid.
        network: The restorer.
        resources: Of each worker.
        dtype: Of the output on disk.
        recipe: Degradation from the output to the input; None for a label map.
        corrects: Whether the output is made consistent with the input.
        warnings: In which respects the volume is outside the range that the model was trained for.
        acquisition: What `recipe` follows from; None where it is the model's own degradation.
        labels: Why it is resampled as a label map, without the network; empty for an image.
        writes_inferred: Whether the inferred detail is written too.
        by_windows: Whether the input stays in its file, of which workers read the windows that they need.
    """

    scan: Scan
    output: Path
    target: Grid
    axes: NetworkAxes
    shard_plan: ShardPlan
    network: NetworkFile
    resources: Resources
    dtype: str | None
    recipe: Degradation | None
    corrects: bool
    warnings: tuple[str, ...]
    acquisition: Acquisition | None = None
    labels: str = ""
    writes_inferred: bool = False
    by_windows: bool = False

    @property
    def name(self) -> str:
        """Name of the input."""
        return self.scan.path.name

    @property
    def inferred_output(self) -> Path:
        """Destination of the inferred detail."""
        return self.output.with_name(inferred_name(self.output.name))

    @property
    def n_timepoints(self) -> int:
        """Time points."""
        return self.scan.header.n_timepoints

    @property
    def shards(self) -> int:
        """Shards over all time points."""
        return self.n_timepoints * len(self.shard_plan.shards)

    @property
    def scale(self) -> Three:
        """Target voxels per voxel along (i, j, k)."""
        i, j, k = (fine / size for fine, size in zip(self.target.shape, self.scan.grid.shape, strict=True))
        return i, j, k

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Voxels of the input along (i, j, k), and time points if there are several."""
        return (*self.scan.grid.shape, *((self.n_timepoints,) if self.n_timepoints > 1 else ()))

    @property
    def output_shape(self) -> tuple[int, ...]:
        """The same of the output."""
        return (*self.target.shape, *self.input_shape[3:])

    @property
    def core_dtype(self) -> np.dtype[Any]:
        """Of the cores on disk: that of the output, where it is smaller than float32 and all that is made of them."""
        name = stored_name(self.scan.header.dtype, self.dtype)
        is_all = not (self.corrects or self.writes_inferred)
        return np.dtype(name if is_all and np.dtype(name).itemsize < 4 else np.float32)

    @property
    def core_bytes(self) -> int:
        """Of the cores of a time point on disk, each with its part of the comparison."""
        voxels = self.core_dtype.itemsize * prod(self.target.shape)
        if self.recipe is None or self.by_windows:
            return voxels
        shape, recipe = self.shard_plan.target_shape, self.recipe
        return voxels + 4 * sum(prod(footprint(shard.core, shape, recipe).shape) for shard in self.shard_plan.shards)

    def comparison(self, encoding: Encoding) -> Comparison | None:
        """Return how the output is compared with its input; None for a label map and an input that stays in its file.

        Args:
            encoding: Of the output.
        """
        if self.recipe is None or self.by_windows:
            return None
        return Comparison(self.recipe, self.axes, None if self.corrects else encoding)

    @property
    def driver_bytes(self) -> int:
        """Estimate of the memory of the process that prepares, corrects and writes the volume, beyond an idle one."""
        is_corrected = self.recipe is not None and (self.corrects or self.network.needs_acquisition)
        arrays = 0 if self.by_windows else CORRECTED_ARRAYS if is_corrected else PREPARED_ARRAYS
        at_once = min(2, self.n_timepoints)  # the next is prepared while one is corrected
        return at_once * arrays * prod(self.scan.grid.shape) * 4 + WRITING_BYTES * (1 + self.writes_inferred)

    @property
    def label_note(self) -> str:
        """Say that a volume is resampled as a label map, and why."""
        return f"a label map ({self.labels}), resampled by label without the network; --as image restores it"

    def coarse_volume(self, voxels: NDArray[np.float32], intensity: Intensity) -> CoarseVolume:
        """Prepare a time point for the workers: fill its padding, subtract its level, and find its intensity.

        Args:
            voxels: `(i, j, k)`, as the file has them.
            intensity: Used where the time point is constant.
        """
        # Only a contiguous array is mapped by the workers; another would be copied for every shard.
        ordered = np.ascontiguousarray(self.axes.to_network(voxels))
        padding = find_padding(ordered)
        if padding:
            ordered = fill(ordered, np.logical_or.reduce([part.mask for part in padding]))
        limits = float(ordered.min()), float(ordered.max())
        level = 0.0 if self.labels else find_level(ordered)
        if level:
            ordered = ordered - np.float32(level)
        with suppress(InputError):
            intensity = find_intensity(ordered)
        acquisition = self.recipe if self.network.needs_acquisition else None
        certainty = self.acquisition.certainty if self.acquisition else 1.0
        coarse = coarse_volume(ordered, self.shard_plan.target_shape, intensity, acquisition, certainty)
        return replace(coarse, labels=bool(self.labels), level=level, limits=limits, padding=padding)

    def stored_volume(self, extent: Extent) -> CoarseVolume:
        """Prepare an input that stays in its file; its intensities are found in a sample of its voxels.

        Args:
            extent: Of the input.
        """
        sample, intensity = sampled(self.scan), Intensity(0.0, 1.0)
        level = 0.0 if self.labels else find_level(sample)
        with suppress(InputError):
            intensity = find_intensity(sample - np.float32(level))
        shape = self.axes.network_shape(self.scan.grid.shape)
        # An array, as far as it is one to those who restore: they slice it.
        voxels = cast("NDArray[np.float32]", StoredVoxels(self.scan.path.absolute(), shape, self.axes, level))
        limits = extent.lowest, extent.highest
        return CoarseVolume(
            voxels, self.shard_plan.target_shape, intensity, labels=bool(self.labels), level=level, limits=limits
        )

    def measured(self, coarse: CoarseVolume) -> CoarseVolume:
        """Return a time point with the correction that makes its interpolation consistent.

        Where no acquisition is used, its interpolation stays cubic: without a model's card; and with `--no-correct`,
        unless the network takes the consistent interpolation.
        """
        if self.network.needs_acquisition or not self.corrects:
            return coarse
        consistent = coarse_volume(coarse.voxels, coarse.target_shape, coarse.intensity, self.recipe)
        return replace(coarse, correction=consistent.correction)

    def padding_in_file(
        self, coarse: CoarseVolume, start: int = 0, stop: int | None = None
    ) -> list[tuple[float, NDArray[np.bool_]]]:
        """Return each padding value of a time point, and where it is in planes of the target grid, `(i, j, planes)`."""
        shape = self.shard_plan.target_shape
        window = self.axes.planes(self.target.shape, start, self.target.shape[2] if stop is None else stop)
        return [(padding.value, self.axes.to_file(padding.resampled(shape, window))) for padding in coarse.padding]

    def key(self, digests: Sequence[str]) -> str:
        """Identify everything that determines the cores, down to the programs and threads that affect the last bits.

        Args:
            digests: Of the files of the input.
        """
        return content_key(
            {
                "output": self.output.name,  # two inputs of the same bytes do not share their cores
                "input": list(digests),
                "model": self.network.digest,
                "target": [self.target.shape, self.axes.order, self.axes.flipped],
                "plan": [
                    (shard.core, shard.read, *([astuple(shard.streamed)] if shard.streamed else []))
                    for shard in self.shard_plan.shards
                ],
                "worker": [self.resources.cpus_per_worker, self.resources.gpus_per_worker],
                "programs": program_versions(),
                **({"labels": True} if self.labels else {}),
                **({"flips": self.network.flips} if self.network.flips > 1 else {}),
                **({"precision": self.network.precision} if self.network.precision != "float32" else {}),
                **({"acquisition": self.recipe.model_dump()} if self.network.needs_acquisition and self.recipe else {}),
                **({"certainty": self.acquisition.certainty} if self.acquisition else {}),
            }
        )


def plan_volume(
    request: UpscaleRequest, scan: Scan, output: Path, extent: Extent | None = None, labels: str = ""
) -> VolumePlan:
    """Plan a volume by its header.

    Args:
        request: What to do.
        scan: The volume.
        output: Where its output goes.
        extent: Of its voxels, if they were read.
        labels: Why it is taken for a label map, where the request does not say what it is; empty for an image.

    Raises:
        InputError: It cannot be super-resolved.
    """
    axes = network_axes(scan.grid, request.slice_axis)
    network = chosen_network(request, scan.grid, axes)
    card, scale = network.card, request.scale
    if scale is None and request.spacing is None:
        if card is None:
            raise InputError(
                f"Cannot choose the target grid of {scan.path.name}: the model carries no card that says what scale it"
                " was trained for.",
                "Give --scale I,J,K or --spacing I,J,K.",
            )
        scale = default_scale(scan.grid, axes, card)
    target = target_grid(scan.grid, scale, request.spacing)
    _require_finer(scan, target)
    if request.kind is not None:
        labels = "as requested" if request.kind == "labels" else ""
    if labels:
        _require_exact_labels(scan, extent, request.dtype)
    budget = request.resources.memory_budget_mib
    corrects = request.correct and card is not None and not labels
    by_windows = _stays_in_its_file(scan, extent) and not request.inferred
    by_windows &= bool(labels) or not (corrects or network.needs_acquisition)
    if not by_windows:
        require_memory(scan)
    fine, coarse = axes.network_shape(target.shape), axes.network_shape(scan.grid.shape)
    trained = card.degradation if card else Degradation(name="mean")
    acquisition = None if labels else _acquisition(request, network, axes, scan, extent)
    recipe = None
    if not labels:
        recipe = recipe_at(trained, fine, coarse) if acquisition is None else acquisition.degradation(fine, coarse)
    if request.experts and acquisition and acquisition.known:
        network = network.replaced(shipped_network(thick=not trained.is_isotropic, known=recipe))
    held = 0 if by_windows else prod(coarse) * 4 * (2 if network.needs_acquisition else 1)
    plan = plan_shards(
        fine,
        network.cost,
        budget,
        resident_bytes=resident_bytes(held, gpus=request.resources.gpus_per_worker),
        # A correction takes all cores, before the first plane is written.
        written_axis=None if corrects else axes.written_axis,
        name=scan.path.name,
    )
    warnings = () if labels else range_warnings(card, axes, scan.grid, target)
    return VolumePlan(
        scan,
        output,
        target,
        axes,
        plan,
        network,
        request.resources,
        request.dtype,
        recipe,
        corrects,
        warnings,
        acquisition,
        labels,
        request.inferred and not labels,
        by_windows,
    )


def _stays_in_its_file(scan: Scan, extent: Extent | None) -> bool:
    """Return whether a scan is too large to be held, and can be read by windows: it has no padding to be filled."""
    if extent is None or not scan.has_windows or scan.grid.mib <= MAX_HELD_MIB:
        return False
    return not extent.not_finite and extent.lowest not in PADDING_VALUES


def _require_finer(scan: Scan, target: Grid) -> None:
    """Refuse a target grid that is coarser than the scan along an axis."""
    have, wanted = scan.grid.shape, target.shape
    coarser = [axis for axis in range(3) if wanted[axis] < have[axis]]
    if coarser:
        names = " and ".join("ijk"[axis] for axis in coarser)
        scale = ",".join(f"{max(1.0, fine / size):.4g}" for fine, size in zip(wanted, have, strict=True))
        spacing = ",".join(
            f"{min(fine, given):.4g}" for fine, given in zip(target.spacing, scan.grid.spacing, strict=True)
        )
        raise InputError(
            f"Cannot super-resolve {scan.path.name}: the target grid of {'x'.join(map(str, wanted))} voxels is coarser"
            f" than its {'x'.join(map(str, have))} along {names}; voxlift refines an axis or leaves it as it is.",
            f"Use --scale {scale} or --spacing {spacing}.",
        )


def _require_exact_labels(scan: Scan, extent: Extent | None, dtype: str | None) -> None:
    """Refuse labels that float32, in which volumes are read, or the data type of the output does not hold exactly."""
    if extent is None:
        return
    low, high = extent.lowest, extent.highest
    if max(-low, high) > MAX_EXACT_FLOAT32:
        raise InputError(
            f"Cannot resample the label map {scan.path.name}: labels up to {MAX_EXACT_FLOAT32} are exact, and it holds"
            f" {max(-low, high):.0f}.",
            "Number its labels anew.",
        )
    kind = np.dtype(stored_name(scan.header.dtype, dtype))
    if dtype is not None and kind.kind in "iu" and not np.iinfo(kind).min <= low <= high <= np.iinfo(kind).max:
        raise InputError(
            f"Cannot write the label map {scan.path.name} as {kind}: it holds labels from {low:.0f} to {high:.0f}.",
            "Leave --dtype out, or choose a larger one.",
        )


def default_scale(grid: Grid, axes: NetworkAxes, card: ModelCard) -> Three:
    """Choose the target voxels per voxel along (i, j, k) of a scan where neither a scale nor a spacing is given.

    Thick slices become as thin as their voxels are wide, if the model was trained to refine them alone by so much.
    Anything else gets the scale that the model was trained for first.

    Args:
        grid: Of the scan.
        axes: Its network axes.
        card: Of the model.
    """
    through = (slice_ratio(grid), 1.0, 1.0)
    thick = through[0] > THICK and card.covers(through)
    return axes.of_network(through if thick else card.degradation.scale)


def chosen_network(request: UpscaleRequest, grid: Grid, axes: NetworkAxes) -> NetworkFile:
    """Choose the restorer of a scan by its geometry and by the scale that is wanted.

    Args:
        request: What to do.
        grid: Of the scan.
        axes: Its network axes.
    """
    thick = request.thick_network
    if thick is None or thick.card is None:
        return request.network
    if request.scale is None and request.spacing is None:
        wanted = (slice_ratio(grid), 1.0, 1.0)
    else:
        target = target_grid(grid, request.scale, request.spacing)
        wanted = axes.of_file(triple(fine / size for fine, size in zip(target.shape, grid.shape, strict=True)))
    return thick if thick.card.covers(wanted) else request.network


def _acquisition(
    request: UpscaleRequest, network: NetworkFile, axes: NetworkAxes, scan: Scan, extent: Extent | None
) -> Acquisition | None:
    """Return the acquisition of a scan as given or assumed; None where the model's own degradation is assumed."""
    trained = network.card.degradation if network.card else Degradation(name="mean")
    assumed = assumed_acquisition(trained, scan, axes, extent)
    if request.profile or request.blur or request.slice_thickness:
        blur = axes.of_file(request.blur or (0.0, 0.0, 0.0))
        thickness, distance = request.slice_thickness, axes.of_file(scan.grid.spacing)[0]
        gap = assumed.gap if thickness is None else slice_gap(thickness, distance)
        # A thickness is that of slices, which are not encoded across.
        profile = request.profile or ("box" if thickness and assumed.profile == "kspace" else assumed.profile)
        # A thickness says nothing of the other axes.
        known = request.profile is not None or (thickness is not None and not trained.is_isotropic)
        return Acquisition(profile, blur, gap=gap, known=known)
    return assumed if network.needs_acquisition else None


def assumed_acquisition(trained: Degradation, scan: Scan, axes: NetworkAxes, extent: Extent | None) -> Acquisition:
    """Assume the acquisition of a scan by its sidecar and its voxels.

    Args:
        trained: The degradation that the model was trained for first.
        scan: The scan.
        axes: Its network axes.
        extent: Of its voxels, if they were read.

    Raises:
        ReadError: Its sidecar cannot be read.
    """
    lowest, spectra = (0.0, ()) if extent is None else (extent.lowest, axes.of_file(extent.spectra))
    through = None if extent is None else extent.through
    distance = axes.of_file(scan.grid.spacing)[0]
    return default_acquisition(trained, lowest, spectra, through, read_scanner_record(scan.path), distance)


def range_warnings(card: ModelCard | None, axes: NetworkAxes, grid: Grid, target: Grid) -> tuple[str, ...]:
    """List where a volume is outside the range that the model was trained for."""
    if card is None:
        return ()
    depth, height, width = (
        fine / coarse for fine, coarse in zip(axes.of_file(target.shape), axes.of_file(grid.shape), strict=True)
    )
    warnings = card.warnings((depth, height, width), axes.of_file(target.spacing))
    if card.degradation.is_isotropic and (ratio := slice_ratio(grid)) > THICK:
        warnings.append(
            f"slices {ratio:.1f}x as thick as their voxels are wide: the model was trained for"
            " scans that are alike along all axes"
        )
    return tuple(warnings)
