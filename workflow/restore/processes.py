"""Workers that are processes of this machine: the counterpart of those of a cluster, without a start of Ray."""

import os
import pickle
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from queue import SimpleQueue
from typing import Any

import psutil

from configs.schema import Resources
from tasks.artifacts.network_file import NetworkFile
from tasks.machine.child import listen, start_child
from tasks.machine.cpus import usable_cpus
from tasks.machine.gpus import cards
from tasks.machine.worker import WorkerDiedError, plain_errors, prepare
from tasks.sharding.restore import worker_restorer
from workflow.restore.worker_pool import WorkerPool

IDLE_MIB = 600  # of a worker that has loaded TensorFlow
THREADS = 4  # of a process where there are more CPUs: each further process loads TensorFlow and begins a stream anew


class _Same:
    """In place of an argument that is that of the call before."""


class Answer:
    """A result or an error that a worker will send."""

    def __init__(self, worker: "ProcessWorker") -> None:
        self.worker = worker
        self.content: tuple[Any, Exception | None] | None = None


class ProcessWorker:
    """A worker process with a tool; it ends when this process does, however that ends.

    Args:
        make: Makes the tool inside the worker. A module-level name.
        arguments: Of `make`.
        gpus: Free ones, as `CUDA_VISIBLE_DEVICES` names them: the worker takes one while it lives. Without any, it
            sees none.
    """

    def __init__(
        self, make: Callable[..., Callable[..., Any]], arguments: tuple[Any, ...], gpus: deque[str] | None = None
    ) -> None:
        self._gpus, self._gpu = gpus, gpus.popleft() if gpus else None
        self.placing = None  # a process of this machine is there at once
        self.loading = Answer(self)
        self._awaited = deque([self.loading])
        self._sent: object = None
        self.connection, theirs = Pipe()
        with theirs:
            code = f"from {__name__} import serve; serve({theirs.fileno()}, {self._gpu!r})"
            self._process = start_child(code, (make, *arguments), [theirs.fileno()])

    def call(self, arguments: tuple[Any, ...]) -> Answer:
        """Call the tool; the answer is what `first_answers` and `fetch` take.

        A first argument that is the object of the call before, a volume of many shards, is not sent again.
        """
        answer = Answer(self)
        self._awaited.append(answer)
        first, *others = arguments
        with suppress(OSError):  # of a process that is gone: its answers say so
            self.connection.send((_Same() if first is self._sent else first, *others))
        self._sent = first
        return answer

    def receive(self) -> None:
        """Wait for the next answer; if the process is gone, that is the answer to all calls."""
        try:
            content = self.connection.recv()
        except (EOFError, OSError):
            for answer in self._awaited:
                answer.content = None, WorkerDiedError("the worker died: its process is gone.")
            return
        self._awaited.popleft().content = content

    def end(self) -> None:
        """End the process at once."""
        self._process.kill()
        self._process.wait()
        self.connection.close()
        if self._gpus is not None and self._gpu is not None:
            self._gpus.append(self._gpu)
            self._gpu = None


def first_answers(answers: Iterable[Answer], seconds: float) -> list[Answer]:
    """Wait until one of the answers is there, or for so long; returns those that are."""
    awaited = list(answers)
    is_one_here = any(answer.content for answer in awaited)
    ready = wait([one.worker.connection for one in awaited if not one.content], 0 if is_one_here else max(0, seconds))
    for answer in awaited:
        if answer.worker.connection in ready:
            answer.worker.receive()
    return [answer for answer in awaited if answer.content]


def fetch(answer: Answer) -> Any:  # noqa: ANN401 - what the tool returns
    """Return the value of an answer that is there.

    Raises:
        WorkerDiedError: The worker's process is gone.
        Exception: What the tool raised.
    """
    value, error = answer.content or (None, None)
    if error is not None:
        raise error
    return value


def spread(resources: Resources, threads: int | None, gpus: int = 0) -> Resources:
    """Divide the CPUs of this machine among processes: one for each GPU or, without any, by the CPUs.

    Args:
        resources: Of which the number of workers, their threads and GPUs are replaced.
        threads: Of each process; None for few processes of several threads.
        gpus: To use.
    """
    cpus = usable_cpus()
    processes = gpus or max(1, cpus // (threads or THREADS))
    each = {"cpus_per_worker": threads or max(1, cpus // processes), "gpus_per_worker": min(1, gpus)}
    return resources.model_copy(update={"workers": processes, **each})


@contextmanager
def process_restorers(network: NetworkFile, resources: Resources, shards: int) -> Iterator[WorkerPool]:
    """Start processes that hold a network, at most one per shard and no more than memory holds; end them at the end."""
    gpus = deque(card.token for card in cards()) if resources.gpus_per_worker else None
    # The budget of a worker with a GPU is that of the card.
    budget = 0 if gpus else resources.memory_budget_mib
    room = psutil.virtual_memory().available // ((budget + IDLE_MIB) << 20)
    pool = WorkerPool(
        lambda: ProcessWorker(
            worker_restorer, (network.name, network.content, resources.cpus_per_worker, *network.arithmetic), gpus
        ),
        max(1, min(resources.workers, shards, room)),
        retries=resources.retries,
        patience=resources.patience_seconds,
        first_answers=first_answers,
        fetch=fetch,
    )
    try:
        yield pool
    finally:
        pool.shut_down()


def serve(handle: int, gpu: str | None) -> None:
    """Make the tool that standard input describes and answer the calls of a connection, in a process of its own."""
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    prepare(gpus=int(gpu is not None))
    calls: SimpleQueue[tuple[Any, ...]] = SimpleQueue()
    parent = Connection(handle)
    listen(parent, calls.put)  # while the tool is busy, so that the parent never waits
    make, *arguments = pickle.load(sys.stdin.buffer)  # noqa: S301 - written by the parent
    tool: Any = None
    first: Any = None
    answers = _Sender(parent, behind=gpu is not None)  # on CPUs, its memory belongs to the budget
    while True:
        value, failure = None, None
        try:
            with plain_errors():
                if tool is None:
                    tool = make(*arguments)
                else:
                    received, *others = calls.get()
                    first = first if isinstance(received, _Same) else received
                    value = tool(first, *others)
        except Exception as error:  # noqa: BLE001 - it goes to the parent
            failure = error
        answers.send((value, failure))
        if tool is None:
            return


class _Sender:
    """Sends answers to the parent, at most one of them behind the work on the next.

    Args:
        parent: The connection.
        behind: Whether `send` returns before the answer has gone, which is kept in memory until then.
    """

    def __init__(self, parent: Connection, *, behind: bool) -> None:
        self._parent, self._behind, self._thread = parent, behind, ThreadPoolExecutor(1)
        self._sent: Future[None] | None = None

    def send(self, answer: Any) -> None:  # noqa: ANN401 - what the tool returns
        content = ForkingPickler.dumps(answer)
        if not self._behind:
            self._parent.send_bytes(content)
            return
        if self._sent is not None:
            self._sent.result()
        self._sent = self._thread.submit(self._parent.send_bytes, content)
