"""`voxlift upscale` from OME-Zarr to OME-Zarr, and between it and NIfTI."""

import json
import shutil

import numpy as np
import pytest

from configs.axes import FileShape
from configs.errors import InputError
from tasks.files.lock import locked
from tasks.files.trees import file_digest
from tasks.volume.grid import Grid
from tasks.volume.nifti import read_volume, write_slabs
from tests.networks import small_restorer
from tests.tasks.images import affine
from tests.workflow.light_restorer import LightRestorer
from workflow.cli import app
from workflow.tracking.verification import verify

SHAPE = FileShape(12, 10, 21)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "small.keras"
    small_restorer().save(path)
    return path


@pytest.fixture
def place(tmp_path, monkeypatch, model, ray_cluster):
    monkeypatch.setattr("workflow.restore.restoration.worker_restorer", LightRestorer)
    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    voxels = np.random.default_rng(0).integers(0, 255, SHAPE).astype(np.float32)
    for name in ("scan.nii", "scan.ome.zarr"):
        grid = Grid(SHAPE, affine((1.0, 1.2, 1.1), (11.0, -7.0, 15.0), "LPS"))
        write_slabs(tmp_path / name, [voxels], grid, dtype="uint8")
    shutil.copy(model, tmp_path / "small.keras")
    return tmp_path


@pytest.fixture
def upscale(place, capfd):
    def run(source, out, *options):
        arguments = ["upscale", place / source, "--out", place / out, "--model", place / "small.keras"]
        try:
            app([*map(str, arguments), "--scale", "2", "--workers", "1", "--json", *options], standalone_mode=False)
        finally:
            printed = capfd.readouterr().out
        return json.loads(printed)["volumes"][0]

    return run


def test_the_voxels_are_those_of_nifti_whichever_format_goes_in_and_out(place, upscale):
    names = {"a.nii": "scan.nii", "b.zarr": "scan.ome.zarr", "d.nii.gz": "scan.ome.zarr"}
    found = {}
    for out, source in names.items():
        report = upscale(source, out)
        assert report["output"] == str(place / out)
        found[out] = report["sha256"], read_volume(place / out)
    one = found["a.nii"][1]
    for digest, volume in found.values():
        assert digest == found["a.nii"][0]
        np.testing.assert_array_equal(volume.voxels, one.voxels)
        np.testing.assert_allclose(volume.grid.affine, one.grid.affine, rtol=1e-6, atol=1e-5)
        assert volume.header is not None
        assert volume.header.dtype == np.uint8
    checked = verify(str(place))
    assert checked.damages == ()
    (place / "b.zarr" / "0" / "c" / "0" / "0" / "0").unlink()
    assert [damage.artifact for damage in verify(str(place)).damages] == ["b.zarr"]


def test_a_finished_output_is_kept_or_replaced_as_asked_and_a_locked_one_is_refused(place, upscale):
    arguments = ("scan.ome.zarr", "out.zarr")
    upscale(*arguments)
    digest, made = file_digest(place / "out.zarr"), (place / "out.zarr" / "zarr.json").stat().st_mtime_ns
    with pytest.raises(InputError, match=r"Cannot write out\.zarr: an earlier run has written it"):
        upscale(*arguments)
    report = upscale(*arguments, "--resume")
    assert report["shards_resumed"] == report["shards"]
    assert (place / "out.zarr" / "zarr.json").stat().st_mtime_ns == made
    (place / "out.zarr" / "0" / "c" / "0" / "0" / "0").unlink()
    for option in ("--resume", "--overwrite"):
        upscale(*arguments, option)
        assert file_digest(place / "out.zarr") == digest
    with (
        locked(place / ".voxlift" / "out.lock", "out.zarr"),
        pytest.raises(InputError, match=r"Cannot write out\.zarr: another run writes it"),
    ):
        upscale(*arguments, "--overwrite")


def test_one_name_is_not_the_output_of_several_volumes(place, upscale):
    with pytest.raises(InputError, match=r"Cannot write out\.zarr: it names one output, and 2 volumes are given"):
        upscale("scan.nii", "out.zarr", str(place / "scan.ome.zarr"))
