"""Content of QC pages: a volume that was degraded and restored, or one that was super-resolved."""

import numpy as np
from numpy.typing import NDArray

from configs.degradation import Degradation
from tasks.artifacts.network_file import NetworkFile
from tasks.imaging.consistency import residual
from tasks.imaging.resample import resample
from tasks.scoring.protocol import Scores, Trial
from tasks.scoring.quality import shard_borders
from tasks.sharding.plan import ShardPlan
from tasks.sharding.restore import CoarseVolume
from tasks.volume.intensity import normalise
from workflow.pages.quality import QualityCase
from workflow.upscale.volume_work import VolumeWork


def trial_case(
    title: str,
    trial: Trial,
    restored: NDArray[np.float32],
    plan: ShardPlan,
    network: NetworkFile,
    recipe: Degradation,
    scores: Scores,
) -> QualityCase:
    """Put together what is known of a volume that was degraded and restored.

    Args:
        title: Of the page; no name of a file.
        trial: The reference and what the degradation left of it.
        restored: On the grid of the reference, `(i, j, k)`, in the unit of the file.
        plan: How it was cut into shards.
        network: What restored it.
        recipe: Of the degradation.
        scores: Of the part that was scored.
    """
    before, shown, truth, coarse = (
        normalise(volume, trial.intensity)
        for volume in (trial.baseline("cubic"), restored, trial.reference.voxels, trial.coarse.voxels)
    )
    edges = [(0, whole - size) for whole, size in zip(trial.padded.shape, restored.shape, strict=True)]
    fine = trial.axes.to_network(np.pad(shown, edges, mode="edge"))
    missing = residual(fine, trial.axes.to_network(coarse), recipe)
    measured = {
        f"{measure}, part that was scored": f"{one.restored:.4g} (cubic {one.cubic:.4g}, trilinear {one.trilinear:.4g})"
        for measure, one in (("PSNR [dB]", scores.psnr), ("SSIM", scores.ssim))
    }
    return QualityCase(
        title=title,
        input_grid=trial.coarse.grid,
        grid=trial.reference.grid,
        before=before,
        restored=shown,
        strides=trial.axes.of_network(_total_stride(network)),
        borders=shard_borders(plan, trial.axes),
        truth=truth,
        consistency=-trial.axes.to_file(missing),
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
        strides=plan.axes.of_network(_total_stride(plan.network)),
        borders=shard_borders(plan.shard_plan, plan.axes),
        consistency=consistency,
        facts={"shards": str(plan.shards), "corrected": "yes" if plan.corrects else "no", **times},
        warnings=work.warnings,
    )


def _total_stride(network: NetworkFile) -> tuple[int, int, int]:
    depth, height, width = (axis.stride for axis in network.cost.field.axes)
    return depth, height, width
