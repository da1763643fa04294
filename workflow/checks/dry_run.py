"""Dry run: check what a run needs, take one training step and restore one shard, and discard both."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from configs.load import load_config
from configs.schema import RunConfig
from models.stages.report import describe
from models.stages.stage import network_stages
from models.stages.wording import shape_text
from tasks.artifacts.model_card import make_card
from tasks.artifacts.network_file import NetworkFile, parse_network
from tasks.machine.check import Checklist, counted
from tasks.rehearsal import BuiltNetwork, RehearsedShard, RehearsedStep
from tasks.sharding.plan import MIB, runs
from tasks.training.start import shard_rehearsal, training_rehearsal
from tasks.volume.grid import Three
from workflow.checks import cluster, disk, estimates, plans
from workflow.checks.cluster import ClusterReport
from workflow.checks.estimates import Estimates, Memory, Starts
from workflow.checks.plans import PlannedVolume
from workflow.checks.report import ChecksReport
from workflow.checks.store import check_store
from workflow.checks.volumes import VolumesSummary, check_volumes
from workflow.cluster import TimedWorker, share
from workflow.cluster.resources import drawing_processes, restoring_request, training_request
from workflow.tracking.probe import StoreProbe, try_store
from workflow.tracking.store import local_folder
from workflow.train.data import TrainingSource
from workflow.upscale.plan import UpscaleRequest
from workflow.upscale.run import EXPERIMENT, saved_network

if TYPE_CHECKING:
    from workflow.cluster.resources import Node

UNTRAINED = "untrained.keras"
STAGES_REMEDY = "Edit network.stages; `voxlift shapes` explains them."
CLUSTER_REMEDY = "Look at the worker's log below Ray's temporary folder, and at the memory of its node."
ORDER = (
    *("configuration", "data", "model", "outputs", "output folder", "disk", "tracking", "cluster", "room", "replicas"),
    *("shared storage", "stages", "memory", "shard plan", "range of the model", "training step", "shard", "time"),
)


@dataclass(frozen=True, kw_only=True)
class DryRunReport(ChecksReport):
    """Findings of a dry run.

    Args:
        faults: A message for each failure, with its remedy.
        estimates: What the real run takes.
        cluster: What Ray reports; None if there is none.
    """

    faults: tuple[str, ...]
    estimates: Estimates
    cluster: ClusterReport | None


@dataclass(frozen=True)
class DryRunOptions:
    """Run that is rehearsed.

    Args:
        config: A preset's name or a YAML file.
        out: Folder that the run would write to.
        settings: Each `section.key=value`.
        inputs: Volumes to restore: files, folders, globs or lists; the first training volume by default.
        model: The model that restores them; the untrained network of the configuration by default.
        scale: Target voxels per voxel along (i, j, k); with neither it nor a spacing, the model's own.
        spacing: Wanted mm along (i, j, k), instead of a scale.
    """

    config: str
    out: Path
    settings: Sequence[str] = ()
    inputs: Sequence[str] = ()
    model: str | None = None
    scale: Three | None = None
    spacing: Three | None = None


def dry_run(options: DryRunOptions, console: Console) -> DryRunReport:
    """Check all that can be checked in advance; if nothing is wrong, take one training step and restore one shard."""
    began, checks, config = time.perf_counter(), Checklist(), None
    overrides = f" with {counted(len(options.settings), 'override')}" if options.settings else ""
    remedy = "Correct the configuration or the --set option."
    with checks.trying("configuration", f"reading {options.config}{overrides}", remedy) as attempt:
        config = load_config(options.config, options.settings)
        training = config.training
        attempt.ok(f"{training.steps} steps of {training.batch_size} patches of {'x'.join(map(str, training.patch))}")
        if (options.scale or options.spacing) and not options.inputs:
            attempt.warning("--scale and --spacing go unused: no volume is given", "Name volumes with --input.")
    rehearsal = _Rehearsal(options, config, console, checks) if config is not None else None
    if rehearsal is not None:
        rehearsal.run()
    return DryRunReport(
        checks=tuple(sorted(checks.checks, key=lambda check: ORDER.index(check.name))),
        ok=not checks.failures,
        faults=tuple(checks.failures),
        estimates=rehearsal.estimates if rehearsal else Estimates(),
        cluster=cluster.cluster_report(rehearsal.nodes) if rehearsal and rehearsal.nodes else None,
        seconds=time.perf_counter() - began,
    )


class _Rehearsal:
    """A dry run of a configuration that could be read, with its estimates so far and the nodes of the cluster."""

    def __init__(self, options: DryRunOptions, config: RunConfig, console: Console, checks: Checklist) -> None:
        self.estimates = Estimates()
        self.nodes: tuple[Node, ...] = ()
        self._options, self._config, self._console, self._checks = options, config, console, checks

    def run(self) -> None:
        """Check all that is cheap; if nothing is wrong, rehearse a step and then a shard."""
        options, config, checks = self._options, self._config, self._checks
        built = step = None
        with ThreadPoolExecutor(1) as background, ExitStack() as stack:
            recording = background.submit(self._try_store)
            self._console.print("Reading volumes …")
            volumes = check_volumes(checks, config, options.inputs)
            writable = disk.check_writable(checks, options.out)
            if options.inputs:
                plans.check_outputs(checks, volumes.inputs, options.out, writable=writable)
            network = self._model(options.model) if options.model is not None else None
            self._console.print("Starting or joining Ray …")
            began = time.perf_counter()
            self.nodes = cluster.check_cluster(checks, stack)
            starts = Starts(reading=volumes.seconds, cluster=time.perf_counter() - began)
            trains = bool(self.nodes) and cluster.check_room(checks, config)
            if self.nodes:
                cluster.check_replicas(checks, config)
                cluster.check_shared(checks, self.nodes, config, options.out)
            with ExitStack() as training:
                if trains:
                    self._console.print("Building the network …")
                    request = training_request(config)
                    arguments = (config,), request, config.resources.patience_seconds
                    worker = training.enter_context(TimedWorker(training_rehearsal, *arguments))
                    built = self._stages(worker)
                if built is not None:
                    starts = replace(starts, training=worker.start_seconds)
                    # As training would leave it, apart from the weights.
                    card = make_card(config, built.parameters, 0, volumes.training, volumes.spacing)
                    untrained = replace(parse_network(UNTRAINED, built.content), card=card)
                    self._check_memory(built, untrained)
                    network = untrained if options.model is None else network
                planned = self._plan(volumes, network) if network is not None else []
                recorded, probe = recording.result()
                checks.extend(recorded)
                starts = replace(starts, store=probe.seconds if probe else 0.0)
                self._check_disk(built, planned, local_folder(probe.artifacts) if probe else None)
                if built is not None and volumes.source is not None and not checks.failures:
                    drawing = drawing_processes(request, config.training.steps)
                    step = self._step(worker, built, volumes.source, volumes.validation_voxels, drawing)
            if step is not None and network is not None and planned and not checks.failures:
                self._shard(network, planned, starts)

    def _estimate(self, **found: Any) -> None:  # noqa: ANN401 - fields of `Estimates`
        self.estimates = replace(self.estimates, **found)

    def _try_store(self) -> tuple[Checklist, StoreProbe | None]:
        """Try the tracking store; in a thread, while volumes are read and Ray starts."""
        checks = Checklist()
        experiments = [self._config.tracking.experiment, *([EXPERIMENT] if self._options.inputs else [])]
        return checks, check_store(checks, lambda: try_store(experiments), "tracking")

    def _model(self, named: str) -> NetworkFile | None:
        """Read the model that was named; None if it cannot be used."""
        network = None
        with self._checks.trying("model", f"reading {named}", "Name a .keras file saved by voxlift.") as attempt:
            network = saved_network(named)
            halo = ", ".join(f"{before}+{after}" for before, after in network.cost.field.halo)
            attempt.ok(f"{network.cost.parameters} weights, a halo of {halo} voxels")
        return network

    def _stages(self, worker: TimedWorker) -> BuiltNetwork | None:
        """Build the network and compare its shapes with integer arithmetic; None if it cannot be built."""
        network, training = self._config.network, self._config.training
        built: BuiltNetwork | None = None
        tried = "shape arithmetic against the network built by TensorFlow"
        with self._checks.trying("stages", tried, STAGES_REMEDY) as attempt:
            built = worker.ask()
            depth, height, width = (size // by for size, by in zip(training.patch, network.total_stride, strict=True))
            latent = (training.batch_size // built.replicas, depth, height, width, network.latent_filters)
            report = describe(latent, network_stages(network))
            predicted = [latent, *(stage.output_shape for stage in report.stages)]
            for number, shapes in enumerate(zip(predicted, [built.latent_shape, *built.stage_shapes], strict=True)):
                expected, real = map(shape_text, shapes)
                if expected != real:
                    name = f"stage {number}" if number else "the latent"
                    attempt.failure(f"Cannot trust the network: {name} is {real}, not {expected} as predicted.")
            attempt.ok(" → ".join(map(shape_text, predicted)))
            attempt.ok(f"{built.parameters} weights, {counted(built.replicas, 'replica')} on the {built.device}")
            for warning in report.warnings:
                attempt.warning(warning)
        return built

    def _plan(self, volumes: VolumesSummary, network: NetworkFile) -> list[PlannedVolume]:
        """Check the shard plans of the inputs, and that the network was trained for them."""
        options, resources = self._options, self._config.resources
        planned: list[PlannedVolume] = []
        if options.inputs:
            scale, spacing = options.scale, options.spacing
            request = UpscaleRequest(volumes.inputs, options.out, network, resources, scale=scale, spacing=spacing)
            planned = plans.plan_inputs(self._checks, request, volumes.labels)
        elif volumes.source is not None:
            planned = plans.plan_training_source(self._checks, volumes.source, network, resources)
        if planned:
            plans.check_range(self._checks, network, planned, trained=options.model is not None)
            self._estimate(
                shards=sum(volume.shards for volume in planned),
                overhead=plans.overhead(planned),
                shard_mib=Memory(_largest(planned).likely_bytes / MIB),
            )
        return planned

    def _check_memory(self, built: BuiltNetwork, network: NetworkFile) -> None:
        """Compare the estimated memory of a replica with that of the nodes."""
        training = self._config.training
        needed = network.cost.replica_bytes(training.patch, training.batch_size // built.replicas)
        cluster.check_memory(self._checks, self.nodes, built, needed)
        self._estimate(replica_mib=Memory(needed / MIB))

    def _check_disk(self, built: BuiltNetwork | None, planned: Sequence[PlannedVolume], artifacts: Path | None) -> None:
        """Compare what the run writes with the free space of the disks."""
        out = self._options.out
        needs = plans.output_needs(planned, out) if self._options.inputs else []
        needs += disk.training_needs(self._config, built, out, artifacts) if built is not None else []
        if needs:
            disk.check_room_on_disk(self._checks, needs)
            self._estimate(output_bytes=sum(need.bytes for need in needs))

    def _step(
        self,
        worker: TimedWorker,
        built: BuiltNetwork,
        source: TrainingSource,
        validation_voxels: Sequence[int],
        processes: int,
    ) -> RehearsedStep | None:
        """Take a training step and estimate the training from it, with so many processes that draw patches."""
        self._console.print("Taking a training step …")
        step: RehearsedStep | None = None
        with self._checks.trying("training step", "one step, again to time it", CLUSTER_REMEDY) as attempt:
            step = worker.ask([source.training])
            each = estimates.seconds_per_step(step, built.device, built.threads, processes)
            memory = replace(self.estimates.replica_mib, measured=step.replica_bytes / MIB)
            total = estimates.training_seconds(self._config, step, validation_voxels, each)
            self._estimate(seconds_per_step=each, replica_mib=memory, training_seconds=total)
            if not isfinite(step.loss):
                attempt.failure(
                    f"Cannot train: the loss of the first step is {step.loss}.",
                    "Use a lower training.learning_rate, or training.mixed_precision off.",
                )
            attempt.ok(f"{each:.2f} s a step, loss {step.loss:.3g}")
            attempt.ok(f"{memory.estimated:.0f} MiB estimated for each replica, {memory.measured:.0f} MiB taken")
        return step

    def _shard(self, network: NetworkFile, planned: Sequence[PlannedVolume], starts: Starts) -> None:
        """Restore a shard of the volume that has the largest, and estimate the whole job."""
        self._console.print("Restoring a shard …")
        resources, largest = self._config.resources, _largest(planned)
        with self._checks.trying("shard", f"one of {largest.name}, twice", CLUSTER_REMEDY) as attempt:
            request, shards = restoring_request(resources), largest.plan.shards
            arguments = (network.name, share(network.content), request.cpus, network.cost.field.strides)
            with TimedWorker(shard_rehearsal, arguments, request, resources.patience_seconds) as worker:
                # A slab whose worker has just computed the one before it.
                middle = runs(shards)[0]
                one, later = (middle[min(place, len(middle) - 1)] for place in (len(middle) // 2, len(middle) // 2 + 1))
                shard: RehearsedShard = worker.ask(share(largest.coarse()), one, later)
            memory = replace(self.estimates.shard_mib, measured=shard.shard_bytes / MIB)
            restoring = estimates.restoring_seconds(planned, shard, largest, resources.workers)
            self._estimate(shard_mib=memory, restoring_seconds=restoring)
            threads = counted(resources.cpus_per_worker, "CPU thread")
            attempt.ok(f"{shard.seconds:.2f} s on {threads if shard.device == 'CPU' else shard.device}")
            attempt.ok(f"{memory.estimated:.0f} MiB estimated, {memory.measured:.0f} MiB taken")
        if self._checks.failures:
            return
        tried = "a whole run, from the step, the shard and all starts"
        with self._checks.trying("time", tried, CLUSTER_REMEDY) as attempt:
            starts, training = replace(starts, restoring=worker.start_seconds), self.estimates.training_seconds or 0.0
            total = estimates.total_seconds(starts, training, restoring, planned, apart=bool(self._options.inputs))
            self._estimate(total_seconds=total)
            attempt.ok(f"about {_clock(total)} in all: training {_clock(training)}, restoring {_clock(restoring)}")


def _largest(planned: Sequence[PlannedVolume]) -> PlannedVolume:
    return max(planned, key=lambda volume: volume.plan.shard_bytes)


def _clock(seconds: float) -> str:
    """A duration for a person.

    >>> _clock(7.4), _clock(130), _clock(8000)
    ('7 s', '2 min 10 s', '2 h 13 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes = whole // 60
    return f"{minutes} min {whole % 60} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
