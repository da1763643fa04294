"""Cores on disk, damaged and complete, and the volume put together from them."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.axes import NetworkShape
from configs.degradation import AxisDegradation, Degradation
from models.network.cost import Cost
from models.network.graph import read_graph
from models.network.receptive_field import receptive_field
from tasks.imaging.consistency import solve_correction
from tasks.imaging.degrade import degrade
from tasks.sharding.assemble import Assembly
from tasks.sharding.comparison import Comparison
from tasks.sharding.plan import Shard, ShardPlan, plan_shards
from tasks.sharding.store import ShardStore, content_key
from tasks.volume.encoding import Encoding
from tasks.volume.grid import NetworkAxes
from tasks.volume.intensity import Intensity
from tests.networks import small_restorer

GRAPH = read_graph(small_restorer().get_config())
COST = Cost(GRAPH, receptive_field(GRAPH))
BLURRED = Degradation(name="mean", depth=AxisDegradation(factor=2), height=AxisDegradation(factor=3, blur_fwhm=2))
CORE = Shard(((0, 3), (0, 4), (0, 2)), ((0, 8), (0, 16), (0, 16)))


def plan_of(shape):
    least = plan_shards(shape, COST, 100_000).smallest_bytes // 2**20 + 1
    return plan_shards(shape, COST, least)


@pytest.fixture
def store(tmp_path):
    return ShardStore(tmp_path / "store")


@pytest.mark.parametrize("dtype", ["float32", "int16", "uint8"])
def test_a_core_comes_back_as_it_was_kept(store, dtype):
    voxels = np.random.default_rng(1).integers(0, 200, (3, 4, 2)).astype(dtype)
    store = store if dtype == "float32" else replace(store, encoding=Encoding(dtype))
    assert not store.holds(CORE)
    store.save(CORE, voxels, outside=5)
    assert store.holds(CORE)
    np.testing.assert_array_equal(store.load(CORE, (3, 4, 2)), voxels)
    assert store.outside(CORE) == 5
    assert not replace(store, encoding=Encoding("int8")).holds(CORE)
    with pytest.raises(ValueError, match=f"a core of float64 is not stored as {dtype}"):
        store.save(CORE, voxels.astype(float))
    store.clear()
    assert not store.holds(CORE)
    store.clear()


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b[:0], lambda b: b[:5] + b"?" + b[6:], lambda b: b[:40]]
)
def test_a_torn_core_is_not_held(store, damage):
    store.save(CORE, np.ones((3, 4, 2), np.float32))
    (path,) = store.folder.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    assert not store.holds(CORE)


def test_a_part_comes_back_with_its_core_and_is_none_of_another_comparison(store):
    comparison = Comparison(BLURRED, NetworkAxes((2, 1, 0), (False, False, False)), Encoding("int16"))
    compared = replace(store, comparison=comparison)
    voxels, part = np.ones((3, 4, 2), np.float32), np.random.default_rng(1).random((2, 2, 5), np.float32)
    compared.save(CORE, voxels, 7, part)
    assert compared.holds(CORE)
    np.testing.assert_array_equal(compared.part(CORE, (2, 2, 5)), part)
    np.testing.assert_array_equal(compared.load(CORE, (3, 4, 2)), voxels)
    assert compared.outside(CORE) == 7
    others = [
        None,
        replace(comparison, encoding=None),
        replace(comparison, encoding=Encoding("int16", 0.5)),
        replace(comparison, recipe=BLURRED.model_copy(update={"width": AxisDegradation(factor=2)})),
    ]
    assert not any(replace(store, comparison=other).holds(CORE) for other in others)
    with pytest.raises(ValueError, match="a core has a part where its store has a comparison"):
        compared.save(CORE, voxels)
    with pytest.raises(ValueError, match="a core has a part where its store has a comparison"):
        store.save(CORE, voxels, part=part)


def test_the_key_depends_on_content_alone():
    assert content_key({"a": 1, "b": [2, (3, 4)]}) == content_key({"b": [2, [3, 4]], "a": 1})
    assert content_key({"a": 1}) != content_key({"a": 2})


@given(
    shape=st.tuples(*[st.integers(1, 150)] * 3),
    order=st.permutations([0, 1, 2]),
    flipped=st.tuples(*[st.booleans()] * 3),
)
@settings(max_examples=25, deadline=None)
def test_slabs_put_the_volume_together_in_any_orientation(tmp_path_factory, shape, order, flipped):
    voxels = np.random.default_rng(4).random(shape, np.float32)  # depth, height, width
    axes = NetworkAxes(tuple(order), flipped)
    assembly = Assembly(plan_of(shape), axes, ShardStore(tmp_path_factory.mktemp("store")))
    for shard in reversed(assembly.in_file_order()):
        assembly.save(shard, voxels[tuple(slice(*side) for side in shard.core)])
    asked: list[Shard] = []
    slabs = list(assembly.slabs(asked.append, slab_voxels=4000))
    assert all(slab.flags.f_contiguous for slab in slabs)
    np.testing.assert_array_equal(np.concatenate(slabs, axis=2), axes.to_file(voxels))
    assert list(dict.fromkeys(asked)) == assembly.in_file_order()


def stored_with_parts(folder, fine, recipe, encoding=None):
    """Store the cores of a volume with their parts."""
    axes = NetworkAxes((2, 0, 1), (True, False, True))
    comparison = Comparison(recipe, axes, encoding)
    assembly = Assembly(plan_of(fine.shape), axes, ShardStore(folder, comparison=comparison))
    for shard in assembly.plan.shards:
        core = fine[tuple(slice(*side) for side in shard.core)]
        part = comparison.part(core, shard.core, assembly.plan.target_shape)
        assembly.save(shard, core, part=part)
    return assembly, comparison


def test_the_remainder_is_what_the_restored_volume_lacks(tmp_path):
    generator = np.random.default_rng(6)
    fine = generator.random((40, 96, 80), np.float32)
    assembly, comparison = stored_with_parts(tmp_path, fine, BLURRED)
    assert len(assembly.plan.shards) > 1
    off = generator.normal(0, 3, (20, 32, 80)).astype(np.float32)
    found = assembly.residual(degrade(fine, BLURRED) + off, comparison)
    np.testing.assert_allclose(found, off, atol=1e-5)


@pytest.mark.parametrize("encoding", [None, Encoding("float32")])
def test_a_volume_that_is_only_compared_is_not_corrected(tmp_path, encoding):
    fine = np.random.default_rng(6).random((40, 96, 80), np.float32)
    assembly, comparison = stored_with_parts(tmp_path, fine, BLURRED, encoding)
    lacking = degrade(fine, BLURRED) + np.float32(0.1)
    correction, check = assembly.correction(lacking, Intensity(0, 1), comparison)
    assert (correction is None) == (encoding is not None)
    assert check.before == pytest.approx(0.1, rel=1e-4)
    assert (check.after == check.before) == (correction is None)


def test_the_sum_takes_memory_for_the_input_alone(tmp_path):
    recipe = Degradation(name="mean", **dict.fromkeys(("depth", "height", "width"), AxisDegradation(factor=4)))
    fine = np.random.default_rng(6).random((64, 96, 80), np.float32)
    coarse, shape = degrade(fine, recipe), NetworkShape(*fine.shape)
    axes = NetworkAxes((2, 1, 0), (False, False, False))
    comparison = Comparison(recipe, axes)
    assembly = Assembly(plan_shards(shape, COST, 10_000), axes, ShardStore(tmp_path, comparison=comparison))
    (shard,) = assembly.plan.shards
    assembly.save(shard, fine, part=comparison.part(fine, shard.core, shape))
    tracemalloc.start()
    try:
        assembly.residual(coarse, comparison)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 4 * coarse.nbytes + 2**16 < fine.nbytes / 4


@pytest.mark.parametrize("flipped", [(True, False, True), (False, True, False)])
def test_a_change_by_planes_is_the_whole_change(tmp_path, flipped):
    axes = NetworkAxes((2, 0, 1), flipped)
    assembly = Assembly(plan_of((40, 48, 32)), axes, ShardStore(tmp_path))
    recipe = Degradation(name="mean", depth=AxisDegradation(factor=2), width=AxisDegradation(factor=2))
    residual = np.random.default_rng(1).normal(0, 0.1, (20, 48, 16)).astype(np.float32)
    change = solve_correction(residual, NetworkShape(40, 48, 32), recipe)
    assert change is not None
    whole = axes.to_file(change.window(slice(None), slice(None), slice(None)))
    parts = [assembly.correction_planes(change, start, start + 10) for start in (0, 10, 20, 30)]
    np.testing.assert_allclose(np.concatenate(parts, axis=2), whole, atol=1e-6)


def test_a_plan_is_plain_data():
    plan: ShardPlan = plan_of((40, 80, 96))
    assert "voxels computed per voxel kept" in str(plan)
    assert plan.core_shape <= plan.read_shape
