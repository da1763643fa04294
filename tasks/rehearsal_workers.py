"""The workers of a rehearsal, which load TensorFlow: `tasks.rehearsal` starts them."""

import ctypes
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from math import prod
from pathlib import Path
from statistics import median
from typing import TypeVar

import keras
import numpy as np
import psutil
import tensorflow as tf

from configs.schema import RunConfig
from tasks.machine.devices import device_kind, mirrored_strategy
from tasks.rehearsal import BuiltNetwork, RehearsedShard, RehearsedStep
from tasks.sharding.plan import Shard
from tasks.sharding.restore import CoarseVolume, Restorer, peak_rss
from tasks.training.blocks import LANES, PATCHES, PatchSource, TrainingVolume, block_number
from tasks.training.loop import Trainer, patch_dataset
from tasks.training.networks import build_network
from tasks.volume.intensity import Intensity

T = TypeVar("T")
REPEATS = 3  # of what is timed, once it is warm


class TrainingRehearsal:
    """Rehearsal of a training: everything before its first step, then steps on demand.

    Args:
        config: The run.

    Raises:
        InputError: The devices do not fit the replicas.
        ShapeError: The stages make no network.
    """

    def __init__(self, config: RunConfig) -> None:
        training = config.training
        keras.utils.set_random_seed(training.seed)
        self._config = config
        self._strategy = mirrored_strategy(training.replicas, training.batch_size)
        with self._strategy.scope():
            self._trainer = Trainer(config, self._strategy)

    def __call__(self, volumes: Sequence[TrainingVolume] | None = None) -> BuiltNetwork | RehearsedStep:
        """Describe the network or, given training volumes, take a step."""
        return self._built() if volumes is None else self._step(volumes)

    def _built(self) -> BuiltNetwork:
        network, training, model = self._config.network, self._config.training, self._trainer.model
        replicas = self._strategy.num_replicas_in_sync
        patches_shape = (training.batch_size // replicas, *training.patch, 1)
        latent, *stages = _traced_shapes(model, len(network.stages), patches_shape)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "untrained.keras"
            build_network(network).save(path)
            content = path.read_bytes()
        return BuiltNetwork(
            replicas=replicas,
            device=device_kind(),
            threads=os.cpu_count() or 1,
            parameters=sum(prod(weight.shape) for weight in model.trainable_variables),
            optimizer_values=sum(prod(value.shape) for value in self._trainer.optimizer.variables),
            latent_shape=latent,
            stage_shapes=tuple(stages),
            content=content,
            idle_bytes=psutil.Process().memory_info().rss,
        )

    def _step(self, volumes: Sequence[TrainingVolume]) -> RehearsedStep:
        training = self._config.training
        source, drawn = PatchSource(volumes, self._config), max(LANES, training.batch_size)
        _, fill_seconds = timed(lambda: [source.draw(index) for index in range(drawn)], time.thread_time)
        _, lanes_seconds = timed(lambda: [source.draw(drawn + lane) for lane in range(LANES)], time.thread_time)
        crop_seconds = lanes_seconds / LANES
        blocks = len({block_number(index) for index in range(drawn)})
        block_seconds = max(0.0, fill_seconds - drawn * crop_seconds) / blocks

        dataset = patch_dataset(source, training.model_copy(update={"steps": 1}))
        batch = next(iter(self._strategy.experimental_distribute_dataset(dataset)))
        growth = MemoryGrowth()
        (loss, first_seconds), *later = (timed(lambda: self._trainer.step(batch)) for _ in range(1 + REPEATS))
        # Logical CPU devices share the memory of the process, a GPU has its own.
        sharing = 1 if tf.config.list_logical_devices("GPU") else self._strategy.num_replicas_in_sync
        return RehearsedStep(
            loss=loss,
            fill_seconds=fill_seconds,
            first_seconds=first_seconds,
            step_seconds=median(seconds for _, seconds in later),
            patch_seconds=training.batch_size * (crop_seconds + block_seconds / PATCHES),
            replica_bytes=growth.bytes // sharing,
        )


class ShardRehearsal:
    """A worker that restores one shard, and again once it is warm.

    Args:
        name: The model's file name.
        content: The bytes of the `.keras` file.
        threads: CPU threads that TensorFlow may use.
        total_stride: Of the network.

    Raises:
        InputError: The bytes are no model that safe mode admits.
    """

    def __init__(self, name: str, content: bytes, threads: int, total_stride: tuple[int, int, int]) -> None:
        self._restorer = Restorer(name, content, threads)
        # Traced, as the idle workers of a run are.
        self._restorer.restored(np.zeros(total_stride, np.float32), Intensity(0, 1))

    def __call__(self, volume: CoarseVolume, shard: Shard, later: Shard) -> RehearsedShard:
        """Restore a shard, and another or the same once it is warm."""
        growth = MemoryGrowth()
        (core, first), (_, second) = (timed(partial(self._restorer, volume, one)) for one in (shard, later))
        return RehearsedShard(first, second, growth.bytes, core.device)


class MemoryGrowth:
    """Measures memory from its creation: of the GPU that takes most, or of the host where there is none."""

    def __init__(self) -> None:
        self._info = tf.config.experimental.get_memory_info
        self._gpus = [device.name.removeprefix("/device:") for device in tf.config.list_logical_devices("GPU")]
        for gpu in self._gpus:
            tf.config.experimental.reset_memory_stats(gpu)
        self._held_by_gpus = [self._info(gpu)["current"] for gpu in self._gpus]
        with suppress(OSError, AttributeError):
            # GNU: freed memory goes back to the system; else work that reuses it would not be measured.
            ctypes.CDLL(None).malloc_trim(0)
        with suppress(OSError):
            # Linux: resets the peak. Elsewhere it may be older, and the growth is overstated.
            Path("/proc/self/clear_refs").write_text("5")
        self._held = psutil.Process().memory_info().rss

    @property
    def bytes(self) -> int:
        """Peak memory beyond that at the start."""
        if self._gpus:
            peaks = (self._info(gpu)["peak"] for gpu in self._gpus)
            return max(int(peak - held) for peak, held in zip(peaks, self._held_by_gpus, strict=True))
        return max(0, peak_rss() - self._held)


def timed(work: Callable[[], T], clock: Callable[[], float] = time.perf_counter) -> tuple[T, float]:
    """Do some work; returns its result and its seconds."""
    began = clock()
    return work(), clock() - began


def _traced_shapes(model: keras.Model, stages: int, input_shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return the shapes of the latent and of each stage's output, as TensorFlow infers them without computing."""
    layers = [model.get_layer(f"stage_{number}") for number in range(stages)]
    inner = keras.Model(model.inputs, [layers[0].input, *(layer.output for layer in layers)])
    traced = tf.function(lambda patches: inner(patches, training=False), jit_compile=False)
    made = traced.get_concrete_function(tf.TensorSpec(input_shape, tf.float32)).structured_outputs
    return [tuple(tensor.shape) for tensor in made]
