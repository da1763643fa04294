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

    A cluster that this process has already joined is used and left running.

    Args:
        cpus: CPUs of a cluster that is started here; those of the machine by default.

    Raises:
        ConfigError: RAY_ADDRESS does not answer, or refuses access.
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
    sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False, **own)
    except (ValueError, RuntimeError, ConnectionError) as error:
        if address == "local":
            raise
        raise _refusal(address, " ".join(str(error).split())[:300].rstrip(".")) from error
    finally:
        # Ray takes SIGTERM over when it starts, and would end this process without saving.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, sigterm)
    try:
        yield
    finally:
        ray.shutdown()


def _require_answer(address: str) -> None:
    """Connect to the address first: Ray itself tries for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise _refusal(address, str(error.strerror or error)) from None


def _refusal(address: str, why: str) -> ConfigError:
    return ConfigError(
        f"Cannot join the Ray cluster at {address}, named by RAY_ADDRESS: {why}.",
        "Start it, or unset RAY_ADDRESS to start one here.",
    )
