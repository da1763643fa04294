"""Processes of a test: wait for something, see whether one lives, end one with all below it, limit its own files."""

import resource
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil

Popen = subprocess.Popen[Any]


def until(
    condition: Callable[[], object], process: Popen | None = None, seconds: float = 300, every: float = 0.01
) -> None:
    """Wait until a condition holds, tried every few ms; fail if it does not in time, or if the process ends before."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s"
        assert process is None or process.poll() is None, "ended too early"
        time.sleep(every)


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file can grow beyond some bytes, as on a disk without room."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def below(process: Popen) -> list[psutil.Process]:
    """All processes that a process has started, and those that these have."""
    return psutil.Process(process.pid).children(recursive=True)


def end(process: Popen) -> None:
    """End a process and all below it."""
    if process.poll() is None:
        for child in [*below(process), psutil.Process(process.pid)]:
            child.kill()
    process.wait()
