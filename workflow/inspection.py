"""Inspection of volumes: each checked as before any work, and its geometry as it is understood."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.table import Table
from rich.text import Text

from configs.errors import InputError
from tasks.volume.grid import Grid
from tasks.volume.inspection import Findings, preflight
from tasks.volume.target import Three, target_grid


@dataclass(frozen=True)
class Inspected:
    """A volume that was inspected.

    Args:
        path: Of the file.
        findings: None where the volume is refused.
        target: The target grid, where one was asked for.
        error: Why the volume is refused; empty where it is not.
    """

    path: Path
    findings: Findings | None = None
    target: Grid | None = None
    error: str = ""

    @property
    def record(self) -> dict[str, object]:
        """The same as plain data."""
        if self.findings is None:
            return {"input": str(self.path), "status": "refused", "error": self.error}
        record = {"input": str(self.path), "status": "passed", **asdict(self.findings)}
        if self.target is not None:
            shape, spacing, mib = self.target.shape, self.target.spacing, self.target.mib
            record |= {"target_shape": shape, "target_spacing": spacing, "target_memory_mib": mib}
        return record


def inspect_volumes(paths: Sequence[Path], scale: Three | None, spacing: Three | None) -> list[Inspected]:
    """Inspect volumes; with a scale or a spacing, derive the target grid of each."""
    return [_inspected(path, scale, spacing) for path in paths]


def _inspected(path: Path, scale: Three | None, spacing: Three | None) -> Inspected:
    try:
        findings = preflight(path)
        grid = Grid(findings.shape, np.array(findings.affine))
        return Inspected(path, findings, target_grid(grid, scale, spacing) if scale or spacing else None)
    except InputError as error:
        return Inspected(path, error=str(error))


def inspection_tables(inspected: Sequence[Inspected]) -> list[Table]:
    """Show the volumes that were not refused, if there are any."""
    passed = [(one.findings, one.target) for one in inspected if one.findings is not None]
    if not passed:
        return []
    table = Table("volume", "geometry", "voxels", show_lines=True)
    for found, target in passed:
        geometry = [
            f"{_by(found.shape)} at {_by(found.spacing)} mm",
            f"{found.axes}, {found.oblique:.1f}° oblique, slices along {found.slice_axis}",
            "qform code {}, sform code {}".format(*found.codes),
            *([f"target {_by(target.shape)} at {_by(target.spacing)} mm, {target.mib:.1f} MiB"] if target else []),
            *(f"! {warning}" for warning in found.warnings),
        ]
        voxels = [
            f"{found.format}, {found.dtype}",
            f"{found.lowest:.4g} to {found.highest:.4g}",
            f"{found.memory_mib:.1f} MiB" + (f" x {found.times} time points" if found.times > 1 else ""),
        ]
        table.add_row(*(Text(text) for text in (found.file, "\n".join(geometry), "\n".join(voxels))))
    return [table]


def _by(values: tuple[float, ...]) -> str:
    return "x".join(f"{value:.4g}" for value in values)
