"""A super-resolution run, recorded in MLflow with the contracts and QC pages of its outputs.

No path and nothing from a header is recorded.
"""

import gc
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from math import ceil, prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from configs.errors import ContractError, InputError
from configs.load import flatten
from tasks.artifacts.contracts import volume_contract
from tasks.artifacts.manifest import collect_entries, is_under_contract, manifest_entry, note_entries
from tasks.artifacts.network_file import NetworkFile, read_network
from tasks.artifacts.shipped import shipped_network
from tasks.files.bids import describe_derivatives
from tasks.files.lock import Process
from tasks.files.outputs import page_name, sidecar_name
from tasks.imaging.consistency import residual
from tasks.imaging.resample import resample
from tasks.machine.check import counted
from tasks.scoring.quality import shard_borders
from tasks.sharding.detail import inferred_detail
from tasks.sharding.plan import MIB
from tasks.sharding.restore import LEEWAY, CoarseVolume
from tasks.sharding.store import content_key
from tasks.volume.encoding import stored_name
from tasks.volume.intensity import Intensity, normalise
from tasks.volume.nifti import open_volume
from workflow.cluster import cluster, room
from workflow.cluster.resources import restoring_request
from workflow.pages.index import write_index
from workflow.pages.quality import QualityCase, model_facts, write_quality_page
from workflow.pages.verdict import Measure
from workflow.restore.local import LocalPool
from workflow.restore.restoration import Progress
from workflow.restore.worker_pool import WorkerPool
from workflow.terminal.progress import entering, progress_bar, resumable, waiting
from workflow.tracking import (
    Recorder,
    RunAddress,
    check_store,
    described_volume,
    recorded_run,
    resolve_model,
    tracking_uri,
)
from workflow.tracking.provenance import ENVIRONMENT, record_environment, record_network
from workflow.tracking.recorder import exit_on_sigterm
from workflow.upscale.plan import UpscaleRequest, VolumePlan
from workflow.upscale.report import COLUMNS, UpscaleReport, geometry, volume_report
from workflow.upscale.volume_work import MAX_OUTSIDE_SHARE, Output, VolumeError, VolumeWork, Written
from workflow.upscale.volumes import only_writer, plan_volumes, require_new, started, upscale

EXPERIMENT = "voxlift"
MAX_PAGE_VOXELS = 1 << 27  # of a QC page, which holds the volume several times: 4 GiB at this size


def saved_network(model: str | None) -> NetworkFile:
    """Read the network of a `.keras` file, of the folder that holds one, or of a model in the tracking store.

    Without any of them, it is one that ships with the package.

    Args:
        model: As it is named on the command line.

    Raises:
        InputError: There is none, or the folder holds several.
    """
    return shipped_network() if model is None else read_network(resolve_model(model))


def run_upscaling(request: UpscaleRequest, console: Console) -> UpscaleReport:
    """Super-resolve volumes and record it.

    Args:
        request: What to do.
        console: For the plan and progress.

    Raises:
        InputError: No input can be used, or the tracking store cannot be used.
        ConfigError: The cluster has no room for the workers.
        Exception: Why a volume failed, if the request is to fail fast.
    """
    if not (request.resume or request.overwrite):
        require_new(request.files)
    count = len(request.sources)
    with waiting(console, f"Reading {count} volume{'s' if count > 1 else ''}"):
        planned = plan_volumes(request)
    numbers = {work: number for number, work in enumerate(planned, start=1) if isinstance(work, VolumeWork)}
    if numbers and request.dataset is not None and request.out is not None:
        describe_derivatives(request.dataset, request.out)
    for work in numbers:
        leaves = [f"{warning}; check the result before you use it" for warning in work.plan.warnings]
        memory = f"about {ceil(work.plan.driver_bytes / MIB)} MiB at most in this process"
        lines = [(geometry(work.plan), None), (work.plan.shard_plan, None), (memory, None)]
        for line, style in [*lines, *((warning, "yellow") for warning in (*work.inspected.warnings, *leaves))]:
            console.print(f"{work.plan.name}: {line}", style=style, markup=False)
    with exit_on_sigterm(), only_writer(list(numbers)) as killed:
        if not (request.resume or request.overwrite):
            require_new(request.files)  # again: what this run has waited for may have been written since
        check_store("record")  # before workers are started
        with (
            resumable(console, lambda: _saved(list(numbers))),
            _started_ahead(request, list(numbers), console) as ahead,
        ):
            return _recorded(request, planned, numbers, console, killed if request.resume else None, ahead)


@contextmanager
def _started_ahead(
    request: UpscaleRequest, works: Sequence[VolumeWork], console: Console
) -> Iterator[WorkerPool | LocalPool | None]:
    """Start the workers, which load TensorFlow while the tracking store is opened and the first volume is read.

    Yields:
        Workers that hold the network; None where there is nothing to do, or volumes need different networks.
    """
    todo = [work for work in works if work.written is None]
    networks, resources = {work.plan.network.digest: work.plan.network for work in todo}, request.resources
    with ExitStack() as stack:
        if todo and request.place == "cluster":
            cpus = None if request.elastic else resources.workers * resources.cpus_per_worker
            stack.enter_context(entering(console, "Starting Ray", cluster(cpus)))
        if todo:
            todo[0].read_ahead(stack.enter_context(ThreadPoolExecutor(1)))
        if len(networks) != 1:
            yield None
            return
        needed = restoring_request(resources)
        full = request.place == "cluster" and not room(needed)  # before an autoscaler is asked, and begins to add nodes
        pool = stack.enter_context(started(request, todo[0].plan.network, sum(work.plan.shards for work in todo)))
        if full:
            with waiting(console, f"Waiting for the cluster to grow, for a worker of {needed}"):
                pool.wait_for_place()
        yield pool


def _recorded(
    request: UpscaleRequest,
    planned: Sequence[VolumeWork | InputError],
    numbers: Mapping[VolumeWork, int],
    console: Console,
    killed: Process | None,
    ahead: WorkerPool | LocalPool | None,
) -> UpscaleReport:
    """Super-resolve planned volumes as a recorded run; the volumes that can be used have numbers."""
    address_file = _address_file(request)
    earlier = RunAddress.read(address_file) if request.resume else None
    if earlier is not None and earlier.tracking_uri != tracking_uri():
        earlier = None  # a new run, in this store, of the same cores
    run = recorded_run(
        EXPERIMENT,
        "upscale",
        earlier.run_id if earlier else None,
        killed=killed,
        folder=request.outputs[0].parent,
        console=console,
    )
    with entering(console, "Opening the tracking store", run) as recorder:
        address = recorder.address
        if numbers:
            address.write(address_file)
        with waiting(console, "Recording inputs and environment"):
            _record_request(recorder, request, list(numbers))
        voxels, loading = sum(work.to_compute[1] for work in numbers), "waiting for TensorFlow"
        with (
            progress_bar(console, "Restoring", voxels, loading, of="voxels") as advance,
            _frequent_collection(),
        ):

            def show(progress: Progress) -> None:
                speed = f"{progress.voxels_per_second / 1e6:.2f} Mvoxel/s, {counted(progress.workers, 'worker')}"
                advance(speed, progress.voxels, progress.voxels_done)

            def record(work: VolumeWork, output: Output) -> None:
                if problem := _record_output(recorder, request, numbers[work], work, output):
                    console.print(f"{work.plan.name}: {problem}.", markup=False)

            report = upscale(replace(request, run_id=address.run_id), planned, show, record, ahead)
        _complete_folders(recorder, request, numbers, console)
        volumes = list(report.volumes)
        for work, number in numbers.items():
            volumes[number - 1] = volume_report(work)  # its page may have failed since
        report = replace(report, volumes=tuple(volumes))
        _record_report(recorder, report)
        recorder.failed = len(report.failed) == len(report.volumes)
    address_file.unlink(missing_ok=True)
    return replace(report, mlflow=address)


@contextmanager
def _frequent_collection() -> Iterator[None]:
    """Keep what is loaded out of collections of garbage within the block.

    Python makes a full collection once new objects are a quarter of all. Next to the hundreds of thousands that
    libraries make, that would be after some hundred volumes, whose cyclic garbage holds memory.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _complete_folders(
    recorder: Recorder, request: UpscaleRequest, numbers: Mapping[VolumeWork, int], console: Console
) -> None:
    """Make the QC pages that are missing, then the manifests and the tables of QC pages of the folders."""
    for work, number in numbers.items():
        if work.failure is None:
            try:
                _add_page_if_absent(recorder, request, number, work)
            except InputError as error:  # the output is complete
                console.print(f"{work.plan.name}: no QC page: {error}", markup=False)
            except VolumeError as error:
                work.abandon(error)
    folders = {work.plan.output.parent for work in numbers}
    for folder in folders:
        collect_entries(folder, recorder.address.run_id)
    # Below the folder of the outputs all pages count; next to inputs, those next to them.
    pages = (
        {one: one.glob(page_name("*")) for one in folders}
        if request.out is None
        else {request.out: request.out.rglob(page_name("*"))}
    )
    for folder, found in pages.items():
        if table := write_index(folder, found):
            console.print(f"Table of the QC pages: {table.absolute()}", markup=False, soft_wrap=True)


def _saved(works: Sequence[VolumeWork]) -> str:
    """Say what of the volumes is saved."""
    unfinished = [work for work in works if work.written is None]
    shards = sum(work.tally.shards + work.shards_resumed for work in unfinished)
    finished = f"{len(works) - len(unfinished)} of {len(works)} volume(s) are finished"
    return finished + (f", and {shards} shard(s) of the others are saved." if unfinished else ".")


def _address_file(request: UpscaleRequest) -> Path:
    """File that names the run of a request until it is done, so that `--resume` continues that run."""
    outputs = request.outputs
    key = content_key(
        {
            "outputs": [path.name for path in outputs],
            "models": [one.digest for one in (request.network, request.thick_network) if one],
            **_options(request),
            **({} if request.network.precision == "float32" else {"precision": request.network.precision}),
        }
    )
    return outputs[0].parent / ".voxlift" / f"{key}.run.json"


def _options(request: UpscaleRequest) -> dict[str, str]:
    return {
        name: str(getattr(request, name)) for name in ("scale", "spacing", "slice_axis", "dtype", "correct", "inferred")
    }


def _record_request(recorder: Recorder, request: UpscaleRequest, works: Sequence[VolumeWork]) -> None:
    """Record request, inputs and network, once."""
    # The environment is recorded last: where it is, an earlier start has recorded the whole setup.
    if recorder.holds(ENVIRONMENT):
        return
    found = [work.inspected for work in works]
    recorder.inputs([described_volume(one.scan, one.digests, "input", record_paths=False) for one in found])
    recorder.parameters({f"upscale.{name}": value for name, value in _options(request).items()})
    recorder.parameters({"upscale.kind": request.kind} if request.kind else {})
    recorder.parameters({"upscale.precision": request.network.precision})
    elastic = {"resources.workers": "auto"} if request.elastic else {}
    recorder.parameters({**flatten(request.resources, "resources"), **elastic, "volumes": str(len(request.sources))})
    # Where volumes have different networks, the first of them stands for the run.
    network = works[0].plan.network if works else request.network
    if network.card is not None:
        recipe = network.card.degradation
        recorder.parameters(flatten(recipe, "degradation"))
        recorder.tags({"degradation": recipe.name})
    with recorder.together():
        record_network(recorder, network)
        record_environment(recorder, "upscale")


def _record_output(recorder: Recorder, request: UpscaleRequest, number: int, work: VolumeWork, output: Output) -> str:
    """Add an output and its sidecar to the manifest, and make its QC page; returns why there is no page, or ""."""
    plan = work.plan
    _page(plan).unlink(missing_ok=True)  # of an earlier output
    contract = volume_contract(plan.target, stored_name(plan.scan.header.dtype, plan.dtype), plan.n_timepoints)
    restored = np.empty(plan.target.shape, np.float32, order="F") if request.pages and _has_page(plan) else None
    entries, digests = {plan.output: manifest_entry(plan.output, contract, restored)}, {plan.output: output.sha256}
    if output.inferred_sha256 is not None:
        float32 = contract.model_copy(update={"dtype": "float32"})
        entries[plan.inferred_output] = manifest_entry(plan.inferred_output, float32)
        digests[plan.inferred_output] = output.inferred_sha256
    for path, digest in digests.items():
        if entries[path].sha256 != digest:
            raise ContractError(f"{path.name} violates its contract: it was changed after it was written.")
    sidecar = plan.output.with_name(sidecar_name(plan.output.name))
    note_entries(plan.output.parent, entries | {sidecar: manifest_entry(sidecar)}, recorder.address.run_id)
    work.conclude(output)  # before the page, without which the output is still of use
    if restored is None:
        if not request.pages:
            return ""
        return "no QC page is made of a label map" if plan.labels else "too large for a QC page"
    _add_page(recorder, request, number, work, output.first, restored)
    return ""


def _add_page_if_absent(recorder: Recorder, request: UpscaleRequest, number: int, work: VolumeWork) -> None:
    """Make the QC page of an output whose run was stopped before it had made and noted one."""
    plan = work.plan
    if request.pages and _has_page(plan) and not is_under_contract(_page(plan)):
        coarse = plan.coarse_volume(plan.scan.read(0, finite=False).voxels, Intensity(0.0, 1.0))
        _add_page(recorder, request, number, work, coarse, open_volume(plan.output).read(0, finite=False).voxels)


def _add_page(
    recorder: Recorder,
    request: UpscaleRequest,
    number: int,
    work: VolumeWork,
    coarse: CoarseVolume,
    voxels: NDArray[np.float32],
) -> None:
    """Make, record and contract the QC page of a volume, from the first time point of its input and of its output.

    The voxels are overwritten.

    Raises:
        VolumeError: The page cannot be written: none is there, and a resumed run makes it.
    """
    plan, axes, page = work.plan, work.plan.axes, _page(work.plan)
    interpolated = resample(axes.to_file(coarse.voxels), plan.target.shape)
    masks = [mask for _, mask in plan.padding_in_file(coarse)]
    inferred, detail = inferred_detail(plan.measured(coarse), axes, voxels, interpolated, masks)
    inferred /= np.float32(coarse.intensity.high - coarse.intensity.low)
    if coarse.level:
        voxels = voxels - np.float32(coarse.level)
    for mask in masks:
        voxels[mask] = interpolated[mask]
    source = normalise(coarse.voxels, coarse.intensity)
    # In place: each is as large as the output. Where nothing is interpolated it may be the input itself.
    own = None if np.may_share_memory(interpolated, coarse.voxels) else interpolated
    before = normalise(interpolated, coarse.intensity, out=own)
    restored = normalise(voxels, coarse.intensity, out=voxels)
    consistency = None
    if plan.recipe is not None:
        consistency = -axes.to_file(residual(axes.to_network(restored), source, plan.recipe))
    low, high, written = coarse.intensity.low, coarse.intensity.high, work.written or Written()
    share = detail.inferred_share if written.inferred_share is None else written.inferred_share
    case = QualityCase(
        title=f"volume {number}, SHA-256 {work.inspected.digests[0][:12]}…",
        input_grid=plan.scan.grid,
        grid=plan.target,
        before=before,
        restored=restored,
        strides=axes.file_shape(plan.network.cost.field.strides),
        borders=shard_borders(plan.shard_plan, axes),
        consistency=consistency,
        inferred=inferred,
        facts=_facts(request, plan, written, recorder.address.run_id)
        | {"inferred detail": f"{share:.1%} of that beyond cubic interpolation, by energy"},
        warnings=[warning for warning in work.warnings if warning != written.range_warning],
        unit=Intensity(low + coarse.level, high + coarse.level),
        noise=written.noise,
        measures=_outside(written),
    )
    try:
        write_quality_page(page, case)
        recorder.artifact(page, "quality", name=f"{number}.html")
        note_entries(page.parent, {page: manifest_entry(page)}, recorder.address.run_id)
    except OSError as error:
        page.unlink(missing_ok=True)
        raise VolumeError(
            f"Cannot make the QC page of {plan.name}: {error}.",
            f"{plan.output.name} is complete, and --resume adds the page.",
        ) from error


def _outside(written: Written) -> list[Measure]:
    """Judge the share of the voxels that are outside the input's range, if it is known."""
    if written.outside is None:
        return []
    remedy = "Look for ringing at sharp edges; give the acquisition (--acquisition, --blur) if it is known."
    percent, limit = 100 * written.outside, 100 * MAX_OUTSIDE_SHARE
    note = f"by more than {LEEWAY:.0%} of that range"
    return [Measure("voxels outside the input's range [%]", percent, limit, 10 * limit, remedy, note)]


def _facts(request: UpscaleRequest, plan: VolumePlan, written: Written, run_id: str) -> dict[str, str]:
    """Describe how an output was made: command without paths, model, acquisition, noise and plan."""
    given = {"scale": request.scale, "spacing": request.spacing, "blur": request.blur}
    options = [f"--{name} {','.join(f'{one:g}' for one in values)}" for name, values in given.items() if values]
    chosen = {"as": request.kind, "acquisition": request.profile, "dtype": request.dtype}
    options += [f"--{name} {value}" for name, value in chosen.items() if value]
    options += [] if request.correct else ["--no-correct"]
    options += [] if plan.network.precision == "float32" else [f"--precision {plan.network.precision}"]
    options += ["--inferred"] if request.inferred else []
    shards, resources = plan.shard_plan, request.resources
    return {
        "command": " ".join(["voxlift upscale VOLUME", *options]),
        "MLflow run": run_id,
        **model_facts(plan.network),
        "acquisition": str(plan.acquisition or "the model's degradation"),
        "noise found": "not measured" if written.noise is None else f"{written.noise:.4f} of the intensity range",
        "corrected": "yes" if plan.corrects else "no",
        **(
            {}
            if written.precision_psnr is None
            else {"precision": f"{plan.network.precision}, {written.precision_psnr:.1f} dB PSNR against float32"}
        ),
        "shards": f"{plan.shards}, cores of up to {'x'.join(map(str, shards.core_shape))} voxels",
        "workers": f"{resources.workers}, memory budget {resources.memory_budget_mib} MiB",
        **({"time point": f"1 of {plan.n_timepoints}"} if plan.n_timepoints > 1 else {}),
    }


def _page(plan: VolumePlan) -> Path:
    return plan.output.with_name(page_name(plan.output.name))


def _has_page(plan: VolumePlan) -> bool:
    return not plan.labels and not plan.by_windows and prod(plan.target.shape) <= MAX_PAGE_VOXELS


def _record_report(recorder: Recorder, report: UpscaleReport) -> None:
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
        if volume.inferred_share is not None:
            recorder.metrics({"volumes/inferred_share": volume.inferred_share}, number)
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
