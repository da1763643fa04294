"""Volumes that are moved to the device: the same cores as with windows made in the memory of the process."""

from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from configs.axes import FileShape, NetworkShape, triple
from configs.degradation import AxisDegradation, Degradation
from configs.errors import NotFiniteError
from tasks.sharding import compiled, on_device
from tasks.sharding.comparison import Comparison
from tasks.sharding.plan import Shard, Streamed
from tasks.sharding.restore import CoarseVolume, RestoredCore, Restorer, coarse_volume
from tasks.volume.encoding import Encoding
from tasks.volume.grid import Grid, NetworkAxes, network_axes
from tasks.volume.intensity import Intensity
from tasks.volume.nifti import write_volume
from tasks.volume.windows import StoredVoxels
from tests.networks import small_restorer

TARGET = NetworkShape(61, 20, 35)
PADDED = triple((0, size) for size in (64, 32, 48))
WHOLE = Shard(triple((0, size) for size in TARGET), PADDED)
BOX = Shard(((8, 40), (0, 20), (16, 35)), ((0, 48), (0, 32), (0, 48)))
RANGE = 75.0
INTENSITY = Intensity(5, 5 + RANGE)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "small.keras"
    small_restorer().save(path)
    return path


@pytest.fixture(scope="module")
def pair(model):
    return restorers(model)


def restorers(model, *arguments):
    """Restorers that keep volumes in the memory of the process, and of the device."""
    return [Restorer(model.name, model.read_bytes(), None, *arguments, on_device=moved) for moved in (False, True)]


def slabs(height=32):
    for start in range(0, TARGET[0], height):
        yield Shard(((start, min(start + height, TARGET[0])), *WHOLE.core[1:]), PADDED, Streamed(0, height))


def volume(**options):
    voxels = np.random.default_rng(3).random((30, 10, 35), np.float32) * 90
    return CoarseVolume(voxels, TARGET, INTENSITY, **options)


def corrected():
    """A volume with a correction along two axes; the third stays as it is, and the network's detail counts in part."""
    axis = AxisDegradation(factor=2, blur_fwhm=1.5)
    recipe = Degradation(name="blur", depth=axis.model_copy(update={"factor": 61 / 30}), height=axis)
    found = coarse_volume(volume().voxels, TARGET, INTENSITY, recipe, certainty=0.6)
    assert found.correction is not None
    assert found.correction.bases[2] is None
    assert found.detail < 1
    return found


VOLUMES = {
    "plain": volume,
    "half the detail": lambda: volume(detail=0.5),
    "corrected": corrected,
    "whole numbers": lambda: replace(volume(), voxels=volume().voxels.astype(">i2")),
    "labels": lambda: replace(volume(), voxels=(volume().voxels // 30).astype(np.int32), labels=True),
}


def assert_same(pair, one, shards):
    """Compare the cores of both ways; the last one on its own, without the slabs before it, bit for bit."""
    host, device = pair
    moved = [device(one, shard).voxels for shard in shards]
    for shard, found in zip(shards, moved, strict=True):
        assert isinstance(found, np.ndarray)
        np.testing.assert_allclose(found, host(one, shard).voxels, rtol=0, atol=1e-5 * RANGE)
    np.testing.assert_array_equal(device(one, shards[-1]).voxels, moved[-1])


@pytest.mark.parametrize("kind", VOLUMES)
def test_cores_are_those_of_windows_made_by_the_processor(pair, kind):
    assert_same(pair, VOLUMES[kind](), [WHOLE, BOX, *slabs()])


def test_mirror_images_are_made_on_the_device_too(model):
    assert_same(restorers(model, 8), volume(), [BOX])


def test_a_precision_is_compared_with_float32_there_too(model):
    there, here = (restore(volume(), BOX).precision_psnr for restore in restorers(model, 1, "bfloat16"))
    assert here == pytest.approx(there, abs=0.5)


def test_voxels_that_stay_in_their_file_are_read_by_windows(pair, tmp_path):
    path, grid = tmp_path / "scan.nii", Grid(FileShape(35, 10, 30), np.diag([1.0, 1.0, 2.0, 1.0]))
    axes = network_axes(grid)
    in_memory = volume()
    write_volume(path, np.ascontiguousarray(axes.to_file(in_memory.voxels)), grid)
    stored = replace(in_memory, voxels=StoredVoxels(path, NetworkShape(30, 10, 35), axes))
    for shard in (BOX, next(slabs())):
        np.testing.assert_array_equal(pair[1](stored, shard).voxels, pair[1](in_memory, shard).voxels)


def test_a_volume_is_moved_once(pair, monkeypatch):
    moved = []

    class Counted(on_device.DeviceVolume):
        def __init__(self, *arguments):
            moved.append(arguments)
            super().__init__(*arguments)

    monkeypatch.setattr(on_device, "DeviceVolume", Counted)
    for one in (volume(), volume(detail=0.5)):
        for shard in (BOX, WHOLE, *slabs()):
            pair[1](one, shard)
    assert len(moved) == 2


@pytest.mark.parametrize("kind", ["CPU", "GPU"])
def test_the_device_of_the_process_chooses(model, monkeypatch, kind):
    monkeypatch.setattr(compiled, "device_kind", lambda: kind)
    made, window = [], CoarseVolume.input_window

    def counted(*given):
        made.append(given)
        return window(*given)

    monkeypatch.setattr(CoarseVolume, "input_window", counted)
    Restorer(model.name, model.read_bytes(), None)(volume(), BOX)
    assert len(made) == (kind == "CPU")


@pytest.mark.parametrize(
    ("encoding", "options"),
    [
        (Encoding("int16"), {"limits": (0.0, 60.0)}),
        (Encoding("uint8", 0.3, 11.0), {"limits": (-5.0, 60.0), "level": 7.3}),
        (Encoding("int8", 0.9, -2.5), {"limits": (3.0, 3.0)}),
        (Encoding("uint16", 1e-3, 0.0), {"level": -40.0}),
    ],
    ids=lambda value: getattr(value, "dtype", None),
)
def test_cores_are_encoded_as_by_the_processor(encoding, options):
    one = replace(volume(), encoding=encoding, **options)
    core = np.random.default_rng(2).normal(40, 60, (9, 8, 7)).astype(np.float32)
    core[0] = np.arange(56).reshape(8, 7) + 0.5  # halves round to even
    expected = RestoredCore(core, 0, 0, 0).stored(one, BOX)
    negative = one.limits[0] < 0
    found = on_device.encoded(core, encoding, level=one.level, negative=negative, bounds=one.bounds)
    assert found is not None
    np.testing.assert_array_equal(found[0], expected.voxels, strict=True)
    assert found[1] == expected.outside


COMPARED = {
    "before it is corrected": (None, None),
    "as float32": (None, Encoding("float32")),
    "as int32": (None, Encoding("int32", 0.5, 3.0)),
    "as int16 next to float32 cores": (None, Encoding("int16", 0.25)),
    "as uint8": (Encoding("uint8", 0.3, 11.0), Encoding("uint8", 0.3, 11.0)),
}
RECIPES = {
    "blur": Degradation(
        name="blur", depth=AxisDegradation(factor=61 / 30, blur_fwhm=1.5), height=AxisDegradation(factor=2)
    ),
    "k-space": Degradation(
        name="kspace",
        depth=AxisDegradation(factor=61 / 30, profile="kspace"),
        height=AxisDegradation(factor=2, profile="kspace"),
    ),
}


@pytest.mark.parametrize("kind", COMPARED)
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("shard", [WHOLE, BOX, next(slabs(16))], ids=["whole", "box", "slab"])
def test_parts_are_those_of_the_processor(pair, kind, recipe, shard):
    encoding, compared = COMPARED[kind]
    comparison = Comparison(recipe, NetworkAxes((2, 0, 1), (True, False, True)), compared)
    one = replace(volume(), encoding=encoding, comparison=comparison, limits=(0.0, 90.0), level=0.5)
    core = np.random.default_rng(2).normal(40, 30, shard.shape).astype(np.float32)
    expected = RestoredCore(core, 0, 0, 0).stored(one, shard)
    found = on_device.degraded(tf.constant(core), shard.core, TARGET, comparison, level=0.5, negative=False)
    assert expected.part is not None
    np.testing.assert_allclose(found, expected.part, rtol=0, atol=1e-5 * RANGE)
    assert found.flags.c_contiguous
    assert pair[1](one, shard).part.shape == found.shape


@pytest.mark.parametrize("kind", [0, 1])
def test_the_parts_of_a_restorer_are_those_of_its_cores(pair, kind):
    one = replace(volume(), comparison=Comparison(RECIPES["blur"], NetworkAxes((2, 0, 1), (True, False, True))))
    for shard in (WHOLE, BOX, *slabs()):
        found = pair[kind](one, shard)
        expected = RestoredCore(found.voxels, 0, 0, 0).stored(one, shard)
        assert expected.part is not None
        np.testing.assert_allclose(found.part, expected.part, rtol=0, atol=kind * 1e-5 * RANGE)


def test_an_encoded_core_leaves_the_device(pair):
    shard, one = BOX, replace(volume(), encoding=Encoding("int16", 0.01), limits=(-9.0, 9.0))
    there, here = (restore(one, shard) for restore in pair)
    assert here.voxels.dtype == np.int16
    assert np.abs(here.voxels.astype(int) - there.voxels).max() <= 1  # where a last bit decides
    assert here.outside == pytest.approx(there.outside, abs=2)
    assert here.outside


def test_a_core_with_an_infinite_voxel_is_refused_there_too(pair):
    one = replace(volume(), encoding=Encoding("int16"), level=np.inf)
    with pytest.raises(NotFiniteError):
        pair[1](one, BOX)
