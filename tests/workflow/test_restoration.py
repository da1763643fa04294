"""A volume restored through workers: the same numbers as the network on the whole, whoever computes them."""

import hashlib
import subprocess
import sys

import keras
import numpy as np
import pytest

from configs.axes import FileShape
from configs.degradation import named_degradation
from configs.errors import ContractError, InputError, NotFiniteError
from configs.load import load_config
from configs.schema import Resources
from tasks.artifacts.contracts import ModelContract
from tasks.artifacts.manifest import manifest_entry
from tasks.artifacts.model_card import add_card, make_card
from tasks.artifacts.network_file import read_network
from tasks.imaging.consistency import interpolation_correction
from tasks.imaging.noise import scan_noise
from tasks.imaging.resample import resample, resample_window
from tasks.volume.grid import Grid, network_axes, scaled_grid
from tasks.volume.intensity import CLIP, find_intensity, normalise, restore
from tasks.volume.nifti import read_volume, write_volume
from tests.networks import small_restorer
from workflow.restore.restoration import Progress, plan_restoration, restore_volume

LAS = np.array([[-1.0, 0, 0, 30], [0, 1.2, 0, -20], [0, 0, 2.5, 3], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "small.keras"
    model = small_restorer()
    model.save(path)
    return model, path


@pytest.fixture(scope="module")
def volume(tmp_path_factory):
    voxels = np.random.default_rng(3).gamma(2.0, 40.0, size=(41, 50, 23)).astype(np.float32)
    path = tmp_path_factory.mktemp("volume") / "head.nii"
    write_volume(path, voxels, Grid(FileShape(41, 50, 23), LAS))
    return read_volume(path)


def restored(volume, network, workers=1, **options):
    smallest = plan_of(volume, network, 10_000).smallest_bytes // 2**20 + 1
    resources = Resources(workers=workers, memory_budget_mib=smallest)
    return restore_volume(volume, scaled_grid(volume.grid, (2, 2, 3)), network, resources, name="head", **options)


def plan_of(volume, network, budget):
    return plan_restoration(
        volume, scaled_grid(volume.grid, (2, 2, 3)), network, Resources(memory_budget_mib=budget), name="head.nii.gz"
    )


@pytest.mark.usefixtures("ray_cluster")
def test_shards_of_one_or_two_workers_give_what_the_whole_volume_gives(saved, volume):
    model, path = saved
    network = read_network(path)
    reported: list[Progress] = []
    one = restored(volume, network, on_progress=reported.append)
    two = restored(volume, network, workers=2)
    assert len(one.plan.shards) > 3
    assert one.voxels.shape == (82, 100, 69)
    assert [progress.shards_done for progress in reported] == list(range(1, len(one.plan.shards) + 1))
    assert (reported[-1].voxels_done, reported[-1].voxels, reported[-1].workers) == (one.voxels.size,) * 2 + (1,)
    assert one.voxels_per_second > 0
    digests = {hashlib.sha256(each.voxels.tobytes()).hexdigest() for each in (one, two)}
    assert len(digests) == 1

    axes, intensity = network_axes(volume.grid), find_intensity(volume.voxels)
    shape = axes.of_file(one.voxels.shape)
    depth, height, width = ((0, -(-size // stride) * stride) for size, stride in zip(shape, (8, 16, 16), strict=True))
    resampled = normalise(resample_window(axes.to_network(volume.voxels), shape, (depth, height, width)), intensity)
    seen = np.clip(resampled, 0, CLIP)
    added = model(seen[None, ..., None], training=False).numpy()[0, ..., 0] - seen
    whole = restore(resampled + added, intensity)[tuple(slice(size) for size in shape)]
    span = intensity.high - intensity.low
    np.testing.assert_allclose(one.voxels / span, axes.to_file(whole) / span, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("ray_cluster")
def test_a_network_that_changes_nothing_returns_the_resampled_input(volume, tmp_path):
    inputs = keras.Input((None, None, None, 1))
    keras.Model(inputs, keras.layers.Identity()(inputs)).save(tmp_path / "identity.keras")
    target = scaled_grid(volume.grid, (2, 2, 3))
    resources = Resources(workers=1, memory_budget_mib=34)
    unchanged = restore_volume(volume, target, read_network(tmp_path / "identity.keras"), resources, name="head")
    assert len(unchanged.plan.shards) > 3
    assert unchanged.plan.overhead == 1
    span = volume.voxels.max()
    np.testing.assert_allclose(unchanged.voxels / span, resample(volume.voxels, target.shape) / span, atol=1e-6)


@pytest.mark.usefixtures("ray_cluster")
def test_every_shard_of_a_consistent_input_is_that_of_the_whole(volume, tmp_path):
    """The identity shows what a network reads: degraded again, it must give the scan, without seams."""
    path = tmp_path / "identity.keras"
    inputs = keras.Input((None, None, None, 1))
    keras.Model(inputs, keras.layers.Identity()(inputs)).save(path)
    config = load_config("demo", ["network.input=consistent", "degradation=box2x"])
    add_card(path, make_card(config, 0, 0, 0, None))
    target, axes = scaled_grid(volume.grid, (2, 2, 2)), network_axes(volume.grid)
    resources = Resources(workers=1, memory_budget_mib=34)
    recipe = named_degradation("box2x")
    found = restore_volume(volume, target, read_network(path), resources, name="head", acquisition=recipe)
    assert len(found.plan.shards) > 3
    intensity, shape = find_intensity(volume.voxels), axes.network_shape(target.shape)
    coarse = normalise(axes.to_network(volume.voxels), intensity)
    correction = interpolation_correction(coarse, shape, recipe, scan_noise(coarse))
    assert correction is not None
    whole = resample(coarse, shape) + correction.window(slice(None), slice(None), slice(None))
    restored = normalise(axes.to_network(found.voxels), intensity)
    np.testing.assert_allclose(restored, whole, atol=1e-5)


@pytest.mark.usefixtures("ray_cluster")
def test_a_network_that_overflows_fails_the_volume(volume, tmp_path):
    inputs = keras.Input((None, None, None, 1))
    large = [keras.layers.Conv3D(1, 1, kernel_initializer=keras.initializers.Constant(3e38)) for _ in range(2)]
    keras.Model(inputs, large[1](large[0](inputs))).save(tmp_path / "large.keras")
    with pytest.raises(
        NotFiniteError, match=r"Cannot restore head: the network made \d+ of \d+ voxels NaN or infinite"
    ):
        restored(volume, read_network(tmp_path / "large.keras"))


def test_a_budget_below_the_smallest_shard_is_refused_before_anything_starts(saved, volume):
    with pytest.raises(InputError, match=r"Cannot shard head\.nii\.gz: the memory budget of 3 MiB holds no shard"):
        plan_of(volume, read_network(saved[1]), 3)


def test_a_file_that_is_no_model_is_refused(tmp_path):
    (tmp_path / "model.keras").write_text("hello")
    with pytest.raises(InputError, match=r"Cannot read the model model\.keras: it is not a Keras model"):
        read_network(tmp_path / "model.keras")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_model_with_weights_that_are_not_finite_is_refused(value, tmp_path):
    model = small_restorer()
    last = [layer for layer in model.layers if layer.weights][-1]
    last.set_weights([np.full_like(last.get_weights()[0], value), *last.get_weights()[1:]])
    model.save(tmp_path / "bad.keras")
    with pytest.raises(InputError, match=r"Cannot read the model bad\.keras: 3 of its \d+ weights are NaN or infinite"):
        read_network(tmp_path / "bad.keras")
    with pytest.raises(ContractError, match="weights are NaN or infinite"):
        manifest_entry(tmp_path / "bad.keras", ModelContract())


def test_the_driver_loads_no_tensorflow(saved):
    script = (
        "import sys; from pathlib import Path; import workflow.restore.restoration;"
        "from tasks.artifacts.network_file import read_network;"
        "read_network(Path(sys.argv[1])); assert not {'keras', 'tensorflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script, str(saved[1])], check=True)
