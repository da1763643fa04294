"""A worker without a cluster: one process of this machine, started ahead of work that is done before Ray would be."""

import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

from configs.schema import Resources
from tasks.artifacts.network_file import NetworkFile
from tasks.machine.worker import WorkerDiedError, plain_errors, prepare
from tasks.sharding.restore import Restorer
from workflow.restore.worker_pool import Job, Outcome


class Child:
    """A process that restores shards; for a `with` block.

    It loads TensorFlow at once, while its parent does other things, and ends when its parent does, however that ends.

    Args:
        cpus: Threads of it.
    """

    def __init__(self, cpus: int) -> None:
        self._cpus = cpus
        self._start()

    def _start(self) -> None:
        self._connection, theirs = Pipe()
        with theirs:
            # The path as it is here; `-P` and a session of its own keep the current folder and Ctrl-C out.
            code = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import serve; serve({theirs.fileno()})"
            self._process = subprocess.Popen(  # noqa: S603 - fixed arguments
                [sys.executable, "-P", "-c", code],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._connection.close()

    @contextmanager
    def restorers(self, network: NetworkFile, resources: Resources, _: int) -> Iterator["ChildPool"]:
        """Let the process load a network; yields what takes jobs, as `workflow.restore.restoration.restorers` does."""
        yield ChildPool(self, (network.name, network.content, self._cpus, network.flips), resources.retries)

    def restart(self) -> None:
        """Replace the process."""
        self._end()
        self._start()

    def ask(self, *request: Any) -> Any:  # noqa: ANN401 - what `serve` takes and answers
        """Send a request and wait for its answer.

        Raises:
            WorkerDiedError: The process is gone.
            Exception: What it raised.
        """
        try:
            self._connection.send(request)
            value, error = self._connection.recv()
        except (EOFError, OSError) as gone:
            raise WorkerDiedError("the worker died: its process is gone.") from gone
        if error is not None:
            raise error
        return value


class ChildPool:
    """Takes jobs as `WorkerPool` does, one after another; a job whose process dies is tried again in another.

    Args:
        child: The process.
        network: Arguments of `Restorer`.
        retries: How often a job is tried again.
    """

    alive = 1

    def __init__(self, child: Child, network: tuple[Any, ...], retries: int) -> None:
        self._child, self._network, self._retries = child, network, retries
        self._began, self._loaded = time.monotonic(), False

    @property
    def seconds(self) -> float:
        """Since the pool was made."""
        return time.monotonic() - self._began

    def work(self, jobs: Iterable[Job]) -> Iterator[Outcome]:
        """Yield the outcome of each job; an error stays with its job.

        Raises:
            Exception: Why the network cannot be loaded.
        """
        for job in jobs:
            yield self._outcome(job)

    def _outcome(self, job: Job) -> Outcome:
        for tries in range(self._retries + 1):
            try:
                return self._tried(job, tries)
            except WorkerDiedError as error:
                outcome, self._loaded = Outcome(job.key, error=error, retries=tries), False
                self._child.restart()
        return outcome

    def _tried(self, job: Job, retries: int) -> Outcome:
        if not self._loaded:
            self._child.ask("load", self._network)
            self._loaded = True
        try:
            return Outcome(job.key, self._child.ask("restore", job.arguments), retries=retries)
        except WorkerDiedError:
            raise
        except Exception as error:  # noqa: BLE001 - any error fails this job alone
            return Outcome(job.key, error=error, retries=retries)


def serve(handle: int) -> None:
    """Answer requests that come in at a connection, in a process of its own, until the other side is gone."""
    prepare(gpus=0)
    import tasks.sharding.compiled  # noqa: F401, PLC0415 - ahead of the first request, and in this process alone

    restorer: Restorer | None = None
    with Connection(handle) as parent, suppress(EOFError, OSError):
        while True:
            operation, arguments = parent.recv()
            answer: tuple[Any, Exception | None] = None, None
            try:
                with plain_errors():
                    if operation == "load":
                        restorer = Restorer(*arguments)
                    elif restorer is not None:
                        answer = restorer(*arguments), None
            except Exception as error:  # noqa: BLE001 - it goes to the parent
                answer = None, error
            parent.send(answer)
