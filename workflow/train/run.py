"""A training run: data read and checked, the training streamed from a worker, its curve and model kept in MLflow."""

import shutil
import time
from collections.abc import Sequence
from math import prod
from pathlib import Path
from threading import Event

from rich.console import Console

from configs.errors import ConfigError
from configs.load import load_config, resolved_yaml
from configs.schema import RunConfig
from tasks.artifacts.contracts import ModelContract
from tasks.artifacts.network_file import read_network
from tasks.files.atomic import replacing
from tasks.training.job import TrainedModel, TrainingJob, TrainingStep, Validation, interpolation_psnr
from tasks.training.start import run_training
from workflow.cluster import cluster, stream
from workflow.cluster.resources import training_request
from workflow.cluster.shared_storage import require_shared
from workflow.terminal.progress import progress_bar
from workflow.tracking import (
    Recorder,
    RunAddress,
    logged_model,
    recorded_run,
    register_model,
    resolve_model,
    tracking_uri,
)
from workflow.tracking.provenance import ENVIRONMENT, record_setup
from workflow.train.data import training_inputs, training_volumes, validation_volumes
from workflow.train.report import MlflowReport, TrainReport, description

MODEL, CONFIG, ADDRESS, CHECKPOINTS = "model.keras", "config.yaml", "run.json", "checkpoints"
STOP_SECONDS = 12.0  # for a last checkpoint: batch systems leave 20 to 30 s between their warning and the end


def train(
    name: str, settings: Sequence[str], folder: Path, *, resume: bool, start_from: str | None, console: Console
) -> TrainReport:
    """Train the configuration of a YAML file or preset, from a model if one is named, as `run_train`."""
    config = load_config(name, settings)
    given = resolve_model(start_from) if start_from else None
    return run_train(config, folder, resume=resume, start_from=given, console=console)


def run_train(
    config: RunConfig,
    folder: Path,
    *,
    resume: bool,
    start_from: Path | None,
    console: Console,
    name: str = "train",
    parent: str | None = None,
    registers: bool = True,
    stop: Event | None = None,
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
        stop: Interrupts the training, once it is set, where no signal does: in a thread of a sweep.

    Raises:
        KeyboardInterrupt: `stop` was set.
        InputError: A volume, a checkpoint or the tracking store cannot be used.
        ConfigError: The configuration names no volume where it needs one, or the cluster has no room.
    """
    folder = folder.resolve()
    started = time.perf_counter()
    job = TrainingJob(
        config,
        training_volumes(config),
        folder / MODEL,
        validation=validation_volumes(config),
        checkpoints=folder / CHECKPOINTS,
        resume=resume,
        start_from=start_from,
    )
    read_seconds = time.perf_counter() - started
    address = resumable_run(folder) if resume else None
    if not resume:
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    experiment = address.experiment if address else config.tracking.experiment
    with recorded_run(experiment, name, address.run_id if address else None, parent=parent) as recorder, cluster():
        recorder.metrics({"seconds/reading": read_seconds})
        return record_training(job, recorder, console, registers=registers and not parent, stop=stop)


def record_training(
    job: TrainingJob,
    recorder: Recorder,
    console: Console,
    *,
    command: str = "train",
    registers: bool = True,
    stop: Event | None = None,
) -> TrainReport:
    """Train within a run that is recorded and a cluster that is joined; see `run_train`.

    Args:
        job: What is trained; its address and its resolved configuration are written next to the model.
        recorder: Of the run.
        console: For progress.
        command: The command of voxlift, for the record.
        registers: Whether the model is registered.
        stop: Interrupts the training, once it is set.
    """
    config, folder, where = job.config, job.model_path.parent, recorder.address
    require_shared(folder)
    where.write(folder / ADDRESS)
    with replacing(folder / CONFIG) as partial:
        partial.write_text(resolved_yaml(config))
    if not recorder.holds(ENVIRONMENT):  # what it is recorded with at last, also of an earlier part of the run
        recorder.inputs(training_inputs(config))
        record_setup(recorder, config, command)
    interpolation = interpolation_psnr(job.validation) if job.validation else {}
    recorder.metrics({f"validation/psnr_{name}": psnr for name, psnr in interpolation.items()})
    trained, loss = _streamed(job, recorder, console, stop)
    stride = config.network.total_stride
    request, contract = training_request(config), ModelContract(total_stride=stride)
    with recorder.phase("model check"):
        probes = [stride, config.training.patch]
        (uri,) = stream(logged_model, where, trained.model, probes, contract, request=request, stop=stop)
    registered = register_model(where, uri, config.tracking.registered_model).uri if registers else uri
    recorder.metrics({"seconds/training": trained.seconds, "train/waiting_share": trained.waiting_share})
    recorder.metrics({"model/parameters": trained.parameters})
    recorder.describe(description(trained, loss, interpolation))
    cost = read_network(trained.model).cost
    return TrainReport(
        **vars(trained),
        run=folder,
        multiply_adds_per_voxel=cost.multiply_adds(stride) // prod(stride),
        receptive_field=tuple(axis.halo for axis in cost.field.axes),
        final_loss=loss,
        mlflow=MlflowReport(**vars(where), model=uri, registered=registered),
    )


def _streamed(job: TrainingJob, recorder: Recorder, console: Console, stop: Event | None) -> tuple[TrainedModel, float]:
    """Train in a process of its own; this one writes the curve, each point once however often it is reported."""
    loss = float("nan")
    total = job.config.training.steps
    with progress_bar(console, "Training", total) as advance:
        request = training_request(job.config)
        for record in stream(run_training, job, request=request, grace=STOP_SECONDS, stop=stop, last=TrainedModel):
            if isinstance(record, TrainingStep):
                loss = record.loss
                recorder.metrics({"train/loss": loss, "train/learning_rate": record.learning_rate}, record.step)
                advance(f"loss {loss:.4g}")
            elif isinstance(record, Validation):
                recorder.metrics({"validation/psnr": record.psnr}, record.step)
                console.print(f"Step {record.step}: validation {record.psnr:.2f} dB")
            else:
                trained = record
    return trained, loss


def resumable_run(folder: Path) -> RunAddress | None:
    """Return the address of the run that a folder is of, None where nothing was started.

    Raises:
        ConfigError: It is recorded in another tracking store.
    """
    address = RunAddress.read(folder / ADDRESS)
    if address is not None and address.tracking_uri != tracking_uri():
        raise ConfigError(
            f"Cannot resume the run in {folder.name}: it is recorded in another tracking store than MLFLOW_TRACKING_URI"
            " and the working directory say now.",
            "Resume where it was started.",
        )
    return address
