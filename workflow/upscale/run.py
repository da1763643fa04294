"""A super-resolution run: plan shown, volumes restored under a progress bar, record kept in MLflow."""

from dataclasses import replace
from functools import partial

from rich.console import Console

from tasks.artifacts.network_file import NetworkFile, read_network
from workflow.cluster import cluster
from workflow.restore.restoration import Progress
from workflow.terminal.progress import progress_bar
from workflow.tracking import RunAddress, recorded_run, resolve_model, tracking_uri
from workflow.upscale.record import address_file, keep_output, keep_page, record_order, record_report
from workflow.upscale.report import MlflowAddress, UpscaleReport, understood
from workflow.upscale.volume_work import VolumeWork
from workflow.upscale.volumes import UpscaleRequest, plan_volumes, upscale

EXPERIMENT = "voxlift"


def saved_network(model: str) -> NetworkFile:
    """Read the network of a `.keras` file, of the folder that holds one, or of a model in the tracking store.

    Raises:
        InputError: There is none, or the folder holds several.
    """
    return read_network(resolve_model(model))


def run_upscaling(order: UpscaleRequest, console: Console) -> UpscaleReport:
    """Super-resolve volumes and record it.

    Args:
        order: What to do.
        console: For the plan and progress.

    Raises:
        InputError: Nothing can be done at all, or the tracking store cannot be used.
        ConfigError: The cluster has no room for the workers.
        Exception: Why a volume failed, if the order says so.
    """
    planned = plan_volumes(order)
    shards = 0
    for work in planned:
        if isinstance(work, VolumeWork):
            unseen = (f"{remark}; do not trust the result unseen" for remark in work.remarks)
            odd = [*(work.findings.warnings if work.findings else ()), *unseen]
            for line, style in [(understood(work), None), (work.plan, None), *((said, "yellow") for said in odd)]:
                console.print(f"{work.scan.path.name}: {line}", style=style, markup=False)
            shards += work.shards
    request, kept = order.resources, address_file(order)
    earlier = RunAddress.read(kept) if order.resume else None
    if earlier is not None and earlier.tracking_uri != tracking_uri():
        earlier = None  # recorded in another store: the cores are as good
    works = {number: work for number, work in enumerate(planned, start=1) if isinstance(work, VolumeWork)}
    with recorded_run(EXPERIMENT, "upscale", earlier.run_id if earlier else None) as recorder:
        address = recorder.address
        if works:
            address.write(kept)
        record_order(recorder, order, list(works.values()))
        with (
            cluster(request.workers * request.cpus_per_worker),
            progress_bar(console, "Restoring", shards) as advance,
        ):

            def reported(progress: Progress) -> None:
                remark = f"{progress.voxels_per_second / 1e6:.2f} Mvoxel/s, {progress.workers} workers"
                advance(remark, progress.shards)

            report = upscale(replace(order, run_id=address.run_id), planned, reported, partial(keep_output, recorder))
        record_report(recorder, report)
        # Only now: they would take the time of the workers, and an output is worth having without its page.
        done = {number: work for number, work in works.items() if work.failure is None}
        with progress_bar(console, "QC pages", len(done)) as advance:
            for number, work in done.items():
                if missing := keep_page(recorder, number, work):
                    console.print(f"{work.scan.path.name}: {missing}.", markup=False)
                advance("")
    kept.unlink(missing_ok=True)
    return replace(report, mlflow=MlflowAddress(address.tracking_uri, address.experiment, address.run_id))
