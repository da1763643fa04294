"""Report of `voxlift train`: one record for a program, a table for a person."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import RenderableType
from rich.table import Table

from tasks.training.job import TrainedModel
from workflow.tracking import RunAddress


@dataclass(frozen=True)
class MlflowReport(RunAddress):
    """Address of the run and of its model."""

    model: str
    registered: str


@dataclass(frozen=True, kw_only=True)
class TrainReport(TrainedModel):
    """Record of a training.

    Args:
        run: Folder with the model, the resolved configuration and the checkpoints.
        multiply_adds_per_voxel: Of the network, per voxel of the target grid.
        receptive_field: Voxels before and after its own that an output voxel depends on, along depth, height and width.
        final_loss: Of the last step.
        mlflow: Where the run is recorded.
    """

    run: Path
    multiply_adds_per_voxel: int
    receptive_field: tuple[tuple[int, int], ...]
    final_loss: float
    mlflow: MlflowReport


def description(trained: TrainedModel, loss: float, interpolation: Mapping[str, float]) -> str:
    """Describe the run in Markdown, for the top of its page in MLflow.

    Args:
        trained: What training left.
        loss: Of the last step.
        interpolation: PSNR of "cubic" and "trilinear" on the validation volumes; empty without any.
    """
    lines = [
        f"Trained {trained.parameters} weights for {trained.steps} steps, {trained.seconds:.0f} s on {trained.replicas}"
        f" {trained.device} replica(s); loss {loss:.3g}."
    ]
    if trained.validation_psnr is not None:
        scores = {"restored": trained.validation_psnr, **interpolation}
        lines += ["", "| validation | PSNR [dB] | over cubic |", "|---|---:|---:|"]
        lines += [f"| {name} | {psnr:.2f} | {psnr - scores['cubic']:+.2f} |" for name, psnr in scores.items()]
    return "\n".join(lines)


def summary(report: TrainReport) -> list[RenderableType]:
    """Record of what was trained, its cost and its place."""
    table = Table.grid(padding=(0, 2))
    reach = ", ".join(f"{before}+{after}" for before, after in report.receptive_field)
    rows = {
        "steps": f"{report.steps}" + (f", resumed after {report.resumed_from}" if report.resumed_from else ""),
        "time": f"{report.seconds:.0f} s on {report.replicas} {report.device} replica(s),"
        f" {report.waiting_share:.1%} of the steps waiting for patches",
        "network": f"{report.parameters} weights, {report.multiply_adds_per_voxel} multiply-adds per voxel",
        "receptive field": f"{reach} voxels next to its own along depth, height and width",
        "loss": f"{report.final_loss:.3g}",
        "model": str(report.model),
        "MLflow run": report.mlflow.run_id,
    }
    if report.validation_psnr is not None:
        rows["validation"] = f"{report.validation_psnr:.2f} dB"
    for name, value in rows.items():
        table.add_row(name, value)
    return [table]
