"""Report of `voxlift upscale`: the outcome of each volume, speed and memory of the workers, and both as a table."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod
from pathlib import Path
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Column, Table
from rich.text import Text

from configs.axes import NetworkShape
from configs.precision import Precision
from tasks.files.outputs import page_name
from tasks.sharding.plan import MIB
from tasks.volume.grid import Three, axis_codes
from tasks.volume.sidecar import Sidecar
from workflow.tracking import RunAddress
from workflow.upscale.plan import UpscaleRequest, VolumePlan
from workflow.upscale.volume_work import Output, VolumeWork, Written

MAX_SHOWN = 20  # outputs and pages whose paths are printed
COLUMNS = ("status", "voxels", "mm", "shards", "seconds", "consistency")


@dataclass(frozen=True, kw_only=True)
class VolumeReport(Written):
    """Outcome of one volume.

    Args:
        input: The file.
        output: The file that was written; None if none was.
        inferred: The file of the inferred detail, if it was asked for and written.
        status: "done", "resumed" (an earlier run had finished it) or "failed".
        error: Why it failed.
        input_shape: Voxels along (i, j, k), and time points if there are several.
        output_shape: The same of the output.
        output_spacing: mm along (i, j, k).
        scale: Target voxels per voxel along (i, j, k).
        shards: Shards of the volume.
        shards_resumed: Those that an earlier run had computed.
        retries: Shards that were computed again.
        seconds: For checking the input, and from reading its first time point to the written file.
        warnings: Of inspecting the input, and where it is outside the range that the model was trained for.
        acquisition: What the input is taken to be, and why; None where it is the model's own degradation.
        precision: In which the network computed; None for a label map and where nothing was planned.
    """

    input: Path
    status: Literal["done", "resumed", "failed"]
    output: Path | None = None
    inferred: Path | None = None
    error: str | None = None
    input_shape: tuple[int, ...] | None = None
    output_shape: tuple[int, ...] | None = None
    output_spacing: Three | None = None
    scale: Three | None = None
    shards: int = 0
    shards_resumed: int = 0
    retries: int = 0
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()
    acquisition: str | None = None
    precision: Precision | None = None

    def row(self, separator: str = "x") -> tuple[str, ...]:
        """Return the cells under `COLUMNS`, with a separator between the numbers of the axes."""
        return (
            self.status,
            _by(self.output_shape, separator),
            _by(self.output_spacing, separator),
            str(self.shards) + (f" ({self.shards_resumed} resumed)" if self.shards_resumed else ""),
            f"{self.seconds:.1f}",
            "" if self.consistency is None else f"{self.consistency:.4f}",
        )


@dataclass(frozen=True)
class PlanReport:
    """Summary of the shard plans.

    Args:
        overhead: Voxels computed over voxels kept, over all volumes.
        halo: The network's worst-case halo before and after a core, along depth, height and width.
        ensemble: Mirror images that are restored and averaged.
        core_shape: Of the largest core, along depth, height and width.
        budget_mib: Memory of a worker beyond that of an idle one.
        least_budget_mib: The least with which every volume could have been sharded.
    """

    overhead: float
    halo: tuple[tuple[int, int], ...]
    ensemble: int
    core_shape: NetworkShape
    budget_mib: int
    least_budget_mib: int


@dataclass(frozen=True)
class Timings:
    """Seconds of checking and reading inputs, resampling and network (over all workers), and writing; they overlap."""

    reading: float
    resampling: float
    network: float
    writing: float


@dataclass(frozen=True)
class Adaptation:
    """Outcome of an adaptation.

    Args:
        model: The `.keras` file; its weights are those from which the adaptation started where it has improved nothing.
        psnr: Of the adapted weights on the slices that were held out, in dB; None without validation.
        psnr_before: The same of the weights from which it started.
    """

    model: Path
    psnr: float | None
    psnr_before: float | None

    @property
    def has_improved(self) -> bool:
        """True if the adapted weights are the better ones, or were not validated."""
        return self.psnr is None or self.psnr_before is None or self.psnr > self.psnr_before

    def __str__(self) -> str:
        if self.psnr is None or self.psnr_before is None:
            return f"Restored by {self.model}, which was trained on the volumes themselves."
        if self.has_improved:
            scores = f"{self.psnr_before:.2f} to {self.psnr:.2f} dB on slices that it did not learn from"
            return f"Restored by {self.model}, which was trained on the volumes themselves: {scores}."
        return (
            f"The adaptation was declined: on slices that it did not learn from it was no better than"
            f" {self.psnr_before:.2f} dB, which the network had before."
        )


@dataclass(frozen=True)
class UpscaleReport:
    """Outcome of all volumes.

    Args:
        volumes: The outcome of each.
        workers: Requested number; the greatest number at work where the cluster decides.
        plan: Division of the target grids; None if no volume could be planned.
        peak_rss_mib: Resident memory of the largest worker.
        seconds: From the first shard given out to the last one back.
        voxels_per_second: Voxels kept, over `seconds`.
        timings: By kind of work.
        mlflow: Where it is recorded.
        adapted_model: The network that was trained on the volumes themselves first; None without `--adapt`, and where
            that has improved nothing.
        adaptation: Its outcome; None without `--adapt`.
        devices: That did the work.
    """

    volumes: tuple[VolumeReport, ...]
    workers: int
    plan: PlanReport | None
    peak_rss_mib: float
    seconds: float
    voxels_per_second: float
    timings: Timings
    mlflow: RunAddress | None = None
    adapted_model: Path | None = None
    adaptation: Adaptation | None = None
    devices: tuple[str, ...] = ()

    @property
    def failed(self) -> tuple[VolumeReport, ...]:
        """The volumes that failed."""
        return tuple(volume for volume in self.volumes if volume.status == "failed")


def volume_report(work: VolumeWork) -> VolumeReport:
    """Report the outcome of a planned volume."""
    plan, written = work.plan, work.written if work.error is None else None
    return VolumeReport(
        input=plan.scan.path,
        status="failed" if written is None else "resumed" if work.shards_resumed == plan.shards else "done",
        output=plan.output if written else None,
        inferred=plan.inferred_output if written and plan.writes_inferred else None,
        error=None if written else str(work.failure),
        input_shape=plan.input_shape,
        output_shape=plan.output_shape,
        output_spacing=plan.target.spacing,
        scale=plan.scale,
        shards=plan.shards,
        shards_resumed=work.shards_resumed,
        retries=work.tally.retries,
        seconds=work.seconds,
        warnings=work.warnings,
        acquisition=_acquisition(plan),
        precision=_precision(plan),
        **vars(written or Written()),
    )


def plan_report(volumes: Sequence[VolumePlan], budget_mib: int) -> PlanReport:
    """Summarise the shard plans of planned volumes."""
    plans = [volume.shard_plan for volume in volumes]
    kept = sum(volume.n_timepoints * prod(volume.target.shape) for volume in volumes)
    return PlanReport(
        overhead=sum(volume.n_timepoints * volume.shard_plan.computed for volume in volumes) / kept,
        halo=plans[0].halo,
        ensemble=volumes[0].network.flips,
        core_shape=max((plan.core_shape for plan in plans), key=prod),
        budget_mib=budget_mib,
        least_budget_mib=max(ceil(plan.smallest_bytes / MIB) for plan in plans),
    )


def sidecar(work: VolumeWork, output: Output, request: UpscaleRequest) -> Sidecar:
    """Make the sidecar of a written output."""
    plan = work.plan
    intensities = tuple((found.low, found.high) for found in output.intensities)
    done = "resampled" if plan.labels else "super-resolved"
    return Sidecar(
        sources=(request.source_name(plan.scan.path),),
        resolution=f"{done} {'x'.join(f'{factor:.4g}' for factor in plan.scale)}",
        model_digest=plan.network.digest,
        mlflow_run=request.run_id,
        scale=plan.scale,
        input_shape=plan.input_shape,
        output_shape=plan.output_shape,
        input_spacing=plan.scan.grid.spacing,
        output_spacing=plan.target.spacing,
        intensity=intensities if len(intensities) > 1 else intensities[0],
        consistency=output.written.consistency,
        warnings=work.warnings,
        acquisition=_acquisition(plan),
        outside_range=output.written.outside,
        inferred_share=output.written.inferred_share,
        precision=_precision(plan),
        precision_psnr=output.written.precision_psnr,
    )


def _precision(plan: VolumePlan) -> Precision | None:
    return None if plan.labels else plan.network.precision


def _acquisition(plan: VolumePlan) -> str | None:
    return str(plan.acquisition) if plan.acquisition else None


def geometry(plan: VolumePlan) -> str:
    """Describe the geometry of a volume and of its output in one line."""
    grid, target = plan.scan.grid, plan.target
    return (
        f"{_by(grid.shape)} at {_by(grid.spacing)} mm, {axis_codes(grid)}, slices along {'ijk'[plan.axes.order[0]]},"
        f" becomes {_by(target.shape)} at {_by(target.spacing)} mm"
        + (f"; {plan.label_note}" if plan.labels else f", by {plan.network.name}")
        + (f"; acquisition: {plan.acquisition}" if plan.acquisition else "")
    )


def summary(report: UpscaleReport) -> list[RenderableType]:
    """Show the outcome of each volume, the speed and the memory."""
    # The name takes what the other columns leave of the width.
    table = Table("volume", *(Column(name, no_wrap=True) for name in COLUMNS), box=SIMPLE_HEAD, pad_edge=False)
    for volume in report.volumes:
        table.add_row(Text((volume.output or volume.input).name), *volume.row())
    spent = report.timings
    lines: list[RenderableType] = [
        table,
        f"{report.voxels_per_second / 1e6:.2f} million voxels per second on {report.workers} worker(s)"
        f"{_on(report.devices)}, the largest of {report.peak_rss_mib:.0f} MiB. Seconds: reading {spent.reading:.1f},"
        f" resampling {spent.resampling:.1f}, network {spent.network:.1f}, writing {spent.writing:.1f}.",
    ]
    lines += [
        f"{volume.input.name}: computed in {volume.precision}, {volume.precision_psnr:.1f} dB PSNR against float32."
        for volume in report.volumes
        if volume.precision_psnr is not None
    ]
    lines += [f"{volume.input.name}: {volume.range_warning}." for volume in report.volumes if volume.range_warning]
    lines += [
        f"{volume.inferred.name}: {volume.inferred_share:.0%} of the detail beyond cubic interpolation (by energy)."
        for volume in report.volumes
        if volume.inferred is not None and volume.inferred_share is not None
    ]
    lines += _places(report)
    if report.adaptation is not None:
        lines.append(f"{report.adaptation}")
    return lines


def _on(devices: Sequence[str]) -> str:
    return f" on {' and '.join(devices)}" if devices else ""


def _places(report: UpscaleReport) -> list[RenderableType]:
    """Say where outputs, QC pages and the MLflow run are, with the commands that open them."""
    outputs = [volume.output.absolute() for volume in report.volumes if volume.output is not None]
    pages = [page for output in outputs if (page := output.with_name(page_name(output.name))).is_file()]
    lines: list[RenderableType] = []
    for title, paths, command in (("Outputs", outputs, ""), ("QC pages", pages, "xdg-open ")):
        shown = [f"  {command}{shlex.quote(str(path))}" for path in paths[:MAX_SHOWN]]
        more = [f"  and {len(paths) - MAX_SHOWN} more"] if len(paths) > MAX_SHOWN else []
        lines += ["\n".join([f"{title}:", *shown, *more])] if shown else []
    return [*lines, *([report.mlflow.instructions] if report.mlflow is not None else [])]


def _by(values: tuple[float, ...] | None, separator: str = "x") -> str:
    return separator.join(f"{value:.4g}" for value in values or ())
