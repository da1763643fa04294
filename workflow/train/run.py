"""A training run: data read and checked, training streamed from a worker, its curve and model recorded in MLflow."""

import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from threading import Event

from rich.console import Console, RenderableType
from rich.table import Table

from configs.errors import ConfigError, InputError
from configs.load import load_config, resolved_yaml
from configs.schema import RunConfig
from tasks.artifacts.contracts import ModelContract
from tasks.artifacts.network_file import read_network
from tasks.files.atomic import replacing, sweep_folders
from tasks.files.lock import Lock, locked
from tasks.machine.worker import WorkerDiedError
from tasks.training.checkpoints import fingerprint, last_checkpoint
from tasks.training.job import TrainedModel, TrainingJob, TrainingRecord, TrainingStep, Validation, baseline_psnr
from tasks.training.start import run_training
from workflow.cluster import Request, cluster, require_room, room, stream
from workflow.cluster.resources import drawing_processes, training_request
from workflow.cluster.shared_storage import require_shared
from workflow.terminal.progress import Advance, entering, progress_bar, waiting
from workflow.tracking import Recorder, RunAddress, checked_model, recorded_run, tracking_uri
from workflow.tracking.provenance import ENVIRONMENT, record_setup
from workflow.tracking.recorder import exit_on_sigterm
from workflow.train.data import ranking_volumes, training_inputs, training_volumes, validation_volumes

MODEL, CONFIG, ADDRESS, CHECKPOINTS, LOCK = "model.keras", "config.yaml", "run.json", "checkpoints", "run.lock"
SCORE = "validation/psnr_best"  # of the weights that are saved
MOVES = 3  # of a training whose process or node has died
STOP_SECONDS = 12.0  # for a last checkpoint: batch systems allow 20 to 30 s between their warning and the end


@dataclass(frozen=True)
class MlflowReport(RunAddress):
    """Address of the run and of its model; that of the file while the record waits for its store."""

    model: str
    registered: str


@dataclass(frozen=True, kw_only=True)
class TrainReport(TrainedModel):
    """Report of `voxlift train`.

    Args:
        run: Folder with the model, the resolved configuration and the checkpoints.
        multiply_adds_per_voxel: Of the network, per voxel of the target grid.
        receptive_field: Voxels before and after its own that an output voxel depends on, along depth, height and width.
        final_loss: Of the last step.
        mlflow: Where the run is recorded.
    """

    run: Path
    multiply_adds_per_voxel: int
    receptive_field: tuple[tuple[int, int], ...]
    final_loss: float
    mlflow: MlflowReport


def run_train(
    config: RunConfig,
    folder: Path,
    *,
    resume: bool,
    start_from: Path | None,
    console: Console,
    overwrite: bool = False,
    name: str = "train",
    parent: str | None = None,
    registers: bool = True,
    stop: Event | None = None,
) -> TrainReport:
    """Train a restorer and record it.

    Args:
        config: The run.
        folder: For the model, the resolved configuration and the checkpoints; created if it does not exist.
        resume: Continue from the last checkpoint in the folder, in the same MLflow run; start if there is none.
        start_from: A `.keras` file to start the weights from.
        console: For progress.
        overwrite: Whether an earlier training in the folder may be lost.
        name: Of the MLflow run.
        parent: Id of the run of the sweep that it belongs to.
        registers: Whether the model is registered; a sweep registers its best model at its end.
        stop: Interrupts the training once it is set: signals do not reach the threads of a sweep.

    Raises:
        KeyboardInterrupt: `stop` was set.
        InputError: A volume, a checkpoint, the folder or the tracking store cannot be used.
        ConfigError: The configuration names no volume where it needs one, or the cluster has no room.
    """
    folder = folder.resolve()
    with only_writer(folder, (MODEL, f"{CHECKPOINTS}/step-*.npz"), resume=resume, overwrite=overwrite) as lock:
        started = time.perf_counter()
        with waiting(console, "Reading volumes"):
            job = TrainingJob(
                config,
                training_volumes(config),
                folder / MODEL,
                validation=ranking_volumes(config) if parent else validation_volumes(config),
                checkpoints=folder / CHECKPOINTS,
                resume=resume,
                start_from=start_from,
                lock=lock,
            )
        read_seconds = time.perf_counter() - started
        address = resumable_run(folder) if resume else None
        if resume:
            require_same(folder, config)
        experiment, run_id = (address.experiment, address.run_id) if address else (config.tracking.experiment, None)
        killed = lock.killed if resume else None
        run = recorded_run(experiment, name, run_id, killed=killed, parent=parent, folder=folder, console=console)
        with (
            entering(console, "Opening the tracking store", run) as recorder,
            entering(console, "Starting Ray", cluster()),
        ):
            recorder.metrics({"seconds/reading": read_seconds})
            return record_training(job, recorder, console, registers=registers and not parent, stop=stop)


@contextmanager
def only_writer(folder: Path, made: Sequence[str], *, resume: bool, overwrite: bool) -> Iterator[Lock]:
    """Hold the lock of the folder of a run, in which nothing is overwritten unless it may be.

    Args:
        folder: Of the run.
        made: Patterns of files by which a folder shows that it holds an earlier run.
        resume: Whether the earlier run is continued.
        overwrite: Whether it may be lost.

    Raises:
        InputError: Another process writes in the folder, or it holds an earlier run.
    """
    with exit_on_sigterm(), locked(folder / LOCK, f"the run in {folder.name}") as lock:
        if not (resume or overwrite) and any(any(folder.glob(pattern)) for pattern in made):
            raise InputError(
                f"Cannot start a run in {folder.name}: it holds an earlier one.",
                "Continue that one with --resume, replace it with --overwrite, or choose another --out.",
            )
        sweep_folders([folder])
        yield lock


def require_same(folder: Path, config: RunConfig) -> None:
    """Refuse to resume a training with another configuration than it was started with.

    Raises:
        InputError: Its last checkpoint or, where there is none yet, its `config.yaml` is that of another.
    """
    if last_checkpoint(folder / CHECKPOINTS, config) is not None or not (folder / CONFIG).is_file():
        return
    with suppress(ConfigError):  # of another version: nothing of it goes into the result
        if fingerprint(load_config(folder / CONFIG)) != fingerprint(config):
            raise InputError(
                f"Cannot resume the run in {folder.name}: it was started with another configuration.",
                "Give that configuration and its overrides, or start again with --overwrite.",
            )


def record_training(
    job: TrainingJob,
    recorder: Recorder,
    console: Console,
    *,
    command: str = "train",
    registers: bool = True,
    stop: Event | None = None,
) -> TrainReport:
    """Train within a recorded run and a cluster; see `run_train`.

    Args:
        job: The training; the address of the run and the resolved configuration are written next to its model.
        recorder: Of the run.
        console: For progress.
        command: The command of voxlift, for the record.
        registers: Whether the model is registered.
        stop: Interrupts the training, once it is set.
    """
    config, folder = job.config, job.model_path.parent
    request = _shared_request(job, console)
    if not job.resume and job.checkpoints is not None:
        shutil.rmtree(job.checkpoints, ignore_errors=True)
        job.model_path.unlink(missing_ok=True)
    recorder.note_address(folder / ADDRESS)
    with replacing(folder / CONFIG) as file:
        file.write_text(resolved_yaml(config))
    # The environment is recorded last, so that it stands for the whole setup, that of an earlier start included.
    if not recorder.holds(ENVIRONMENT):
        recorder.inputs(training_inputs(config))
        record_setup(recorder, config, command)
    baselines = baseline_psnr(job.validation, config.degradation) if job.validation else {}
    interpolated = {f"validation/psnr_{name}": psnr for name, psnr in baselines.items()}
    recorder.metrics(interpolated)
    trained, loss = _trained(job, request, recorder, console, stop)
    stride = config.network.total_stride
    contract = ModelContract(total_stride=stride)
    with recorder.phase("model check"):
        probes = [stride, config.training.patch]
        (entry,) = stream(checked_model, trained.model, probes, contract, request=request, stop=stop)
        uri = recorder.model(trained.model, entry, probes[0])
    registered = (recorder.register(config.tracking.registered_model) if registers else None) or uri
    recorder.metrics({"seconds/training": trained.seconds, "train/waiting_share": trained.waiting_share})
    recorder.scores({"model/parameters": trained.parameters})
    if trained.validation_psnr is not None:
        recorder.scores({SCORE: trained.validation_psnr})
        # At the last step too: a level line next to the curve of the network.
        recorder.scores(interpolated, trained.steps)
    if not recorder.had_finished:  # what was measured then stands
        recorder.describe(description(trained, loss, baselines))
    cost = read_network(trained.model).cost
    return TrainReport(
        **vars(trained),
        run=folder,
        multiply_adds_per_voxel=cost.multiply_adds(stride) // prod(stride),
        receptive_field=tuple(axis.halo for axis in cost.field.axes),
        final_loss=loss,
        mlflow=MlflowReport(**vars(recorder.address), model=uri, registered=registered),
    )


def _trained(
    job: TrainingJob, request: Request, recorder: Recorder, console: Console, stop: Event | None
) -> tuple[TrainedModel, float]:
    """Train in a separate process and record its curve in this one; returns the last loss too.

    If the process or its node dies, another one goes on from the last checkpoint, at most `MOVES` times.
    """
    awaited = "TensorFlow" if room(request) else f"the cluster to grow, for a node with {request}"
    with progress_bar(console, "Training", job.config.training.steps, f"waiting for {awaited}") as advance:
        curve, moved = _Curve(recorder, console, advance), 0
        while True:
            try:
                job = replace(job, drawing_processes=drawing_processes(request, job.config.training.steps))
                records = stream(run_training, job, request=request, grace=STOP_SECONDS, stop=stop, last=TrainedModel)
                return curve.follow(records), curve.loss
            except WorkerDiedError as error:
                moved += 1
                if moved > MOVES:
                    raise
                problem = " ".join(error.problem.split())
                console.print(
                    f"The training goes on from its last checkpoint in another process, {moved} of at most {MOVES}:"
                    f" {problem}",
                    style="yellow",
                    markup=False,
                    soft_wrap=True,
                )
                # Cut off from this node, the process may live on: it finds that it has lost the lock.
                job = replace(job, resume=True, lock=job.lock and job.lock.renewed())
                try:
                    renewed = _shared_request(job, console)
                    # The CPUs of the process that has died may not be known as free yet.
                    same = replace(renewed, cpus=request.cpus)
                    request = same if room(same) else renewed
                    require_room(1, request)
                except ConfigError as refusal:
                    raise WorkerDiedError(f"Cannot go on with the training: {problem}", str(refusal)) from error


def _shared_request(job: TrainingJob, console: Console) -> Request:
    """Make the request of a training, on nodes that share its folder; name the others in warnings."""
    return require_shared(
        job.model_path.parent,
        partial(training_request, job.config),
        lambda message: console.print(message, style="yellow", markup=False, soft_wrap=True),
    )


class _Curve:
    """The curve of a training: each point is recorded once, though a training that has moved repeats some."""

    def __init__(self, recorder: Recorder, console: Console, advance: Advance) -> None:
        self.loss = float("nan")  # of the last step
        self._recorder, self._console, self._advance = recorder, console, advance
        self._step, self._validated = 0, -1

    def follow(self, records: Iterable[TrainingRecord]) -> TrainedModel:
        """Record what a training yields; returns its result."""
        for record in records:
            if isinstance(record, TrainingStep):
                self.loss = record.loss
                if record.step > self._step:
                    self._step = record.step
                    point = {"train/loss": record.loss, "train/learning_rate": record.learning_rate}
                    self._recorder.metrics(point, record.step)
                self._advance(f"loss {record.loss:.4g}", completed=record.step)
            elif isinstance(record, Validation):
                if record.step > self._validated:
                    self._validated = record.step
                    self._recorder.metrics({"validation/psnr": record.psnr}, record.step)
                    self._console.print(f"Step {record.step}: validation {record.psnr:.2f} dB")
            else:
                trained = record
        return trained


def resumable_run(folder: Path) -> RunAddress | None:
    """Return the address of the run of a folder, None where none was started.

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


def description(trained: TrainedModel, loss: float, baselines: Mapping[str, float]) -> str:
    """Describe the run in Markdown, for the top of its page in MLflow.

    Args:
        trained: Result of the training.
        loss: Of the last step.
        baselines: PSNR by name on the validation volumes; empty without any.
    """
    lines = [
        f"Trained {trained.parameters} weights for {trained.steps} steps, {trained.seconds:.0f} s on {trained.replicas}"
        f" {trained.device} replica(s); loss {loss:.3g}."
    ]
    if trained.validation_psnr is not None:
        scores = {"restored": trained.validation_psnr, **baselines}
        lines += ["", "| validation | PSNR [dB] | over cubic |", "|---|---:|---:|"]
        lines += [f"| {name} | {psnr:.2f} | {psnr - scores['cubic']:+.2f} |" for name, psnr in scores.items()]
    return "\n".join(lines)


def summary(report: TrainReport) -> list[RenderableType]:
    """Show what was trained, its cost and where it is."""
    table = Table.grid(padding=(0, 2))
    reach = ", ".join(f"{before}+{after}" for before, after in report.receptive_field)
    rows = {
        "steps": f"{report.steps}" + (f", resumed after {report.resumed_from}" if report.resumed_from else ""),
        "time": f"{report.seconds:.0f} s on {report.replicas} {report.device} replica(s),"
        f" {report.waiting_share:.1%} of the steps waiting for patches",
        "network": f"{report.parameters} weights, {report.multiply_adds_per_voxel} multiply-adds per voxel",
        "receptive field": f"{reach} voxels next to its own along depth, height and width",
        "loss": f"{report.final_loss:.3g}",
        "model": str(report.model),
        "MLflow run": report.mlflow.run_id,
    }
    if report.validation_psnr is not None:
        rows["validation"] = f"{report.validation_psnr:.2f} dB"
    for name, value in rows.items():
        table.add_row(name, value)
    return [table]
