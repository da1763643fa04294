"""A worker without a cluster: one process of this machine, started ahead of work that is done before Ray would be."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

from configs.schema import Resources
from tasks.artifacts.network_file import NetworkFile
from tasks.machine.worker import WorkerDiedError, plain_errors, prepare
from tasks.sharding.restore import RestoredCore, worker_restorer
from workflow.restore.worker_pool import Job, Outcome


class Child:
    """A process that restores shards, for a `with` block; it takes jobs as `WorkerPool` does, one after another.

    It loads TensorFlow and the network at once, while its parent does other things, and ends when its parent does,
    however that ends. A job whose process dies is tried again in another.

    Args:
        network: The restorer.
        resources: Threads, and how often a job is tried again.
    """

    alive = 1

    def __init__(self, network: NetworkFile, resources: Resources) -> None:
        self._network, self._resources = network, resources
        self._began: float | None = None
        self._start()

    def _start(self) -> None:
        self._loaded = False
        self._connection, theirs = Pipe()
        arguments = theirs.fileno(), self._network.name, self._resources.cpus_per_worker, self._network.flips
        # The search path is that of this process; `-P` keeps the current folder out, a session of its own Ctrl-C.
        code = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import serve; serve{arguments!r}"
        with theirs, tempfile.TemporaryFile() as content:
            content.write(self._network.content)
            content.seek(0)
            self._process = subprocess.Popen(  # noqa: S603 - fixed arguments
                [sys.executable, "-P", "-c", code],
                pass_fds=[theirs.fileno()],
                stdin=content,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shut_down()

    def shut_down(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._connection.close()

    @property
    def seconds(self) -> float:
        """Since the first job."""
        return 0.0 if self._began is None else time.monotonic() - self._began

    def work(self, jobs: Iterable[Job]) -> Iterator[Outcome]:
        """Yield the outcome of each job; an error stays with its job.

        Raises:
            Exception: Why the network cannot be loaded.
        """
        self._began = time.monotonic()
        for job in jobs:
            yield self._outcome(job)

    def _outcome(self, job: Job) -> Outcome:
        for tries in range(self._resources.retries + 1):
            try:
                core, error = self._restored(job)
                return Outcome(job.key, core, error, tries)
            except (EOFError, OSError):
                self.shut_down()
                self._start()
        return Outcome(job.key, error=WorkerDiedError("the worker died: its process is gone."), retries=tries)

    def _restored(self, job: Job) -> tuple[RestoredCore | None, Exception | None]:
        if not self._loaded:
            _, failure = self._connection.recv()
            if failure is not None:
                raise failure
            self._loaded = True
        self._connection.send(job.arguments)
        core, error = self._connection.recv()
        return core, error


def serve(handle: int, name: str, threads: int, flips: int) -> None:
    """Restore what comes in at a connection, in a process of its own, until the other side is gone.

    Args:
        handle: Of the connection; the content of the network's file is at standard input.
        name: Of that file.
        threads: CPU threads that TensorFlow may use.
        flips: As for `tasks.sharding.restore.Restorer`.
    """
    prepare(gpus=0)

    def answer(make: Any, *arguments: Any) -> Any:  # noqa: ANN401 - what it makes
        made, failure = None, None
        try:
            with plain_errors():
                made = make(*arguments)
        except Exception as error:  # noqa: BLE001 - it goes to the parent
            failure = error
        parent.send((made if isinstance(made, RestoredCore) else None, failure))
        return made

    with Connection(handle) as parent, suppress(EOFError, OSError):
        restorer = answer(worker_restorer, name, sys.stdin.buffer.read(), threads, flips)
        while True:
            answer(restorer, *parent.recv())
