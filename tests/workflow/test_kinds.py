"""Volumes of every kind through `upscale`: label maps, padding, signs, small contrast, single slices."""

import json

import nibabel
import numpy as np
import pytest

from configs.errors import InputError
from configs.schema import Resources
from tasks.artifacts.network_file import read_network
from tasks.volume.inspection import inspect_volume
from tasks.volume.intensity import Intensity
from tests.networks import small_restorer
from tests.tasks.images import affine, save
from tests.tasks.test_labels import regions, scan_of
from tests.tasks.test_padding import scanned
from tests.workflow.light_restorer import LightRestorer
from workflow.upscale.plan import UpscaleRequest, plan_volume
from workflow.upscale.report import geometry
from workflow.upscale.volumes import plan_volumes, upscale

pytestmark = pytest.mark.usefixtures("ray_cluster", "light_workers")


@pytest.fixture
def light_workers(monkeypatch):
    monkeypatch.setattr("workflow.restore.restoration.worker_restorer", LightRestorer)
    monkeypatch.setenv("RAY_ADDRESS", "local")


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "small.keras"
    small_restorer().save(path)
    return read_network(path)


@pytest.fixture
def restore(network, tmp_path):
    """Upscale voxels 2x: (report of the volume, the output's voxels as its file has them)."""

    def run(voxels, name="scan.nii.gz", *, dtype="i2", **options):
        source = save(tmp_path / name, np.asarray(voxels, float), affine(), dtype=dtype)
        resources = Resources(workers=1, memory_budget_mib=60, retries=0)
        request = UpscaleRequest([source], tmp_path / "out", network, resources, **{"scale": (2, 2, 2), **options})
        planned = plan_volumes(request)
        (volume,) = upscale(request, planned).volumes
        assert volume.error is None
        return volume, np.asarray(nibabel.load(volume.output).dataobj)

    return run


@pytest.mark.parametrize("dtype", ["i2", "f4"])
def test_an_output_of_a_label_map_holds_only_its_labels(restore, dtype):
    labels = regions()
    volume, restored = restore(labels, dtype=dtype)
    assert restored.dtype == np.dtype(dtype)
    assert set(np.unique(restored)) <= set(np.unique(labels))
    assert restored.shape == (48, 52, 44)
    assert (restored[::2, ::2, ::2] == labels).mean() > 0.9
    assert volume.consistency is None
    sidecar = json.loads((volume.output.parent / "scan_sr.json").read_text())
    assert sidecar["Resolution"] == "resampled 2x2x2"
    assert set(volume.warnings) <= set(sidecar["Warnings"])
    assert [w for w in volume.warnings if w.startswith("a label map (its 40 values") and "--as image" in w]


def test_the_kind_may_be_given(restore):
    _, restored = restore(regions(), kind="image")
    assert not set(np.unique(restored)) <= set(np.unique(regions()))
    volume, restored = restore(scan_of(200), kind="labels")
    assert set(np.unique(restored)) <= set(np.unique(scan_of(200)))
    assert [w for w in volume.warnings if w.startswith("a label map (as requested)")]


def test_a_label_map_keeps_its_labels_in_another_dtype_or_is_refused(network, tmp_path):
    resources = Resources(workers=1, memory_budget_mib=60, retries=0)
    source = save(tmp_path / "atlas.nii", regions().astype(float), affine(), dtype="i2")
    request = UpscaleRequest([source], tmp_path / "out", network, resources, scale=(2, 2, 2), dtype="uint8")
    with pytest.raises(InputError, match=r"Cannot write the label map atlas\.nii as uint8: it holds labels from 0 to"):
        plan_volumes(request)
    source = save(tmp_path / "large.nii", regions().astype(float) * 1e6, affine(), dtype="i4")
    request = UpscaleRequest([source], tmp_path / "out", network, resources, scale=(2, 2, 2))
    with pytest.raises(InputError, match=r"labels up to 16777216 are exact"):
        plan_volumes(request)


def edges(low, high, shape=(24, 24, 24)):
    """Blocks of two values: interpolation rings at their edges."""
    return np.where(np.indices(shape).sum(axis=0) // 6 % 2, high, low).astype(float)


def test_no_output_of_an_input_without_negative_voxels_has_any(restore):
    volume, restored = restore(edges(0.0, 700.5), dtype="f4")
    assert restored.min() == 0
    assert restored.max() > 735
    assert volume.outside > 0.001
    assert volume.range_warning in volume.warnings
    assert "outside the input's range by more than 5%" in volume.range_warning


def test_negative_voxels_stay_negative(restore):
    volume, restored = restore(edges(-300.5, 700.0), dtype="f4")
    assert restored.min() < -350
    assert volume.outside > 0.001


def test_a_smooth_image_stays_in_its_range(restore):
    volume, _ = restore(scan_of(2000))
    assert volume.outside < 0.001
    assert not [warning for warning in volume.warnings if "range" in warning]


@pytest.mark.parametrize(("value", "dtype"), [(-1024, "i2"), (-3024, "i2"), (-32768, "i2"), (np.nan, "f4")])
def test_padding_stays_and_does_not_ring(restore, value, dtype):
    voxels = scanned(value)
    _, restored = restore(voxels, dtype=dtype)
    is_padding = np.isnan if np.isnan(value) else lambda array: array == value
    expected = is_padding(voxels).repeat(2, 0).repeat(2, 1).repeat(2, 2)
    np.testing.assert_array_equal(is_padding(restored), expected)
    tissue = voxels[~is_padding(voxels)]
    inside = restored[~expected]
    assert tissue.min() - 40 < inside.min()
    assert inside.max() < tissue.max() + 40


@pytest.mark.parametrize(("level", "contrast"), [(30_000, 25), (1_000, 1)])
def test_small_contrast_on_a_level_is_restored_as_without_it(network, restore, tmp_path, level, contrast):
    image = np.random.default_rng(0).normal(0, contrast, (24, 25, 26))
    plans = []
    for name, voxels in (("without.nii", image), ("with.nii", image + level)):
        path = save(tmp_path / name, voxels, affine(), dtype="f4")
        request = UpscaleRequest([path], tmp_path / "out", network, Resources(), scale=(2, 2, 2))
        found = inspect_volume(path)
        plan = plan_volume(request, found.scan, tmp_path / "out.nii", found.extent)
        plans.append(plan.coarse_volume(next(found.volumes()).voxels, Intensity(0, 1)))
    without, on_level = plans
    unit = without.intensity.high - without.intensity.low
    assert on_level.intensity.high - on_level.intensity.low == pytest.approx(unit, rel=1e-3)
    normalised = [(one.voxels - one.intensity.low) / unit for one in plans]
    np.testing.assert_allclose(normalised[0], normalised[1], atol=1e-3)
    outputs = [restore(voxels, name, dtype="f4")[1] for name, voxels in (("a.nii", image), ("b.nii", image + level))]
    np.testing.assert_allclose(outputs[1] - level, outputs[0], atol=1e-3 * level**0.5)


def test_a_slice_of_one_voxel_stays_one_voxel(restore):
    volume, restored = restore(np.random.default_rng(0).random((24, 25, 1)) * 500)
    assert volume.output_shape == restored.shape == (48, 50, 1)
    assert volume.output_spacing == pytest.approx((0.5, 0.75, 3.0))


def test_the_plan_says_what_a_label_map_is_taken_for(network, tmp_path):
    source = save(tmp_path / "aseg.nii", scan_of(200), affine(), dtype="i2")
    request = UpscaleRequest([source], tmp_path / "out", network, Resources(), scale=(2, 2, 2))
    found = inspect_volume(source)
    line = geometry(plan_volume(request, found.scan, tmp_path / "o.nii", found.extent, found.labels))
    assert line.endswith(
        "; a label map (its name says so, and its values are whole numbers), resampled by label without the network;"
        " --as image restores it"
    )
