"""The whole workflow on one volume, in one run: degrade, train, super-resolve, score."""

import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, RenderableType
from rich.table import Table

from configs.schema import RunConfig
from tasks.artifacts.contracts import ModelContract, volume_contract
from tasks.artifacts.manifest import manifest_entry, write_contracts
from tasks.artifacts.network_file import read_network
from tasks.scoring.protocol import Score, degraded_reference, held_out_slabs
from tasks.training.job import TrainingJob
from tasks.training.template import template_path
from tasks.volume.nifti import read_volume, write_volume
from workflow.cluster import cluster
from workflow.evaluate import evaluation
from workflow.terminal.progress import entering
from workflow.tracking import recorded_run
from workflow.train.data import training_volumes, validation_volumes
from workflow.train.run import MODEL, MlflowReport, TrainReport, record_training
from workflow.train.run import summary as training_summary

FILES = "input.nii.gz", "restored.nii.gz", "comparison.png", "quality.html"


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
    gain: float
    training: TrainReport
    inference: InferenceReport
    mlflow: MlflowReport
    model: Path
    picture: Path
    quality_page: Path
    seconds: float


def run_demo(config: RunConfig, out: Path, console: Console) -> tuple[DemoReport, evaluation.Evaluation]:
    """Degrade a volume, train on one part of it, super-resolve the whole, score the other part, and record it all.

    Args:
        config: The run; its first volume is the reference, or the MNI152 template if it names none.
        out: Folder for the files; created if it does not exist.
        console: For progress.

    Raises:
        InputError: The volume or the tracking store cannot be used.
        ConfigError: The cluster has too few resources.
    """
    started, folder = time.perf_counter(), out.resolve()
    path = next(iter(config.data.volumes), None) or template_path()
    reference = read_volume(path)
    degraded = degraded_reference(reference, config.degradation, config.training.seed)
    _, slab = held_out_slabs(reference.grid.shape, config.data.held_out)
    job = TrainingJob(config, training_volumes(config), folder / MODEL, validation=validation_volumes(config))
    source, output, picture, page = (folder / name for name in FILES)
    # The contracts are made before the artifacts.
    coarse, fine = (volume_contract(grid, "float32") for grid in (degraded.coarse.grid, reference.grid))
    model = ModelContract(total_stride=config.network.total_stride)
    write_volume(source, degraded.coarse.voxels, degraded.coarse.grid)

    run = recorded_run(config.tracking.experiment, "demo", folder=folder, console=console)
    with (
        entering(console, "Opening the tracking store", run) as recorder,
        entering(console, "Starting Ray", cluster()),
    ):
        training = record_training(job, recorder, console, command="demo")
        network = read_network(training.model)
        with recorder.phase("inference"):
            scored = evaluation.score_volume(path, degraded, network, config.resources, console, slab=slab)
        write_volume(output, scored.voxels, reference.grid, like=reference, dtype="float32")
        console.print("Recording …")
        with recorder.together():
            entries = {
                MODEL: manifest_entry(training.model, model),
                output.name: manifest_entry(output, fine),
                source.name: recorder.volume(source, "volumes", coarse, with_header=True),
                picture.name: evaluation.record_picture(recorder, picture, scored),
                page.name: evaluation.record_page(recorder, page, "restored volume of the demo", scored),
            }
            recorder.volume(output, "volumes", fine, with_header=config.tracking.record_paths)
        write_contracts(folder, entries, recorder.address.run_id)
        evaluated, shape = evaluation.evaluation_of([scored.scores], degraded.recipe), "x".join(map(str, fine.shape))
        introduction = f"Degraded a volume of {shape} voxels, trained on one part of it, and scored another.\n\n"
        evaluation.record_scores(recorder, evaluated, introduction)
    work, plan, workers = scored.restored, scored.restored.plan, config.resources.workers
    report = DemoReport(
        reference=path,
        input=source,
        output=output,
        output_shape=reference.grid.shape,
        output_spacing=reference.grid.spacing,
        psnr=scored.scores.psnr,
        ssim=scored.scores.ssim,
        gain=scored.scores.gain,
        training=training,
        inference=InferenceReport(len(plan.shards), workers, work.seconds, work.voxels_per_second, plan.overhead),
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
    files.add_row("restored", f"{work.shards} shards on {work.workers} workers in {work.seconds:.1f} s")
    files.add_row("in all", f"{report.seconds:.0f} s")
    for name in ("input", "output", "picture", "quality_page"):
        files.add_row(name.replace("quality_", "QC "), str(getattr(report, name)))
    files.add_row("registered", report.mlflow.registered)
    scores = evaluation.summary(evaluated, "Held-out part, inside the foreground, degraded by {}")
    return [*scores, *training_summary(report.training), files, report.mlflow.instructions]
