"""Everything short of the work: what a run needs is checked, one step and one shard are taken, nothing is kept."""

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from configs.load import load_config
from configs.schema import RunConfig
from tasks.artifacts.network_file import NetworkFile
from tasks.rehearsal import BuiltNetwork, RehearsedStep
from tasks.sharding.plan import MIB
from tasks.training.memory import replica_bytes
from tasks.volume.target import Three
from workflow.dry_run.checklist import Checklist, counted
from workflow.dry_run.cluster_checks import check_cluster, check_memory, check_replicas, check_room, check_shared
from workflow.dry_run.disk_space import check_room_on_disk, check_writable, training_needs
from workflow.dry_run.job_estimate import Starts, restoring_seconds, seconds_per_step, total_seconds, training_seconds
from workflow.dry_run.network_checks import check_stages, untrained_network
from workflow.dry_run.planned_volumes import (
    PlannedVolume,
    check_outputs,
    check_range,
    output_needs,
    overhead,
    plan_inputs,
    plan_lesson,
)
from workflow.dry_run.rehearsals import TrainingRehearsalWorker, rehearse_shard, training_stand
from workflow.dry_run.report import DryRunReport, Estimates, Memory, cluster_report, in_order
from workflow.dry_run.volume_checks import VolumesSeen, check_volumes
from workflow.tracking.probe import StoreProbe, try_store
from workflow.train.data import TrainingSource
from workflow.upscale.run import EXPERIMENT, saved_network
from workflow.upscale.volumes import UpscaleRequest

if TYPE_CHECKING:
    from rich.console import Console

    from workflow.cluster.inventory import Node

Recording = tuple[Checklist, StoreProbe | None]
CLUSTER_CURE = "Look at the worker's log below Ray's temporary folder, and at the memory of its node."


@dataclass(frozen=True)
class DryRunOptions:
    """Which run is rehearsed.

    Args:
        config: A preset's name or a YAML file.
        out: Folder that the run would write to.
        settings: Each `section.key=value`.
        inputs: Volumes to restore: files, folders, globs or lists; without any, what is learned from.
        model: What restores them; without it the untrained network of the configuration.
        scale: Target voxels per voxel along (i, j, k); without it and a spacing, what the model is for.
        spacing: Wanted mm along (i, j, k), instead of a scale.
    """

    config: str
    out: Path
    settings: Sequence[str] = ()
    inputs: Sequence[str] = ()
    model: str | None = None
    scale: Three | None = None
    spacing: Three | None = None


def dry_run(asked: DryRunOptions, console: "Console") -> DryRunReport:
    """Check all that can be checked without working; if nothing is wrong, take one training step and restore one shard.

    Args:
        asked: Which run.
        console: For what is being tried.
    """
    began, checks, config = time.perf_counter(), Checklist(), None
    tried = f"reading {asked.config}" + (f" with {counted(len(asked.settings), 'override')}" if asked.settings else "")
    with checks.trying("configuration", tried, "Change the configuration or the --set option.") as attempt:
        config = load_config(asked.config, asked.settings)
        training = config.training
        attempt.ok(f"{training.steps} steps of {training.batch_size} patches of {'x'.join(map(str, training.patch))}")
        if (asked.scale or asked.spacing) and not asked.inputs:
            attempt.warning("--scale and --spacing go unused: no volume is given", "Name volumes with --input.")
    dry_run = _DryRun(asked, config, console, checks) if config is not None else None
    if dry_run is not None:
        dry_run.run()
    return DryRunReport(
        checks=in_order(checks.checks),
        ok=not checks.faults,
        faults=tuple(checks.faults),
        estimates=dry_run.estimates if dry_run is not None else Estimates(),
        cluster=cluster_report(dry_run.nodes) if dry_run is not None and dry_run.nodes else None,
        seconds=time.perf_counter() - began,
    )


class _DryRun:
    """A dry run of a configuration that could be read.

    Attributes:
        estimates: What is known so far.
        nodes: Of the cluster, once it is joined.
    """

    def __init__(self, asked: DryRunOptions, config: RunConfig, console: "Console", checks: Checklist) -> None:
        self.estimates = Estimates()
        self.nodes: tuple[Node, ...] = ()
        self._asked, self._config, self._console, self._checks = asked, config, console, checks
        self._starts = Starts()

    def run(self) -> None:
        """Check, and rehearse where nothing is wrong."""
        with ThreadPoolExecutor(1) as background, ExitStack() as stack:
            recording = background.submit(self._try_store)
            self._console.print("Reading volumes …")
            seen = check_volumes(self._checks, self._config, self._asked.inputs)
            writable = check_writable(self._checks, self._asked.out)
            if self._asked.inputs:
                check_outputs(self._checks, seen.inputs, self._asked.out, writable=writable)
            model = self._model() if self._asked.model is not None else None
            self._console.print("Starting or joining Ray …")
            began = time.perf_counter()
            self.nodes = check_cluster(self._checks, stack)
            joined = time.perf_counter() - began
            self._starts = Starts(reading=seen.seconds, cluster=joined)
            self._rehearse(seen, model, recording)

    def _try_store(self) -> Recording:
        """Try the tracking store; in a thread, while volumes are read and Ray starts."""
        checks, probe = Checklist(), None
        experiments = [self._config.tracking.experiment, *([EXPERIMENT] if self._asked.inputs else [])]
        remedy = "Set MLFLOW_TRACKING_URI to a store that is there."
        with checks.trying("tracking", "a run opened, written, read and deleted", remedy) as attempt:
            probe = try_store(experiments)
            attempt.ok(f"{probe.uri}, artifacts in {probe.artifacts}, {probe.seconds:.1f} s")
            if probe.left is not None:
                attempt.warning(probe.left, "See that you may delete runs, or remove it by hand.")
        return checks, probe

    def _model(self) -> NetworkFile | None:
        """The model that was named; None if it is none."""
        named, network = str(self._asked.model), None
        with self._checks.trying("model", f"reading {named}", "Name a .keras file saved by voxlift.") as attempt:
            network = saved_network(named)
            halo = ", ".join(f"{before}+{after}" for before, after in network.cost.field.halo)
            attempt.ok(f"{network.cost.parameters} weights, a halo of {halo} voxels")
        return network

    def _rehearse(self, seen: VolumesSeen, network: NetworkFile | None, recording: Future[Recording]) -> None:
        """First all that is cheap; if nothing is wrong, a step and then a shard."""
        built = step = None
        trains = bool(self.nodes) and check_room(self._checks, self._config)
        if self.nodes:
            check_replicas(self._checks, self._config)
            check_shared(self._checks, self.nodes, self._asked.out)
        with ExitStack() as stack:
            if trains:
                self._console.print("Building the network …")
                stand = stack.enter_context(training_stand(self._config))
                built = check_stages(self._checks, self._config, stand)
            if built is not None:
                self._starts = replace(self._starts, training=stand.start_seconds)
                untrained = untrained_network(self._config, built, seen.training, seen.spacing)
                self._check_memory(built, untrained)
                network = untrained if self._asked.model is None else network
            planned = self._plan(seen, network) if network is not None else []
            recorded, probe = recording.result()
            self._checks.extend(recorded)
            self._starts = replace(self._starts, store=probe.seconds if probe else 0.0)
            self._check_disk(built, planned, _folder(probe.artifacts) if probe else None)
            if built is not None and seen.lesson is not None and not self._checks.faults:
                self._console.print("Taking a training step …")
                step = self._step(stand, built, seen.lesson, seen.validation_voxels)
        if built is not None and step is not None and network is not None and planned and not self._checks.faults:
            self._console.print("Restoring a shard …")
            self._shard(network, planned)
            if not self._checks.faults:
                self._total(planned)

    def _plan(self, seen: VolumesSeen, network: NetworkFile) -> list[PlannedVolume]:
        """Check the shard plans of the inputs, and that the network was trained for them."""
        asked, resources = self._asked, self._config.resources
        if asked.inputs:
            order = UpscaleRequest(seen.inputs, asked.out, network, resources, scale=asked.scale, spacing=asked.spacing)
            planned = plan_inputs(self._checks, order)
        elif seen.lesson is not None:
            planned = plan_lesson(self._checks, seen.lesson, network, resources.memory_budget_mib)
        else:
            planned = []
        if planned:
            check_range(self._checks, network, planned, trained=asked.model is not None)
            self.estimates = replace(
                self.estimates,
                shards=sum(volume.shards for volume in planned),
                overhead=overhead(planned),
                shard_mib=Memory(_largest(planned).likely_bytes / MIB),
            )
        return planned

    def _check_memory(self, built: BuiltNetwork, network: NetworkFile) -> None:
        """Compare the estimated memory of a replica with that of the nodes."""
        needed = replica_bytes(
            network.cost, self._config.training.patch, self._config.training.batch_size // built.replicas
        )
        check_memory(self._checks, self.nodes, built, needed)
        self.estimates = replace(self.estimates, replica_mib=Memory(needed / MIB))

    def _check_disk(self, built: BuiltNetwork | None, planned: Sequence[PlannedVolume], artifacts: Path | None) -> None:
        """Compare what the run writes with the free space of the disks."""
        out = self._asked.out
        needs = output_needs(planned, out) if self._asked.inputs else []
        if built is not None:
            needs += training_needs(self._config, built.parameters, built.optimizer_values, out, artifacts)
        if needs:
            check_room_on_disk(self._checks, needs)
            self.estimates = replace(self.estimates, output_bytes=sum(need.bytes for need in needs))

    def _step(
        self,
        stand: TrainingRehearsalWorker,
        built: BuiltNetwork,
        lesson: TrainingSource,
        validation_voxels: Sequence[int],
    ) -> RehearsedStep | None:
        """Take a training step and see what it takes."""
        estimates, step = self.estimates, None
        with self._checks.trying("training step", "one step, again to time it", CLUSTER_CURE) as attempt:
            step = stand.step(lesson)
            each = seconds_per_step(step, built.device, built.threads)
            memory = Memory(estimates.replica_mib.estimated, step.replica_bytes / MIB)
            self.estimates = replace(
                estimates,
                seconds_per_step=each,
                replica_mib=memory,
                training_seconds=training_seconds(self._config, step, built, validation_voxels),
            )
            if not isfinite(step.loss):
                attempt.failure(
                    f"Cannot train: the loss of the first step is {step.loss}.",
                    "Use a lower training.learning_rate, or training.mixed_precision off.",
                )
            attempt.ok(f"{each:.2f} s a step, loss {step.loss:.3g}")
            attempt.ok(f"{memory.estimated:.0f} MiB estimated for each replica, {memory.measured:.0f} MiB taken")
        return step

    def _shard(self, network: NetworkFile, planned: Sequence[PlannedVolume]) -> None:
        """Restore a shard of the volume that has the largest, and estimate the whole."""
        resources, largest = self._config.resources, _largest(planned)
        with self._checks.trying("shard", f"one of {largest.name}, twice", CLUSTER_CURE) as attempt:
            shard, started = rehearse_shard(largest, network, resources)
            self._starts = replace(self._starts, restoring=started)
            memory = Memory(largest.likely_bytes / MIB, shard.shard_bytes / MIB)
            restoring = restoring_seconds(planned, shard, largest, resources.workers)
            self.estimates = replace(self.estimates, shard_mib=memory, restoring_seconds=restoring)
            attempt.ok(f"{shard.seconds:.2f} s on {counted(resources.cpus_per_worker, 'CPU thread')}")
            attempt.ok(f"{memory.estimated:.0f} MiB estimated, {memory.measured:.0f} MiB taken")

    def _total(self, planned: Sequence[PlannedVolume]) -> None:
        """Add up the whole job."""
        with self._checks.trying(
            "time", "a whole run, from the step, the shard and all starts", CLUSTER_CURE
        ) as attempt:
            training, restoring = self.estimates.training_seconds or 0.0, self.estimates.restoring_seconds or 0.0
            total = total_seconds(self._starts, training, restoring, planned, apart=bool(self._asked.inputs))
            self.estimates = replace(self.estimates, total_seconds=total)
            attempt.ok(f"about {_clock(total)} in all: training {_clock(training)}, restoring {_clock(restoring)}")


def _largest(planned: Sequence[PlannedVolume]) -> PlannedVolume:
    return max(planned, key=lambda volume: volume.plan.shard_bytes)


def _folder(uri: str) -> Path | None:
    """The folder of this machine that a URI names, if it does."""
    address = urlsplit(uri)
    return Path(unquote(address.path)) if address.scheme in {"file", ""} else None


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
