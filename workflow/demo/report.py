"""Report of the demo: one record for a program, tables for a person."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.scoring.protocol import Score
from tasks.volume.grid import Grid
from workflow.tracking import ModelAddress

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class TrainingReport:
    """Record of the training; `waiting_share` of its time was spent waiting for patches."""

    steps: int
    seconds: float
    replicas: int
    device: str
    parameters: int
    latent_shape: tuple[int, ...]
    final_loss: float
    waiting_share: float


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
    training: TrainingReport
    inference: InferenceReport
    mlflow: ModelAddress
    model: Path
    picture: Path
    quality_page: Path
    seconds: float


def description(grid: Grid, psnr: Score, ssim: Score, training: TrainingReport, inference: InferenceReport) -> str:
    """Describe the run in Markdown, for the top of its page in MLflow."""
    sizes, spacing = ("x".join(f"{value:.4g}" for value in values) for values in (grid.shape, grid.spacing))
    rows = [
        f"| {name} | {getattr(psnr, name):.2f} | {getattr(psnr, name) - psnr.cubic:+.2f} | {getattr(ssim, name):.4f} |"
        for name in ("restored", "cubic", "trilinear")
    ]
    return "\n".join(
        [
            f"Degraded a volume of {sizes} voxels at {spacing} mm, trained on one part of it, restored the whole, and"
            " scored the part that training never saw.",
            "",
            "| | PSNR [dB] | over cubic | SSIM |",
            "|---|---:|---:|---:|",
            *rows,
            "",
            f"Training: {training.steps} steps, {training.parameters} weights, {training.replicas} {training.device}"
            f" replica(s), latent {'x'.join(map(str, training.latent_shape))}, {training.seconds:.0f} s.",
            f"Inference: {inference.shards} shards on {inference.workers} workers, {inference.overhead:.2f} voxels"
            f" computed per voxel kept, {inference.seconds:.1f} s.",
        ]
    )


def summary(report: DemoReport) -> "list[RenderableType]":
    """Tables of the scores and of what was written, and how to look at the run."""
    from rich.table import Table

    scores = Table(title="Held-out part, inside the foreground", title_justify="left")
    scores.add_column("")
    for name in ("PSNR [dB]", "over cubic", "SSIM"):
        scores.add_column(name, justify="right")
    for name in ("restored", "cubic", "trilinear"):
        decibels, similarity = getattr(report.psnr, name), getattr(report.ssim, name)
        scores.add_row(name, f"{decibels:.2f}", f"{decibels - report.psnr.cubic:+.2f}", f"{similarity:.4f}")

    files = Table.grid(padding=(0, 2))
    for name, value in {
        "input": report.input,
        "output": report.output,
        "picture": report.picture,
        "QC page": report.quality_page,
        "model": report.model,
        "MLflow run": report.mlflow.run_id,
        "registered": report.mlflow.registered,
    }.items():
        files.add_row(name, str(value))
    training, inference = report.training, report.inference
    work = (
        f"Trained {training.steps} steps in {training.seconds:.0f} s on {training.replicas} {training.device} "
        f"replica(s), {training.waiting_share:.1%} of the steps waiting for patches; restored {inference.shards} "
        f"shards on {inference.workers} workers in {inference.seconds:.1f} s; {report.seconds:.0f} s in all."
    )
    page = f"mlflow ui --backend-store-uri {report.mlflow.tracking_uri} --host 127.0.0.1 --port 5000"
    look = f"Look at the run:  .venv/bin/{page}\n  then open http://127.0.0.1:5000"
    if report.mlflow.tracking_uri.startswith("http"):
        look = f"Look at the run: {report.mlflow.tracking_uri}"
    return [scores, files, work, look]
