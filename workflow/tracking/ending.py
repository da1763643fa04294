"""Signal handling of a process that records: signals exit, but not while a run is being ended."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Turn SIGTERM into an exit, so that the run is ended as KILLED; only the main thread may."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    status = 128 + signal.SIGTERM
    reported = False

    def leave(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - what a handler is called with
        nonlocal reported
        if not reported:  # batch systems tell more than once: what is being saved goes on
            reported = True
            sys.exit(status)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    except SystemExit as left:
        if reported:  # Ray, waiting for its workers, makes another status of it
            left.code = status
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C and SIGTERM back until the block has ended: a run that is being ended is ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in INTERRUPTS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        signal.raise_signal(came[0])
