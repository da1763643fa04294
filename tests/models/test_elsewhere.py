from itertools import product

import numpy as np
import pytest

from models.stages.forward_check import output_shape
from models.stages.frameworks import caffe_equivalent, padded_size, torch_equivalent
from models.stages.stage import Axis, Stage
from tests.models.scatter import as_tensorflow, as_torch
from tests.models.sweep import SIZES, geometries, stages


def along_width(kernel, stride, dilation):
    return {"kernel_size": (1, 1, kernel), "strides": (1, 1, stride), "dilation_rate": (1, 1, dilation)}


def test_sizes_of_pytorch_and_caffe_are_those_of_the_scatter_reference():
    for (kernel, stride, dilation), size in product(geometries(), SIZES):
        axis = Axis(kernel, stride, dilation)
        x, weights = np.ones((1, 1, 1, size, 1)), np.ones((1, 1, kernel, 1, 1))
        for pad, added in product(range(axis.span + 1), range(max(stride, dilation))):
            expected = padded_size(axis, size, pad, added)
            if expected > 0:
                made = as_torch(x, weights, (1, 1, stride), (0, 0, pad), (0, 0, added), (1, 1, dilation))
                assert made.shape[3] == expected


def test_caffe_by_formula():
    for (kernel, stride, dilation), size, pad in product(geometries(), SIZES, range(4)):
        extent = dilation * (kernel - 1) + 1  # as in Caffe's deconv_layer.cpp
        assert padded_size(Axis(kernel, stride, dilation), size, pad) == stride * (size - 1) + extent - 2 * pad


@pytest.mark.parametrize("equivalent", [torch_equivalent, caffe_equivalent])
def test_an_equivalent_is_claimed_exactly_where_some_pad_and_output_padding_give_the_same_numbers(equivalent):
    random = np.random.default_rng(0)
    for axis, size in product({axis for stage in stages() for axis in stage.axes}, SIZES):
        geometry = along_width(axis.kernel_size, axis.stride, axis.dilation_rate)
        added = None if axis.output_padding is None else (0, 0, axis.output_padding)
        stage = Stage(1, **geometry, padding=axis.padding, output_padding=added)
        shape = (1, 1, 1, size, 1)
        x, weights = random.uniform(1, 2, shape), random.uniform(1, 2, stage.weights_shape(1))
        sizes = output_shape(stage, shape)[1:4]
        wanted = as_tensorflow(x, weights, stage.strides, sizes, stage.padding, stage.dilation_rate)
        if not wanted.any():  # one voxel that no tap of a wide dilation reaches: any alignment gives zero
            continue
        allowed = range(max(axis.stride, axis.dilation_rate) if equivalent is torch_equivalent else 1)
        same = [
            (pad, more)
            for pad, more in product(range(axis.span), allowed)
            if padded_size(axis, size, pad, more) == sizes[2]
            and np.array_equal(
                as_torch(x, weights, stage.strides, (0, 0, pad), (0, 0, more), stage.dilation_rate), wanted
            )
        ]
        claimed = equivalent(stage, shape)
        assert claimed.equivalent == bool(same) == (claimed.reason is None), (stage, size)
        if claimed.equivalent:
            assert (claimed.pad[2], claimed.output_padding[2]) in same, (stage, size)
            assert claimed.output_shape == output_shape(stage, shape)


@pytest.mark.parametrize("equivalent", [torch_equivalent, caffe_equivalent])
def test_where_there_is_no_equivalent_the_remedy_gives_the_numbers(equivalent):
    random = np.random.default_rng(0)
    for stage in stages():
        shape = (1, 4, 4, 4, 1)
        claimed = equivalent(stage, shape)
        x, weights = random.uniform(1, 2, shape), random.uniform(1, 2, stage.weights_shape(1))
        made = as_torch(x, weights, stage.strides, claimed.pad, claimed.output_padding, stage.dilation_rate)
        assert claimed.output_shape == made.shape
        sizes = output_shape(stage, shape)[1:4]
        wanted = as_tensorflow(x, weights, stage.strides, sizes, stage.padding, stage.dilation_rate)
        for i, name in enumerate(("depth", "height", "width"), start=1):
            missing = wanted.shape[i] - made.shape[i]
            assert missing == 0 or name in str(claimed.reason)
            assert missing >= -1  # drop the last voxel, or append voxels of bias
            made = np.delete(made, -1, axis=i) if missing < 0 else made
            made = np.concatenate([made, np.zeros_like(np.take(made, [0] * missing, axis=i))], axis=i)
        np.testing.assert_array_equal(made, wanted)


def test_kernel_3_stride_2_is_shown_why_caffe_makes_31_of_16():
    claimed = caffe_equivalent(Stage(1, (3, 3, 3), (2, 2, 2)), (1, 16, 16, 16, 1))
    assert not claimed.equivalent
    assert claimed.reason == (
        "depth, height and width: TensorFlow cuts 0 before and 1 after; use pad 0 and drop the last voxel;"
        " pad 1 is one voxel short"
    )
    assert claimed.output_shape == (1, 33, 33, 33, 1)
