"""A logged model behind `mlflow models serve`, in a process that knows nothing of the house."""

import json
import urllib.request
from urllib.error import HTTPError

import numpy as np
import pytest

import workflow.tracking as tracking
from configs.axes import NetworkShape
from models.network.restorer import build_restorer
from models.stages.stage import Stage
from tests.conftest import unused_port
from tests.workflow.conftest import serving

SECRET = 0.8137


@pytest.fixture(scope="module")
def restorer(tmp_path_factory):
    network = build_restorer((Stage(2, (4, 4, 4), (2, 2, 2)), Stage(1, (3, 4, 4), (1, 2, 2))), latent_filters=2)
    last = network.get_layer("stage_1")
    last.set_weights([np.full(weights.shape, 0.01, np.float32) for weights in last.get_weights()])
    path = tmp_path_factory.mktemp("model") / "restorer.keras"
    network.save(path)
    return network, path


@pytest.fixture(scope="module")
def served(store, restorer, tmp_path_factory):
    with tracking.recorded_run("served", "model") as recorder:
        (uri,) = tracking.logged_model(recorder.address, restorer[1], [NetworkShape(2, 4, 4)])
    folder = tracking.resolve_model(uri).parents[1]
    port = unused_port()
    place = tmp_path_factory.mktemp("serve")
    arguments = ("models", "serve", "-m", str(folder), "--env-manager", "local", "-h", "127.0.0.1", "-p", str(port))
    with serving(place, f"http://127.0.0.1:{port}/ping", *arguments):
        yield f"http://127.0.0.1:{port}/invocations", place / "server.log"


def ask(url, content):
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(content).encode(), headers)  # noqa: S310 - on loopback
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 - on loopback
            return answer.status, json.loads(answer.read())
    except HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.slow
def test_a_good_tensor_is_answered(served, restorer):
    volume = np.random.default_rng(0).random((2, 4, 8, 4, 1), np.float32)
    status, answer = ask(served[0], {"inputs": volume.tolist()})
    assert status == 200
    np.testing.assert_allclose(answer["predictions"], restorer[0](volume), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((2, 4, 4, 1), "Shape of input (2, 4, 4, 1) does not match expected shape (-1, -1, -1, -1, 1)"),
        ((1, 2, 4, 4, 3), "Shape of input (1, 2, 4, 4, 3) does not match expected shape (-1, -1, -1, -1, 1)"),
        ((1, 3, 4, 4, 1), "multiples of the network's total stride"),
    ],
)
def test_a_wrong_shape_is_refused_without_a_voxel(served, shape, said):
    url, log = served
    status, answer = ask(url, {"inputs": np.full(shape, SECRET, np.float32).tolist()})
    assert status == 400
    assert said in answer
    assert str(SECRET) not in answer + log.read_text()


@pytest.mark.slow
def test_a_wrong_type_is_refused(served):
    volume = np.full((1, 2, 4, 4, 1), "bright").tolist()
    status, answer = ask(served[0], {"inputs": volume})
    assert status == 400
    assert "float" in answer
