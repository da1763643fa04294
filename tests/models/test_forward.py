import pytest

from configs.errors import ShapeError
from models.stages.forward_check import accepted_shapes, check_shape, forward_check, output_shape, stage_making
from models.stages.report import describe
from models.stages.stage import Stage

LATENT = (2, 2, 7, 7, 64)
WANTED = (2, 4, 14, 14, 32)


def stage(stride, kernel=3, **more):
    return Stage(32, (kernel,) * 3, (stride,) * 3, **more)


def test_the_question_that_started_it():
    assert forward_check(stage(1), LATENT, WANTED).expected_input == (2, 4, 14, 14, 64)
    assert not forward_check(stage(1), LATENT, WANTED).ok
    assert forward_check(stage(2), LATENT, WANTED).expected_input == LATENT
    assert forward_check(stage(2), LATENT, WANTED).ok


def test_several_output_shapes_belong_to_one_input():
    assert [list(sizes) for sizes in accepted_shapes(stage(2), LATENT)] == [[3, 4], [13, 14], [13, 14]]
    for depth, height in ((3, 13), (4, 13), (3, 14), (4, 14)):
        shape = (2, depth, height, 14, 32)
        assert output_shape(stage_making(stage(2), LATENT, shape), LATENT) == shape


@pytest.mark.parametrize(
    ("wanted", "parts"),
    [
        ((2, 5, 14, 14, 32), ["depth:", "brings 5 back to 3, not to 2", "size 3 or 4 would do", "stride 3 or 4"]),
        ((2, 4, 12, 12, 32), ["height and width:", "size 13 or 14 would do"]),
        ((3, 4, 14, 14, 32), ["batch: it stays 2"]),
        ((2, 4, 14, 14, 16), ["channels: the stage has 32 filters"]),
        ((2, 4, 0, 14, 32), ["height 0"]),
        ((4, 14, 14, 32), ["five"]),
    ],
)
def test_a_wrong_output_shape_gets_the_axis_the_rule_and_what_would_do(wanted, parts):
    with pytest.raises(ShapeError) as caught:
        stage_making(stage(2), LATENT, wanted)
    assert all(part in str(caught.value) for part in parts)


def test_a_shape_that_only_the_operation_makes_is_reported_as_such():
    with pytest.raises(ShapeError, match=r"tf.nn accepts that output_shape, but an even kernel.*width"):
        stage_making(stage(2, kernel=4), LATENT, (2, 3, 13, 14, 32))


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ({"filters": 0}, "filters"),
        ({"kernel_size": (3, 0, 3)}, "height: kernel_size"),
        ({"strides": (2, 2, -1)}, "width: strides"),
        ({"strides": (2000, 2, 2)}, "depth: strides is 1 to 1024"),
        ({"padding": "full"}, "'same' or 'valid'"),
        ({"output_padding": (0, 2, 0)}, "height: output_padding.*0 or 1 would do"),
        ({"output_padding": (0, 0, -1)}, "width: output_padding"),
        ({"kernel_size": (4, 3, 3), "output_padding": (0, 0, 0)}, "depth: output_padding 0 with an even kernel"),
        ({"dilation_rate": (1, 2, 1)}, "stride above 1 .here on depth.*dilation above 1 .here on height"),
    ],
)
def test_a_stage_that_cannot_be_gets_the_axis_and_the_rule(arguments, parts):
    with pytest.raises(ShapeError, match=parts):
        Stage(**{"filters": 32, "kernel_size": (3, 3, 3), "strides": (2, 2, 2), **arguments})


@pytest.mark.parametrize("shape", [(2, 2, 7, 7), (2, 2, 7, 0, 64), (-2, 2, 7, 7, 64), ()])
def test_a_latent_that_cannot_be_is_refused(shape):
    with pytest.raises(ShapeError, match="The latent has"):
        check_shape(shape, "latent")


def test_sizes_beyond_what_tensorflow_counts_are_refused():
    assert check_shape((2, 2, 7, 7, 2**63 - 1), "latent")
    with pytest.raises(ShapeError, match=f"The latent has batch {2**63}, but every size is at most {2**63 - 1}"):
        check_shape((2**63, 2, 7, 7, 64), "latent")
    with pytest.raises(ShapeError, match="The output of stage 7 has depth"):
        describe((1, 1, 1, 1, 1), [Stage(1, (1, 1, 1), (1024, 1, 1))] * 200)


def test_an_upsampler_without_stages_is_refused():
    with pytest.raises(ShapeError, match="at least one stage"):
        describe(LATENT, [])


def test_cost_is_every_voxel_times_every_tap():
    report = describe(LATENT, [stage(2)]).stages[0]
    assert report.weights_shape == (3, 3, 3, 32, 64)
    assert report.parameters == 27 * 32 * 64 + 32
    assert report.multiply_adds == 2 * 2 * 7 * 7 * 27 * 32 * 64
