"""Join a cluster or start one."""

import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import psutil
import ray
from ray._private import ray_constants
from ray._private import utils as ray_utils

from configs.errors import ConfigError, RunError
from tasks.machine.check import counted, first_line

WATCHER = Path(__file__).with_name("watcher.py")
KEEP_LOGS = b"keep"
# The path of a socket has at most 107 bytes; Ray adds these to its folder.
LONGEST_FOLDER = 107 - len("/session_YYYY-MM-DD_HH-MM-SS_ffffff_1234567/sockets/plasma_store")
PATIENT_SECONDS = 90  # for Ray's first process after a failed try, instead of 30
INTERRUPTS = (signal.SIGINT, signal.SIGTERM)


class StartError(RunError):
    """Ray does not start on this machine."""


@contextmanager
def cluster(cpus: int | None = None) -> Iterator[None]:
    """Join the cluster at RAY_ADDRESS, or start one below this process and end it afterwards.

    A cluster that this process has already joined is used and left running.

    Args:
        cpus: CPUs of a cluster that is started here; those of the machine by default.

    Raises:
        ConfigError: RAY_ADDRESS does not answer or refuses access, or Ray cannot use the temporary folder.
        StartError: Ray does not start.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Workers without a GPU have it hidden from them here, in `tasks.machine.worker`.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    logging.getLogger("ray").setLevel(logging.ERROR)
    address = os.environ.get("RAY_ADDRESS") or "local"
    with _patiently_started(cpus) if address == "local" else _joined(address):
        yield


@contextmanager
def _patiently_started(cpus: int | None) -> Iterator[None]:
    """Start Ray as `_started` does; on a busy machine, where its processes wait for each other too shortly, again."""
    with ExitStack() as stack:
        for is_last in (False, False, True):
            try:
                stack.enter_context(_started(cpus, keeps_logs=is_last))
                break
            except StartError:
                if is_last:
                    raise
                os.environ["RAY_gcs_server_port_wait_time_s"] = str(PATIENT_SECONDS)  # noqa: SIM112 - as Ray spells it
        yield


@contextmanager
def _joined(address: str) -> Iterator[None]:
    """Join the cluster at an address until the block ends."""
    _require_answer(address)
    try:
        _initialise(address=address)
    except (ValueError, RuntimeError, ConnectionError) as error:
        raise _refusal(address, " ".join(str(error).split())[:300].rstrip(".")) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _started(cpus: int | None, *, keeps_logs: bool) -> Iterator[None]:
    """Run a Ray for this process alone until the block ends: on loopback, and gone when this process is.

    Args:
        cpus: See `cluster`.
        keeps_logs: Leave Ray's folder if it does not start.
    """
    # Where no mode is set, Ray asks for a token at a cluster that it starts; set here, the mode would come too late.
    os.environ.pop("RAY_AUTH_MODE", None)
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    folder = _own_folder()
    with _watched(folder) as watcher:
        try:
            try:
                # As on systems other than Linux: a Ray that will have no other node listens on loopback alone.
                with _replaced(ray_constants, "ENABLE_RAY_CLUSTER", new=False):
                    _initialise(
                        address="local",
                        num_cpus=cpus,
                        include_dashboard=False,
                        _temp_dir=folder,
                        _system_config={"enable_metrics_collection": False},
                    )
            except Exception as error:
                watcher.communicate(KEEP_LOGS if keeps_logs else b"")
                raise _not_started(error, folder) from error
            yield
        finally:
            ray.shutdown()


def _own_folder() -> str:
    """Make a folder for Ray's sockets and logs and for objects that leave its memory, which only this user can read."""
    # The path that macOS gives each user is too long. The watcher knows open files by their real paths.
    usual = "/tmp" if sys.platform == "darwin" else tempfile.gettempdir()  # noqa: S108 - mkdtemp makes the folder
    parent = os.path.realpath(os.environ.get("RAY_TMPDIR") or usual)
    remedy = "Set RAY_TMPDIR to a folder with a short path on a local disk, such as /tmp."
    try:
        folder = tempfile.mkdtemp(prefix="ray-", dir=parent)
    except OSError as error:
        raise ConfigError(f"Cannot start Ray in the temporary folder {parent}: {error.strerror}.", remedy) from error
    if len(os.fsencode(folder)) > LONGEST_FOLDER:
        Path(folder).rmdir()
        longest = LONGEST_FOLDER - len(folder) + len(parent)
        problem = f"its path must have at most {longest} characters, received {len(parent)}"
        raise ConfigError(f"Cannot start Ray in the temporary folder {parent}: {problem}.", remedy)
    return folder


@contextmanager
def _watched(folder: str) -> Iterator[subprocess.Popen[bytes]]:
    """Have every process of the Ray of a folder ended when the block ends or this process dies; see `watcher.py`."""
    command = [sys.executable, "-P", str(WATCHER), folder]
    # In a session of its own, where no Ctrl-C reaches it.
    with subprocess.Popen(  # noqa: S603 - fixed arguments
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as watcher:
        yield watcher


def _initialise(**options: object) -> None:
    """Initialise Ray, which takes SIGTERM over and loses interrupts while it forks: neither happens here."""
    if threading.current_thread() is not threading.main_thread():
        ray.init(log_to_driver=False, configure_logging=False, **options)
        return
    received: list[int] = []
    before = {number: handler for number in INTERRUPTS if callable(handler := signal.getsignal(number))}

    def noting(handler: Callable[[int, FrameType | None], Any]) -> Callable[[int, FrameType | None], None]:
        def interrupt(number: int, frame: FrameType | None) -> None:
            received.append(number)
            handler(number, frame)

        return interrupt

    for number, handler in before.items():
        signal.signal(number, noting(handler))
    try:
        with (
            _replaced(ray_utils, "set_sigterm_handler", new=lambda _: None),
            # By that handler a SIGTERM ends the process before Python hears of it.
            _replaced(ray_constants, "RAY_DISABLE_FAILURE_SIGNAL_HANDLER", new=True),
        ):
            ray.init(log_to_driver=False, configure_logging=False, **options)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if signal.SIGTERM in received:
        sys.exit(128 + signal.SIGTERM)
    if received:
        raise KeyboardInterrupt


@contextmanager
def _replaced(module: ModuleType, name: str, new: object) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, new)
    try:
        yield
    finally:
        setattr(module, name, before)


def _not_started(error: Exception, folder: str) -> StartError:
    load, free = os.getloadavg()[0], psutil.virtual_memory().available >> 20
    return StartError(
        f"Cannot start Ray on this machine: {first_line(error).rstrip('.')}. Its load is {load:.1f} on"
        f" {counted(os.cpu_count() or 1, 'CPU')}, and {free} MiB of memory are free.",
        f"Try again when the machine is less busy; Ray's logs are in {folder}.",
    )


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
