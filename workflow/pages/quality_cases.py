"""Content of QC pages: a volume that was degraded and restored, or one that was super-resolved."""

import numpy as np
from numpy.typing import NDArray

from configs.degradation import Degradation
from tasks.artifacts.network_file import NetworkFile
from tasks.imaging.consistency import residual
from tasks.imaging.resample import resample
from tasks.scoring.protocol import DegradedReference, Scores
from tasks.scoring.quality import shard_borders
from tasks.sharding.plan import ShardPlan
from tasks.sharding.restore import CoarseVolume
from tasks.volume.intensity import normalise
from workflow.pages.quality import QualityCase
from workflow.upscale.volume_work import VolumeWork


def reference_case(
    title: str,
    degraded: DegradedReference,
    restored: NDArray[np.float32],
    plan: ShardPlan,
    network: NetworkFile,
    recipe: Degradation,
    scores: Scores,
) -> QualityCase:
    """Put together what is known of a volume that was degraded and restored.

    Args:
        title: Of the page; no name of a file.
        degraded: The reference and what the degradation left of it.
        restored: On the grid of the reference, `(i, j, k)`, in the unit of the file.
        plan: How it was cut into shards.
        network: What restored it.
        recipe: Of the degradation.
        scores: Of the part that was scored.
    """
    before, shown, truth, coarse = (
        normalise(volume, degraded.intensity)
        for volume in (degraded.baseline("cubic"), restored, degraded.reference.voxels, degraded.coarse.voxels)
    )
    edges = [(0, whole - size) for whole, size in zip(degraded.padded.shape, restored.shape, strict=True)]
    fine = degraded.axes.to_network(np.pad(shown, edges, mode="edge"))
    missing = residual(fine, degraded.axes.to_network(coarse), recipe)
    measured = {
        f"{measure}, part that was scored": f"{one.restored:.4g} (cubic {one.cubic:.4g}, trilinear {one.trilinear:.4g})"
        for measure, one in (("PSNR [dB]", scores.psnr), ("SSIM", scores.ssim))
    }
    return QualityCase(
        title=title,
        input_grid=degraded.coarse.grid,
        grid=degraded.reference.grid,
        before=before,
        restored=shown,
        strides=degraded.axes.file_shape(network.cost.field.strides),
        borders=shard_borders(plan, degraded.axes),
        truth=truth,
        consistency=-degraded.axes.to_file(missing),
        facts={"degradation": recipe.name, "shards": str(len(plan.shards)), **measured},
    )


def upscaled_case(title: str, work: VolumeWork, given: CoarseVolume, restored: NDArray[np.float32]) -> QualityCase:
    """Put together what is known of a volume that was super-resolved; of several time points the first.

    Args:
        title: Of the page; no name of a file.
        work: The volume, written.
        given: Its first time point, as the network saw it.
        restored: The first time point of the output, `[i, j, k]`, as it is in the file.
    """
    plan = work.plan
    coarse, shown = normalise(given.voxels, given.intensity), normalise(restored, given.intensity)
    consistency = None
    if plan.recipe is not None:
        consistency = -plan.axes.to_file(residual(plan.axes.to_network(shown), coarse, plan.recipe))
    times = {"time point": f"1 of {plan.times}"} if plan.times > 1 else {}
    return QualityCase(
        title=title,
        input_grid=plan.scan.grid,
        grid=plan.target,
        before=normalise(resample(plan.axes.to_file(given.voxels), plan.target.shape), given.intensity),
        restored=shown,
        strides=plan.axes.file_shape(plan.network.cost.field.strides),
        borders=shard_borders(plan.shard_plan, plan.axes),
        consistency=consistency,
        facts={"shards": str(plan.shards), "corrected": "yes" if plan.corrects else "no", **times},
        warnings=work.warnings,
    )
