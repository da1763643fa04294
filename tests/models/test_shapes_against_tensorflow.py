"""The shape rules and their values over the whole sweep, against real Keras layers, real tf.nn and plain NumPy."""

import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from configs.errors import ShapeError
from models.stages.forward_check import output_shape
from models.stages.stage import Stage
from tests.models.real_operations import REFUSED, forward_disagreements, operation_axes, transposed_disagreements
from tests.models.scatter import as_tensorflow
from tests.models.sweep import KERNELS, PADDINGS, STRIDES, sizes_of_inputs, stages

ROOT = Path(__file__).parents[2]


def layer_of(stage):
    return keras.layers.Conv3DTranspose(
        stage.filters,
        stage.kernel_size,
        strides=stage.strides,
        dilation_rate=stage.dilation_rate,
        padding=stage.padding,
        output_padding=stage.output_padding,
        bias_initializer="ones",
    )


def test_every_layer_of_the_sweep_makes_the_shape_and_the_values_that_are_predicted():
    random = np.random.default_rng(0)
    for stage, sizes in product(stages(), sizes_of_inputs()):
        if sizes == sizes_of_inputs()[0]:
            layer = layer_of(stage)
        predicted = output_shape(stage, (1, *sizes, 1))
        x = random.normal(size=(1, *sizes, 1)).astype(np.float32)
        made = layer(x).numpy()
        assert tuple(layer.compute_output_shape(x.shape)) == made.shape == predicted, (stage, sizes)
        kernel = layer.kernel.numpy()
        reference = as_tensorflow(x, kernel, stage.strides, predicted[1:4], stage.padding, stage.dilation_rate)
        np.testing.assert_allclose(made, reference + 1, atol=1e-5, err_msg=f"{stage} {sizes}")


@pytest.mark.parametrize("padding", PADDINGS)
def test_a_stage_is_refused_exactly_where_keras_fails(padding):
    for kernel, stride, dilation, added in product(KERNELS, STRIDES, (1, 2), range(-1, 6)):
        triples = {
            "kernel_size": (kernel, 1, 1),
            "strides": (stride, 1, 1),
            "dilation_rate": (dilation, 1, 1),
            "output_padding": (added, 0, 0),
        }
        try:
            keras.layers.Conv3DTranspose(1, padding=padding, **triples)(np.ones((1, 3, 1, 1, 1), np.float32))
        except REFUSED:
            with pytest.raises(ShapeError):
                Stage(1, padding=padding, **triples)
        else:
            Stage(1, padding=padding, **triples)


def test_forward_check_and_accepted_output_shapes_are_those_of_the_real_operations():
    # With oneDNN, TensorFlow 2.21 answers with uninitialised memory where a "valid" input is smaller than the kernel.
    assert forward_disagreements(operation_axes(), below_kernel=False) == []
    assert transposed_disagreements(operation_axes(), below_kernel=False) == []


def test_forward_check_and_accepted_output_shapes_are_those_of_the_plain_kernels_at_any_size():
    script = "from tests.models.real_operations import *; print(disagreements_of_plain_kernels())"
    environment = {**os.environ, "TF_ENABLE_ONEDNN_OPTS": "0"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("strides", [(1, 2, 3), (4, 1, 2), (2, 2, 2)])
@pytest.mark.parametrize("padding", PADDINGS)
def test_the_operation_is_the_adjoint_of_the_forward_convolution(strides, padding):
    stage = Stage(3, (3, 4, 5), strides, padding=padding)
    shape = (2, 3, 5, 4, 2)
    made = output_shape(stage, shape)
    random = np.random.default_rng(1)
    x, y, weights = (
        tf.constant(random.normal(size=size), tf.float32) for size in (shape, made, stage.weights_shape(2))
    )
    forth = tf.nn.conv3d(y, weights, (1, *strides, 1), padding.upper())
    back = tf.nn.conv3d_transpose(x, weights, made, strides, padding.upper())
    np.testing.assert_allclose(tf.reduce_sum(forth * x), tf.reduce_sum(back * y), rtol=1e-4)
