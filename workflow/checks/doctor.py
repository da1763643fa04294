"""The doctor: check every part of this machine for real, with a remedy for each failure."""

import time
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path

from tasks.machine.check import Checklist, first_line
from workflow.checks.report import ChecksReport
from workflow.checks.tensorflow_process import trying_tensorflow

ROOT = Path(__file__).parents[2]
CONSTRAINTS = ROOT / "constraints.txt"


def run_doctor(constraints: Path = CONSTRAINTS) -> ChecksReport:
    """Try everything that a run needs; TensorFlow in a process and the tracking store in a thread, while Ray starts.

    Args:
        constraints: The file of pinned versions.
    """
    started = time.monotonic()
    with ThreadPoolExecutor(1) as thread, trying_tensorflow() as tensorflow:
        store = thread.submit(_part, "MLflow", "store.store_checks")
        machine = _part("machine", "machine.machine_checks", constraints)
        ray = _part("Ray", "ray_checks.ray_checks", tensorflow.identity)
        checks = (*machine.checks, *tensorflow.checks(), *ray.checks, *store.result().checks)
    ok = all(check.status != "failed" for check in checks)
    return ChecksReport(checks=checks, ok=ok, seconds=time.monotonic() - started)


def _part(name: str, function: str, *arguments: object) -> Checklist:
    """Import and make the checks of a part; an error, such as of a broken package, is a failed check."""
    module, _, made_by = function.partition(".")
    try:
        checks: Checklist = getattr(import_module(f"workflow.checks.{module}"), made_by)(*arguments)
    except Exception as error:  # noqa: BLE001 - must not stop the other parts
        checks = Checklist()
        with checks.trying(name, "importing what it needs", "Run make setup.") as attempt:
            attempt.failure(f"{type(error).__name__}: {first_line(error)}")
    return checks
