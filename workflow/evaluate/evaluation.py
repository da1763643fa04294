"""Evaluation: references are degraded, restored through the cluster, corrected, scored against baselines, recorded."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from itertools import count
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from configs.degradation import Degradation, named_degradation
from configs.errors import InputError
from configs.load import flatten
from configs.schema import Resources
from tasks.artifacts.manifest import ManifestEntry
from tasks.artifacts.network_file import NetworkFile, read_network
from tasks.artifacts.shipped import shipped_network
from tasks.imaging.consistency import residual
from tasks.scoring.metrics import foreground_mask
from tasks.scoring.protocol import BASELINES, WHOLE, DegradedReference, Score, Scores, Slab, degraded_reference, pad_to
from tasks.scoring.quality import shard_borders
from tasks.sharding.restore import require_finite
from tasks.volume.intensity import normalise
from tasks.volume.labels import require_image
from tasks.volume.nifti import open_single_volume, open_volume, read_volume
from tasks.volume.scan import Voxels
from workflow.cluster import cluster
from workflow.pages.planes import write_planes
from workflow.pages.quality import QualityCase, model_facts, on_finer_grid, write_quality_page
from workflow.pages.verdict import gain_measure
from workflow.restore.restoration import Restored, restore_volume
from workflow.terminal.progress import entering, progress_bar
from workflow.tracking import Recorder, input_volume, recorded_run, resolve_model
from workflow.tracking.provenance import record_environment, record_network
from workflow.tracking.reading import PICTURES
from workflow.upscale.plan import range_warnings

EXPERIMENT = "voxlift"
ESTIMATES = {"restored": "restored", **BASELINES}


@dataclass(frozen=True, kw_only=True)
class Overall(Scores):
    """Scores of one volume, or their means over volumes.

    Args:
        gain: PSNR of the restored volume above that of its best baseline, in dB.
        consistency: Root mean square difference between the restored volume, degraded again, and the coarse volume;
            normalised intensity.
    """

    gain: float
    consistency: float


@dataclass(frozen=True, kw_only=True)
class VolumeScores(Overall):
    """Scores of one volume.

    Args:
        reference: The file.
        consistency_before: Consistency before the correction.
        warnings: In which respects the volume is outside the range that the model was trained for.
    """

    reference: Path
    consistency_before: float
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Evaluation:
    """Report of `voxlift evaluate`.

    Args:
        degradation: Its name.
        volumes: Scores of each.
        overall: Their means.
        recipe: The degradation in full: its name alone does not determine the scores.
    """

    degradation: str
    volumes: tuple[VolumeScores, ...]
    overall: Overall
    recipe: Degradation


@dataclass(frozen=True, eq=False)
class ScoredVolume:
    """A volume that was degraded, restored, corrected and scored.

    Args:
        degraded: The reference and its coarse volume.
        network: The restorer.
        restored: Before the correction, with its shards and the time that they took.
        voxels: The corrected volume on the grid of the reference, `(i, j, k)`, in the unit of the file.
        slab: The part that was scored.
        scores: Of that part.
    """

    degraded: DegradedReference
    network: NetworkFile
    restored: Restored
    voxels: NDArray[np.float32]
    slab: Slab
    scores: VolumeScores

    @property
    def normalised(self) -> tuple[Voxels, ...]:
        """The coarse volume, its cubic interpolation, the corrected volume and the truth, as they are drawn."""
        given = self.degraded
        volumes = given.coarse.voxels, given.baseline("cubic"), self.voxels, given.reference.voxels
        return tuple(normalise(volume, given.intensity) for volume in volumes)


def network_and_recipe(model: str | None, degradation: str | None) -> tuple[NetworkFile, Degradation]:
    """Read a model, and find the degradation to score it with: the named one, or the one that it was trained for.

    Without a model, the weights that ship are scored: those for thick slices where the degradation makes such.

    Raises:
        InputError: There is no such model or degradation, or none is named and the model carries no card.
    """
    recipe = None if degradation is None else named_degradation(degradation)
    if model is not None:
        network = read_network(resolve_model(model))
    else:
        thick = shipped_network(thick=True)
        covered = recipe is not None and thick.card is not None and thick.card.covers(recipe.scale)
        network = thick if covered else shipped_network()
    if recipe is not None:
        return network, recipe
    if network.card is None:
        raise InputError(f"Cannot choose a degradation: {network.name} carries no card.", "Give --degradation NAME.")
    return network, network.card.degradation


def recorded_evaluation(
    references: Sequence[Path],
    network: NetworkFile,
    recipe: Degradation,
    resources: Resources,
    mask: Path | None,
    console: Console,
    *,
    as_images: bool = False,
) -> Evaluation:
    """Score a model on volumes, as `evaluate`, and record it, with a QC page for each."""
    numbers = count(1)
    inputs = [input_volume(path, "reference", record_paths=False) for path in references]
    run = recorded_run(EXPERIMENT, "evaluate", tags={"degradation": recipe.name}, console=console)
    with entering(console, "Opening the tracking store", run) as recorder:
        record_environment(recorder, "evaluate")
        recorder.inputs(inputs)
        record_network(recorder, network)
        recorder.parameters(flatten(recipe, "degradation"))

        def record(scored: ScoredVolume) -> None:
            number = next(numbers)
            with tempfile.TemporaryDirectory() as scratch:
                record_page(recorder, Path(scratch) / f"{number}.html", f"volume {number}", scored, number - 1)
                if number == 1:  # stands for the run where runs are compared
                    record_picture(recorder, Path(scratch) / f"{number}.png", scored)

        with recorder.phase("evaluation"):
            evaluation = evaluate(references, network, recipe, resources, mask, console, record, as_images=as_images)
        record_scores(recorder, evaluation)
    return evaluation


def evaluate(
    references: Sequence[Path],
    network: NetworkFile,
    recipe: Degradation,
    resources: Resources,
    mask: Path | None,
    console: Console,
    on_scored: Callable[[ScoredVolume], None] = lambda _: None,
    *,
    as_images: bool = False,
) -> Evaluation:
    """Score a model on volumes.

    Args:
        references: The truths.
        network: The restorer.
        recipe: From fine to coarse.
        resources: Workers and what each takes.
        mask: A volume on the references' grid: what is not 0 counts. The foreground by default.
        console: For progress and warnings.
        on_scored: Receives each volume, once it is scored.
        as_images: Take label maps for images too.

    Raises:
        InputError: A volume or the mask cannot be used, or a volume is a label map.
    """
    inside = None if mask is None else read_mask(mask, references)
    volumes = []
    with entering(console, "Starting Ray", cluster()):
        for path in references:
            reference = read_volume(path)
            if not as_images:
                require_image(path, reference, "--as image")
            degraded = degraded_reference(reference, recipe)
            scored = score_volume(path, degraded, network, resources, console, mask=inside)
            on_scored(scored)
            volumes.append(scored.scores)
    return evaluation_of(volumes, recipe)


def evaluation_of(volumes: Sequence[VolumeScores], recipe: Degradation) -> Evaluation:
    """Report the scores of volumes and their means."""
    psnr, ssim, nmse = (
        Score(*np.mean([astuple(getattr(one, measure.name)) for one in volumes], axis=0).tolist())
        for measure in fields(Scores)
    )
    consistency = float(np.mean([one.consistency for one in volumes]))
    return Evaluation(
        recipe.name, tuple(volumes), Overall(psnr, ssim, nmse, gain=psnr.gain, consistency=consistency), recipe
    )


def read_mask(mask: Path, references: Sequence[Path]) -> NDArray[np.bool_]:
    """Read a mask, which must have the grid of every reference."""
    scan = open_single_volume(mask)
    read = scan.read(finite=False)
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
    # A voxel that is not a number marks nothing.
    return np.asarray(np.isfinite(read.voxels) & (read.voxels != 0))


def score_volume(
    path: Path,
    degraded: DegradedReference,
    network: NetworkFile,
    resources: Resources,
    console: Console,
    *,
    slab: Slab = WHOLE,
    mask: NDArray[np.bool_] | None = None,
) -> ScoredVolume:
    """Restore the degraded volume through the workers of the cluster, correct it and score it.

    Args:
        path: Of the reference.
        degraded: The reference and its coarse volume.
        network: The restorer.
        resources: Workers and what each takes.
        console: For progress and warnings.
        slab: The part of the grid that counts.
        mask: Voxels that count, of the reference's shape; those of the foreground by default.
    """
    coarse, target, axes = degraded.coarse, degraded.padded, degraded.axes
    warnings = range_warnings(network.card, axes, coarse.grid, target)
    for warning in warnings:
        console.print(f"{path.name}: out of the model's range: {warning}.")
    loading = "waiting for the workers to load TensorFlow"
    with progress_bar(console, f"Restoring {path.name}", prod(target.shape), loading, of="voxels") as advance:
        restored = restore_volume(
            coarse,
            target,
            network,
            resources,
            name=path.name,
            axes=axes,
            acquisition=degraded.recipe,
            on_progress=lambda now: advance(f"{now.workers} workers", completed=now.voxels_done),
        )
    corrected = degraded.corrected(restored.voxels)
    voxels = degraded.cropped(corrected.voxels)
    require_finite(voxels)
    scores = degraded.scores(voxels, slab, mask)
    volume_scores = VolumeScores(
        **vars(scores),
        gain=scores.psnr.gain,
        reference=path,
        consistency=corrected.after,
        consistency_before=corrected.before,
        warnings=warnings,
    )
    return ScoredVolume(degraded, network, restored, voxels, slab, volume_scores)


def record_picture(recorder: Recorder, path: Path, scored: ScoredVolume) -> ManifestEntry:
    """Draw and record planes through the foreground of the part that was scored; see `write_planes`."""
    coarse, cubic, restored, truth = scored.normalised
    inside = np.zeros(truth.shape, bool)
    inside[scored.slab] = foreground_mask(truth[scored.slab])
    # Away from the middle, where the hemispheres meet.
    places = [int(np.quantile(indices, 0.35)) for indices in np.nonzero(inside)]
    source = on_finer_grid(coarse, scored.degraded.coarse.grid, scored.degraded.reference.grid)
    write_planes(path, {"input": source, "cubic": cubic, "restored": restored}, truth, places)
    return recorder.artifact(path, PICTURES)


def record_page(recorder: Recorder, path: Path, title: str, scored: ScoredVolume, step: int = 0) -> ManifestEntry:
    """Write the QC page of a volume that was scored, and record it and the shards."""
    degraded, axes, plan = scored.degraded, scored.degraded.axes, scored.restored.plan
    coarse, before, restored, truth = scored.normalised
    lacks = residual(axes.to_network(pad_to(restored, degraded.padded.shape)), axes.to_network(coarse), degraded.recipe)
    measured = {
        f"{measure}, part that was scored": f"{one.restored:.4g} ("
        + ", ".join(f"{title} {getattr(one, name):.4g}" for name, title in BASELINES.items())
        + ")"
        for measure, one in (("PSNR [dB]", scored.scores.psnr), ("SSIM", scored.scores.ssim))
    }
    case = QualityCase(
        title=title,
        input_grid=degraded.coarse.grid,
        grid=degraded.reference.grid,
        before=before,
        restored=restored,
        strides=axes.file_shape(scored.network.cost.field.strides),
        borders=shard_borders(plan, axes),
        truth=truth,
        consistency=-axes.to_file(lacks),
        facts={
            **model_facts(scored.network),
            "acquisition": f"degradation {degraded.recipe.name}, which made the input",
            "shards": str(len(plan.shards)),
            **measured,
        },
        warnings=scored.scores.warnings,
        unit=degraded.intensity,
        noise=degraded.recipe.noise.sigma,
        measures=[gain_measure(scored.scores.gain, BASELINES[scored.scores.psnr.best_baseline])],
    )
    write_quality_page(path, case)
    recorder.metrics({"shards/count": len(plan.shards), "shards/overhead": plan.overhead}, step)
    return recorder.artifact(path, "quality")


def record_scores(recorder: Recorder, evaluation: Evaluation, introduction: str = "") -> None:
    """Record the means as scores of the run, those of each volume by its number, and all in its description."""
    for measure in ("psnr", "ssim", "nmse"):
        means = asdict(getattr(evaluation.overall, measure))
        recorder.scores({f"{measure}/{name}": value for name, value in means.items()})
        for number, volume in enumerate(evaluation.volumes):
            scores = asdict(getattr(volume, measure))
            recorder.metrics({f"volumes/{measure}/{name}": value for name, value in scores.items()}, number)
    recorder.scores({"psnr/gain": evaluation.overall.gain, "consistency": evaluation.overall.consistency})
    recorder.describe(introduction + description(evaluation))


def description(evaluation: Evaluation) -> str:
    """Describe the run in Markdown, for the top of its page."""
    psnr, ssim = evaluation.overall.psnr, evaluation.overall.ssim
    rows = [
        f"| {title} | {getattr(psnr, name):.2f} | {getattr(psnr, name) - psnr.cubic:+.2f} | {getattr(ssim, name):.4f} |"
        for name, title in ESTIMATES.items()
    ]
    title = f"Means over {len(evaluation.volumes)} volume(s), degraded by {evaluation.degradation} and restored."
    return "\n".join(
        [title, "", headline(evaluation), "", "| | PSNR [dB] | over cubic | SSIM |", "|---|---:|---:|---:|", *rows]
    )


def headline(evaluation: Evaluation) -> str:
    """State the gain over the best baseline."""
    overall = evaluation.overall
    return f"{overall.gain:+.2f} dB PSNR over the best baseline, {BASELINES[overall.psnr.best_baseline]}."


def summary(evaluation: Evaluation, title: str = "Degraded by {}, restored, corrected") -> list[RenderableType]:
    """Show the scores in a table; {} in its title is the degradation."""
    title = title.format(evaluation.degradation)
    table = Table("", title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in ("PSNR [dB]", "over cubic", "SSIM", "NMSE", "consistency"):
        table.add_column(Text(column), justify="right", no_wrap=True)
    rows: list[tuple[str, Overall]] = [(one.reference.name, one) for one in evaluation.volumes]
    if len(rows) > 1:
        rows.append(("mean", evaluation.overall))
    for volume, one in rows:
        table.add_row(Text(volume))
        for name, row in ESTIMATES.items():
            psnr, ssim, nmse = (getattr(score, name) for score in (one.psnr, one.ssim, one.nmse))
            figures = (f"{psnr:.2f}", f"{psnr - one.psnr.cubic:+.2f}", f"{ssim:.4f}", f"{nmse:.4f}")
            table.add_row(f"  {row}", *figures, f"{one.consistency:.1e}" if name == "restored" else "")
    return [table, headline(evaluation)]
