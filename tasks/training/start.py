"""The start of a training, for callers that must not load TensorFlow themselves."""

from collections.abc import Callable, Iterator

from tasks.training.job import TrainingJob, TrainingRecord


def run_training(job: TrainingJob, should_stop: Callable[[], bool] = lambda: False) -> Iterator[TrainingRecord]:
    """Train in this process: `tasks.training.loop.train`, imported when it is called."""
    from tasks.training.loop import train

    return train(job, should_stop)
