"""Cost of recording a training like the demo's: `python -m benchmarks.tracking`, against SQLite and a server.

Trains twice through `voxlift train`'s own code, each in a process of its own, and counts the seconds that the driver
spends in the door to MLflow, by what is recorded. Writes `results/tracking.json` and `results/tracking.md`.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.volumes import RESULTS, hardware
from configs.load import load_config

ROOT = Path(__file__).parents[1]
ALL = "recording in all"
ALLOWED = 0.03  # of the training's time
RECORDED = {
    "parameters, tags, descriptions": ("parameters", "tags", "describe"),
    "artifacts with their contracts": ("artifact",),
    "inputs": ("inputs",),
    "metrics": ("metrics", "flush"),
    "contracts sealed, run ended": ("end",),
}
Row = dict[str, Any]


class Meter:
    """Adds up the seconds that the main thread spends in functions; what they call of each other counts once."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inside = False

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Measure a function under a name; in the sampling thread, which waits for the store, it is left alone."""
        from threading import current_thread, main_thread

        def measured(*given: Any, **named: Any) -> Any:  # noqa: ANN401 - whatever the function takes
            if self._inside or current_thread() is not main_thread():
                return function(*given, **named)
            self._inside, started = True, time.perf_counter()
            try:
                return function(*given, **named)
            finally:
                self._inside = False
                self.seconds[name] += time.perf_counter() - started

        return measured


def train() -> None:
    """Train once and print what was measured; the store is the one that is set."""
    from rich.console import Console

    import workflow.train.run as training_run
    from workflow.tracking.recorder import Recorder, SystemSampler, recorded_run

    meter = Meter()
    started = time.perf_counter()
    from mlflow import MlflowClient

    imported = time.perf_counter() - started
    for name, methods in RECORDED.items():
        for method in methods:
            setattr(Recorder, method, meter.around(name, getattr(Recorder, method)))
    opened, sample = recorded_run, SystemSampler._sample_until_ended

    @contextmanager
    def measured_run(*given: Any, **named: Any) -> Iterator[Recorder]:  # noqa: ANN401 - as the original
        started = time.perf_counter()
        with opened(*given, **named) as recorder:
            meter.seconds["run opened"] = time.perf_counter() - started
            yield recorder

    def sampled(sampler: SystemSampler) -> None:
        sample(sampler)
        meter.seconds["system metrics, CPU seconds of their thread"] = time.thread_time()

    setattr(training_run, "recorded_run", measured_run)  # noqa: B010 - for the time of the measurement
    setattr(SystemSampler, "_sample_until_ended", sampled)  # noqa: B010 - the same
    with tempfile.TemporaryDirectory() as folder:
        report = training_run.run_train(
            load_config("demo"), Path(folder), resume=False, start_from=None, console=Console(stderr=True)
        )
    known = MlflowClient(os.environ["MLFLOW_TRACKING_URI"]).get_run(report.mlflow.run_id)
    checked = known.data.metrics["seconds/model check"]
    print(json.dumps({"training": [report.steps, report.seconds, imported, checked], "recording": meter.seconds}))


def measured(store: str, uri: str) -> list[Row]:
    """Train against a store that has its tables and has been used; what was measured, as shares of the training."""
    environment = os.environ | {"MLFLOW_TRACKING_URI": uri, "PYTHONPATH": str(ROOT)}
    environment.pop("RAY_ADDRESS", None)
    warm = "from workflow.tracking import recorded_run\nwith recorded_run('benchmark', 'warm up'): pass"
    subprocess.run([sys.executable, "-c", warm], env=environment, check=True)
    command = [sys.executable, "-m", "benchmarks.tracking", "train"]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    (steps, training, imported, checked), recording = found["training"], found["recording"]

    def row(what: str, seconds: float) -> Row:
        return {"store": store, "what": what, "seconds": round(seconds, 2), "share": f"{seconds / training:.2%}"}

    return [
        row(f"training, {steps} steps", training),
        *(row(what, seconds) for what, seconds in recording.items()),
        row(ALL, sum(recording.values())),
        row("besides, once a process: MLflow imported", imported),
        row("besides, in a worker: model checked through MLflow's loader and logged", checked),
    ]


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """A real `mlflow server` on loopback, artifacts through it."""
    from tests.workflow.conftest import tracking_server

    with tracking_server(folder) as store:
        yield store.uri


def markdown(rows: list[Row]) -> str:
    """Lay the results out as a table."""
    keys = ("store", "what", "seconds", "share")
    lines = [keys, ["---"] * len(keys), *([str(row.get(key, "")) for key in keys] for row in rows)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"# Tracking\n\n{hardware()}. Made by `python -m benchmarks.tracking`.\n\n{table}\n"


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = measured("SQLite", f"sqlite:///{folder / 'runs.db'}")
        with server(folder) as uri:
            rows += measured("mlflow server", uri)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "tracking.json").write_text(json.dumps({"hardware": hardware(), "tracking": rows}, indent=2) + "\n")
    (RESULTS / "tracking.md").write_text(markdown(rows))
    print(markdown(rows))
    shares = [float(row["share"].rstrip("%")) / 100 for row in rows if row["what"] == ALL]
    print(f"At most {ALLOWED:.0%} are allowed: {'kept' if max(shares) <= ALLOWED else 'not kept'}.")


if __name__ == "__main__":
    train() if sys.argv[1:] == ["train"] else main()
