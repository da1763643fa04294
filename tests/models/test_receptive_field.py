"""The receptive field, against the gradients of real networks."""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial

import keras
import numpy as np
import pytest
import tensorflow as tf

from configs.errors import ShapeError
from models.network.graph import read_graph
from models.network.receptive_field import receptive_field
from tests.networks import ROUTES, convolution, small_restorer

layers = keras.layers


def field_of(model):
    return receptive_field(read_graph(model.get_config()))


def moved_by(model, size, axis, start, stop):
    """The voxels of one axis whose value moves the core `[start, stop)`, by gradient, in float64."""
    shape = [max(8, field.stride) for field in field_of(model).axes]
    shape[axis] = size
    generator = np.random.default_rng(5)
    volume = tf.constant(generator.normal(size=(1, *shape, 1)))
    weights = np.zeros((1, *shape, 1))
    core = [slice(None)] * 5
    core[axis + 1] = slice(start, stop)
    weights[tuple(core)] = generator.normal(size=weights[tuple(core)].shape)
    with tf.GradientTape() as tape:
        tape.watch(volume)
        total = tf.reduce_sum(model(volume, training=False) * weights)
    gradient = np.abs(tape.gradient(total, volume).numpy()[0, ..., 0])
    moving = np.flatnonzero(gradient.max(axis=tuple({0, 1, 2} - {axis})))
    return moving[0], moving[-1] + 1


@pytest.fixture
def double_precision():
    """Gradients at the far end of a receptive field are small: float64 keeps them from vanishing."""
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")


def one_input(*chain):
    inputs = keras.Input((None, None, None, 1))
    tensor = inputs
    for layer in chain:
        tensor = layer(tensor)
    return keras.Model(inputs, tensor)


def branches():
    inputs = keras.Input((None, None, None, 1))
    wide = convolution(2, 5, dilation_rate=2)(inputs)
    far = layers.Cropping3D(((4, 0), (0, 4), (2, 2)))(layers.ZeroPadding3D(((0, 4), (4, 0), (2, 2)))(wide))
    return keras.Model(inputs, layers.Concatenate()([inputs * 0.5, far]) + 1.0)


def nested():
    latent = keras.Input((None, None, None, 3), name="latent")
    tensor = latent
    for number in range(2):
        tensor = convolution(2, 4, layers.Conv3DTranspose, strides=2, name=f"stage_{number}")(tensor)
    upsampler = keras.Model(latent, tensor, name="upsampler")
    encoder = keras.Sequential([layers.Input((None, None, None, 1)), convolution(3, 5, strides=4)], name="encoder")
    return one_input(encoder, upsampler, convolution(1, 1))


NETWORKS: dict[str, Callable[[], keras.Model]] = {
    **{name: partial(small_restorer, name) for name in ROUTES},
    "two convolutions a level": lambda: small_restorer("three stages", convolutions=1),
    "identity": lambda: one_input(layers.Identity()),
    "dilated": lambda: one_input(convolution(1, (3, 4, 2), dilation_rate=(3, 2, 1))),
    "kernel below stride": lambda: one_input(
        convolution(2, (1, 2, 3), strides=4), convolution(1, (4, 5, 7), layers.Conv3DTranspose, strides=4)
    ),
    "pooled and repeated": lambda: one_input(
        layers.AveragePooling3D((2, 2, 3), strides=2, padding="same", dtype="float32"),
        convolution(1),
        layers.UpSampling3D(2),
    ),
    "padded by hand": lambda: one_input(
        layers.ZeroPadding3D(((1, 1), (3, 1), (0, 4))), convolution(1, (3, 5, 5), padding="valid")
    ),
    "valid and transposed": lambda: one_input(
        convolution(2, (4, 3, 5), padding="valid", strides=(2, 1, 2)),
        convolution(1, (4, 3, 5), layers.Conv3DTranspose, padding="valid", strides=(2, 1, 2)),
        layers.ZeroPadding3D(((0, 0), (0, 0), (1, 0))),
    ),
    "branches": branches,
    "nested": nested,
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.usefixtures("double_precision")
def test_gradients_fill_the_interval_and_nothing_else(name):
    model = NETWORKS[name]()
    for axis, field in enumerate(field_of(model).axes):
        middle = field.stride * (max(field.halo) // field.stride + 2)
        start, stop = middle + axis * field.stride // 3, middle + field.stride
        first, end = field.needed(start, stop)
        assert moved_by(model, 2 * middle + field.stride, axis, start, stop) == (first, end)
        read = field.read(start, stop)
        assert read[0] <= first
        assert end <= read[1]
        assert {edge % field.stride for edge in read} == {0}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_read_is_exact_but_for_its_trim(name):
    """Count what a tile of a volume gets wrong, voxel by voxel."""
    model = NETWORKS[name]()
    field = field_of(model)
    shape = tuple(3 * axis.stride + (2 * sum(axis.trim) // axis.stride + 1) * axis.stride for axis in field.axes)
    for axis, along in enumerate(field.axes):
        size = [max(8, each.stride) for each in field.axes]
        size[axis] = shape[axis]
        volume = np.random.default_rng(2).normal(size=(1, *size, 1)).astype("float32")
        tile = [slice(None)] * 5
        tile[axis + 1] = slice(along.stride, shape[axis] - along.stride)
        whole = model(volume, training=False).numpy()[tuple(tile)]
        difference = np.abs(model(volume[tuple(tile)], training=False).numpy() - whole)
        wrong = difference.max(axis=tuple({0, 1, 2, 3, 4} - {axis + 1})) > 2e-6
        before, after = along.trim
        assert not wrong[before : wrong.size - after].any()
        assert before <= along.halo[0]
        assert after <= along.halo[1]


def test_strides_and_halo_of_the_routes():
    for name in ROUTES:
        assert field_of(small_restorer(name)).strides == (8, 16, 16)
    assert field_of(one_input(convolution(1, 4, layers.Conv3DTranspose))).halo == ((2, 1),) * 3


def test_a_file_gives_the_field_without_tensorflow():
    model = small_restorer()
    architecture = json.dumps({"class_name": "Functional", "config": model.get_config()})
    script = (
        "import json, sys; from models.network.graph import read_graph;"
        "from models.network.receptive_field import receptive_field;"
        "print(receptive_field(read_graph(json.load(sys.stdin))).halo);"
        "assert not {'keras', 'tensorflow'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], input=architecture, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(field_of(model).halo)


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (lambda: layers.GlobalAveragePooling3D(keepdims=True, name="gap"), "gap"),
        (lambda: layers.GroupNormalization(1, name="group"), "group"),
        (lambda: layers.LayerNormalization(axis=(1, 2, 3), name="over_space"), "over_space"),
        (lambda: layers.Conv3DTranspose(1, 3, strides=2, padding="same", output_padding=1, name="up"), "up"),
    ],
)
def test_a_layer_without_a_finite_field_is_named(layer, name):
    inputs = keras.Input((16, 16, 16, 1))
    tensor = layer()(layers.Conv3D(2, 3, strides=2, padding="same")(inputs))
    with pytest.raises(ShapeError, match=rf"layer {name} "):
        field_of(keras.Model(inputs, tensor))


def test_another_grid_is_refused():
    with pytest.raises(ShapeError, match=r"another depth than its input, n/\(2\) for an input of n"):
        field_of(one_input(convolution(1, strides=2)))


def test_two_volumes_in_are_refused():
    inputs = [keras.Input((None, None, None, 1)) for _ in range(2)]
    with pytest.raises(ShapeError, match="has 2 and 1"):
        field_of(keras.Model(inputs, layers.Add()(inputs)))
