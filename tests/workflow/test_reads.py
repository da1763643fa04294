"""`voxlift upscale` reads an input twice, once to inspect it and once to use it, and an output once, to check it."""

import json
import sys

import nibabel
import numpy as np
import pytest

from configs.axes import FileShape
from configs.errors import InputError
from tasks.volume.grid import Grid
from tasks.volume.inspection import inspect_volume
from tasks.volume.nifti import write_volume
from tests.file_reads import FileReads
from tests.networks import small_restorer
from tests.tasks.images import save
from tests.workflow.light_restorer import LightRestorer
from workflow.cli import app

# Opens that look at the start of a file alone, for its format and its header: of a file of megabytes next to nothing.
HEADERS = 0.06

pytestmark = [
    pytest.mark.usefixtures("ray_cluster"),
    pytest.mark.skipif(sys.platform != "linux", reason="the kernel reports opens by inotify"),
]


@pytest.fixture
def reads(monkeypatch):
    monkeypatch.setattr("workflow.restore.restoration.worker_restorer", LightRestorer)
    return FileReads(monkeypatch)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_an_input_is_read_twice_and_an_output_once(suffix, reads, tmp_path, monkeypatch, capfd):
    """A read is a pass over the bytes of the file: bytes that are read, by whomever, over the size of the file."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    small_restorer().save(tmp_path / "small.keras")
    source, out = tmp_path / f"scan{suffix}", tmp_path / "out"
    voxels = np.random.default_rng(0).gamma(2.0, 300.0, size=(128, 120, 90)).astype(np.float32)
    write_volume(source, voxels, Grid(FileShape(*voxels.shape), np.eye(4)), dtype="int16")

    reads.watch(source)
    out.mkdir()
    reads.watch_outputs(out)
    command = ["upscale", source, "--out", out, "--model", tmp_path / "small.keras", "--scale", "1,1,2"]
    app([*map(str, command), "--workers", "1", "--json"], standalone_mode=False)

    (volume,) = json.loads(capfd.readouterr().out)["volumes"]
    assert volume["status"] == "done"
    assert (out / "scan_sr_quality.html").is_file()
    of_input, of_output = reads.of(source), reads.of(out / f"scan_sr{suffix}")
    assert 1.9 < of_input.bytes / source.stat().st_size < 2 + HEADERS
    assert 0.9 < of_output.bytes / (out / f"scan_sr{suffix}").stat().st_size < 1 + HEADERS


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii.bz2", ".mgz"])
def test_a_series_is_decompressed_once_for_all_time_points(suffix, reads, tmp_path):
    path = tmp_path / f"series{suffix}"
    voxels = np.random.default_rng(0).integers(0, 30000, (64, 64, 64, 6), np.int16)
    save(path, voxels, np.eye(4), kind=nibabel.MGHImage if suffix == ".mgz" else nibabel.Nifti1Image)
    inspected = inspect_volume(path)
    reads.watch(path)
    assert sum(1 for _ in inspected.volumes()) == 6
    assert 1 <= reads.of(path).bytes / path.stat().st_size < 1 + HEADERS


def test_an_input_that_changes_after_its_inspection_is_noticed(tmp_path):
    path = tmp_path / "scan.nii.gz"
    voxels = np.random.default_rng(0).random((20, 20, 20), np.float32)
    write_volume(path, voxels, Grid(FileShape(*voxels.shape), np.eye(4)))
    inspected = inspect_volume(path)
    write_volume(path, voxels + 1, Grid(FileShape(*voxels.shape), np.eye(4)))
    with pytest.raises(InputError, match=r"Cannot read scan\.nii\.gz: it was changed while it was in use"):
        list(inspected.volumes())
