"""The only door to Ray: start or join a cluster, keep a crew of workers busy, stream what a task tells."""

import logging
import os
import socket
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from configs.errors import ConfigError


@dataclass(frozen=True)
class Request:
    """What one worker asks of the cluster: CPU threads and GPUs."""

    cpus: int = 1
    gpus: int = 0

    def __str__(self) -> str:
        return f"{_count(self.cpus, 'CPU')} and {_count(self.gpus, 'GPU')}"


class WorkerError(RuntimeError):
    """Work that failed in a worker: what happened there, in one line."""


class WorkerDiedError(WorkerError):
    """A worker that is gone, with its process or its node."""


@contextmanager
def cluster(cpus: int | None = None) -> Iterator[None]:
    """Join the cluster at RAY_ADDRESS, or start one below this process and end it afterwards.

    A cluster that this process is in already is used and left running.

    Args:
        cpus: CPUs that a cluster of our own offers; those of the machine by default.

    Raises:
        ConfigError: Nobody answers at RAY_ADDRESS.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Workers without a GPU have it hidden from them here, in `_prepare`.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address = os.environ.get("RAY_ADDRESS", "local")
    logging.getLogger("ray").setLevel(logging.ERROR)
    own = {"num_cpus": cpus, "include_dashboard": False} if address == "local" else {}
    _require_answer(address)
    ray.init(address=address, log_to_driver=False, configure_logging=False, **own)
    try:
        yield
    finally:
        ray.shutdown()


def _require_answer(address: str) -> None:
    """Ray itself tries for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise ConfigError(
            f"Cannot join the Ray cluster at {address}, named by RAY_ADDRESS: {error.strerror or error}. Start it, or"
            " unset RAY_ADDRESS to start one here."
        ) from None


def require_room(workers: int, request: Request) -> None:
    """Check that the cluster can ever hold so many workers: Ray itself would wait forever.

    Raises:
        ConfigError: It cannot; the sentence says what the cluster has.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = sum(_room(node, request) for node in nodes)
    if room < workers:
        cpus, gpus = (int(sum(node.get(kind, 0) for node in nodes)) for kind in ("CPU", "GPU"))
        raise ConfigError(
            f"Cannot start {_count(workers, 'worker')} of {request} each: the cluster has {_count(cpus, 'CPU')} and"
            f" {_count(gpus, 'GPU')} on {_count(len(nodes), 'node')}, room for {room}. Ask for fewer workers or less"
            " for each, or add nodes."
        )


def most_gpus_on_a_node() -> int:
    """GPUs of the node that has most of them."""
    return max(int(node["Resources"].get("GPU", 0)) for node in ray.nodes() if node["Alive"])


def share(value: object) -> "ray.ObjectRef":
    """Put a value where every worker reads it without a copy of its own."""
    return ray.put(value)


class RemoteWorker:
    """A process of the cluster that makes a tool once and then answers calls of it, one after another.

    Args:
        make: Makes the tool inside the worker. A module-level name.
        arguments: Of `make`; what was shared arrives as its value.
        request: What the worker asks of the cluster.
    """

    def __init__(self, make: Callable[..., Callable[..., Any]], arguments: tuple[Any, ...], request: Request) -> None:
        actor = ray.remote(num_cpus=request.cpus, num_gpus=request.gpus, max_restarts=0)(_Process)
        self._actor = actor.remote(request)
        self.loading = self._actor.load.remote(make, *arguments)

    def call(self, arguments: tuple[Any, ...]) -> "ray.ObjectRef":
        """Call the tool; the answer is what `first_answers` and `fetch` take."""
        return self._actor.call.remote(*arguments)

    def end(self) -> None:
        """End the process, whatever it is at."""
        ray.kill(self._actor)


def first_answers(answers: Iterable["ray.ObjectRef"], seconds: float) -> "list[ray.ObjectRef]":
    """Wait until one of the answers is there, or for so long; returns those that are."""
    ready, others = ray.wait(list(answers), timeout=max(0.0, seconds))
    if others:
        ready += ray.wait(others, num_returns=len(others), timeout=0)[0]
    return list(ready)


def fetch(answer: "ray.ObjectRef") -> Any:  # noqa: ANN401 - whatever the tool returns
    """Return the value of an answer that is there.

    Raises:
        WorkerDiedError: The worker's process or node is gone.
        Exception: What the tool raised.
    """
    try:
        return ray.get(answer)
    except RayTaskError as error:
        raise (error.cause if isinstance(error.cause, Exception) else WorkerError(_first_line(error))) from None
    except RayError as error:
        raise WorkerDiedError(f"the worker died: {_first_line(error)}") from error


def stream(
    function: Callable[..., Iterator[Any]],
    *arguments: Any,  # noqa: ANN401 - whatever the function takes
    request: Request,
) -> Generator[Any, None, None]:
    """Run a generator function in a process of its own and yield what it yields, as it does.

    Args:
        function: A module-level generator function.
        arguments: Of the function.
        request: What it asks of the cluster.

    Raises:
        ConfigError: The cluster has no room for it.
        WorkerDiedError: The process died.
        Exception: What the function raised.
    """
    require_room(1, request)
    remote = ray.remote(num_cpus=request.cpus, num_gpus=request.gpus, num_returns="streaming", max_retries=0)(_streamed)
    references = remote.remote(function, arguments, request)
    try:
        for reference in references:
            yield fetch(reference)
    finally:
        # Who stops listening stops the work; of a stream that has ended there is nothing to cancel.
        ray.cancel(references, force=True)


class _Process:
    """What runs in the process of a worker."""

    def __init__(self, request: Request) -> None:
        _prepare(request)

    def load(self, make: Callable[..., Callable[..., Any]], *arguments: Any) -> None:  # noqa: ANN401
        with _plain_errors():
            self._tool = make(*arguments)

    def call(self, *arguments: Any) -> Any:  # noqa: ANN401
        with _plain_errors():
            return self._tool(*arguments)


def _streamed(function: Callable[..., Iterator[Any]], arguments: tuple[Any, ...], request: Request) -> Iterator[Any]:
    _prepare(request)
    with _plain_errors():
        # Not `yield from`: Ray sends values into the generator, which not every iterator takes.
        for record in function(*arguments):  # noqa: UP028 - see above
            yield record


def _prepare(request: Request) -> None:
    """Settle what must be settled before TensorFlow is imported."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if not request.gpus:
        # Ray hides no GPU from a worker that asked for none.
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Let through only errors that the driver can unpickle without TensorFlow."""
    try:
        yield
    except (ValueError, MemoryError) as error:
        if type(error).__module__.split(".")[0] in {"builtins", "tasks", "models", "configs"}:
            raise
        raise WorkerError(f"{type(error).__name__}: {_first_line(error)}") from None
    except Exception as error:  # noqa: BLE001 - whatever it is, it goes to the driver as plain text
        raise WorkerError(f"{type(error).__name__}: {_first_line(error)}") from None


def _room(node: dict[str, float], request: Request) -> int:
    wanted = {"CPU": request.cpus, "GPU": request.gpus}
    return min(int(node.get(kind, 0) // count) for kind, count in wanted.items() if count)


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
