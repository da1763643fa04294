"""What the demo's QC page is made of."""

import numpy as np
from numpy.typing import NDArray

from configs.schema import RunConfig
from tasks.degrade import degrade
from tasks.intensity import normalise
from tasks.protocol import Score, Trial
from tasks.quality import shard_borders
from tasks.shards import ShardPlan
from workflow.quality_page import QualityCase


def demo_quality(
    config: RunConfig, trial: Trial, restored: NDArray[np.float32], plan: ShardPlan, psnr: Score, ssim: Score
) -> QualityCase:
    """Put together what is known of the demo's restored volume.

    Args:
        config: Of the run.
        trial: The reference and what the degradation left of it.
        restored: On the grid of the reference, `(i, j, k)`, in the unit of the file.
        plan: How it was cut into shards.
        psnr: Of the held-out part.
        ssim: Of the held-out part.
    """
    shown = {
        name: normalise(volume, trial.intensity)
        for name, volume in {
            "before": trial.baseline("cubic"),
            "restored": restored,
            "truth": trial.reference.voxels,
            "coarse": trial.coarse.voxels,
        }.items()
    }
    edges = [(0, whole - size) for whole, size in zip(trial.padded.shape, restored.shape, strict=True)]
    again = degrade(trial.axes.to_network(np.pad(shown["restored"], edges, mode="edge")), config.degradation)
    scores = {
        f"{measure}, held-out part": f"{score.restored:.4g} (cubic {score.cubic:.4g}, trilinear {score.trilinear:.4g})"
        for measure, score in (("PSNR [dB]", psnr), ("SSIM", ssim))
    }
    return QualityCase(
        title="restored volume of the demo",
        input_grid=trial.coarse.grid,
        grid=trial.reference.grid,
        before=shown["before"],
        restored=shown["restored"],
        strides=trial.axes.of_network(config.network.total_stride),
        borders=shard_borders(plan, trial.axes),
        truth=shown["truth"],
        consistency=trial.axes.to_file(again) - shown["coarse"],
        facts={"degradation": config.degradation.name, "shards": str(len(plan.shards)), **scores},
    )
