"""The doctor: check every part of this machine for real, with a remedy for each failure."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.machine.check import Check, first_line
from workflow.doctor.tensorflow import trying_tensorflow

if TYPE_CHECKING:
    from rich.table import Table

ROOT = Path(__file__).parents[2]
CONSTRAINTS = ROOT / "constraints.txt"
STYLES = {"ok": "green", "warning": "yellow", "failed": "red"}


@dataclass(frozen=True)
class Diagnosis:
    """Findings of the doctor.

    Args:
        checks: In the order in which a run needs what they are about.
        ok: Whether none has failed.
        seconds: What it all took.
    """

    checks: tuple[Check, ...]
    ok: bool
    seconds: float


def run_doctor(constraints: Path = CONSTRAINTS) -> Diagnosis:
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
        checks = (*machine, *tensorflow.checks(), *ray, *store.result())
    ok = all(check.status != "failed" for check in checks)
    return Diagnosis(checks, ok, time.monotonic() - started)


def diagnosis_table(diagnosis: Diagnosis) -> "Table":
    """A line for each check, with the remedy below what was seen."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    failed, warned = (sum(check.status == status for check in diagnosis.checks) for status in ("failed", "warning"))
    caption = f"{len(diagnosis.checks)} checks in {diagnosis.seconds:.0f} s: {failed} failed, {warned} warnings"
    table = Table("", "check", "tried", "seen", box=SIMPLE_HEAD, caption=caption, caption_justify="left")
    for check in diagnosis.checks:
        seen = check.seen if check.remedy is None else f"{check.seen}\n→ {check.remedy}"
        verdict = Text(check.status, style=STYLES[check.status])
        table.add_row(verdict, Text(check.name), Text(check.tried), Text(seen, overflow="fold"))
    return table


def _part(name: str, make: Callable[[], list[Check]]) -> list[Check]:
    """Make the checks of a part; what keeps it from making them is a check that failed."""
    try:
        return make()
    except Exception as error:  # noqa: BLE001 - a package that cannot be imported must not stop the others
        seen = f"{type(error).__name__}: {first_line(error)}"
        return [Check(name, "importing what it needs", seen, "failed", "Run make setup.")]


def _machine_checks(constraints: Path) -> list[Check]:
    from workflow.doctor.machine import machine_checks

    return machine_checks(constraints)


def _ray_checks(identity: Callable[[], Path]) -> list[Check]:
    from workflow.doctor.ray_checks import ray_checks

    return ray_checks(identity)


def _store_checks() -> list[Check]:
    from workflow.doctor.store import store_checks

    return store_checks()
