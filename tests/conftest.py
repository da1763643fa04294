import os
import signal
import socket

# Nothing that a test starts reports to anyone, and TensorFlow keeps its remarks to itself.
os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "MLFLOW_DISABLE_TELEMETRY": "true", "TF_CPP_MIN_LOG_LEVEL": "2"}

import pytest

# The background jobs of a shell, and all below them, ignore Ctrl-C; tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)


def unused_port() -> int:
    """A port of the loopback interface on which nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture
def free_port():
    return unused_port()


@pytest.fixture(scope="session")
def ray_cluster():
    """One Ray for the whole test run: starting one takes 5 to 12 seconds."""
    from workflow.cluster import cluster

    with cluster(4):
        yield
