"""Common work of all worker processes: prepare for TensorFlow, return plain errors."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from configs.errors import RunError
from tasks.machine.check import first_line


class WorkerError(RunError):
    """Work that failed in a worker: what happened there, in one line."""


class WorkerDiedError(WorkerError):
    """A worker that is gone, with its process or its node."""


def prepare(gpus: int) -> None:
    """Set the environment that TensorFlow reads when it is imported, for a worker with so many GPUs."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if not gpus:
        # Ray hides no GPU from a worker that asked for none.
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"


@contextmanager
def lean_keras() -> Iterator[None]:
    """Let Keras, if it is imported in the block, find neither scikit-learn nor matplotlib.

    It imports them where they are installed, for what restoring does not use: a quarter of the time that TensorFlow
    takes to load.
    """
    absent = [name for name in ("sklearn", "matplotlib") if name not in sys.modules]
    modules: dict[str, Any] = sys.modules
    modules.update(dict.fromkeys(absent))  # None marks what is not to be found
    try:
        yield
    finally:
        for name in absent:
            del modules[name]


@contextmanager
def plain_errors() -> Iterator[None]:
    """Let through only errors that the driver can unpickle without TensorFlow."""
    try:
        yield
    except (ValueError, MemoryError) as error:
        if type(error).__module__.split(".")[0] in {"builtins", "tasks", "models", "configs"}:
            raise
        raise WorkerError(f"{type(error).__name__}: {first_line(error)}") from None
    except Exception as error:  # noqa: BLE001 - goes to the driver as plain text
        raise WorkerError(f"{type(error).__name__}: {first_line(error)}") from None
