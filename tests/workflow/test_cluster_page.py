"""docs/cluster.md, carried out: its blocks marked `sh`, in their order, on a real cluster and a real MLflow server."""

import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

import keras
import nibabel
import numpy as np
import psutil
import pytest
from mlflow import MlflowClient

from tests.conftest import unused_port
from tests.processes import until
from tests.test_docs import blocks
from tests.workflow.small_upscaling import ROOT, SmallUpscaling

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
PAGE = ROOT / "docs" / "cluster.md"
MARK = "VOXLIFT_PAGE_TEST"


@pytest.fixture
def place(tmp_path):
    """Return the variables of the page on this machine, and a mark on every process that comes of it."""
    scans, local = tmp_path / "scans", Path(tempfile.mkdtemp(prefix="page-"))
    scans.mkdir()
    SmallUpscaling(scans, volumes=2, shape=(40, 48, 44)).prepare()
    (scans / "small.keras").unlink()
    free = "--node-manager-port=0 --object-manager-port=0 --min-worker-port=0 --max-worker-port=0"
    here = {
        "HEAD": "127.0.0.1",
        "SHARED": str(tmp_path),
        "SCANS": str(scans),
        "LOCAL": str(local),
        # Two nodes on one machine: the port of an agent of each would be the same.
        "NODE_PORTS": f"{free} --dashboard-agent-listen-port=0",
        **{f"{name}_PORT": str(unused_port()) for name in ("RAY", "JOB", "CLIENT", "MLFLOW")},
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        MARK: uuid.uuid4().hex,
    }
    yield here
    for process in left(here[MARK]):
        process.kill()
    shutil.rmtree(local)


def left(mark):
    """The processes with a mark that are there."""
    return [one for one in psutil.process_iter(["environ"]) if (one.info["environ"] or {}).get(MARK) == mark]


def test_the_page_leads_from_a_laptop_to_a_cluster(place, tmp_path):
    script = "\n".join(["set -euxo pipefail", *blocks(PAGE, "sh")])
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_A", "MLFLOW_T"))}
    log = tmp_path / "log"
    with log.open("w") as out:
        done = subprocess.run(
            ["bash", "-c", script], cwd=ROOT, env=environment | place, stdout=out, stderr=out, check=False
        )
    assert done.returncode == 0, log.read_text()
    # MLflow's helpers look every second whether their server still lives.
    until(lambda: not left(place[MARK]), seconds=60)

    local = Path(place["LOCAL"])
    trained = [local / "runs" / "here", tmp_path / "runs" / "first", tmp_path / "runs" / "second"]
    one, *others = (keras.saving.load_model(run / "model.keras", compile=False).get_weights() for run in trained)
    for other in others:
        for mine, theirs in zip(one, other, strict=True):
            np.testing.assert_array_equal(mine, theirs)
    shapes = [nibabel.load(path).shape for path in sorted((tmp_path / "fine").glob("*.nii.gz"))]
    assert shapes == [(80, 96, 88)] * 2

    client = MlflowClient(f"sqlite:///{local / 'mlflow' / 'runs.db'}")
    for experiment, finished in (("voxlift-iso2x", 2), ("voxlift", 1)):
        runs = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
        assert [run.info.status for run in runs].count("FINISHED") == finished
