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
from tasks.volume.intensity import find_intensity, normalise
from tasks.volume.nifti import open_volume
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


def upscaled_case(title: str, work: VolumeWork) -> QualityCase:
    """Put together what is known of a volume that was super-resolved, by its files; of several time points the first.

    Args:
        title: Of the page; no name of a file.
        work: The volume, written.
    """
    given = work.scan.read(0).voxels
    intensity = work.intensities.get(0) or find_intensity(given)
    before = normalise(resample(given, work.target.shape), intensity)
    restored = normalise(open_volume(work.output).read(0).voxels, intensity)
    consistency = None
    if work.recipe is not None:
        coarse = work.axes.to_network(normalise(given, intensity))
        consistency = -work.axes.to_file(residual(work.axes.to_network(restored), coarse, work.recipe))
    found = work.findings.warnings if work.findings else ()
    times = {"time point": f"1 of {work.times}"} if work.times > 1 else {}
    return QualityCase(
        title=title,
        input_grid=work.scan.grid,
        grid=work.target,
        before=before,
        restored=restored,
        strides=work.axes.file_shape(work.network.cost.field.strides),
        borders=shard_borders(work.plan, work.axes),
        consistency=consistency,
        facts={"shards": str(work.shards), "corrected": "yes" if work.corrects else "no", **times},
        warnings=(*found, *work.remarks),
    )
