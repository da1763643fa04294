"""`voxlift upscale`."""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from configs.errors import InputError
from workflow.commands.options import (
    AUTO,
    GpusPerWorker,
    Overwrite,
    Spacing,
    require_one_of,
    resources_of,
    three_numbers,
    workers_or_auto,
)
from workflow.terminal.console import JsonOption, exit_on_failures, screen


def upscale(
    volumes: Annotated[
        list[str],
        typer.Argument(help="Files, folders, globs, lists of paths, a BIDS dataset, or a folder of DICOM files."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the outputs, or the output of one volume; by default next to each input."),
    ] = None,
    participant_label: Annotated[
        list[str] | None,
        typer.Option(metavar="LABEL…", help="Participants of a BIDS dataset, such as 01 02; all by default."),
    ] = None,
    series: Annotated[
        list[int] | None, typer.Option(min=0, help="Number of a DICOM series, as often as needed; all by default.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="A .keras file, a folder, or a models:/ or runs:/ URI; by default the weights that ship."),
    ] = None,
    scale: Annotated[
        str | None,
        typer.Option(help="N or I,J,K: target voxels per voxel, in the file's axes; the model's own by default."),
    ] = None,
    spacing: Spacing = None,
    slice_axis: Annotated[
        Literal["i", "j", "k"] | None,
        typer.Option(help="The file's axis across the slices; by default that of the largest spacing."),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Data type of the outputs; by default that of an integer input.")
    ] = None,
    kind: Annotated[
        Literal["image", "labels"] | None,
        typer.Option("--as", help="What the volumes are; by default what header, name and values say of each."),
    ] = None,
    acquisition: Annotated[
        Literal["kspace", "box", "gaussian"] | None,
        typer.Option(help="What gave the scan its voxels: k-space truncation (MR), a mean (CT), or a slice profile."),
    ] = None,
    blur: Annotated[
        str | None, typer.Option(help="I,J,K: FWHM of a blur on top of the acquisition, in voxels of the scan.")
    ] = None,
    slice_thickness: Annotated[
        float | None,
        typer.Option(min=0.001, help="mm of each slice; by default what the sidecar says, else what the voxels show."),
    ] = None,
    correct: Annotated[
        bool,
        typer.Option("--correct/--no-correct", help="Make each output consistent with its input (data consistency)."),
    ] = True,
    inferred: Annotated[
        bool,
        typer.Option("--inferred", help="Also write the detail that the network has added and no voxel determines."),
    ] = False,
    pages: Annotated[
        bool, typer.Option("--qc/--no-qc", help="Make a QC page of each output; without, a batch is done sooner.")
    ] = True,
    ensemble: Annotated[
        Literal["1", "8"],
        typer.Option(help="8 restores every mirror image and averages them: a little better, eight times the work."),
    ] = "1",
    precision: Annotated[
        Literal["float32", "tf32", "bfloat16"],
        typer.Option(help="Of the network: tf32 and bfloat16 are faster on GPUs; their error is reported."),
    ] = "float32",
    adapt: Annotated[
        bool,
        typer.Option("--adapt", help="First train on the thick-slice volumes themselves, and use what that improves."),
    ] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a key of the preset self4x, for --adapt."),
    ] = None,
    workers: Annotated[
        str | None,
        typer.Option(
            parser=workers_or_auto,
            metavar="N|auto",
            help="Ray workers, auto for as many as the cluster has room for, as it grows and shrinks; by default one"
            " for each GPU, or by the CPUs; without RAY_ADDRESS processes of this machine and no Ray.",
        ),
    ] = None,
    cpus_per_worker: Annotated[
        int | None, typer.Option(min=1, help="CPU threads of each worker: 1 with --workers, else up to 4.")
    ] = None,
    gpus_per_worker: GpusPerWorker = "auto",
    memory_budget: Annotated[
        int | None,
        typer.Option(min=1, metavar="MIB", help="Memory of a shard, in MiB: 2000, or half of a GPU's free memory."),
    ] = None,
    retries: Annotated[int, typer.Option(min=0, help="How often a shard is tried again.")] = 2,
    patience: Annotated[float, typer.Option(min=1, help="Seconds until a silent worker is replaced.")] = 600.0,
    resume: Annotated[bool, typer.Option("--resume", help="Resume an interrupted run.")] = False,
    overwrite: Overwrite = False,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop at the first volume that fails.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Super-resolve volumes, here or on a cluster; the same bytes from one worker or eight."""
    with screen(as_json) as opened, ExitStack() as stack:
        from workflow.terminal.progress import resumable, waiting

        with waiting(opened.console, "Loading voxlift"):
            from tasks.artifacts.shipped import shipped_network
            from tasks.files.outputs import names_output
            from workflow.restore.placement import Given, joined, placed
            from workflow.upscale.adaptation import FOLDER, run_adaptation
            from workflow.upscale.plan import UpscaleRequest
            from workflow.upscale.report import summary
            from workflow.upscale.run import run_upscaling, saved_network
            from workflow.upscale.sources import find_sources

        require_one_of(resume=resume, overwrite=overwrite)
        output, out = (out, None) if out is not None and names_output(out) else (None, out)
        if output is not None and adapt:
            raise InputError(
                f"Cannot adapt a network next to {output.name}: --adapt needs a folder.", "Give a folder as --out."
            )
        if settings and not adapt:
            raise InputError(f"Cannot apply --set {settings[0]}: it changes how --adapt trains.", "Give --adapt too.")
        if slice_axis and adapt:
            raise InputError(
                f"Cannot adapt across --slice-axis {slice_axis}: --adapt uses the axis of the largest spacing.",
                "Leave one of the two out.",
            )
        elastic = workers == AUTO
        number = 2 if workers is None or elastic else int(workers)
        asked = resources_of(
            number,
            memory_budget or 2000,
            cpus_per_worker=cpus_per_worker or 1,
            patience_seconds=patience,
            retries=retries,
        )
        given = Given(
            # Of as many as there is room for, one GPU suffices for the first.
            1 if elastic else number if workers else None,
            cpus_per_worker,
            None if gpus_per_worker == AUTO else int(gpus_per_worker),
            memory_budget,
        )
        by_scale, by_spacing = three_numbers(scale, "--scale"), three_numbers(spacing, "--spacing")
        by_blur = three_numbers(blur, "--blur", zeros=True)
        found = find_sources(
            volumes,
            out,
            opened.console,
            participants=participant_label or (),
            series=series or (),
            overwrite=overwrite,
        )
        sources = found.paths
        network, thick = saved_network(model), shipped_network(thick=True)
        if ensemble == "8":
            network, thick = network.flipped(), thick.flipped()
        network, thick = replace(network, precision=precision), replace(thick, precision=precision)
        place, resources = placed(asked, given, stack.enter_context(joined(opened.console)))
        if precision == "tf32" and not resources.gpus_per_worker:
            raise InputError(
                "Cannot restore in tf32 on CPUs: GPUs of compute capability 8.0 and newer have it.",
                "Use --precision float32 or bfloat16, or such a GPU (--gpus-per-worker).",
            )
        request = UpscaleRequest(
            sources=sources,
            out=out,
            output=output,
            network=network,
            thick_network=None if model else thick,
            experts=not model,
            resources=resources,
            scale=by_scale,
            spacing=by_spacing,
            slice_axis="ijk".index(slice_axis) if slice_axis else None,
            dtype=dtype,
            kind=kind,
            correct=correct,
            resume=resume,
            overwrite=overwrite,
            fail_fast=fail_fast,
            profile=acquisition,
            blur=by_blur,
            slice_thickness=slice_thickness,
            dataset=found.dataset,
            inferred=inferred,
            pages=pages,
            elastic=elastic,
            place=place,
        )
        adaptation = None
        if adapt:
            folder = out or sources[0].parent
            with resumable(opened.console, lambda: f"The checkpoints are in {(folder / FOLDER).resolve()}."):
                adaptation = run_adaptation(request, asked, settings or [], opened.console)
            if adaptation.has_improved:
                adapted = network.replaced(saved_network(str(adaptation.model)))
                request = replace(request, network=adapted, thick_network=None, experts=False)
        report = run_upscaling(request, opened.console)
        if adaptation is not None:
            adapted_model = adaptation.model if adaptation.has_improved else None
            report = replace(report, adaptation=adaptation, adapted_model=adapted_model)
        opened.show(report, *summary(report))
    # Without a plan no input could be used at all.
    exit_on_failures((volume.error for volume in report.failed), 1 if report.plan else 2)
