"""Measures of a restored volume's making: each finds what was put there, and finds nothing in a sound volume."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from configs.axes import FileShape, NetworkShape
from tasks.scoring.quality import PERIODIC, SEAM, quality_warnings, seams, shard_borders, spectrum
from tasks.sharding.plan import Shard, ShardPlan
from tasks.training.template import template_path
from tasks.volume.grid import Grid, network_axes
from tasks.volume.intensity import find_intensity, normalise
from tasks.volume.nifti import read_volume


@pytest.fixture(scope="module")
def anatomy():
    random = np.random.default_rng(0)
    blobs = gaussian_filter(random.normal(size=(96, 90, 84)), 3)
    return (gaussian_filter((blobs > 0).astype(float), 0.8) + random.normal(0, 0.01, blobs.shape)).astype(np.float32)


@pytest.fixture(scope="module")
def brain():
    volume = read_volume(template_path())
    return normalise(volume.voxels, find_intensity(volume.voxels))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("stride", [2, 4, 8])
def test_periodic_noise_is_found_along_its_axis_and_no_other(anatomy, axis, stride):
    along = np.arange(anatomy.shape[axis]) % stride == 0
    noisy = anatomy + 0.02 * np.moveaxis(np.broadcast_to(along, (1, 1, along.size)), 2, axis).astype(np.float32)
    peaks = [spectrum(noisy, each, stride).peak for each in range(3)]
    assert peaks[axis] > PERIODIC
    assert all(peak < PERIODIC for each, peak in enumerate(peaks) if each != axis)


@pytest.mark.parametrize("stride", [1, 2, 4, 8, 16])
def test_a_sound_volume_has_no_periodic_noise(anatomy, brain, stride):
    for volume in (anatomy, brain):
        assert all(spectrum(volume, axis, stride).peak < PERIODIC for axis in range(3))


@pytest.mark.parametrize(("height", "counts"), [(0.001, False), (0.02, True)])
def test_a_pattern_too_weak_to_be_seen_does_not_count(height, counts):
    """Also where the volume is so smooth that the pattern stands out."""
    smooth = gaussian_filter(np.random.default_rng(0).random((96, 40, 40)), 6).astype(np.float32)
    smooth[::8] += height
    assert (spectrum(smooth, 0, 8).peak > PERIODIC) == counts


def test_a_seam_is_found_where_it_is(anatomy):
    seamed = anatomy.copy()
    seamed[:, 40:] += 0.08
    borders = [(0, 30), (1, 40), (1, 60), (2, 50)]
    found = {(seam.axis, seam.place): seam.excess for seam in seams(seamed, anatomy, borders)}
    assert found.pop((1, 40)) > SEAM
    assert all(excess == pytest.approx(1, abs=0.05) for excess in found.values())
    (warning,) = quality_warnings([], seams(seamed, anatomy, borders))
    assert warning.startswith("a seam along j before voxel 40")


def test_a_sharper_volume_has_no_seams(brain):
    blurred = gaussian_filter(brain, 1).astype(np.float32)
    found = seams(brain, blurred, [(axis, place) for axis in range(3) for place in range(24, 180, 24)])
    assert len(found) >= 18
    assert max(seam.excess for seam in found) < SEAM


def test_a_border_at_the_rim_or_in_air_is_passed_over():
    air = np.zeros((8, 8, 8), np.float32)
    assert seams(air, air, [(0, 4), (1, 1), (2, 7)]) == []


def test_a_flat_or_tiny_volume_has_no_spectrum():
    assert spectrum(np.zeros((40, 40, 40), np.float32), 0, 4).peak == 0
    assert spectrum(np.ones((3, 3, 3), np.float32), 2, 4).peak == 0


@pytest.mark.parametrize("codes", [(1, 1, 1), (-1, 1, -1)])
def test_borders_are_where_shards_meet_in_the_file(codes):
    axes = network_axes(Grid(FileShape(4, 6, 8), np.diag([*codes, 1.0])))
    cores = [((0, 5), (0, 6), (0, 4)), ((5, 8), (0, 6), (0, 4))]
    plan = ShardPlan(
        NetworkShape(8, 6, 4),
        tuple(Shard(core, core) for core in cores),
        (),
        NetworkShape(8, 6, 4),
        0,
        0,
        0,
        192,
        (96,),
    )
    owner = np.empty((8, 6, 4), np.float32)
    for number, core in enumerate(cores):
        owner[tuple(slice(*side) for side in core)] = number
    in_file = axes.to_file(owner)
    changes = {(axis, int(place) + 1) for axis in range(3) for place in np.nonzero(np.diff(in_file, axis=axis))[axis]}
    assert set(shard_borders(plan, axes)) == changes
