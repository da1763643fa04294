"""Label maps: recognised by header, name or values, and resampled without a label that was not there."""

import numpy as np
import pytest
from scipy import ndimage

from tasks.imaging.labels import resample_labels
from tasks.imaging.resample import resample
from tasks.volume.inspection import inspect_volume
from tests.tasks.images import affine, packaged_volumes, save


def regions(count=40, shape=(24, 26, 22)):
    """Regions of equal voxels with numbers that are apart, in a background of 0."""
    generator = np.random.default_rng(count)
    seeds = generator.integers(0, shape, (count, 3))
    distance = np.linalg.norm(np.moveaxis(np.indices(shape), 0, -1)[:, :, :, None] - seeds, axis=-1)
    labels = 1 + 7 * distance.argmin(axis=-1) % 501
    labels[distance.min(axis=-1) > 6] = 0
    return labels


def scan_of(levels, shape=(24, 26, 22)):
    """A smooth image with some noise, in whole numbers of which there are few."""
    generator = np.random.default_rng(levels)
    smooth = ndimage.gaussian_filter(generator.random(shape), 2)
    smooth = (smooth - smooth.min()) / np.ptp(smooth) + generator.normal(0, 0.03, shape)
    return np.rint(np.clip(smooth, 0, 1) * (levels - 1))


@pytest.mark.parametrize(
    ("name", "voxels", "fields", "reason"),
    [
        ("scan.nii", scan_of(200), {"intent_code": 1002}, "intent is 1002"),
        ("sub-01_desc-tissue_dseg.nii", scan_of(200), {}, "name says so"),
        ("aparc+aseg.nii.gz", scan_of(200), {}, "name says so"),
        ("ASEG.nii", scan_of(200), {}, "name says so"),
        ("atlas.nii", regions(), {}, "40 values are whole numbers in uniform regions"),
        ("tissues.nii", regions() % 4, {}, "4 values"),
        ("mask.nii", regions() > 0, {}, "2 values"),
        ("scan.nii", scan_of(200), {}, ""),
        ("scan.nii", scan_of(60), {}, ""),
        ("scan.nii", scan_of(2000), {}, ""),
        ("basegreen.nii", scan_of(200), {}, ""),
    ],
)
def test_label_maps_are_recognised(tmp_path, name, voxels, fields, reason):
    path = save(tmp_path / name, voxels.astype(float), affine(), dtype="i2", **fields)
    found = inspect_volume(path).labels
    assert reason in found
    assert bool(found) == bool(reason)


def test_a_name_alone_makes_no_label_map_of_fractions(tmp_path):
    path = save(tmp_path / "sub-01_dseg.nii", np.random.default_rng(0).random((9, 9, 9)), affine(), dtype="f4")
    assert not inspect_volume(path).labels


def test_no_packaged_scan_is_taken_for_labels():
    for path in packaged_volumes():
        if path.suffix == ".gz" and path.parent.name == "data":
            try:
                assert not inspect_volume(path).labels, path
            except ValueError:  # damaged on purpose
                continue


@pytest.mark.parametrize("shape", [(48, 52, 44), (30, 26, 55), (24, 26, 22)])
def test_the_label_with_the_largest_linear_weight_wins(shape):
    labels = regions().astype(np.float32)
    values = np.unique(labels)
    indicators = np.stack([resample((labels == value).astype(np.float32), shape, "linear") for value in values])
    i, j, k = shape
    got = resample_labels(labels, shape, ((0, i), (0, j), (0, k)))
    assert set(np.unique(got)) <= set(values)
    first, second = np.sort(indicators, axis=0)[[-1, -2]]
    clear = first - second > 1e-5  # ties may go either way
    assert clear.mean() > 0.8
    np.testing.assert_array_equal(got[clear], values[indicators.argmax(axis=0)][clear])
    part = resample_labels(labels, shape, ((3, 9), (5, 20), (2, 21)))
    np.testing.assert_array_equal(part, got[3:9, 5:20, 2:21])
