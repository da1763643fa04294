import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

import pytest

from tests.conftest import unused_port
from workflow.cli import main

MLFLOW = [sys.executable, "-m", "mlflow"]


@pytest.fixture
def voxlift(monkeypatch, capfd):
    """Run a command line: (exit status, standard output, standard error)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["voxlift", *arguments])
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        return int(ended.value.code or 0), out, err

    return run


@dataclass(frozen=True)
class Store:
    """A tracking store, and the folder of this machine in which its artifacts lie."""

    uri: str
    artifacts: Path

    def local(self, uri: str) -> Path:
        """Return where an artifact URI lies on this machine."""
        if uri.startswith("mlflow-artifacts:/"):
            return self.artifacts / uri.removeprefix("mlflow-artifacts:/")
        return Path(uri.removeprefix("file://"))


@contextmanager
def serving(folder: Path, url: str, *arguments: str) -> Iterator[str]:
    """Run a server of MLflow's until the block ends; it is there when `url` answers."""
    environment = {
        name: value for name, value in os.environ.items() if name not in {"MLFLOW_TRACKING_URI", "PYTHONPATH"}
    } | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    log = folder / "server.log"
    with (
        log.open("w") as out,
        subprocess.Popen(
            [*MLFLOW, *arguments], cwd=folder, env=environment, stdout=out, stderr=out, start_new_session=True
        ) as process,
    ):
        try:
            deadline = time.monotonic() + 180
            while not answers(url):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.5)
            yield log.read_text()
        finally:
            # A server may wait for idle connections before it ends: nothing of it is wanted any more.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - on loopback
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False


@contextmanager
def tracking_server(folder: Path) -> Iterator[Store]:
    """A real `mlflow server` on loopback, artifacts through it."""
    uri = f"http://127.0.0.1:{unused_port()}"
    port = uri.rsplit(":", 1)[1]
    backend = ("--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", f"{folder}/artifacts")
    with serving(folder, f"{uri}/health", "server", "--host", "127.0.0.1", "--port", port, "--workers", "1", *backend):
        yield Store(uri, folder / "artifacts")


@pytest.fixture(scope="session", params=["sqlite", pytest.param("server", marks=pytest.mark.slow)])
def any_store(request, tmp_path_factory):
    """One tracking store of each kind for the whole test run: making its tables takes seconds."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "sqlite":
        yield Store(f"sqlite:///{folder}/runs.db", folder / "mlruns")
        return
    with tracking_server(folder) as found:
        yield found


@pytest.fixture(scope="module")
def store(any_store):
    """A tracking store, set as the one to record in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", any_store.uri)
        yield any_store
