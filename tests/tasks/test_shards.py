"""The shard plan: a partition of the target grid whose shards compute what the whole volume would."""

import math
from itertools import product
from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.axes import NetworkShape
from models.network.cost import Cost
from models.network.graph import read_graph
from models.network.receptive_field import receptive_field
from tasks.sharding.plan import MIB, BudgetError, plan_boxes, plan_shards, shard_bytes
from tests.networks import ROUTES, small_restorer

MODELS = {name: small_restorer(name) for name in ROUTES}
COSTS = {}
for name, model in MODELS.items():
    graph = read_graph(model.get_config())
    COSTS[name] = Cost(graph, receptive_field(graph))


def budgets(shape, cost):
    """Budgets from the least that holds a shard to one that holds the volume, MiB."""
    with pytest.raises(BudgetError) as refusal:
        plan_shards(shape, cost, 1)
    return refusal.value.least_mib, plan_shards(shape, cost, 100_000).shard_bytes // MIB + 1


sizes = st.tuples(*[st.integers(1, 200)] * 3)


@given(shape=sizes, route=st.sampled_from(sorted(ROUTES)), part=st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_cores_tile_the_grid_once_and_reads_hold_what_they_need(shape, route, part):
    cost = COSTS[route]
    smallest, largest = budgets(shape, cost)
    budget = int(smallest + part * (largest - smallest))
    plan = plan_shards(shape, cost, budget)
    owners = np.zeros(shape, np.uint8)
    for shard in plan.shards:
        owners[tuple(slice(*side) for side in shard.core)] += 1
        for core, read, axis, size in zip(shard.core, shard.read, cost.field.axes, shape, strict=True):
            padded = -(-size // axis.stride) * axis.stride
            first, end = axis.read(*core)
            assert read[0] <= max(first, 0)
            assert read[1] >= min(end, padded)
            assert 0 <= read[0] < read[1] <= padded
            assert read[0] % axis.stride == read[1] % axis.stride == 0
        assert tuple(stop - start for start, stop in shard.read) == plan.read_shape
    assert (owners == 1).all()
    assert plan.shard_bytes <= budget * MIB
    assert plan.overhead >= plan.strips * prod(plan.read_shape) / prod(shape) * (1 - 1e-9)
    assert plan == plan_shards(shape, cost, budget)


def test_no_plan_within_the_budget_computes_fewer_voxels():
    """Against every shape of read, tried one by one."""
    shape, cost = (60, 200, 150), COSTS["four stages"]
    smallest, largest = budgets(shape, cost)
    budget = (smallest + largest) // 2
    fewest = math.inf
    for depth, height, width in product(range(8, 72, 8), range(16, 224, 16), range(16, 176, 16)):
        counts: list[float] = []
        for length, size, axis in zip((depth, height, width), shape, cost.field.axes, strict=True):
            padded = -(-size // axis.stride) * axis.stride
            overlap = -(-sum(axis.trim) // axis.stride) * axis.stride
            if length >= padded:
                counts.append(1)
            else:
                counts.append(math.ceil((padded - overlap) / (length - overlap)) if length > overlap else math.inf)
        if shard_bytes(cost, NetworkShape(depth, height, width)) <= budget * MIB:
            fewest = min(fewest, prod(counts) * depth * height * width)
    plan = plan_boxes(NetworkShape(*shape), cost, budget)
    assert plan.computed == len(plan.shards) * prod(plan.read_shape) == fewest
    assert len(plan.shards) > 1


def test_a_budget_that_holds_no_shard_is_refused_with_the_least_that_does():
    cost = COSTS["four stages"]
    smallest, _ = budgets((64, 96, 96), cost)
    assert plan_shards(NetworkShape(64, 96, 96), cost, smallest).smallest_bytes <= smallest * MIB
    message = (
        rf"Cannot shard scan\.nii\.gz: the memory budget of {smallest - 1} MiB holds no shard of this network"
        rf" \(smallest: {smallest} MiB for a core of \d+x\d+x\d+\)\."
        rf" Raise resources\.memory_budget_mib to {smallest} or more\."
    )
    with pytest.raises(BudgetError, match=message):
        plan_shards(NetworkShape(64, 96, 96), cost, smallest - 1, name="scan.nii.gz")


@pytest.mark.parametrize("mirrors", [[], [(1, 2), (3,)]], ids=["plain", "mirrored"])
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    "shape",
    [
        *((40, 80, 96), (41, 83, 95), (9, 100, 33), (1, 1, 1), (7, 15, 200), (130, 17, 16), (5, 160, 3)),
        *((64, 64, 64), (200, 5, 7), (33, 129, 65)),
    ],
)
def test_shards_compute_what_the_whole_volume_does(route, shape, mirrors):
    cost, model = COSTS[route], MODELS[route]
    if mirrors:
        cost = Cost(cost.graph, cost.field.mirrored())

    def restored(seen):
        images = [np.flip(model(np.flip(seen, axes), training=False).numpy(), axes) for axes in [(), *mirrors]]
        return np.mean(images, axis=0)[0, ..., 0]

    padded = [-(-size // axis.stride) * axis.stride for size, axis in zip(shape, cost.field.axes, strict=True)]
    volume = np.random.default_rng(8).random((1, *padded, 1), np.float32)
    whole = restored(volume)
    smallest, _ = budgets(shape, cost)
    cores = np.full(shape, np.nan, np.float32)
    for shard in plan_shards(shape, cost, smallest).shards:
        read = tuple(slice(*side) for side in shard.read)
        part = restored(volume[0][read][None])
        cores[tuple(slice(*side) for side in shard.core)] = part[shard.crop]
    np.testing.assert_allclose(cores, whole[tuple(slice(size) for size in shape)], rtol=0, atol=1e-5)
