"""Entry points of work that loads TensorFlow, for drivers, which must not: the worker does each import."""

from collections.abc import Callable, Iterator
from typing import Any

from configs.schema import RunConfig
from tasks.training.job import TrainingJob, TrainingRecord

Shape = tuple[int, int, int]


def run_training(job: TrainingJob, should_stop: Callable[[], bool] = lambda: False) -> Iterator[TrainingRecord]:
    """Train in this process, as `tasks.training.loop.train`; RunError once another run has taken its folder over."""
    from tasks.training.loop import train  # noqa: PLC0415 - in the worker alone

    def asked() -> bool:  # after every step, before a checkpoint: a killed driver may have left this process behind
        if job.lock is not None:
            job.lock.require_held()
        return should_stop()

    return train(job, asked)


def training_rehearsal(config: RunConfig) -> Callable[..., Any]:
    """Rehearse a training, as `tasks.rehearsal_workers.TrainingRehearsal`."""
    from tasks.rehearsal_workers import TrainingRehearsal  # noqa: PLC0415 - in the worker alone

    return TrainingRehearsal(config)


def shard_rehearsal(name: str, content: bytes, threads: int, total_stride: Shape) -> Callable[..., Any]:
    """Rehearse the restoration of a shard, as `tasks.rehearsal_workers.ShardRehearsal`."""
    from tasks.rehearsal_workers import ShardRehearsal  # noqa: PLC0415 - in the worker alone

    return ShardRehearsal(name, content, threads, total_stride)
