"""Evaluation: references are degraded, restored through the cluster, corrected and scored next to interpolation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console, RenderableType
from rich.table import Table

from configs.degradation import Degradation
from configs.errors import InputError
from configs.schema import Resources
from tasks.artifacts.network_file import NetworkFile
from tasks.scoring.protocol import WHOLE, DegradedReference, Score, Scores, Slab, degraded_reference
from tasks.volume.nifti import open_volume, read_volume
from workflow.cluster import cluster
from workflow.restore.restoration import Restored, plan_restoration, restore_volume
from workflow.terminal.progress import progress_bar
from workflow.upscale.plan import range_remarks


@dataclass(frozen=True, kw_only=True)
class VolumeScores(Scores):
    """Scores of one volume.

    Args:
        reference: The file.
        consistency: Root mean square of what the restored volume, degraded again, lacks; normalised intensity.
        consistency_before: The same before the correction.
        warnings: Where the use leaves what the model was trained for.
    """

    reference: Path
    consistency: float
    consistency_before: float
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Overall(Scores):
    """Means over the volumes."""

    consistency: float


@dataclass(frozen=True)
class Evaluation:
    """Report of `voxlift evaluate`.

    Args:
        degradation: Its name.
        volumes: Scores of each.
        overall: Their means.
        recipe: The degradation as a whole: a name alone does not tell what the scores were measured against.
    """

    degradation: str
    volumes: tuple[VolumeScores, ...]
    overall: Overall
    recipe: Degradation


@dataclass(frozen=True, eq=False)
class ScoredTrial:
    """A volume that was degraded, restored, corrected and scored.

    Args:
        degraded: The reference and what the degradation left of it.
        voxels: The corrected volume on the grid of the reference, `(i, j, k)`, in the unit of the file.
        restored: Before the correction, with its shards and the time that they took.
        scores: Of the part that was scored.
    """

    degraded: DegradedReference
    voxels: NDArray[np.float32]
    restored: Restored
    scores: VolumeScores


def evaluate(
    references: Sequence[Path],
    network: NetworkFile,
    recipe: Degradation,
    resources: Resources,
    mask: Path | None,
    console: Console,
    on_scored: Callable[[ScoredTrial], None] = lambda _: None,
) -> Evaluation:
    """Score a model on volumes.

    Args:
        references: The truths.
        network: What restores.
        recipe: From fine to coarse.
        resources: Workers and what each takes.
        mask: A volume on the references' grid: what is not 0 counts. The foreground by default.
        console: For progress and remarks.
        on_scored: Receives each volume, once it is scored.

    Raises:
        InputError: A volume or the mask cannot be used.
    """
    inside = None if mask is None else _inside(mask, references)
    volumes = []
    with cluster():
        for path in references:
            degraded = degraded_reference(read_volume(path), recipe)
            scored = score_trial(path, degraded, network, recipe, resources, console, mask=inside)
            on_scored(scored)
            volumes.append(scored.scores)
    return evaluation_of(volumes, recipe)


def evaluation_of(volumes: Sequence[VolumeScores], recipe: Degradation) -> Evaluation:
    """Report the scores of volumes and their means."""
    return Evaluation(recipe.name, tuple(volumes), _means(volumes), recipe)


def _inside(mask: Path, references: Sequence[Path]) -> NDArray[np.bool_]:
    """Read a mask, which must lie where every reference lies."""
    read = read_volume(mask)
    for path in references:
        grid = open_volume(path).grid
        if grid.shape != read.grid.shape:
            raise InputError(
                f"Cannot score {path.name}: the mask {mask.name} has {read.grid.shape} voxels and the reference"
                f" {grid.shape}.",
                "Give a mask on the reference's grid.",
            )
        apart = float(np.linalg.norm(grid.corners() - read.grid.corners(), axis=1).max())
        if apart > min(grid.spacing) / 2:
            raise InputError(
                f"Cannot score {path.name}: the corners of the mask {mask.name} lie up to {apart:.3g} mm from those of"
                " the reference.",
                "Give a mask on the reference's grid, in its axis order and directions.",
            )
    return np.asarray(read.voxels != 0)


def score_trial(
    path: Path,
    degraded: DegradedReference,
    network: NetworkFile,
    recipe: Degradation,
    resources: Resources,
    console: Console,
    *,
    slab: Slab = WHOLE,
    mask: NDArray[np.bool_] | None = None,
) -> ScoredTrial:
    """Restore the degraded volume through the workers of the cluster, correct it and score it.

    Args:
        path: Of the reference.
        degraded: The reference and what the degradation left of it.
        network: What restores.
        recipe: Of the degradation.
        resources: Workers and what each takes.
        console: For progress and remarks.
        slab: The part of the grid that counts.
        mask: Voxels that count, of the reference's shape; those of the foreground by default.
    """
    remarks = range_remarks(network.card, degraded.axes, degraded.coarse.grid, degraded.padded)
    for remark in remarks:
        console.print(f"{path.name}: out of the model's range: {remark}.")
    plan = plan_restoration(
        degraded.coarse, degraded.padded, network, resources.memory_budget_mib, axes=degraded.axes, name=path.name
    )
    with progress_bar(console, f"Restoring {path.name}", len(plan.shards)) as advance:
        restored = restore_volume(
            degraded.coarse,
            degraded.padded,
            network,
            resources,
            name=path.name,
            axes=degraded.axes,
            on_progress=lambda progress: advance(f"{progress.workers} workers"),
        )
    corrected = degraded.corrected(restored.voxels, recipe)
    voxels = degraded.cropped(corrected.voxels)
    scores = VolumeScores(
        **vars(degraded.scores(voxels, slab, mask)),
        reference=path,
        consistency=corrected.after,
        consistency_before=corrected.before,
        warnings=remarks,
    )
    return ScoredTrial(degraded, voxels, restored, scores)


def _means(volumes: Sequence[VolumeScores]) -> Overall:
    def mean(measure: str) -> Score:
        scores = [getattr(volume, measure) for volume in volumes]
        return Score(
            **{name: float(np.mean([getattr(s, name) for s in scores])) for name in ("restored", "cubic", "trilinear")}
        )

    consistency = float(np.mean([volume.consistency for volume in volumes]))
    return Overall(mean("psnr"), mean("ssim"), mean("nmse"), consistency=consistency)


def summary(evaluation: Evaluation, title: str = "Degraded by {}, restored, corrected") -> list[RenderableType]:
    """A table of the scores; {} in its title is the degradation."""
    table = Table(title=title.format(evaluation.degradation), title_justify="left")
    for name in ("", "", "PSNR [dB]", "over cubic", "SSIM", "NMSE", "consistency"):
        table.add_column(name, justify="right" if name else "left")
    rows: list[tuple[str, VolumeScores | Overall]] = [(one.reference.name, one) for one in evaluation.volumes]
    if len(rows) > 1:
        rows.append(("mean", evaluation.overall))
    for title, one in rows:
        for name in ("restored", "cubic", "trilinear"):
            psnr, ssim, nmse = (getattr(score, name) for score in (one.psnr, one.ssim, one.nmse))
            shown = f"{one.consistency:.1e}" if name == "restored" else ""
            table.add_row(
                title if name == "restored" else "",
                name,
                f"{psnr:.2f}",
                f"{psnr - one.psnr.cubic:+.2f}",
                f"{ssim:.4f}",
                f"{nmse:.4f}",
                shown,
            )
    return [table]
