"""The doctor: check every part of this machine for real, with a remedy for each failure."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path

from pydantic import TypeAdapter

from configs.errors import InputError
from tasks.machine.check import Check, Checklist, first_line
from tasks.machine.tensorflow_check import CHECKS, IDENTITY
from workflow.checks.report import ChecksReport

ROOT = Path(__file__).parents[2]
CONSTRAINTS = ROOT / "constraints.txt"
MAX_SECONDS = 120
LOG = "tensorflow.log"
REMEDY = "Run make setup again; TensorFlow's wheels need a processor with AVX, and memory of about 1 GiB."


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


@dataclass
class TensorFlowProcess:
    """A process that tries TensorFlow, which the doctor never loads, and writes to a folder; or why none started."""

    folder: Path
    process: subprocess.Popen[bytes] | None = None
    problem: str = ""

    def checks(self) -> list[Check]:
        """Wait for the checks, with a failed one if the process did not complete."""
        failure, file = self._failure, self.folder / CHECKS
        lines = file.read_text().splitlines() if file.exists() else []
        made = [TypeAdapter(Check).validate_json(line) for line in lines if line.endswith("}")]
        if not failure:
            return made
        seen = f"{failure} {f'after the check of {made[-1].name}' if made else 'before its first check'}"
        return [*made, Check("TensorFlow process", "whether it completes", seen, "failed", REMEDY)]

    def identity(self) -> Path:
        """Wait for the network that returns its input.

        Raises:
            InputError: The process did not save it.
        """
        path = self.folder / IDENTITY
        if self._failure or not path.exists():
            raise InputError("not tried: TensorFlow saved no network.", "Fix what the checks of TensorFlow say.")
        return path

    def end(self) -> None:
        """End the process at once."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    @cached_property
    def _failure(self) -> str:
        """Wait for the process; the reason that it did not complete, if any."""
        if self.process is None:
            return self.problem
        try:
            status = self.process.wait(MAX_SECONDS)
        except subprocess.TimeoutExpired:
            self.end()
            return f"not ended within {MAX_SECONDS} s,"
        if not status:
            return ""
        how = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
        lines = (self.folder / LOG).read_text(errors="replace").strip().splitlines()
        return f"ended {how} (last output: {lines[-1][:200] if lines else 'none'})"


@contextmanager
def trying_tensorflow() -> Iterator[TensorFlowProcess]:
    """Start the process; it ends with the block."""
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": paths}
    with ExitStack() as stack:
        started = TensorFlowProcess(Path(os.devnull))
        try:
            name = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
            started = TensorFlowProcess(Path(name))
            command = [sys.executable, "-m", "tasks.machine.tensorflow_check", name]
            with (started.folder / LOG).open("w") as log:
                started.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)  # noqa: S603
        except OSError as error:
            started.problem = f"not started ({error})"
        stack.callback(started.end)
        yield started
