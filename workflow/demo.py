"""The whole workflow on one volume, in one run: degrade, train, super-resolve, score."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console, RenderableType
from rich.table import Table

from configs.schema import RunConfig
from tasks.artifacts.contracts import ModelContract, volume_contract
from tasks.artifacts.manifest import manifest_entry, write_contracts
from tasks.artifacts.network_file import read_network
from tasks.files.atomic import replacing
from tasks.scoring.metrics import foreground_mask
from tasks.scoring.protocol import Score, Slab, degraded_reference, held_out_slabs
from tasks.training.job import TrainingJob
from tasks.training.template import template_path
from tasks.volume.intensity import normalise
from tasks.volume.nifti import read_volume, write_volume
from workflow.cluster import cluster
from workflow.evaluate import evaluation
from workflow.pages.rendering import new_figure, png
from workflow.tracking import recorded_run
from workflow.train.data import training_volumes, validation_volumes
from workflow.train.run import MODEL, MlflowReport, TrainReport, record_training
from workflow.train.run import summary as training_table

FILES = "input.nii.gz", "restored.nii.gz", "comparison.png", "quality.html"
ERROR_RANGE = 0.25  # normalised difference that is drawn brightest


@dataclass(frozen=True)
class InferenceReport:
    """Record of the super-resolution of the degraded volume."""

    shards: int
    workers: int
    seconds: float
    voxels_per_second: float
    overhead: float


@dataclass(frozen=True)
class DemoReport:
    """Report of the demo; scores are of the held-out part, inside the foreground."""

    reference: Path
    input: Path
    output: Path
    output_shape: tuple[int, ...]
    output_spacing: tuple[float, ...]
    psnr: Score
    ssim: Score
    training: TrainReport
    inference: InferenceReport
    mlflow: MlflowReport
    model: Path
    picture: Path
    quality_page: Path
    seconds: float


def run_demo(
    config: RunConfig, volume_path: Path | None, out: Path, console: Console
) -> tuple[DemoReport, evaluation.Evaluation]:
    """Degrade a volume, train on one part of it, super-resolve the whole, score the other part, and record it all.

    Args:
        config: The run.
        volume_path: The reference; None takes the first volume of the configuration, or the MNI152 template.
        out: Folder for the files; created if it does not exist.
        console: For progress.

    Returns:
        Scores, timings and files; and the report of `voxlift evaluate`.

    Raises:
        InputError: The volume or the tracking store cannot be used.
        ConfigError: The cluster has too few resources.
    """
    started, folder, recipe = time.perf_counter(), out.resolve(), config.degradation
    if volume_path is not None:
        config = config.model_copy(update={"data": config.data.model_copy(update={"volumes": (volume_path,)})})
    path = next(iter(config.data.volumes), None) or template_path()
    reference = read_volume(path)
    degraded = degraded_reference(reference, recipe, config.training.seed)
    _, slab = held_out_slabs(reference.grid.shape, config.data.held_out)
    job = TrainingJob(config, training_volumes(config), folder / MODEL, validation=validation_volumes(config))
    source, output, picture, page = (folder / name for name in FILES)
    # The contracts are made before the artifacts.
    coarse, fine = (volume_contract(grid, "float32") for grid in (degraded.coarse.grid, reference.grid))
    model = ModelContract(total_stride=config.network.total_stride)
    write_volume(source, degraded.coarse.voxels, degraded.coarse.grid)

    with recorded_run(config.tracking.experiment, "demo") as recorder, cluster():
        training = record_training(job, recorder, console, command="demo")
        network = read_network(training.model)
        with recorder.phase("inference"):
            scored = evaluation.score_volume(path, degraded, network, recipe, config.resources, console, slab=slab)
        restored, plan = scored.restored, scored.restored.plan
        write_volume(output, scored.voxels, reference.grid, like=reference, dtype="float32")
        console.print("Recording …")
        _draw(picture, scored, slab)
        evaluation.write_page(page, "restored volume of the demo", scored)
        evaluated = evaluation.evaluation_of([scored.scores], recipe)
        evaluation.record_scores(recorder, evaluated)
        recorder.metrics({"shards/count": len(plan.shards), "shards/overhead": plan.overhead})
        entries = {
            MODEL: manifest_entry(training.model, model),
            output.name: manifest_entry(output, fine),
            source.name: recorder.volume(source, "volumes", coarse, with_header=True),
            picture.name: recorder.artifact(picture, "pictures"),
            page.name: recorder.artifact(page, "quality"),
        }
        recorder.volume(output, "volumes", fine, with_header=config.tracking.record_paths)
        write_contracts(folder, entries, recorder.address.run_id)
        summary_line = (
            f"Degraded a volume of {'x'.join(map(str, reference.grid.shape))} voxels, trained {training.parameters}"
            f" weights on one part of it for {training.steps} steps, restored the whole in {len(plan.shards)} shards,"
            " and scored the part that was not used for training."
        )
        recorder.describe(f"{summary_line}\n\n{evaluation.description(evaluated)}")
    workers, pace = config.resources.workers, restored.voxels_per_second
    report = DemoReport(
        reference=path,
        input=source,
        output=output,
        output_shape=reference.grid.shape,
        output_spacing=reference.grid.spacing,
        psnr=scored.scores.psnr,
        ssim=scored.scores.ssim,
        training=training,
        inference=InferenceReport(len(plan.shards), workers, restored.seconds, pace, plan.overhead),
        mlflow=training.mlflow,
        model=training.model,
        picture=picture,
        quality_page=page,
        seconds=time.perf_counter() - started,
    )
    return report, evaluated


def summary(report: DemoReport, evaluated: evaluation.Evaluation) -> list[RenderableType]:
    """Show the scores, the training and the files, and how to open the run in MLflow."""
    files, work = Table.grid(padding=(0, 2)), report.inference
    for name, value in {
        "restored": f"{work.shards} shards on {work.workers} workers in {work.seconds:.1f} s",
        "in all": f"{report.seconds:.0f} s",
        "input": report.input,
        "output": report.output,
        "picture": report.picture,
        "QC page": report.quality_page,
        "registered": report.mlflow.registered,
    }.items():
        files.add_row(name, str(value))
    page = f"mlflow ui --backend-store-uri {report.mlflow.tracking_uri} --host 127.0.0.1 --port 5000"
    look = f"Look at the run:  .venv/bin/{page}\n  then open http://127.0.0.1:5000"
    if report.mlflow.tracking_uri.startswith("http"):
        look = f"Look at the run: {report.mlflow.tracking_uri}"
    scores = evaluation.summary(evaluated, "Held-out part, inside the foreground, degraded by {}")
    return [*scores, *training_table(report.training), files, look]


def _draw(path: Path, scored: evaluation.ScoredVolume, slab: Slab) -> None:
    """Draw three planes of input, cubic, restored and truth, and of the errors of cubic and restored.

    The planes go through the foreground of the part that was scored, away from the middle, where the hemispheres meet.
    """
    degraded = scored.degraded
    truth = normalise(degraded.reference.voxels, degraded.intensity)
    inside = np.zeros(truth.shape, bool)
    inside[slab] = foreground_mask(truth[slab])
    centre = [int(np.quantile(indices, 0.35)) for indices in np.nonzero(inside)]
    nearest = [
        np.minimum(np.arange(size) * coarse // padded, coarse - 1)
        for size, coarse, padded in zip(truth.shape, degraded.coarse.grid.shape, degraded.padded.shape, strict=True)
    ]
    source, cubic, restored = (
        normalise(volume, degraded.intensity)
        for volume in (degraded.coarse.voxels[np.ix_(*nearest)], degraded.baseline("cubic"), scored.voxels)
    )
    errors = {"|cubic − truth|": np.abs(cubic - truth), "|restored − truth|": np.abs(restored - truth)}
    columns = {"input": source, "cubic": cubic, "restored": restored, "truth": truth, **errors}
    # Height over width of each plane as it is drawn.
    ratios = [truth.shape[2 if axis < 2 else 1] / truth.shape[1 if axis == 0 else 0] for axis in range(3)]
    figure = new_figure(figsize=(2.2 * len(columns), 2.2 * sum(ratios) + 0.5), dpi=110)
    rows = figure.subplots(3, len(columns), gridspec_kw={"height_ratios": ratios, "wspace": 0.02, "hspace": 0.02})
    for axis, plane in enumerate(("sagittal", "coronal", "axial")):
        rows[axis][0].set_ylabel(plane, fontsize=9)
        for axes, (title, volume) in zip(rows[axis], columns.items(), strict=True):
            shades = {"cmap": "magma", "vmax": ERROR_RANGE} if title in errors else {"cmap": "gray", "vmax": 1}
            axes.imshow(
                volume.take(centre[axis], axis=axis).T, origin="lower", vmin=0, interpolation="nearest", **shades
            )
            axes.set(xticks=[], yticks=[])
            if axis == 0:
                axes.set_title(title, fontsize=9)
    with replacing(path) as partial:
        partial.write_bytes(png(figure, bbox_inches="tight"))
