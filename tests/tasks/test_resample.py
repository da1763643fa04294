"""Interpolation against SciPy, and windows against the whole."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from configs.axes import FileShape
from tasks.imaging.resample import resample, resample_window
from tasks.volume.grid import Grid
from tasks.volume.nifti import open_volume, write_volume

SHAPES = [
    ((9, 14, 11), (18, 28, 22)),
    ((9, 14, 11), (13, 14, 30)),
    ((20, 21, 22), (10, 7, 15)),
    ((5, 1, 8), (10, 3, 8)),
    ((3, 70, 66), (12, 141, 133)),
]


@pytest.mark.parametrize(("shape", "target"), SHAPES)
@pytest.mark.parametrize("order", ["cubic", "linear"])
def test_it_is_what_scipy_computes(shape, target, order):
    voxels = np.random.default_rng(1).random(shape, dtype=np.float32)
    factors = [wanted / size for size, wanted in zip(shape, target, strict=True)]
    expected = ndimage.zoom(
        voxels.astype(float), factors, order={"cubic": 3, "linear": 1}[order], mode="nearest", grid_mode=True
    )
    np.testing.assert_allclose(resample(voxels, target, order), expected, atol=3e-6)


@pytest.mark.parametrize(("order", "theirs"), [("cubic", SimpleITK.sitkBSpline), ("linear", SimpleITK.sitkLinear)])
def test_it_is_what_simpleitk_computes_away_from_the_edge(order, theirs):
    """SimpleITK mirrors at the edge where we extend it; inside they are one."""
    shape, target = (44, 46, 48), (88, 69, 120)
    voxels = np.random.default_rng(3).random(shape, dtype=np.float32)
    coarse = SimpleITK.GetImageFromArray(voxels)  # its axes are ours in reverse
    step = [size / wanted for size, wanted in zip(shape[::-1], target[::-1], strict=True)]
    origin = [(one - 1) / 2 for one in step]
    found = SimpleITK.Resample(coarse, target[::-1], SimpleITK.Transform(), theirs, origin, step)
    inner = tuple(slice(size // 3, -size // 3) for size in target)
    np.testing.assert_allclose(
        resample(voxels, target, order)[inner], SimpleITK.GetArrayFromImage(found)[inner], atol=1e-5
    )


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_window_is_that_window_of_the_whole(data):
    shape, target = data.draw(st.sampled_from(SHAPES))
    order = data.draw(st.sampled_from(["cubic", "linear"]))
    depth, height, width = (
        (start := data.draw(st.integers(-20, size + 20)), start + data.draw(st.integers(1, size + 20)))
        for size in target
    )
    voxels = np.random.default_rng(2).random(shape, dtype=np.float32)
    found = resample_window(voxels, target, (depth, height, width), order)
    nearest = [
        np.clip(np.arange(*rows), 0, size - 1) for rows, size in zip((depth, height, width), target, strict=True)
    ]
    np.testing.assert_allclose(found, resample(voxels, target, order)[np.ix_(*nearest)], atol=1e-6)


@pytest.mark.parametrize("order", ["cubic", "linear"])
def test_constants_stay(order):
    voxels = np.full((7, 8, 9), 1234.5, np.float32)
    np.testing.assert_allclose(resample(voxels, (21, 5, 13), order), 1234.5, rtol=1e-6)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("order", ["cubic", "linear"])
@pytest.mark.parametrize("factor", [2, 1.5, 0.5, 3.3])
def test_ramps_stay_away_from_the_edge(axis, order, factor):
    size = 60
    ramp = np.moveaxis(np.broadcast_to(np.arange(size, dtype=np.float32), (4, 5, size)), 2, axis)
    target = list(ramp.shape)
    target[axis] = wanted = round(size * factor)
    expected = (np.arange(wanted) + 0.5) * size / wanted - 0.5
    inner = slice(wanted // 4, -wanted // 4)
    found = np.moveaxis(resample(ramp, tuple(target), order), axis, 2)[..., inner]
    np.testing.assert_allclose(found, np.broadcast_to(expected[inner], found.shape), atol=2e-4)


def test_equal_inputs_give_equal_bytes_whatever_their_strides():
    voxels = np.random.default_rng(3).random((30, 31, 32), dtype=np.float32)
    first = resample(voxels, (60, 62, 64)).tobytes()
    assert resample(np.asfortranarray(voxels), (60, 62, 64)).tobytes() == first
    assert resample(voxels[::-1][::-1], (60, 62, 64)).tobytes() == first


@pytest.mark.slow
def test_it_is_much_faster_than_scipy():
    voxels = np.random.default_rng(5).random((180, 216, 180), dtype=np.float32)
    begun = time.perf_counter()
    expected = ndimage.zoom(voxels, 2, order=3, mode="nearest", grid_mode=True)
    theirs = time.perf_counter() - begun
    times = []
    for _ in range(3):
        begun = time.perf_counter()
        found = resample(voxels, (360, 432, 360))
        times.append(time.perf_counter() - begun)
    np.testing.assert_allclose(found, expected, atol=3e-6)
    assert theirs > 5 * min(times)


@pytest.mark.slow
def test_a_large_volume_stays_within_its_memory(tmp_path):
    shape = (300, 370, 316)
    voxels = np.random.default_rng(6).integers(0, 900, shape).astype(np.float32)
    write_volume(tmp_path / "a.nii.gz", voxels, Grid(FileShape(*shape), np.eye(4)), dtype="int16")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.enlarge", str(tmp_path / "a.nii.gz"), str(tmp_path / "b.nii.gz")],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert open_volume(tmp_path / "b.nii.gz").grid.shape == (600, 740, 632)
    assert json.loads(done.stdout)["peak_mib"] < 1536
