"""Join a cluster or start one."""

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from configs.errors import ConfigError


@contextmanager
def cluster(cpus: int | None = None) -> Iterator[None]:
    """Join the cluster at RAY_ADDRESS, or start one below this process and end it afterwards.

    A cluster that this process is in already is used and left running.

    Args:
        cpus: CPUs that a cluster of our own offers; those of the machine by default.

    Raises:
        ConfigError: Nobody answers at RAY_ADDRESS, or nobody who lets us in.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Workers without a GPU have it hidden from them here, in `workers.prepare`.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address = os.environ.get("RAY_ADDRESS") or "local"
    logging.getLogger("ray").setLevel(logging.ERROR)
    own = {"num_cpus": cpus, "include_dashboard": False} if address == "local" else {}
    _require_answer(address)
    try:
        with _own_sigterm():
            ray.init(address=address, log_to_driver=False, configure_logging=False, **own)
    except (ValueError, RuntimeError, ConnectionError) as error:
        if address == "local":
            raise
        raise _refused(address, " ".join(str(error).split())[:300].rstrip(".")) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep what this process does about SIGTERM: Ray takes it over when it starts, and ends without saving."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, ours)


def _require_answer(address: str) -> None:
    """Ray itself tries for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise _refused(address, str(error.strerror or error)) from None


def _refused(address: str, why: str) -> ConfigError:
    return ConfigError(
        f"Cannot join the Ray cluster at {address}, named by RAY_ADDRESS: {why}.",
        "Start it, or unset RAY_ADDRESS to start one here.",
    )
