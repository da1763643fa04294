"""Evaluation: references are degraded, restored through the cluster, corrected, scored against baselines, recorded."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, dataclass, fields, replace
from itertools import count
from math import prod
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from configs.degradation import Degradation, named_degradation
from configs.errors import ConfigError, InputError
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
from workflow.cluster import cluster, room
from workflow.cluster.resources import restoring_request
from workflow.pages.planes import write_planes
from workflow.pages.quality import QualityCase, model_facts, on_finer_grid, write_quality_page
from workflow.pages.verdict import gain_measure
from workflow.restore.restoration import Restored, restore_volume
from workflow.restore.worker_pool import StartError
from workflow.terminal.options import naming_options
from workflow.terminal.progress import entering, progress_bar
from workflow.tracking import InputVolume, Recorder, input_volume, recorded_run, resolve_model
from workflow.tracking.provenance import record_environment, record_network
from workflow.tracking.reading import PICTURES
from workflow.upscale.plan import range_warnings

EXPERIMENT = "voxlift"
MEASURES = ("psnr", "ssim", "nmse")
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
        status: "done".
    """

    reference: Path
    consistency_before: float
    warnings: tuple[str, ...]
    status: Literal["done"] = "done"


@dataclass(frozen=True, kw_only=True)
class FailedVolume:
    """A reference that could not be scored.

    Args:
        reference: The file.
        error: Why.
        cause: "input" if the file cannot be used, "run" for anything else.
        status: "failed".
    """

    reference: Path
    error: str
    cause: Literal["input", "run"]
    status: Literal["failed"] = "failed"


@dataclass(frozen=True)
class Evaluation:
    """Report of `voxlift evaluate`.

    Args:
        degradation: Its name.
        volumes: Scores of each, or why it failed.
        overall: Means of the scores; None if every volume failed.
        recipe: The degradation in full: its name alone does not determine the scores.
    """

    degradation: str
    volumes: tuple[VolumeScores | FailedVolume, ...]
    overall: Overall | None
    recipe: Degradation

    @property
    def scored(self) -> tuple[VolumeScores, ...]:
        """The volumes that were scored."""
        return tuple(one for one in self.volumes if isinstance(one, VolumeScores))

    @property
    def failed(self) -> tuple[FailedVolume, ...]:
        """The volumes that failed."""
        return tuple(one for one in self.volumes if isinstance(one, FailedVolume))


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
        network = shipped_network(thick=covered, known=recipe)
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
    """Score a model on volumes, as `evaluate`, and record it, with a QC page for each.

    Raises:
        InputError: As `evaluate`, or no reference can be used.
    """
    earlier = count()
    inputs = _usable_inputs(references)
    run = recorded_run(EXPERIMENT, "evaluate", tags={"degradation": recipe.name}, console=console)
    with entering(console, "Opening the tracking store", run) as recorder:
        record_environment(recorder, "evaluate")
        recorder.inputs(inputs)
        record_network(recorder, network)
        recorder.parameters(flatten(recipe, "degradation"))

        def record(number: int, scored: ScoredVolume) -> None:
            with tempfile.TemporaryDirectory() as scratch:
                record_page(recorder, Path(scratch) / f"{number}.html", f"volume {number}", scored, number - 1)
                if next(earlier) == 0:  # stands for the run where runs are compared
                    record_picture(recorder, Path(scratch) / f"{number}.png", scored)

        with recorder.phase("evaluation"):
            evaluation = evaluate(references, network, recipe, resources, mask, console, record, as_images=as_images)
        record_scores(recorder, evaluation)
        recorder.metrics({"failed": float(len(evaluation.failed))})
        recorder.failed = not evaluation.scored
    return evaluation


def _usable_inputs(references: Sequence[Path]) -> list[InputVolume]:
    """Describe the references that can be used; any other fails once more, alone, where it is read."""
    inputs, errors = [], []
    for path in references:
        try:
            inputs.append(input_volume(path, "reference", record_paths=False))
        except InputError as error:
            errors.append(error)
    if inputs:
        return inputs
    if len(errors) == 1:
        raise errors[0]
    raise InputError(" ".join(map(str, errors)))


def evaluate(
    references: Sequence[Path],
    network: NetworkFile,
    recipe: Degradation,
    resources: Resources,
    mask: Path | None,
    console: Console,
    on_scored: Callable[[int, ScoredVolume], None] = lambda *_: None,
    *,
    as_images: bool = False,
    fail_fast: bool = False,
) -> Evaluation:
    """Score a model on volumes; one of several that fails does so alone.

    Args:
        references: The truths.
        network: The restorer.
        recipe: From fine to coarse.
        resources: Workers and what each takes.
        mask: A volume on the references' grid: what is not 0 counts. The foreground by default.
        console: For progress and warnings.
        on_scored: Receives the number, from 1, and the scores of each volume, once it is scored; the volume fails with
            an exception of it.
        as_images: Take label maps for images too.
        fail_fast: Raise the error of the first volume that fails, as is done if there is only one.

    Raises:
        InputError: The mask cannot be used.
        ConfigError: The cluster has no room for the workers.
        StartError: No worker can be started.
        Exception: Why a volume failed, if it is the only one or `fail_fast`; an InputError if it cannot be used, or is
            a label map.
    """
    inside = None if mask is None else read_mask(mask, references)
    volumes: list[VolumeScores | FailedVolume] = []
    with entering(console, "Starting Ray", cluster()):
        for number, path in enumerate(references, start=1):
            try:
                with naming_options():
                    reference = read_volume(path)
                    if not as_images:
                        require_image(path, reference, "--as image")
                    degraded = degraded_reference(reference, recipe)
                    scored = score_volume(path, degraded, network, resources, console, mask=inside)
                on_scored(number, scored)
                volumes.append(scored.scores)
            except (ConfigError, StartError):  # which every other volume would meet too
                raise
            except Exception as error:
                if fail_fast or len(references) == 1:
                    raise
                volumes.append(_failed(path, error))
    return evaluation_of(volumes, recipe)


def _failed(path: Path, error: Exception) -> FailedVolume:
    reason = str(error) if path.name in str(error) else f"{path.name}: {error}"
    return FailedVolume(reference=path, error=reason, cause="input" if isinstance(error, InputError) else "run")


def evaluation_of(volumes: Sequence[VolumeScores | FailedVolume], recipe: Degradation) -> Evaluation:
    """Report the scores of volumes and their means."""
    evaluation = Evaluation(recipe.name, tuple(volumes), None, recipe)
    if not (scored := evaluation.scored):
        return evaluation
    psnr, ssim, nmse = (
        Score(*np.mean([astuple(getattr(one, measure.name)) for one in scored], axis=0).tolist())
        for measure in fields(Scores)
    )
    consistency = float(np.mean([one.consistency for one in scored]))
    return replace(evaluation, overall=Overall(psnr, ssim, nmse, gain=psnr.gain, consistency=consistency))


def read_mask(mask: Path, references: Sequence[Path]) -> NDArray[np.bool_]:
    """Read a mask, which must have the grid of every reference that can be opened."""
    scan = open_single_volume(mask)
    read = scan.read(finite=False)
    for path in references:
        try:
            grid = open_volume(path).grid
        except InputError:  # it fails alone, where it is read
            continue
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
    if not room(needed := restoring_request(resources)):
        loading = f"waiting for the cluster to grow, for a worker of {needed}"
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
    if overall := evaluation.overall:
        for measure in MEASURES:
            recorder.scores({f"{measure}/{name}": value for name, value in asdict(getattr(overall, measure)).items()})
        recorder.scores({"psnr/gain": overall.gain, "consistency": overall.consistency})
    for number, volume in enumerate(evaluation.volumes):
        for measure in MEASURES if isinstance(volume, VolumeScores) else ():
            scores = asdict(getattr(volume, measure))
            recorder.metrics({f"volumes/{measure}/{name}": value for name, value in scores.items()}, number)
    recorder.describe(introduction + description(evaluation))


def description(evaluation: Evaluation) -> str:
    """Describe the run in Markdown, for the top of its page; a failed volume is named by its number."""
    volumes = f"{len(evaluation.volumes)} volume(s)"
    if evaluation.failed:
        volumes = f"{len(evaluation.scored)} of {volumes}"
    lines = [f"Means over {volumes}, degraded by {evaluation.degradation} and restored.", ""]
    if overall := evaluation.overall:
        psnr, ssim = overall.psnr, overall.ssim
        lines += [headline(overall), "", "| | PSNR [dB] | over cubic | SSIM |", "|---|---:|---:|---:|"]
        lines += [
            f"| {title} | {getattr(psnr, name):.2f} | {getattr(psnr, name) - psnr.cubic:+.2f}"
            f" | {getattr(ssim, name):.4f} |"
            for name, title in ESTIMATES.items()
        ]
        lines.append("")
    reasons = {"input": "the file cannot be used", "run": "it could not be restored, scored or recorded"}
    lines += [
        f"- Volume {number} failed: {reasons[volume.cause]}."
        for number, volume in enumerate(evaluation.volumes, start=1)
        if isinstance(volume, FailedVolume)
    ]
    return "\n".join(lines).rstrip()


def headline(overall: Overall) -> str:
    """State the gain over the best baseline."""
    return f"{overall.gain:+.2f} dB PSNR over the best baseline, {BASELINES[overall.psnr.best_baseline]}."


def summary(evaluation: Evaluation, title: str = "Degraded by {}, restored, corrected") -> list[RenderableType]:
    """Show the scores in a table; {} in its title is the degradation."""
    title = title.format(evaluation.degradation)
    table = Table("", title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in ("PSNR [dB]", "over cubic", "SSIM", "NMSE", "consistency"):
        table.add_column(Text(column), justify="right", no_wrap=True)
    for failed in evaluation.failed:
        table.add_row(Text(failed.reference.name), failed.status)
    rows: list[tuple[str, Overall]] = [(one.reference.name, one) for one in evaluation.scored]
    if len(rows) > 1 and evaluation.overall:
        rows.append(("mean", evaluation.overall))
    for volume, one in rows:
        table.add_row(Text(volume))
        for name, row in ESTIMATES.items():
            psnr, ssim, nmse = (getattr(score, name) for score in (one.psnr, one.ssim, one.nmse))
            figures = (f"{psnr:.2f}", f"{psnr - one.psnr.cubic:+.2f}", f"{ssim:.4f}", f"{nmse:.4f}")
            table.add_row(f"  {row}", *figures, f"{one.consistency:.1e}" if name == "restored" else "")
    return [table, *([headline(evaluation.overall)] if evaluation.overall else [])]
