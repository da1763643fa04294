"""System metrics of a run: CPU, memory, disk, network and GPUs, sampled by MLflow's monitors."""

import logging
import threading
from collections.abc import Callable, Mapping
from types import TracebackType

from workflow.tracking import mlflow_api

SYSTEM_PREFIX = "system/"
SAMPLE_SECONDS = 5.0


class SystemSampler:
    """Samples the machine in a thread, and once more at the end, and hands the figures to the run's only writer.

    Args:
        write: Takes metrics by name and their step.
        first_step: Number of the first sample.
    """

    def __init__(self, write: Callable[[Mapping[str, float], int], None], first_step: int = 0) -> None:
        self._write = write
        self._step = first_step
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample_until_ended, name="system-metrics", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _sample_until_ended(self) -> None:
        logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)  # it tells of GPUs that are not there
        monitors = mlflow_api.SystemMetricsMonitor("not written by it").monitors
        for monitor in monitors:
            monitor.collect_metrics()  # the first share of CPU time is of no interval
            monitor.clear_metrics()
        ended = False
        while not ended:
            ended = self._ended.wait(SAMPLE_SECONDS)
            found: dict[str, float] = {}
            for monitor in monitors:
                monitor.collect_metrics()
                found |= monitor.aggregate_metrics()
                monitor.clear_metrics()
            self._write({SYSTEM_PREFIX + name: float(value) for name, value in found.items()}, self._step)
            self._step += 1
