"""A super-resolution run: plan shown, volumes restored under a progress bar, record kept in MLflow."""

from dataclasses import replace

from rich.console import Console

from tasks.artifacts.network_file import NetworkFile, read_network
from workflow.cluster import cluster
from workflow.restore.restoration import Progress
from workflow.terminal.progress import progress_bar
from workflow.tracking import RunAddress, recorded_run, resolve_model, tracking_uri
from workflow.upscale.plan import UpscaleRequest
from workflow.upscale.record import address_file, keep_missing_page, keep_output, record_order, record_report
from workflow.upscale.report import UpscaleReport, understood
from workflow.upscale.volume_work import Output, VolumeWork
from workflow.upscale.volumes import plan_volumes, upscale

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
    numbers = {work: number for number, work in enumerate(planned, start=1) if isinstance(work, VolumeWork)}
    for work in numbers:
        unseen = (f"{remark}; do not trust the result unseen" for remark in work.plan.remarks)
        odd = [*work.inspected.warnings, *unseen]
        said = [(understood(work.plan), None), (work.plan.shard_plan, None), *((one, "yellow") for one in odd)]
        for line, style in said:
            console.print(f"{work.plan.name}: {line}", style=style, markup=False)
    request, kept = order.resources, address_file(order)
    earlier = RunAddress.read(kept) if order.resume else None
    if earlier is not None and earlier.tracking_uri != tracking_uri():
        earlier = None  # recorded in another store: the cores are as good
    with recorded_run(EXPERIMENT, "upscale", earlier.run_id if earlier else None) as recorder:
        address = recorder.address
        if numbers:
            address.write(kept)
        record_order(recorder, order, list(numbers))
        with (
            cluster(request.workers * request.cpus_per_worker),
            progress_bar(console, "Restoring", sum(work.plan.shards for work in numbers)) as advance,
        ):

            def reported(progress: Progress) -> None:
                remark = f"{progress.voxels_per_second / 1e6:.2f} Mvoxel/s, {progress.workers} workers"
                advance(remark, progress.shards)

            def written(work: VolumeWork, output: Output) -> None:
                if missing := keep_output(recorder, numbers[work], work, output):
                    console.print(f"{work.plan.name}: {missing}.", markup=False)

            report = upscale(replace(order, run_id=address.run_id), planned, reported, written)
        record_report(recorder, report)
        for work, number in numbers.items():
            if work.failure is None:
                keep_missing_page(recorder, number, work)
    kept.unlink(missing_ok=True)
    return replace(report, mlflow=address)
