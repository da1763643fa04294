"""The main job on one volume: degrade, train, super-resolve, score, record."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from configs.axes import NetworkShape
from configs.schema import RunConfig
from tasks.artifacts.contracts import ModelContract, volume_contract
from tasks.artifacts.manifest import manifest_entry, write_contracts
from tasks.artifacts.network_file import read_network
from tasks.scoring.metrics import foreground_mask
from tasks.scoring.protocol import DegradedReference, Slab, degraded_reference, held_out_slabs
from tasks.sharding.plan import ShardPlan
from tasks.training.blocks import TrainingVolume, training_volume
from tasks.training.job import TrainedModel, TrainingJob, TrainingStep
from tasks.training.start import run_training
from tasks.training.template import template_path
from tasks.volume.intensity import normalise
from tasks.volume.nifti import read_volume, write_volume
from workflow.cluster import cluster, stream
from workflow.cluster.resources import training_request
from workflow.demo.report import DemoReport, InferenceReport, TrainingReport, description
from workflow.pages.picture import comparison_picture
from workflow.pages.quality import write_quality_page
from workflow.pages.quality_cases import reference_case
from workflow.restore.restoration import plan_restoration, restore_volume
from workflow.terminal.progress import progress_bar
from workflow.tracking import ModelAddress, Recorder, input_volume, logged_model, recorded_run, register_model
from workflow.tracking.provenance import record_setup

if TYPE_CHECKING:
    from rich.console import Console


def run_demo(config: RunConfig, volume_path: Path | None, out: Path, console: "Console") -> DemoReport:
    """Degrade a volume, train on one part of it, super-resolve the whole, score the other part, and record it all.

    Args:
        config: The run.
        volume_path: The reference; None takes the MNI152 template that nilearn carries.
        out: Folder for what is written; made if it is missing.
        console: For progress.

    Returns:
        Scores, timings and where everything is.

    Raises:
        InputError: The volume or the tracking store cannot be used.
        ConfigError: The cluster cannot hold what is asked of it.
    """
    started = time.perf_counter()
    reference_path = volume_path or template_path()
    reference = read_volume(reference_path)
    degraded = degraded_reference(reference, config.degradation, config.training.seed)
    train_slab, score_slab = held_out_slabs(reference.grid.shape, config.data.held_out)
    volume = training_volume(degraded, train_slab)
    folder = out.resolve()
    coarse_path = folder / "input.nii.gz"
    write_volume(coarse_path, degraded.coarse.voxels, degraded.coarse.grid)
    # What each artifact must be, before any of them is made.
    promised_input, promised_output = (
        volume_contract(grid, "float32") for grid in (degraded.coarse.grid, reference.grid)
    )
    promised_model = ModelContract(total_stride=config.network.total_stride)

    with recorded_run(config.tracking.experiment, "demo") as recorder, cluster():
        keep = config.tracking.record_paths
        record_setup(recorder, config, "demo")
        recorder.inputs([input_volume(reference_path, "reference", record_paths=keep)])
        with recorder.phase("training"):
            trained, training = _train(config, volume, folder / "model.keras", recorder, console)
        with recorder.phase("inference"):
            restored, plan, inference = _restore(config, degraded, trained.path, console)
        output_path = folder / "restored.nii.gz"
        write_volume(output_path, restored, reference.grid, like=reference, dtype="float32")
        console.print("Scoring and recording …")
        with recorder.phase("scoring"):
            scores = degraded.scores(restored, score_slab)
            psnr, ssim = scores.psnr, scores.ssim
            picture_path = folder / "comparison.png"
            _draw(picture_path, degraded, restored, score_slab)
            page_path = folder / "quality.html"
            title, network = "restored volume of the demo", read_network(trained.path)
            write_quality_page(
                page_path, reference_case(title, degraded, restored, plan, network, config.degradation, scores)
            )
        recorder.metrics({f"psnr/{name}": value for name, value in asdict(psnr).items()})
        recorder.metrics({f"ssim/{name}": value for name, value in asdict(ssim).items()})
        recorder.metrics({"shards/count": inference.shards, "shards/overhead": inference.overhead})
        recorder.metrics({"model/parameters": training.parameters})
        seals = {
            "model.keras": manifest_entry(trained.path, promised_model),
            "restored.nii.gz": manifest_entry(output_path, promised_output),
            "input.nii.gz": recorder.volume(coarse_path, "volumes", promised_input, with_header=True),
            "comparison.png": recorder.artifact(picture_path, "pictures"),
            "quality.html": recorder.artifact(page_path, "quality"),
        }
        recorder.volume(output_path, "volumes", promised_output, with_header=keep)
        write_contracts(folder, seals, recorder.address.run_id)
        stride = config.network.total_stride
        probes = [stride, NetworkShape(*(2 * size for size in stride)), config.training.patch]
        with recorder.phase("model check"):
            (model_uri,) = stream(
                logged_model, recorder.address, trained.path, probes, promised_model, request=training_request(config)
            )
        registered = register_model(recorder.address, model_uri, config.tracking.registered_model)
        recorder.describe(description(reference.grid, psnr, ssim, training, inference))

    return DemoReport(
        reference=reference_path,
        input=coarse_path,
        output=output_path,
        output_shape=reference.grid.shape,
        output_spacing=reference.grid.spacing,
        psnr=psnr,
        ssim=ssim,
        training=training,
        inference=inference,
        mlflow=ModelAddress(**vars(recorder.address), model=model_uri, registered=registered.uri),
        model=trained.path,
        picture=picture_path,
        quality_page=page_path,
        seconds=time.perf_counter() - started,
    )


def _train(
    config: RunConfig, volume: TrainingVolume, model_path: Path, recorder: Recorder, console: "Console"
) -> tuple[TrainedModel, TrainingReport]:
    """Train in a process of its own; this one writes the curve."""
    total = config.training.steps
    loss = float("nan")
    with progress_bar(console, "Training", total) as advance:
        job = TrainingJob(config, [volume], model_path)
        for record in stream(run_training, job, request=training_request(config), last=TrainedModel):
            if isinstance(record, TrainedModel):
                trained = record
            elif isinstance(record, TrainingStep):
                loss = record.loss
                recorder.metrics({"train/loss": loss, "train/learning_rate": record.learning_rate}, record.step)
                advance(f"loss {loss:.4f}")
    return trained, TrainingReport(
        steps=total,
        seconds=trained.seconds,
        replicas=trained.replicas,
        device=trained.device,
        parameters=trained.parameters,
        latent_shape=trained.latent_shape,
        final_loss=loss,
        waiting_share=trained.waiting_share,
    )


def _restore(
    config: RunConfig, degraded: DegradedReference, model_path: Path, console: "Console"
) -> tuple[NDArray[np.float32], ShardPlan, InferenceReport]:
    """Super-resolve the whole coarse volume through Ray workers."""
    network = read_network(model_path)
    name, budget = "the degraded volume", config.resources.memory_budget_mib
    plan = plan_restoration(degraded.coarse, degraded.padded, network, budget, axes=degraded.axes, name=name)
    with progress_bar(console, "Restoring", len(plan.shards)) as advance:
        restored = restore_volume(
            degraded.coarse,
            degraded.padded,
            network,
            config.resources,
            name=name,
            axes=degraded.axes,
            on_progress=lambda progress: advance(f"{progress.workers} workers"),
        )
    corrected = degraded.corrected(restored.voxels, config.degradation)
    report = InferenceReport(
        shards=len(plan.shards),
        workers=config.resources.workers,
        seconds=restored.seconds,
        voxels_per_second=restored.voxels_per_second,
        overhead=plan.overhead,
    )
    return degraded.cropped(corrected.voxels), plan, report


def _draw(path: Path, degraded: DegradedReference, restored: NDArray[np.float32], slab: Slab) -> None:
    """Draw planes through the foreground in the part that was scored, off the middle, where hemispheres meet."""
    truth = normalise(degraded.reference.voxels, degraded.intensity)
    scored = np.zeros(truth.shape, bool)
    scored[slab] = foreground_mask(truth[slab])
    i, j, k = (int(np.quantile(places, 0.35)) for places in np.nonzero(scored))
    nearest = [
        np.minimum(np.arange(size) * coarse // padded, coarse - 1)
        for size, coarse, padded in zip(truth.shape, degraded.coarse.grid.shape, degraded.padded.shape, strict=True)
    ]
    volumes = {
        "input": degraded.coarse.voxels[np.ix_(*nearest)],
        "cubic": degraded.baseline("cubic"),
        "restored": restored,
    }
    shown = {title: normalise(volume, degraded.intensity) for title, volume in volumes.items()}
    comparison_picture(path, shown, truth, (i, j, k))
