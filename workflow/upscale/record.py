"""Record of a super-resolution run in MLflow, with the contracts and QC pages of its outputs."""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from math import prod
from pathlib import Path

from configs.load import flatten
from tasks.artifacts.contracts import VolumeContract, volume_contract
from tasks.artifacts.manifest import ContractsError, ManifestEntry, manifest_entry, read_contracts, write_contracts
from tasks.files.naming import output_paths, sidecar_name, split_name
from tasks.sharding.store import content_key
from tasks.volume.encoding import stored_name
from workflow.pages.quality import write_quality_page
from workflow.pages.quality_cases import upscaled_case
from workflow.tracking import Recorder, input_volume
from workflow.tracking.provenance import ENVIRONMENT, record_environment, record_network
from workflow.upscale.report import UpscaleReport
from workflow.upscale.volume_work import VolumeWork
from workflow.upscale.volumes import UpscaleRequest

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
    recorder.inputs([input_volume(work.scan.path, "input", record_paths=False) for work in works])
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


def output_contract(work: VolumeWork) -> VolumeContract:
    """Contract of the output of a planned volume."""
    return volume_contract(work.target, stored_name(work.scan.header.dtype, work.dtype), work.times)


def keep_output(recorder: Recorder, work: VolumeWork) -> None:
    """Put a written output and what stands next to it under contract in their folder.

    Args:
        recorder: Of the run.
        work: The volume, written.

    Raises:
        ContractError: The output departs from the target grid or its type.
    """
    _page(work).unlink(missing_ok=True)  # of an output that is no more
    partial = work.output.with_name(sidecar_name(work.output.name))
    seals = {
        work.output.name: manifest_entry(work.output, output_contract(work)),
        partial.name: manifest_entry(partial),
    }
    write_contracts(work.output.parent, _known(work.output.parent) | seals, recorder.address.run_id)


def _page(work: VolumeWork) -> Path:
    return work.output.with_name(f"{split_name(work.output.name)[0]}_quality.html")


def keep_page(recorder: Recorder, number: int, work: VolumeWork) -> str:
    """Make the QC page of a written output, next to it and in the run, unless an earlier run has made it.

    Args:
        recorder: Of the run.
        number: Of the volume, by which MLflow knows it.
        work: The volume, written.

    Returns:
        Why there is no page, "" if there is one.
    """
    page = _page(work)
    if page.exists():
        return ""
    if prod(work.target.shape) > PAGE_VOXELS:
        return "too large for a QC page"
    write_quality_page(page, upscaled_case(f"volume {number}", work))
    recorder.artifact(page, "quality", name=f"{number}.html")
    write_contracts(page.parent, _known(page.parent) | {page.name: manifest_entry(page)}, recorder.address.run_id)
    return ""


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
        "| volume | status | voxels | mm | shards | seconds | consistency |",
        "|---:|---|---|---|---:|---:|---:|",
    ]
    for number, volume in enumerate(report.volumes, start=1):
        sizes, steps = (
            " × ".join(f"{value:.4g}" for value in values or ())
            for values in (volume.output_shape, volume.output_spacing)
        )
        left = "" if volume.consistency is None else f"{volume.consistency:.4f}"
        shown = (volume.status, sizes, steps, str(volume.shards), f"{volume.seconds:.1f}", left)
        lines.append(f"| {number} | {' | '.join(shown)} |")
    return "\n".join(lines)


def _known(folder: Path) -> dict[str, ManifestEntry]:
    """Manifest entries of what earlier runs have written to a folder and what is still there."""
    with suppress(ContractsError):
        return {name: seal for name, seal in read_contracts(folder).seals.items() if (folder / name).is_file()}
    return {}
