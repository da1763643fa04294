"""A Ray cluster of several nodes on this machine, each node with processes of its own, apart from any other Ray."""

import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tests.conftest import unused_port
from tests.processes import end, until

BIN = Path(sys.executable).parent
OPEN: Mapping[str, str] = {"RAY_AUTH_MODE": "disabled"}


@dataclass(frozen=True)
class RayNodes:
    """A cluster that runs.

    Args:
        environment: What a driver or a client of the job server needs to know.
        processes: The `ray start` of each node, the head first.
        starts: Starts each node.
    """

    environment: Mapping[str, str]
    processes: list["subprocess.Popen[bytes]"] = field(default_factory=list)
    starts: list[Callable[[], "subprocess.Popen[bytes]"]] = field(default_factory=list)

    def restore(self) -> None:
        """Start every node again that has ended."""
        for number, process in enumerate(self.processes):
            if process.poll() is not None:
                self.processes[number] = self.starts[number]()


def token_authentication(folder: Path) -> dict[str, str]:
    """The environment of a cluster that only those enter who can read a file."""
    token = folder / "ray.token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}


@contextmanager
def ray_nodes(
    folder: Path,
    head: str,
    *others: str,
    environment: Mapping[str, str] = OPEN,
    job_server: bool = False,
    port: int | None = None,
) -> Iterator[RayNodes]:
    """Run a cluster on loopback until the block ends.

    Args:
        folder: For logs.
        head: Options of `ray start` for the head.
        others: The same for each other node.
        environment: Variables that every node gets, and by them every job.
        job_server: Start the dashboard, which takes jobs, on loopback.
        port: Of the head; any free one by default.
    """
    gcs, api, client = port or unused_port(), unused_port(), unused_port()
    address = f"127.0.0.1:{gcs}"
    server = f"--include-dashboard={str(job_server).lower()} --dashboard-port={api}"
    # Its own folder: whoever asks this Ray for "the" cluster of the machine must not find another one's. Sockets lie in
    # it, so that its path must be short.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as scratch:
        addresses = {"RAY_ADDRESS": address, "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{api}"}
        cluster = RayNodes({**environment, **addresses})
        roles = [
            f"--head --port={gcs} --ray-client-server-port={client} {server} {head}",
            *(f"--address={address} {node}" for node in others),
        ]
        try:
            # One after the other: nodes of one machine that start together take each other's ports.
            for number, options in enumerate(roles):
                log, words = folder / f"node-{number}.log", [f"--temp-dir={scratch}", *options.split()]
                cluster.starts.append(partial(_started, log, words, environment))
                cluster.processes.append(cluster.starts[-1]())
            yield cluster
        finally:
            for process in reversed(cluster.processes):
                end(process)


def _started(log: Path, options: list[str], environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    """A node that has started; tried again where its ports were taken under its hands."""
    command = [str(BIN / "ray"), "start", "--block", "--disable-usage-stats"]
    command += ["--dashboard-agent-listen-port=0", "--min-worker-port=0", "--max-worker-port=0"]
    # Jobs find `python` by the PATH of the foreground.
    whole = os.environ | environment | {"PATH": f"{BIN}:{os.environ['PATH']}"}
    for _ in range(3):
        with log.open("w") as out:
            process = subprocess.Popen([*command, *options], env=whole, stdout=out, stderr=out, cwd=log.parent)
        until(lambda: "Ray runtime started" in log.read_text() or process.poll() is not None)  # noqa: B023 - called here
        if process.poll() is None:
            return process
    raise AssertionError(log.read_text())
