"""Inputs that stay in their file: the same output as of one that is held, without ever reading all of it at once."""

from dataclasses import replace

import numpy as np
import pytest

from configs.axes import FileShape
from configs.errors import ReadError
from configs.schema import Resources
from tasks.artifacts.network_file import read_network
from tasks.volume.grid import Grid, network_axes
from tasks.volume.nifti import open_volume, read_volume, write_slabs
from tasks.volume.scan import Scan
from tasks.volume.windows import StoredVoxels, sampled
from tests.networks import small_restorer
from tests.tasks.images import affine
from workflow.upscale.plan import UpscaleRequest
from workflow.upscale.volume_work import VolumeWork
from workflow.upscale.volumes import plan_volumes, upscale

SHAPE = FileShape(20, 18, 45)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "small.keras"
    small_restorer().save(path)
    return read_network(path)


def written(path, voxels, axes="LPS"):
    grid = Grid(FileShape(*voxels.shape), affine((1.0, 1.0, 1.1), (11.0, -7.0, 15.0), axes))
    write_slabs(path, [voxels.astype(np.float32)], grid, dtype="int16")
    return path


def image(low=0, high=900):
    return np.random.default_rng(0).integers(low, high, SHAPE)


def requested(network, source, out, **options):
    given = {"scale": (2.0, 2.0, 2.0), "fail_fast": True, "place": "here", **options}
    resources = Resources(workers=1, memory_budget_mib=42)
    return UpscaleRequest([source], None, network, resources, output=out, **given)


@pytest.mark.parametrize("suffix", [".nii", ".zarr"])
@pytest.mark.parametrize(
    ("values", "kind"), [((0, 900), None), ((-300, 900), None), ((900, 950), None), ((0, 5), "labels")]
)
def test_the_output_is_that_of_an_input_that_is_held(tmp_path, monkeypatch, network, suffix, values, kind):
    source = written(tmp_path / f"scan{suffix}", image(*values), "PIR")
    held = requested(network, source, tmp_path / "held.nii", kind=kind)
    upscale(held, plan_volumes(held))
    monkeypatch.setattr("workflow.upscale.plan.MAX_HELD_MIB", 0)
    monkeypatch.setattr(Scan, "read", None)
    request = replace(held, output=tmp_path / f"windows{suffix}")
    (planned,) = works = plan_volumes(request)
    assert isinstance(planned, VolumeWork)
    assert planned.plan.by_windows
    assert len(planned.plan.shard_plan.shards) > 1 or kind == "labels"
    (report,) = upscale(request, works).volumes
    monkeypatch.undo()
    assert report.consistency is None
    expected = read_volume(tmp_path / "held.nii").voxels
    np.testing.assert_array_equal(read_volume(tmp_path / f"windows{suffix}").voxels, expected)


@pytest.mark.parametrize("case", ["compressed", "padding", "inferred", "small"])
def test_what_windows_cannot_give_is_held(tmp_path, monkeypatch, network, case):
    voxels = image(-1024) if case == "padding" else image()
    source = written(tmp_path / ("scan.nii.gz" if case == "compressed" else "scan.nii"), voxels)
    if case != "small":
        monkeypatch.setattr("workflow.upscale.plan.MAX_HELD_MIB", 0)
    (work,) = plan_volumes(requested(network, source, tmp_path / "out.nii", inferred=case == "inferred"))
    assert isinstance(work, VolumeWork)
    assert not work.plan.by_windows


@pytest.mark.parametrize("suffix", [".nii", ".zarr"])
@pytest.mark.parametrize("axes", ["RAS", "LPS", "ASR", "PIL"])
def test_windows_are_those_of_the_volume_on_network_axes(tmp_path, suffix, axes):
    scan = open_volume(written(tmp_path / f"scan{suffix}", image(), axes))
    turned = network_axes(scan.grid)
    whole = turned.to_network(scan.read().voxels)
    stored = StoredVoxels(scan.path, turned.network_shape(scan.grid.shape), turned, level=5.0)
    for low, high in np.random.default_rng(1).random((20, 2, 3)):
        starts = (low * whole.shape).astype(int)
        stops = starts + 1 + (high * (whole.shape - starts)).astype(int)
        part = tuple(slice(start, stop) for start, stop in zip(starts, stops, strict=True))
        np.testing.assert_array_equal(stored[part], whole[part] - 5)


def test_a_sample_is_regular_across_slabs(tmp_path, monkeypatch):
    scan = open_volume(written(tmp_path / "scan.nii", image()))
    monkeypatch.setattr("tasks.volume.windows.SAMPLE_VOXELS", 700)
    monkeypatch.setattr("tasks.volume.scan.SLAB_VOXELS", 20 * 18 * 4)
    np.testing.assert_array_equal(sampled(scan), image()[::3, ::3, ::3])


def test_an_input_that_changes_meanwhile_gives_no_output(tmp_path, monkeypatch, network):
    monkeypatch.setattr("workflow.upscale.plan.MAX_HELD_MIB", 0)
    source = written(tmp_path / "scan.zarr", image(0, 5))
    request = requested(network, source, tmp_path / "out.zarr", kind="labels")
    works = plan_volumes(request)
    written(source, image(0, 4))
    with pytest.raises(ReadError, match="it was changed while it was in use"):
        upscale(request, works)
    assert not (tmp_path / "out.zarr").exists()
