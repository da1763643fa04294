"""Slabs of a streamed strip through a restorer: the volume in one pass, in any order and from any place on."""

from math import prod

import numpy as np
import pytest

from configs.axes import NetworkShape, triple
from configs.load import load_config
from configs.schema import Network
from models.network.cost import Cost
from models.network.graph import read_graph
from models.network.receptive_field import receptive_field
from models.network.restorer import build_restorer
from models.network.streaming import Stream
from models.stages.stage import network_stages
from tasks.artifacts.saved_models import load_model
from tasks.artifacts.shipped import shipped_network
from tasks.sharding.plan import GRAPH_VOXELS, MIB, Shard, Streamed, plan_boxes, plan_shards, resident_bytes, runs
from tasks.sharding.restore import CoarseVolume, Restorer
from tasks.training.networks import build_network
from tasks.volume.intensity import Intensity
from tests.models.test_streaming import assert_streamed
from tests.networks import small_restorer

TARGET = NetworkShape(61, 20, 35)


@pytest.fixture(scope="module")
def restorer(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "small.keras"
    small_restorer().save(path)
    return Restorer(path.name, path.read_bytes(), None)


def volume(detail=1.0):
    voxels = np.random.default_rng(3).random((30, 10, 35), np.float32) * 90
    return CoarseVolume(voxels, TARGET, Intensity(5, 80), detail=detail)


def slabs(axis, height):
    """The slabs of the whole grid, in one strip."""
    padded = triple((0, -(-size // stride) * stride) for size, stride in zip(TARGET, (8, 16, 16), strict=True))
    for start in range(0, TARGET[axis], height):
        core = [(0, size) for size in TARGET]
        core[axis] = (start, min(start + height, TARGET[axis]))
        yield Shard(triple(core), padded, Streamed(axis, height))


@pytest.mark.parametrize(("axis", "height", "detail"), [(0, 8, 1.0), (0, 24, 0.5), (1, 16, 1.0), (2, 16, 1.0)])
def test_slabs_in_any_order_are_the_volume_in_one_pass(restorer, axis, height, detail):
    coarse, shards = volume(detail), list(slabs(axis, height))
    box = Shard(triple((0, size) for size in TARGET), shards[0].read)
    whole = restorer(coarse, box).voxels
    in_turn = [restorer(coarse, shard).voxels for shard in shards]
    np.testing.assert_allclose(np.concatenate(in_turn, axis), whole, rtol=0, atol=75e-5)
    for place in np.random.default_rng(0).permutation(len(shards)):
        np.testing.assert_array_equal(restorer(coarse, shards[place]).voxels, in_turn[place])


def test_a_walk_goes_on_in_its_own_volume_only(restorer):
    one, other = volume(), CoarseVolume(volume().voxels + 1, TARGET, Intensity(5, 80))
    first, second, *_ = slabs(0, 24)
    expected = restorer(other, second).voxels
    restorer(one, first)
    np.testing.assert_array_equal(restorer(other, second).voxels, expected)


def test_runs_are_the_slabs_that_follow_one_another():
    first, second, _, fourth, *_ = slabs(0, 8)
    assert runs([first, second, fourth]) == [[first, second], [fourth]]
    box = Shard(first.core, first.read)
    assert runs([box, box, second]) == [[box], [box], [second]]


@pytest.fixture(scope="module")
def cost():
    """Of the default network."""
    network = Network()
    model = build_restorer(
        network_stages(network),
        latent_filters=network.latent_filters,
        convolutions=network.convolutions,
        skip=network.skip,
    )
    graph = read_graph(model.get_config())
    return Cost(graph, receptive_field(graph))


LARGE, HELD = NetworkShape(632, 740, 600), 300 * 370 * 316 * 4  # 300x370x316 by 2x
RESIDENT = resident_bytes(2 * HELD, gpus=0)


@pytest.mark.parametrize(
    ("budget", "overhead", "with_a_start"), [(600, 1.60, 1.60), (2000, 1.10, 1.25), (4000, 1.07, 1.25)]
)
def test_a_large_volume_computes_little_twice(cost, budget, overhead, with_a_start):
    plan = plan_shards(LARGE, cost, budget, resident_bytes=RESIDENT)
    assert plan.strips == (1 if budget >= 2000 else 4)
    assert plan.overhead < overhead
    assert plan.overhead + plan.warm_up / prod(LARGE) < with_a_start
    boxes = plan_boxes(LARGE, cost, budget, resident_bytes=RESIDENT)
    assert boxes.overhead > 1.5 * plan.overhead
    assert "slabs of" in str(plan)
    assert "slabs of" not in str(boxes)


def test_the_first_slab_takes_what_is_read_ahead_and_the_last_one_less(cost):
    plan = plan_shards(LARGE, cost, 2000, resident_bytes=RESIDENT)
    first, second, *middle, last = [plan.work_of(shard) for shard in plan.shards]
    assert plan.streamed == Streamed(1, 16)
    slab = 16 * prod(LARGE) / LARGE.height
    assert first > 2 * slab > 2 * last
    assert slab < middle[len(middle) // 2] < 1.1 * slab
    # Each kind of step takes the time to trace its graph too, where it first occurs.
    assert second == middle[0] + GRAPH_VOXELS
    kinds = Stream(cost.field.axes[1], plan.shards[0].read[1][1], 16).kinds
    assert first + second + sum(middle) + last == pytest.approx(plan.computed + len(kinds) * GRAPH_VOXELS, rel=1e-6)
    assert plan.lead > plan.warm_up + 3 * GRAPH_VOXELS


def test_a_card_holds_what_workers_on_cpus_map_by_windows(cost):
    on_cpus, on_gpu = (plan_shards(LARGE, cost, 580, resident_bytes=resident_bytes(HELD, gpus=gpus)) for gpus in (0, 1))
    assert on_cpus.overhead < on_gpu.overhead
    assert on_gpu.shard_bytes > HELD
    assert resident_bytes(1000, gpus=0) == 1000


def test_of_plans_of_nearly_the_same_arithmetic_that_of_fewer_steps_is_taken(cost):
    shape = NetworkShape(192, 224, 192)
    taller = plan_shards(shape, cost, 300)
    lower = plan_shards(shape, cost, taller.shard_bytes // MIB)
    assert taller.streamed == Streamed(0, 24)
    assert lower.streamed == Streamed(0, 16)
    assert taller.computed + taller.warm_up > lower.computed + lower.warm_up
    # The steps count for the choice alone.
    field = cost.field.axes[0]
    voxel = cost.multiply_adds(shape) / prod(shape)
    steps = Stream(field, shape.depth, 24).kinds.items()
    arithmetic = sum(times * cost.step_multiply_adds(step, 0, shape) for step, times in steps)
    assert taller.computed == pytest.approx(arithmetic / voxel, rel=1e-3)


def test_streams_run_along_the_axis_that_is_written_where_that_costs_little(cost):
    plans = {axis: plan_shards(LARGE, cost, 1900, resident_bytes=RESIDENT, written_axis=axis) for axis in (0, 1, 2)}
    assert [plan.streamed for plan in plans.values()] == [Streamed(axis, 16) for axis in (0, 1, 1)]
    for plan in plans.values():
        assert plan.overhead < 1.10
        assert plan.overhead + plan.warm_up / prod(LARGE) < 1.25
    assert plans[2] == plan_shards(LARGE, cost, 1900, resident_bytes=RESIDENT)


# Longer and shorter along the slice axis than across, and a thin one; streamed along each axis.
THICK = {0: NetworkShape(130, 30, 40), 1: NetworkShape(17, 170, 35), 2: NetworkShape(5, 33, 190)}


@pytest.fixture(scope="module", params=["thick4x", "universalthick"])
def thick(request, tmp_path_factory):
    """The network of the preset, whose detail is made to count though it is untrained; or the one that ships."""
    if request.param == "thick4x":
        model = build_network(load_config("thick4x").network)
        for weights in model.weights:
            if not np.any(weights):
                weights.assign(np.random.default_rng(2).normal(0, 0.1, weights.shape))
        return model
    path = tmp_path_factory.mktemp("model") / "thick.keras"
    path.write_bytes(shipped_network(thick=True).content)
    return load_model(path)


@pytest.mark.parametrize("axis", THICK)
def test_networks_for_thick_slices_stream(thick, axis):
    assert_streamed(thick, THICK[axis], axis, 1)
