import re
from itertools import product
from math import prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import ShapeError
from models.stages.diagnostics import clean_kernel
from models.stages.presets import LATENT, PRESETS
from models.stages.report import describe
from models.stages.solver import rank, solve
from models.stages.stage import Stage

TARGET = (2, 16, 112, 112, 1)


def test_the_clean_presets_are_the_first_solutions():
    assert solve(LATENT, TARGET)[0] == PRESETS["four-stage-clean"]
    assert solve(LATENT, TARGET, stage_count=4)[0] == PRESETS["four-stage-clean"]
    assert solve(LATENT, TARGET, stage_count=3)[0] == PRESETS["three-stage-clean"]


@settings(max_examples=50, deadline=None)
@given(
    st.tuples(*[st.integers(1, 9)] * 3),
    st.lists(st.tuples(*[st.integers(1, 8)] * 3), min_size=1, max_size=4),
    st.booleans(),
    st.integers(1, 64),
    st.integers(1, 64),
)
def test_what_some_strides_reach_is_solved_and_the_cleanest_comes_first(size, strides, counted, channels, last):
    growth = [prod(along) for along in zip(*strides, strict=True)]
    latent, target = (1, *size, channels), (1, *(s * g for s, g in zip(size, growth, strict=True)), last)
    found = solve(latent, target, len(strides) if counted else None)
    assert 1 <= len(found) <= 8
    assert len(set(found)) == len(found)
    for stages in found:
        assert describe(latent, stages).output_shape == target
        assert len(stages) == len(strides) or not counted
    assert not describe(latent, found[0]).warnings
    ranks = [rank(stages, channels) for stages in found]
    assert ranks == sorted(ranks)


@pytest.mark.parametrize("growth", [(2, 4, 4), (1, 2, 4), (8, 16, 16), (6, 1, 12)])
def test_no_choice_of_strides_and_clean_kernels_grows_more_evenly(growth):
    for count in (1, 2, 3):
        best = solve((1, 3, 3, 3, 8), (1, *(3 * g for g in growth), 8), count)[0]
        splits = [[split for split in product(range(1, 17), repeat=count) if prod(split) == g] for g in growth]
        for combination in product(*splits):
            strides = list(zip(*combination, strict=True))
            stages = [Stage(8, (clean_kernel(d), clean_kernel(h), clean_kernel(w)), (d, h, w)) for d, h, w in strides]
            assert rank(best, 8)[:4] <= rank(stages, 8)[:4]


@pytest.mark.parametrize(
    ("target", "count", "axes"),
    [
        ((2, 15, 112, 112, 1), None, {"depth"}),
        ((2, 16, 110, 111, 1), None, {"height", "width"}),
        ((2, 1, 112, 112, 1), None, {"depth"}),
        ((2, 16, 7 * 17, 112, 1), None, {"height"}),
        ((2, 16, 112, 7 * 32, 1), 1, {"width"}),
        ((3, 16, 112, 112, 1), None, {"batch"}),
        ((2, 2 * 5000, 112, 112, 1), None, {"depth"}),
    ],
)
def test_an_unreachable_shape_names_the_axis_and_the_nearest_shapes_that_are_reached(target, count, axes):
    with pytest.raises(ShapeError) as caught:
        solve(LATENT, target, count)
    message, nearest = str(caught.value).split("Nearest shapes")
    assert {name for name in ("batch", "depth", "height", "width", "channels") if name in message} == axes
    shapes = [tuple(map(int, found.split(","))) for found in re.findall(r"\[([\d, ]+)\]", nearest)]
    assert shapes
    for shape in shapes:
        assert solve(LATENT, shape, count)


def test_channels_are_halved_or_as_given():
    assert [stage.filters for stage in solve(LATENT, TARGET, 4)[0]] == [32, 16, 8, 1]
    assert [stage.filters for stage in solve(LATENT, TARGET, channels=[48, 20, 1])[0]] == [48, 20, 1]
    assert [stage.filters for stage in solve((1, 1, 1, 1, 4), (1, 4, 4, 4, 32))[0]] == [4, 32]


def test_axes_that_share_an_obstacle_are_named_together():
    with pytest.raises(ShapeError) as caught:
        solve(LATENT, (2, 4, 13, 13, 1))
    assert str(caught.value) == (
        "No stages with padding same and no output padding lead from [2, 2, 7, 7, 64] to [2, 4, 13, 13, 1]:"
        " height and width: each stage multiplies the size by its stride, and 13 is no whole multiple of 7;"
        " 7 or 14 would do. Nearest shapes that can be reached: [2, 4, 7, 7, 1] or [2, 4, 14, 14, 1]."
    )


@pytest.mark.parametrize(
    ("count", "channels", "said"),
    [
        (2, [32, 16, 1], "in 2 stages"),
        (None, [32, 16], "end with the target's 1"),
        (None, [0, 1], "1 or more"),
        (0, None, "1 to 8"),
        (9, None, "1 to 8"),
    ],
)
def test_stages_and_channels_that_contradict_are_refused(count, channels, said):
    with pytest.raises(ShapeError, match=said):
        solve(LATENT, TARGET, count, channels)
