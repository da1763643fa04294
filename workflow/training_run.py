"""A training run: data read and checked, the training streamed from a worker, its curve and model kept in MLflow."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from configs.errors import ConfigError
from configs.load import resolved_yaml
from configs.schema import RunConfig
from tasks.artifact_contract import ModelContract
from tasks.atomic import replacing
from tasks.blocks import TrainingVolume, scan_to_learn_from, training_volume
from tasks.intensity import CLIP, find_intensity, normalise
from tasks.network_file import read_network
from tasks.protocol import degraded_trial, held_out_slabs
from tasks.resample import resample
from tasks.template import template_path
from tasks.training import TrainedModel, TrainingJob, TrainingStep, Validation, ValidationVolume, run_training
from tasks.volumes import read_volume
from workflow.cluster import cluster, stream
from workflow.demo_report import MlflowReport
from workflow.progress import progress_bar
from workflow.provenance import record_setup
from workflow.resources import training_request
from workflow.shared_storage import require_shared
from workflow.tracking import (
    InputVolume,
    Recorder,
    RunAddress,
    input_volume,
    logged_model,
    recorded_run,
    register_model,
    tracking_uri,
)
from workflow.training_report import TrainReport

if TYPE_CHECKING:
    from rich.console import Console

MODEL, CONFIG, ADDRESS, CHECKPOINTS = "model.keras", "config.yaml", "run.json", "checkpoints"
STOP_SECONDS = 12.0  # for a last checkpoint: batch systems leave 20 to 30 s between their warning and the end


def run_train(
    config: RunConfig,
    folder: Path,
    *,
    resume: bool,
    start_from: Path | None,
    console: "Console",
    name: str = "train",
    parent: str | None = None,
    registers: bool = True,
) -> TrainReport:
    """Train a restorer and record it.

    Args:
        config: The run.
        folder: For the model, the resolved configuration and the checkpoints; made if it is missing.
        resume: Go on from the last checkpoint in the folder, in the same MLflow run. Without one, start.
        start_from: A `.keras` file to start the weights from.
        console: For progress.
        name: Of the MLflow run.
        parent: Id of the run of the sweep that it belongs to.
        registers: Whether the model is registered; of a sweep, the best one is at its end.

    Raises:
        InputError: A volume, a checkpoint or the tracking store cannot be used.
        ConfigError: The configuration names no volume where it needs one, or the cluster has no room.
    """
    folder = folder.resolve()
    volumes, validation = training_volumes(config), validation_volumes(config)
    address = _last_address(folder) if resume else None
    if not resume:
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    job = TrainingJob(
        config,
        volumes,
        folder / MODEL,
        validation=validation,
        checkpoints=folder / CHECKPOINTS,
        resume=resume,
        start_from=start_from,
    )
    promised = ModelContract(total_stride=config.network.total_stride)
    experiment = address.experiment if address else config.tracking.experiment
    with recorded_run(experiment, name, address.run_id if address else None, parent=parent) as recorder, cluster():
        where = recorder.address
        require_shared(folder)
        _write(folder / ADDRESS, json.dumps(asdict(where)))
        _write(folder / CONFIG, resolved_yaml(config))
        if address is None:
            record_setup(recorder, config, "train")
            recorder.inputs(training_inputs(config))
        trained, loss = _streamed(job, recorder, console)
        stride = config.network.total_stride
        probes = [stride, config.training.patch]
        (uri,) = stream(logged_model, where, trained.path, probes, promised, request=training_request(config))
        name_of_model = config.tracking.registered_model
        registered = register_model(where, uri, name_of_model).uri if registers and not parent else uri
        recorder.metrics({"seconds/training": trained.seconds, "train/waiting_share": trained.waiting_share})
        recorder.metrics({"model/parameters": trained.parameters})
    network = read_network(trained.path)
    return TrainReport(
        run=folder,
        model=trained.path,
        steps=trained.steps,
        resumed_from=trained.resumed_from,
        seconds=trained.seconds,
        waiting_share=trained.waiting_share,
        replicas=trained.replicas,
        device=trained.device,
        parameters=trained.parameters,
        multiply_adds_per_voxel=network.cost.multiply_adds(stride) // int(np.prod(stride)),
        receptive_field=tuple(axis.halo for axis in network.cost.field.axes),
        final_loss=loss,
        validation_psnr=trained.validation_psnr,
        mlflow=MlflowReport(where.tracking_uri, where.experiment, where.run_id, uri, registered),
    )


def training_inputs(config: RunConfig) -> list[InputVolume]:
    """Describe the files that a configuration trains on and is stopped by."""
    mixture, keep = config.data.mixture, config.tracking.record_paths
    trains = config.data.volumes or (template_path(),) if mixture.volumes or mixture.slices else ()
    roles = {**dict.fromkeys(config.data.validation, "validation"), **dict.fromkeys(trains, "training")}
    return [input_volume(path, role, record_paths=keep) for path, role in roles.items()]


def training_volumes(config: RunConfig) -> list[TrainingVolume]:
    """Read what a configuration trains on; the MNI152 template where it names nothing.

    Raises:
        ConfigError: It trains from slices and names no volume.
        InputError: A volume cannot be used.
    """
    mixture = config.data.mixture
    if mixture.slices and not config.data.volumes:
        raise ConfigError(
            "Cannot train from slices: no volume is named. Name the thick-slice scan with"
            " --set data.volumes='[scan.nii.gz]'."
        )
    if not mixture.volumes and not mixture.slices:
        return []
    loaded = [read_volume(path) for path in config.data.volumes or (template_path(),)]
    if mixture.slices:
        return [scan_to_learn_from(volume) for volume in loaded]
    slabs = [held_out_slabs(volume.grid.shape, config.data.held_out)[0] for volume in loaded]
    return [
        training_volume(degraded_trial(volume, config.degradation, config.training.seed), slab)
        for volume, slab in zip(loaded, slabs, strict=True)
    ]


def validation_volumes(config: RunConfig) -> list[ValidationVolume]:
    """Read and degrade what early stopping scores on; nothing without early stopping.

    Raises:
        ConfigError: Early stopping is asked for and no validation volume is named.
        InputError: A volume cannot be used.
    """
    if config.training.early_stopping is None:
        return []
    if not config.data.validation:
        raise ConfigError(
            "Cannot stop early: no validation volume is named. Name some with --set data.validation='[volume.nii.gz]'."
        )
    volumes = []
    for path in config.data.validation:
        trial = degraded_trial(read_volume(path), config.degradation, config.training.seed)
        found = find_intensity(trial.coarse.voxels)
        fine, coarse = (
            trial.axes.to_network(normalise(volume, found, clip=CLIP))
            for volume in (_padded(trial.reference.voxels, trial.padded.shape), trial.coarse.voxels)
        )
        depth, height, width = fine.shape
        resampled = np.clip(resample(coarse, (depth, height, width)), 0, np.float32(CLIP))
        volumes.append(ValidationVolume(coarse, resampled, fine))
    return volumes


def _padded(
    voxels: "np.ndarray[tuple[int, ...], np.dtype[np.float32]]", shape: tuple[int, int, int]
) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
    return np.pad(voxels, [(0, whole - size) for whole, size in zip(shape, voxels.shape, strict=True)], mode="edge")


def _streamed(job: TrainingJob, recorder: Recorder, console: "Console") -> tuple[TrainedModel, float]:
    """Train in a process of its own; this one writes the curve, each point once however often it is told."""
    known, validated = recorder.last_step("train/loss"), recorder.last_step("validation/psnr")
    loss = float("nan")
    total = job.config.training.steps
    with progress_bar(console, "Training", total) as advance:
        for record in stream(run_training, job, request=training_request(job.config), grace=STOP_SECONDS):
            if isinstance(record, TrainingStep):
                loss = record.loss
                if record.step > known:
                    recorder.metrics({"train/loss": loss, "train/learning_rate": record.learning_rate}, record.step)
                advance(f"loss {loss:.4g}")
            elif isinstance(record, Validation):
                if record.step > validated:
                    recorder.metrics({"validation/psnr": record.psnr}, record.step)
                console.print(f"Step {record.step}: validation {record.psnr:.2f} dB")
            else:
                trained = record
    return trained, loss


def _last_address(folder: Path) -> RunAddress | None:
    """Where the run in a folder is recorded; None where nothing was started."""
    try:
        address = RunAddress(**json.loads((folder / ADDRESS).read_text()))
    except FileNotFoundError:
        return None
    if address.tracking_uri != tracking_uri():
        raise ConfigError(
            f"Cannot resume the run in {folder.name}: it is recorded in another tracking store than MLFLOW_TRACKING_URI"
            " and the working directory say now. Resume where it was started."
        )
    return address


def _write(path: Path, text: str) -> None:
    with replacing(path) as beside:
        beside.write_text(text)
