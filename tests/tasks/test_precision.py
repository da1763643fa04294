"""Restoration in bfloat16: close to float32, the same from any shard, and refused where it is not close."""

import keras
import numpy as np
import pytest

from configs.axes import NetworkShape, triple
from configs.errors import InputError
from models.network.precision import in_bfloat16
from tasks.sharding import restore
from tasks.sharding.plan import Shard, Streamed
from tasks.sharding.restore import CoarseVolume, PrecisionError, Restorer
from tasks.volume.intensity import Intensity
from tests.networks import small_restorer

TARGET = NetworkShape(61, 20, 35)
PADDED = triple((0, size) for size in (64, 32, 48))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "small.keras"
    small_restorer().save(path)
    return path


def restorer(path, precision):
    return Restorer(path.name, path.read_bytes(), None, precision=precision)


def volume(seed=3):
    voxels = np.random.default_rng(seed).random((30, 10, 35), np.float32) * 90
    return CoarseVolume(voxels, TARGET, Intensity(5, 80))


def slabs(height=32):
    sides = triple((0, size) for size in TARGET)
    for start in range(0, TARGET[0], height):
        yield Shard(((start, min(start + height, TARGET[0])), *sides[1:]), PADDED, Streamed(0, height))


def test_all_layers_compute_in_bfloat16_but_those_that_make_the_output():
    model = small_restorer()
    changed = in_bfloat16(model)
    computes = {layer.name: layer.compute_dtype for layer in changed.layers if layer.weights}
    (single,) = [layer.name for layer in changed.layers if getattr(layer, "filters", 0) == 1]
    assert computes.pop(single) == "float32"
    assert set(computes.values()) == {"bfloat16"}
    tensor = np.random.default_rng(0).random((1, 16, 32, 32, 1), np.float32)
    made, exact = changed(tensor), model(tensor)
    assert keras.backend.standardize_dtype(made.dtype) == "float32"
    assert 0 < np.abs(made - exact).max() < 0.05


def test_the_error_is_measured_once_for_a_volume_and_shards_are_the_volume(saved):
    coarser, exact = restorer(saved, "bfloat16"), restorer(saved, "float32")
    one, box, shards = volume(), Shard(triple((0, size) for size in TARGET), PADDED), list(slabs())
    whole, expected = coarser(one, box), exact(one, box)
    assert expected.precision_psnr is None
    error = np.sqrt(np.mean(np.square(whole.voxels - expected.voxels))) / 75
    assert whole.precision_psnr == pytest.approx(-20 * np.log10(error), abs=3)
    parts = [coarser(one, shard) for shard in shards]
    assert {part.precision_psnr for part in parts} == {None}
    joined = np.concatenate([part.voxels for part in parts])
    # No two sums of a layer round alike in another order.
    np.testing.assert_allclose(joined, whole.voxels, rtol=0, atol=75 * 0.05)
    assert np.array_equal(coarser(one, shards[0]).voxels, parts[0].voxels)
    assert coarser(volume(4), box).precision_psnr is not None


def test_a_precision_that_is_wrong_is_refused(saved, monkeypatch):
    monkeypatch.setattr(restore, "MIN_PSNR", 149.0)
    with pytest.raises(PrecisionError, match=r"bfloat16 gives another result than float32 on this device: \d\d\.\d dB"):
        restorer(saved, "bfloat16")(volume(), next(slabs()))


def test_a_processor_has_no_tf32(saved):
    with pytest.raises(InputError, match="Cannot restore in tf32 on this device, the CPU"):
        restorer(saved, "tf32")
