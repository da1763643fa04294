"""The doctor: check every part of this machine for real, with a remedy for each failure."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tasks.machine.check import Checklist, first_line
from workflow.checks.report import ChecksReport
from workflow.checks.tensorflow_process import trying_tensorflow

ROOT = Path(__file__).parents[2]
CONSTRAINTS = ROOT / "constraints.txt"


def run_doctor(constraints: Path = CONSTRAINTS) -> ChecksReport:
    """Try everything that a run needs.

    TensorFlow works in a process of its own and the tracking store is tried in a thread, while Ray starts.

    Args:
        constraints: The file of pinned versions.
    """
    started = time.monotonic()
    with ThreadPoolExecutor(1) as thread, trying_tensorflow() as tensorflow:
        store = thread.submit(_part, "MLflow", _store_checks)
        machine = _part("machine", lambda: _machine_checks(constraints))
        ray = _part("Ray", lambda: _ray_checks(tensorflow.identity))
        checks = (*machine.checks, *tensorflow.checks(), *ray.checks, *store.result().checks)
    ok = all(check.status != "failed" for check in checks)
    return ChecksReport(checks=checks, ok=ok, seconds=time.monotonic() - started)


def _part(name: str, make: Callable[[], Checklist]) -> Checklist:
    """Make the checks of a part; what keeps it from making them is a check that failed."""
    try:
        return make()
    except Exception as error:  # noqa: BLE001 - a package that cannot be imported must not stop the others
        checks = Checklist()
        with checks.trying(name, "importing what it needs", "Run make setup.") as attempt:
            attempt.failure(f"{type(error).__name__}: {first_line(error)}")
        return checks


def _machine_checks(constraints: Path) -> Checklist:
    from workflow.checks.machine import machine_checks

    return machine_checks(constraints)


def _ray_checks(identity: Callable[[], Path]) -> Checklist:
    from workflow.checks.ray_checks import ray_checks

    return ray_checks(identity)


def _store_checks() -> Checklist:
    from workflow.checks.store import store_checks

    return store_checks()
