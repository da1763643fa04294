"""One piece of work in a process of its own that reports as it goes, and is stopped when nobody listens any more."""

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import Any

import ray

from tasks.machine.worker import plain_errors, prepare
from workflow.cluster.resources import Request, require_room
from workflow.cluster.workers import fetch

POLL_SECONDS = 0.5
# A training that idled here for up to a minute waited for the thread with which TensorFlow tunes a dataset; it has none
# any more (`patch_dataset`). Native threads can still keep a process: nobody is to wait for one that has given all.
ENDING_SECONDS = 5.0
# Access to a tracking store: workers on other nodes do not inherit the driver's environment.
CREDENTIALS = (
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_TRACKING_INSECURE_TLS",
    "MLFLOW_TRACKING_SERVER_CERT_PATH",
    "MLFLOW_TRACKING_CLIENT_CERT_PATH",
)


def stream(
    function: Callable[..., Iterator[Any]],
    *arguments: Any,  # noqa: ANN401 - whatever the function takes
    request: Request,
    grace: float = 0.0,
    stop: threading.Event | None = None,
    last: type | None = None,
) -> Generator[Any, None, None]:
    """Run a generator function in a process of its own and yield what it yields, as it does.

    A caller that stops listening, by an exception or by closing the generator, stops the function.

    Args:
        function: A module-level generator function. With `grace` it is called with `should_stop` too, which returns
            whether anybody still listens.
        arguments: Of the function.
        request: What it asks of the cluster.
        grace: Seconds in which the function may end by itself once nobody listens; then its process is ended.
        stop: Interrupts the caller once it is set; for a thread that no signal reaches.
        last: The type of the record after which there is nothing to wait for: a process that takes long to end is
            ended.

    Raises:
        ConfigError: The cluster has no room for it.
        KeyboardInterrupt: `stop` was set.
        WorkerDiedError: The process died.
        Exception: What the function raised.
    """
    require_room(1, request)
    credentials = {name: os.environ[name] for name in CREDENTIALS if name in os.environ}
    remote = ray.remote(num_returns="streaming", max_retries=0, **request.options)(_streamed)
    references = remote.remote(function, arguments, request, credentials, asks=grace > 0)
    try:
        for reference in references if stop is None else _until_set(stop, references):
            record = fetch(reference)
            yield record
            if last is not None and isinstance(record, last):
                if not ray.wait([references.completed()], timeout=ENDING_SECONDS)[0]:
                    ray.cancel(references, force=True)
                return
    except Exception:  # the work has ended by itself
        raise
    except BaseException:
        if grace:
            ray.cancel(references, force=False)
        if not grace or not ray.wait([references.completed()], timeout=grace)[0]:
            ray.cancel(references, force=True)
        raise


def _until_set(stop: threading.Event, references: "ray.ObjectRefGenerator") -> "Iterator[ray.ObjectRef]":
    while True:
        while not ray.wait([references], timeout=POLL_SECONDS)[0] or stop.is_set():
            if stop.is_set():
                raise KeyboardInterrupt
        try:
            yield next(references)
        except StopIteration:
            return


def _streamed(
    function: Callable[..., Iterator[Any]],
    arguments: tuple[Any, ...],
    request: Request,
    environment: dict[str, str],
    *,
    asks: bool,
) -> Iterator[Any]:
    os.environ.update(environment)
    prepare(request.gpus)
    with plain_errors():
        if asks:
            yield from _until_stopped(function, arguments)
            return
        # Not `yield from`: Ray sends values into the generator, which not every iterator takes.
        for record in function(*arguments):  # noqa: UP028 - see above
            yield record


def _until_stopped(function: Callable[..., Iterator[Any]], arguments: tuple[Any, ...]) -> Iterator[Any]:
    """Yield what a function yields; it may ask whether the task was cancelled, and ends by itself."""
    cancelled = threading.Event()
    # Ray cancels a task by an interrupt of its main thread …
    before = signal.signal(signal.SIGINT, lambda *_: cancelled.set())
    records = iter(function(*arguments, should_stop=cancelled.is_set))
    try:
        for record in records:  # noqa: UP028 - as above
            yield record
    except GeneratorExit:
        # … or, while it hands out a record, by closing the generator: the work goes on to where it asks.
        cancelled.set()
        deque(records, maxlen=0)
        raise
    finally:
        signal.signal(signal.SIGINT, before)
