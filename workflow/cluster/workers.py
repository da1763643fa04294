"""Worker processes: what they are given, what they answer, how they end, and which errors come back."""

import time
from collections.abc import Callable, Iterable
from typing import Any, Self

import ray
from ray.exceptions import RayError, RayTaskError

from tasks.machine.check import first_line
from tasks.machine.worker import WorkerDiedError, WorkerError, plain_errors, prepare
from workflow.cluster.resources import Request, require_room


def share(value: object) -> "ray.ObjectRef":
    """Put a value where every worker reads it without a copy of its own."""
    return ray.put(value)


class RemoteWorker:
    """A process of the cluster that makes a tool once and then answers calls of it, one after another.

    Args:
        make: Makes the tool inside the worker. A module-level name.
        arguments: Of `make`; what was shared arrives as its value.
        request: What the worker asks of the cluster.

    Attributes:
        placing: The answer that a node has room for it and its process is there.
        loading: The answer that the tool is made.
    """

    def __init__(self, make: Callable[..., Callable[..., Any]], arguments: tuple[Any, ...], request: Request) -> None:
        # Ray's default fills one node before it takes the next.
        actor = ray.remote(max_restarts=0, scheduling_strategy="SPREAD", **request.options)(_Process)
        self._actor = actor.remote(request)
        self.placing = self._actor.begin.remote()
        self.loading = self._actor.load.remote(make, *arguments)

    def call(self, arguments: tuple[Any, ...]) -> "ray.ObjectRef":
        """Call the tool; the answer is what `first_answers` and `fetch` take."""
        return self._actor.call.remote(*arguments)

    def end(self) -> None:
        """End the process at once."""
        ray.kill(self._actor)


class TimedWorker(RemoteWorker):
    """A worker for a `with` block that answers one call at a time, each within a limit of seconds.

    Attributes:
        start_seconds: Time that it took to make the tool; 0 before the first call.

    Raises:
        ConfigError: The cluster has no room for it.
    """

    def __init__(
        self, make: Callable[..., Callable[..., Any]], arguments: tuple[Any, ...], request: Request, seconds: float
    ) -> None:
        require_room(1, request)
        self._limit, self._began = seconds, time.perf_counter()
        self.start_seconds = 0.0
        super().__init__(make, arguments, request)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def ask(self, *arguments: Any) -> Any:  # noqa: ANN401 - whatever the tool takes and returns
        """Call the tool, once it is made.

        Raises:
            WorkerError: The worker died or did not answer.
            Exception: What the tool, or making it, raised.
        """
        if not self.start_seconds:
            self._answer(self.loading)
            self.start_seconds = time.perf_counter() - self._began
        return self._answer(self.call(arguments))

    def _answer(self, answer: "ray.ObjectRef") -> Any:  # noqa: ANN401 - whatever the tool returns
        if not first_answers([answer], self._limit):
            raise WorkerError(f"A worker did not answer for {self._limit:g} s.", "Look at the load of the cluster.")
        return fetch(answer)


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
        raise (error.cause if isinstance(error.cause, Exception) else WorkerError(first_line(error))) from None
    except RayError as error:
        raise WorkerDiedError(f"the worker died: {first_line(error)}") from error


class _Process:
    """Code that runs in the process of a worker."""

    def __init__(self, request: Request) -> None:
        prepare(request.gpus)

    def begin(self) -> None:
        """Answer that the process is there."""

    def load(self, make: Callable[..., Callable[..., Any]], *arguments: Any) -> None:  # noqa: ANN401
        with plain_errors():
            self._tool = make(*arguments)

    def call(self, *arguments: Any) -> Any:  # noqa: ANN401
        with plain_errors():
            return self._tool(*arguments)
