"""TensorFlow tried by the doctor, which never loads it: a process of its own, whatever becomes of it."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path

from pydantic import TypeAdapter

from configs.errors import InputError
from tasks.machine.check import Check
from tasks.machine.tensorflow_check import CHECKS, IDENTITY

ROOT = Path(__file__).parents[2]
MAX_SECONDS = 120
REMEDY = "Run make setup again; TensorFlow's wheels need a processor with AVX, and memory of about 1 GiB."


class TensorFlowProcess:
    """A process that tries TensorFlow, and what it has written.

    Args:
        folder: For what it writes.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._log = folder / "tensorflow.log"
        environment = {
            **os.environ,
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._not_started = ""
        try:
            with self._log.open("w") as log:
                command = [sys.executable, "-m", "tasks.machine.tensorflow_check", str(folder)]
                self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)  # noqa: S603
        except OSError as error:
            self._not_started = f"not started ({error})"

    def checks(self) -> list[Check]:
        """Wait for the checks; that the process did not come to its end is one more."""
        failure, file = self._failure, self._folder / CHECKS
        lines = file.read_text().splitlines() if file.exists() else []
        made = [TypeAdapter(Check).validate_json(line) for line in lines if line.endswith("}")]
        if not failure:
            return made
        seen = f"{failure} {f'after the check of {made[-1].name}' if made else 'before its first check'}"
        return [*made, Check("TensorFlow process", "whether it comes to its end", seen, "failed", REMEDY)]

    def identity(self) -> Path:
        """Wait for the network that returns its input.

        Raises:
            InputError: The process did not save it.
        """
        path = self._folder / IDENTITY
        if self._failure or not path.exists():
            raise InputError("not tried: TensorFlow saved no network.", "Fix what the checks of TensorFlow say.")
        return path

    def end(self) -> None:
        """End the process, whatever it is at."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    @cached_property
    def _failure(self) -> str:
        """Wait for the process; why it did not come to its end, empty where it did."""
        if self._process is None:
            return self._not_started
        try:
            status = self._process.wait(MAX_SECONDS)
        except subprocess.TimeoutExpired:
            self.end()
            return f"not ended within {MAX_SECONDS} s,"
        if not status:
            return ""
        how = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return f"ended {how} (last words: {lines[-1][:200] if lines else 'none'})"


@contextmanager
def trying_tensorflow() -> Iterator[TensorFlowProcess]:
    """Start the process; it ends with the block."""
    with ExitStack() as stack:
        try:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        except OSError:
            folder = Path(os.devnull)  # no temporary folder on this machine: the start says so
        started = TensorFlowProcess(folder)
        stack.callback(started.end)
        yield started
