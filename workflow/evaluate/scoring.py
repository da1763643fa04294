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
from tasks.scoring.protocol import Score, Scores, Trial, degraded_trial
from tasks.sharding.plan import ShardPlan
from tasks.volume.nifti import open_volume, read_volume
from workflow.cluster import cluster
from workflow.restore.restoration import plan_restoration, restore_volume
from workflow.terminal.progress import progress_bar

OnScored = Callable[[Trial, NDArray[np.float32], ShardPlan, Scores], None]


@dataclass(frozen=True)
class VolumeScores:
    """Scores of one volume.

    Args:
        reference: The file.
        psnr: In dB, peak 1.
        ssim: Structural similarity.
        nmse: Squared error over squared truth.
        consistency: Root mean square of what the restored volume, degraded again, lacks; normalised intensity.
        consistency_before: The same before the correction.
        warnings: Where the use leaves what the model was trained for.
    """

    reference: Path
    psnr: Score
    ssim: Score
    nmse: Score
    consistency: float
    consistency_before: float
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Overall:
    """Means over the volumes."""

    psnr: Score
    ssim: Score
    nmse: Score
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


def evaluate(
    references: Sequence[Path],
    network: NetworkFile,
    recipe: Degradation,
    resources: Resources,
    mask: Path | None,
    console: Console,
    on_scored: OnScored | None = None,
) -> Evaluation:
    """Score a model on volumes.

    Args:
        references: The truths.
        network: What restores.
        recipe: From fine to coarse.
        resources: Workers and what each takes.
        mask: A volume on the references' grid: what is not 0 counts. The foreground by default.
        console: For progress and remarks.
        on_scored: Receives for each volume what was degraded, restored, and how it was cut and scored.

    Raises:
        InputError: A volume or the mask cannot be used.
    """
    inside = None if mask is None else _inside(mask, references)
    with cluster():
        volumes = tuple(_scored(path, network, recipe, resources, inside, console, on_scored) for path in references)
    return Evaluation(recipe.name, volumes, _means(volumes), recipe)


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


def _scored(
    path: Path,
    network: NetworkFile,
    recipe: Degradation,
    resources: Resources,
    inside: NDArray[np.bool_] | None,
    console: Console,
    on_scored: OnScored | None,
) -> VolumeScores:
    trial = degraded_trial(read_volume(path), recipe)
    remarks = _remarks(trial, network)
    for remark in remarks:
        console.print(f"{path.name}: out of the model's range: {remark}.")
    plan = plan_restoration(
        trial.coarse, trial.padded, network, resources.memory_budget_mib, axes=trial.axes, name=path.name
    )
    with progress_bar(console, f"Restoring {path.name}", len(plan.shards)) as advance:
        restored = restore_volume(
            trial.coarse,
            trial.padded,
            network,
            resources,
            name=path.name,
            axes=trial.axes,
            on_progress=lambda progress: advance(f"{progress.workers} workers"),
        )
    corrected = trial.corrected(restored.voxels, recipe)
    cropped = trial.cropped(corrected.voxels)
    scores = trial.scores(cropped, mask=inside)
    if on_scored is not None:
        on_scored(trial, cropped, plan, scores)
    return VolumeScores(path, scores.psnr, scores.ssim, scores.nmse, corrected.after, corrected.before, tuple(remarks))


def _remarks(trial: Trial, network: NetworkFile) -> list[str]:
    if network.card is None:
        return []
    scale = tuple(fine / size for fine, size in zip(trial.padded.shape, trial.coarse.grid.shape, strict=True))
    depth, height, width = trial.axes.of_file((scale[0], scale[1], scale[2]))
    return network.card.remarks((depth, height, width), trial.axes.of_file(trial.reference.grid.spacing))


def _means(volumes: Sequence[VolumeScores]) -> Overall:
    def mean(measure: str) -> Score:
        scores = [getattr(volume, measure) for volume in volumes]
        return Score(
            **{name: float(np.mean([getattr(s, name) for s in scores])) for name in ("restored", "cubic", "trilinear")}
        )

    consistency = float(np.mean([volume.consistency for volume in volumes]))
    return Overall(mean("psnr"), mean("ssim"), mean("nmse"), consistency)


def summary(evaluation: Evaluation) -> list[RenderableType]:
    """A table of the scores."""
    table = Table(title=f"Degraded by {evaluation.degradation}, restored, corrected", title_justify="left")
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
