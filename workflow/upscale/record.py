"""Record of a super-resolution run in MLflow, with the contracts and QC pages of its outputs."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from configs.errors import ContractError, ContractsError
from configs.load import flatten
from tasks.artifacts.contracts import volume_contract
from tasks.artifacts.manifest import ManifestEntry, manifest_entry, read_contracts, write_contracts
from tasks.files.outputs import output_paths, sidecar_name, split_name
from tasks.imaging.consistency import residual
from tasks.imaging.resample import resample
from tasks.scoring.quality import shard_borders
from tasks.sharding.restore import CoarseVolume
from tasks.sharding.store import content_key
from tasks.volume.encoding import stored_name
from tasks.volume.intensity import find_intensity, normalise
from tasks.volume.nifti import read_volume
from workflow.pages.quality import QualityCase, write_quality_page
from workflow.tracking import Recorder, described_volume
from workflow.tracking.provenance import ENVIRONMENT, record_environment, record_network
from workflow.upscale.plan import UpscaleRequest, VolumePlan
from workflow.upscale.report import COLUMNS, UpscaleReport
from workflow.upscale.volume_work import Output, VolumeWork

PAGE_VOXELS = 1 << 27  # larger outputs get no QC page, which holds the volume several times: 4 GiB at this size


def address_file(order: UpscaleRequest) -> Path:
    """File that names the run of a request until it is done, so that `--resume` continues that run."""
    outputs = [path.name for path in output_paths(order.sources, order.out)]
    asked = {name: str(value) for name, value in _asked(order).items()}
    key = content_key({"outputs": outputs, "model": order.network.digest, **asked})
    return order.out / ".voxlift" / f"{key}.run.json"


def _asked(order: UpscaleRequest) -> dict[str, object]:
    return {name: getattr(order, name) for name in ("scale", "spacing", "slice_axis", "dtype", "correct")}


def record_order(recorder: Recorder, order: UpscaleRequest, works: Sequence[VolumeWork]) -> None:
    """Record what is to be done, from what and with what, once; no path and nothing from a header."""
    if recorder.holds(ENVIRONMENT):  # what it is recorded with at last, also of an earlier part of the run
        return
    found = [work.inspected for work in works]
    recorder.inputs([described_volume(one.scan, one.digests, "input", record_paths=False) for one in found])
    record_network(recorder, order.network)
    recipe = order.network.card.degradation if order.network.card else None
    recorder.parameters(
        {
            **{f"upscale.{name}": str(value) for name, value in _asked(order).items()},
            **flatten(order.resources, "resources"),
            **(flatten(recipe, "degradation") if recipe else {}),
            "volumes": str(len(order.sources)),
        }
    )
    if recipe:
        recorder.tags({"degradation": recipe.name})
    record_environment(recorder, "upscale")


def keep_output(recorder: Recorder, number: int, work: VolumeWork, output: Output) -> str:
    """Put a written output and what stands next to it under contract in their folder, and make its QC page.

    The output is read back once, for both.

    Args:
        recorder: Of the run.
        number: Of the volume, by which MLflow knows it.
        work: The volume, written.
        output: What was written.

    Returns:
        Why there is no page, "" if there is one.

    Raises:
        ContractError: The output departs from the target grid or its type, or was changed after it was written.
    """
    plan = work.plan
    _page(plan).unlink(missing_ok=True)  # of an output that is no more
    contract = volume_contract(plan.target, stored_name(plan.scan.header.dtype, plan.dtype), plan.times)
    restored = np.empty(plan.target.shape, np.float32, order="F") if _has_page(plan) else None
    entry = manifest_entry(plan.output, contract, restored)
    if entry.sha256 != output.sha256:
        raise ContractError(f"{plan.output.name} departs from its contract: it was changed after it was written.")
    sidecar = plan.output.with_name(sidecar_name(plan.output.name))
    _add_entries(recorder, {plan.output: entry, sidecar: manifest_entry(sidecar)})
    work.conclude(output)  # before the page: an output is worth having without it
    if restored is None:
        return "too large for a QC page"
    _keep_page(recorder, _quality_case(f"volume {number}", work, output.first, restored), number, plan)
    return ""


def keep_missing_page(recorder: Recorder, number: int, work: VolumeWork) -> None:
    """Make the QC page of an output of an earlier run that was stopped before it had made it."""
    plan = work.plan
    if _has_page(plan) and not _page(plan).exists():
        given = plan.scan.read(0).voxels
        shape, intensity = plan.shard_plan.target_shape, find_intensity(given)
        first = CoarseVolume(plan.axes.to_network(given), shape, intensity)
        case = _quality_case(f"volume {number}", work, first, read_volume(plan.output).voxels)
        _keep_page(recorder, case, number, plan)


def _quality_case(title: str, work: VolumeWork, given: CoarseVolume, voxels: NDArray[np.float32]) -> QualityCase:
    """Collect the content of a QC page.

    Args:
        title: Of the page; no name of a file.
        work: The volume, written.
        given: The first time point of the input, as the network saw it.
        voxels: The first time point of the output, `[i, j, k]`, as it is in the file.
    """
    plan = work.plan
    coarse, restored = normalise(given.voxels, given.intensity), normalise(voxels, given.intensity)
    consistency = None
    if plan.recipe is not None:
        consistency = -plan.axes.to_file(residual(plan.axes.to_network(restored), coarse, plan.recipe))
    time_point = {"time point": f"1 of {plan.times}"} if plan.times > 1 else {}
    return QualityCase(
        title=title,
        input_grid=plan.scan.grid,
        grid=plan.target,
        before=normalise(resample(plan.axes.to_file(given.voxels), plan.target.shape), given.intensity),
        restored=restored,
        strides=plan.axes.file_shape(plan.network.cost.field.strides),
        borders=shard_borders(plan.shard_plan, plan.axes),
        consistency=consistency,
        facts={"shards": str(plan.shards), "corrected": "yes" if plan.corrects else "no", **time_point},
        warnings=work.warnings,
    )


def _keep_page(recorder: Recorder, case: QualityCase, number: int, plan: VolumePlan) -> None:
    page = _page(plan)
    write_quality_page(page, case)
    recorder.artifact(page, "quality", name=f"{number}.html")
    _add_entries(recorder, {page: manifest_entry(page)})


def _page(plan: VolumePlan) -> Path:
    return plan.output.with_name(f"{split_name(plan.output.name)[0]}_quality.html")


def _has_page(plan: VolumePlan) -> bool:
    return prod(plan.target.shape) <= PAGE_VOXELS


def record_report(recorder: Recorder, report: UpscaleReport) -> None:
    """Record what was done; no path and nothing from a header."""
    recorder.metrics({f"seconds/{kind}": seconds for kind, seconds in asdict(report.timings).items()})
    recorder.metrics(
        {
            "seconds/restoring": report.seconds,
            "voxels_per_second": report.voxels_per_second,
            "peak_rss_mib": report.peak_rss_mib,
            "failed": float(len(report.failed)),
        }
    )
    if report.plan is not None:
        recorder.metrics({"shards/count": sum(volume.shards for volume in report.volumes)})
        recorder.metrics({"shards/overhead": report.plan.overhead})
        recorder.text(json.dumps(asdict(report.plan), indent=1), "plan.json")
    for number, volume in enumerate(report.volumes):
        if volume.consistency is not None:
            recorder.metrics({"volumes/consistency": volume.consistency, "volumes/seconds": volume.seconds}, number)
    recorder.describe(_description(report))


def _description(report: UpscaleReport) -> str:
    """Describe the run in Markdown, for the top of its page."""
    lines = [
        f"{len(report.volumes) - len(report.failed)} of {len(report.volumes)} volume(s) super-resolved on"
        f" {report.workers} worker(s), {report.voxels_per_second / 1e6:.2f} million voxels per second.",
        "",
        f"| volume | {' | '.join(COLUMNS)} |",
        "|---:|---|---|---|---:|---:|---:|",
        *(f"| {number} | {' | '.join(one.row(' × '))} |" for number, one in enumerate(report.volumes, start=1)),
    ]
    return "\n".join(lines)


def _add_entries(recorder: Recorder, entries: Mapping[Path, ManifestEntry]) -> None:
    """Add to the manifest of a folder; what earlier runs have written there stays in it while it is there."""
    folder, known = next(iter(entries)).parent, {}
    with suppress(ContractsError):
        known = {name: entry for name, entry in read_contracts(folder).seals.items() if (folder / name).is_file()}
    write_contracts(folder, known | {path.name: entry for path, entry in entries.items()}, recorder.address.run_id)
