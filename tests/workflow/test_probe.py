"""The tracking store tried out: real stores that work, and real ones that do not."""

import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from mlflow import MlflowClient

from configs.errors import InputError
from workflow.tracking.probe import probe_store, server_version

ROOT = Path(__file__).parents[2]
SMALL_FILES = (
    "import resource, signal, sys\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)\n"
    "from workflow.tracking.probe import probe_store\n"
    "try: probe_store(sys.argv[1])\nexcept ValueError as error: print(error)\n"
)


def test_a_store_that_works_is_left_as_it_was(store):
    client = MlflowClient(tracking_uri=store.uri)
    before = {experiment.name for experiment in client.search_experiments()}
    files = {path for path in store.artifacts.rglob("*") if path.is_file()}
    with ThreadPoolExecutor() as threads:
        probes = list(threads.map(lambda _: probe_store(), range(2)))
    for probe in probes:
        assert (probe.uri, probe.left) == (store.uri, None)
        assert probe.seconds > 0
        assert probe.artifacts.startswith("mlflow-artifacts:/" if store.uri.startswith("http") else "file://")
    assert {experiment.name for experiment in client.search_experiments()} == before
    assert {path for path in store.artifacts.rglob("*") if path.is_file()} == files


def test_a_server_reports_its_version(store):
    if store.uri.startswith("http"):
        assert server_version(store.uri).startswith("3.")


@pytest.mark.parametrize(
    ("uri", "part"),
    [
        ("sqlite:////proc/runs.db", "sqlite:////proc/runs.db: unable to open database file. Make room there"),
        ("sqlite:////dev/full", "sqlite:////dev/full: "),
        (f"sqlite:///{__file__}", "file is not a database"),
        ("https://jane:secret@127.0.0.1:{port}", r"https://127\.0\.0\.1:\d+: Connection refused\. Start the server"),
        ("postgresql+psycopg2://127.0.0.1:{port}/runs", "Connection refused"),
        ("carrier://pigeon", "unsupported URI"),
    ],
)
def test_a_store_that_cannot_be_used_is_reported_in_one_message(uri, part, free_port):
    with pytest.raises(InputError, match=rf"^Cannot record in the tracking store .*{part}.*\.$") as reported:
        probe_store(uri.format(port=free_port))
    assert "secret" not in str(reported.value)
    assert "\n" not in str(reported.value)


@pytest.mark.parametrize("size", [0, 20_000])
def test_a_disk_without_room_is_reported(size, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SMALL_FILES, f"sqlite:///{tmp_path}/runs.db", str(size)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("Cannot record in the tracking store sqlite:///")
    assert done.stdout.endswith("or set MLFLOW_TRACKING_URI to a store that is there.\n")
    assert done.stdout.count("\n") == 1


@pytest.mark.slow
def test_a_server_that_stays_silent_is_given_up():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(InputError, match=rf"^Cannot record in the tracking store {uri}: .*timed out"):
            probe_store(uri)
    assert time.monotonic() - started < 60
