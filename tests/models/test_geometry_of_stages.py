"""Overlap, holes, shift and receptive field: the predictions, measured in real TensorFlow with kernels of ones."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.stages.diagnostics import is_clean, remedy
from models.stages.presets import LATENT, PRESETS
from models.stages.report import describe
from models.stages.stage import Stage, accumulated_shift, latent_receptive_field
from models.stages.upsampler import build_upsampler
from tests.models.sweep import stages

KERNEL_3 = ("four-stage-k3", "three-stage-k3")
CLEAN = ("four-stage-clean", "three-stage-clean")


def through_ones(chain, latent):
    """Apply a chain of one-channel stages, weights of one and no bias, to a latent, in real TensorFlow."""
    narrow = [Stage(1, s.kernel_size, s.strides, s.dilation_rate, s.padding, s.output_padding) for s in chain]
    model = build_upsampler((*latent.shape[1:4], 1), narrow, activation=None)
    model.set_weights([np.full(w.shape, w.ndim == 5, np.float32) for w in model.get_weights()])
    return np.asarray(model(latent.astype(np.float32)))


def impulse(sizes):
    latent = np.zeros((1, *sizes, 1))
    latent[(0, *(size // 2 for size in sizes), 0)] = 1
    return latent


def centre_of_mass(image, axis):
    profile = image.sum(axis=tuple({0, 1, 2, 3, 4} - {axis}), dtype=np.float64)
    return (profile * np.arange(profile.size)).sum() / profile.sum()


def measured_shift(chain, sizes):
    """From where the impulse lies, latent and output laid centre on centre, to where its mass comes to lie."""
    image = through_ones(chain, impulse(sizes))
    for i, size in enumerate(sizes):
        stride = np.prod([stage.strides[i] for stage in chain])
        place = (size // 2 - (size - 1) / 2) * stride + (image.shape[i + 1] - 1) / 2
        yield centre_of_mass(image, i + 1) - place


def test_every_shift_of_the_sweep_is_the_centre_of_mass_of_an_impulse():
    for stage in stages():
        sizes = (9, 10, 11)  # room for the widest taps
        predicted = [axis.shift for axis in stage.axes]
        np.testing.assert_allclose(list(measured_shift([stage], sizes)), predicted, atol=1e-6, err_msg=f"{stage}")


@pytest.mark.parametrize("name", PRESETS)
def test_shifts_add_up_along_a_chain(name):
    chain = PRESETS[name]
    np.testing.assert_allclose(list(measured_shift(chain, (5, 7, 7))), accumulated_shift(chain), atol=1e-5)


def test_shifts_of_the_presets():
    assert accumulated_shift(PRESETS["four-stage-k3"]) == (3.5, 7.5, 7.5)
    assert accumulated_shift(PRESETS["three-stage-k3"]) == (3.5, 5.5, 5.5)
    assert {accumulated_shift(PRESETS[name]) for name in CLEAN} == {(0, 0, 0)}


def test_a_constant_through_ones_shows_the_overlap_of_every_stage_of_the_sweep():
    for stage in stages():
        size = 36 if max(stage.dilation_rate) > 1 else 12
        report = describe((1, size, size, size, 1), [stage]).stages[0]
        image = through_ones([stage], np.ones(report.input_shape))[0, ..., 0]
        middle = size // 2  # out of reach of the border
        inner = tuple(slice(s * middle, s * (middle + 1)) for s in stage.strides)
        np.testing.assert_array_equal(image[inner], np.einsum("i,j,k->ijk", *report.overlap), err_msg=f"{stage}")
        assert report.holes == (0 in image[inner])
        assert report.checkerboard == (len(np.unique(image[inner])) > 1)


@pytest.mark.parametrize("name", PRESETS)
def test_a_constant_latent_shows_the_problems_of_the_presets(name):
    chain = PRESETS[name]
    image = through_ones(chain, np.ones((1, 5, 7, 7, 1)))[0, ..., 0]
    inner = image[tuple(slice(2 * s, -2 * s) for s in describe(LATENT, chain).total_stride)]
    report = describe(LATENT, chain)
    assert any(stage.holes for stage in report.stages) == (0 in inner) == (name == "three-stage-k3")
    assert any(stage.checkerboard for stage in report.stages) == (len(np.unique(inner)) > 1) == (name in KERNEL_3)
    assert bool(report.warnings) == (name in KERNEL_3)
    if name == "three-stage-k3":  # stride 4 in the plane, kernel 3: every fourth row and column
        assert not image[:, 3::4].any()
        assert not image[:, :, 3::4].any()
        assert image[:, :3, :3].all()


def test_warnings_name_problem_axis_number_and_remedy():
    report = describe(LATENT, PRESETS["three-stage-k3"])
    third = [warning for warning in report.warnings if warning.startswith("Stage 3")]
    assert [warning.split(":")[0] for warning in third] == [
        "Stage 3, holes",
        "Stage 3, checkerboard",
        "Stage 3, shift",
    ]
    assert all(warning.endswith("Remedy: kernel 4x8x8.") for warning in third)
    assert "height and width" in third[0]
    assert "+3.5, +5.5, +5.5 voxels of the last output" in report.warnings[-1]


def test_a_shift_that_later_stages_enlarge_is_reported_for_the_whole():
    lopsided, clean = Stage(1, (3, 3, 3), (2, 2, 2)), Stage(1, (4, 4, 4), (2, 2, 2))
    report = describe((1, 2, 2, 2, 1), [lopsided, clean])
    assert report.warnings[-1].startswith("All stages, shift: depth, height, width add up to +1, +1, +1 voxels")
    assert not any("All stages" in warning for warning in describe((1, 2, 2, 2, 1), [clean, lopsided]).warnings)


def test_every_remedy_is_clean_and_leaves_a_clean_stage_alone():
    for stage in stages():
        clean = remedy(stage)
        assert not describe((1, 3, 3, 3, 1), [clean]).warnings
        assert clean.strides == stage.strides
        assert remedy(clean) == clean


@pytest.mark.parametrize("stride", [341, 343, 512, 514, 1023, 1024])
def test_the_largest_strides_have_a_remedy_too(stride):
    clean = remedy(Stage(1, (3, 3, 3), (1, 2, stride)))
    assert clean.kernel_size[:2] == (3, 4)
    assert not describe((1, 3, 3, 3, 1), [clean]).warnings


def test_the_rule_of_thumb_for_clean_holds():
    for kernel, stride in product(range(1, 40), range(1, 9)):
        axis = Stage(1, (kernel, 1, 1), (stride, 1, 1)).axes[0]
        assert is_clean(axis) == (kernel % stride == 0 and (kernel - stride) % 2 == 0)


triples = st.tuples(*[st.integers(1, 6)] * 3)


@st.composite
def any_stage(draw):
    dilated, padding = draw(st.booleans()), draw(st.sampled_from(["same", "valid"]))
    strides = (1, 1, 1) if dilated else draw(st.tuples(*[st.integers(1, 4)] * 3))
    dilation = draw(st.tuples(*[st.integers(1, 3)] * 3)) if dilated else (1, 1, 1)
    return Stage(1, draw(triples), strides, dilation, padding)


@settings(max_examples=25, deadline=None)
@given(st.lists(any_stage(), min_size=1, max_size=3))
def test_the_receptive_field_is_what_impulses_reach(chain):
    for i, (before, after) in enumerate(latent_receptive_field(chain)):
        narrow = [along_width(stage, i) for stage in chain]
        size = 2 * (before + after) + 9
        reached = through_ones(narrow, np.eye(size).reshape(size, 1, 1, size, 1))[:, 0, 0, :, 0].T > 0
        total = int(np.prod([stage.strides[2] for stage in narrow]))
        middle = np.arange(len(reached) // 2 - total, len(reached) // 2 + total)
        own = np.floor((middle - (len(reached) - 1) / 2) / total + (size - 1) / 2 + 0.5)
        seen = [(place, np.flatnonzero(reached[j])) for j, place in zip(middle, own, strict=True) if reached[j].any()]
        assert max(0, *(place - sources[0] for place, sources in seen)) == before
        assert max(0, *(sources[-1] - place for place, sources in seen)) == after


def along_width(stage, axis):
    pick = (stage.kernel_size[axis], stage.strides[axis], stage.dilation_rate[axis])
    kernel, strides, dilation = ((1, 1, value) for value in pick)
    return Stage(1, kernel, strides, dilation, stage.padding)
