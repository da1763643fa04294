"""Inspection of volumes: the checks made before any work, and the geometry."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from rich.table import Table
from rich.text import Text

from configs.degradation import Degradation
from configs.errors import InputError
from tasks.artifacts.shipped import shipped_network
from tasks.volume.grid import (
    THICK,
    Grid,
    Three,
    axis_codes,
    network_axes,
    oblique_degrees,
    slice_axis,
    slice_ratio,
    target_grid,
)
from tasks.volume.inspection import InspectedVolume, inspect_volume
from workflow.upscale.plan import assumed_acquisition


@dataclass(frozen=True)
class Inspection:
    """Outcome of inspecting a volume.

    Args:
        path: Of the file.
        found: None where the volume is refused.
        target: The target grid, if requested.
        error: Why the volume is refused; empty where it is not.
    """

    path: Path
    found: InspectedVolume | None = None
    target: Grid | None = None
    error: str = ""

    @property
    def record(self) -> dict[str, object]:
        """The result as plain data."""
        if self.found is None:
            return {"input": str(self.path), "status": "refused", "error": self.error}
        grid, header, extent = self.found.scan.grid, self.found.scan.header, self.found.extent
        record = {
            "input": str(self.path),
            "status": "passed",
            "file": self.path.name,
            "format": header.format,
            "shape": grid.shape,
            "times": header.n_timepoints,
            "dtype": header.dtype.name,
            "spacing": grid.spacing,
            "axes": axis_codes(grid),
            "slice_axis": "ijk"[slice_axis(grid)],
            "oblique": oblique_degrees(grid),
            "field_of_view": tuple(size * step for size, step in zip(grid.shape, grid.spacing, strict=True)),
            "affine": grid.affine.tolist(),
            "codes": header.codes,
            "lowest": extent.lowest,
            "highest": extent.highest,
            "not_finite": extent.not_finite,
            "memory_mib": grid.mib,
            "labels": self.found.labels or None,
            "acquisition": describe_acquisition(self.found),
            "warnings": self.found.warnings,
        }
        if self.target is not None:
            shape, spacing, mib = self.target.shape, self.target.spacing, self.target.mib
            record |= {"target_shape": shape, "target_spacing": spacing, "target_memory_mib": mib}
        return record


def describe_acquisition(found: InspectedVolume) -> str | None:
    """Describe what `upscale` takes the acquisition of a scan to be by default; None for a label map."""
    if found.labels:
        return None
    grid = found.scan.grid
    axes = network_axes(grid)
    trained = _trained_for(thick=slice_ratio(grid) > THICK)
    return str(assumed_acquisition(trained, found.scan, axes, found.extent))


@cache
def _trained_for(*, thick: bool) -> Degradation:
    card = shipped_network(thick=thick).card
    if card is None:
        raise InputError("Cannot use the shipped weights: they carry no card.", "Install voxlift again.")
    return card.degradation


def inspect_volumes(paths: Sequence[Path], scale: Three | None, spacing: Three | None) -> list[Inspection]:
    """Inspect volumes; with a scale or a spacing, derive the target grid of each."""
    inspected = []
    for path in paths:
        try:
            found = inspect_volume(path)
            target = target_grid(found.scan.grid, scale, spacing) if scale or spacing else None
            inspected.append(Inspection(path, found, target))
        except InputError as error:
            inspected.append(Inspection(path, error=str(error)))
    return inspected


def inspection_tables(inspected: Sequence[Inspection]) -> list[Table]:
    """Tabulate the volumes that were not refused, if there are any."""
    passed = [(one.found, one.target) for one in inspected if one.found is not None]
    if not passed:
        return []
    table = Table("volume", "geometry", "voxels", show_lines=True)
    for found, target in passed:
        grid, header, extent = found.scan.grid, found.scan.header, found.extent
        geometry = [
            f"{_by(grid.shape)} at {_by(grid.spacing)} mm",
            f"{axis_codes(grid)}, {oblique_degrees(grid):.1f}° oblique, slices along {'ijk'[slice_axis(grid)]}",
            "qform code {}, sform code {}".format(*header.codes),
            *([f"target {_by(target.shape)} at {_by(target.spacing)} mm, {target.mib:.1f} MiB"] if target else []),
            f"a label map: {found.labels}" if found.labels else f"assumed: {describe_acquisition(found)}",
            *(f"! {warning}" for warning in found.warnings),
        ]
        voxels = [
            f"{header.format}, {header.dtype.name}",
            f"{extent.lowest:.4g} to {extent.highest:.4g}",
            f"{grid.mib:.1f} MiB" + (f" x {header.n_timepoints} time points" if header.n_timepoints > 1 else ""),
        ]
        table.add_row(*(Text(text) for text in (found.scan.path.name, "\n".join(geometry), "\n".join(voxels))))
    return [table]


def _by(values: tuple[float, ...]) -> str:
    return "x".join(f"{value:.4g}" for value in values)
