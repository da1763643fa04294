"""A network that streams through a volume: the same as in one pass, from any step on, and no plane made twice."""

from itertools import pairwise

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from models.network.graph import read_graph
from models.network.phases import with_phases
from models.network.receptive_field import receptive_field
from models.network.streamed import StreamedNetwork
from models.network.streaming import Stream
from tests.networks import ROUTES, convolution, small_restorer

SHAPES = [
    *((40, 80, 96), (41, 83, 95), (9, 100, 33), (1, 1, 1), (7, 15, 200), (130, 17, 16)),
    *((5, 160, 3), (64, 64, 64), (200, 5, 7), (33, 129, 65), (8, 16, 16), (90, 2, 50)),
]


class Walk:
    """A walk through a volume, from its start or from a step on."""

    def __init__(self, model, shape, axis, slabs, *, phases=False):
        graph = read_graph(model.get_config())
        self.field, self.graph, self.axis = receptive_field(graph), graph, axis
        padded = [-(-size // each.stride) * each.stride for size, each in zip(shape, self.field.axes, strict=True)]
        self.volume = np.random.default_rng(8).random((1, *padded, 1), np.float32)
        along = self.field.axes[axis]
        self.stream = Stream(along, padded[axis], along.stride * slabs)
        self.network = StreamedNetwork(with_phases(model, "GPU") if phases else model, graph)

    def outputs(self, begin=None):
        """The output of each step from `begin` on, by its number."""
        first = self.stream.first if begin is None else self.stream.warm_up(begin)
        pieces = [self.blank(node, planes) for node, planes in self.stream.step(first).pieces]
        for number in range(first, self.stream.steps):
            step = self.stream.step(number, begin)
            entry = tf.constant(np.take(self.volume, range(*self.stream.entry(number)), 1 + self.axis))
            output, kept = self.network(step, self.axis, entry, pieces)
            after = [*pieces, *kept]
            pieces = [after[place] for place in step.remaining]
            if output is not None and number >= (begin or 0):
                yield number, output.numpy()

    def blank(self, node, planes):
        """NaN: nothing that counts is made of what a warm-up has not computed."""
        sides = [
            int(size / each.sizes[node].step) - each.sizes[node].loss
            for size, each in zip(self.volume.shape[1:4], self.field.axes, strict=True)
        ]
        sides[self.axis] = planes
        return tf.fill((1, *sides, self.graph.nodes[node].channels), np.float32(np.nan))


def assert_streamed(model, shape, axis, slabs, **options):
    walk = Walk(model, shape, axis, slabs, **options)
    streamed = np.concatenate([output for _, output in walk.outputs()], 1 + axis)
    np.testing.assert_allclose(streamed, model(walk.volume, training=False).numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(("place", "shape"), list(enumerate(SHAPES)))
def test_streamed_is_one_pass(route, shape, place):
    assert_streamed(small_restorer(route), shape, place % 3, 1 + place % 2, phases=bool(place % 4 // 2))


@pytest.mark.parametrize("axis", range(3))
def test_a_walk_that_begins_anywhere_has_the_same_bits(axis):
    walk = Walk(small_restorer(convolutions=1), [(72, 20, 20), (8, 144, 16), (8, 20, 150)][axis], axis, 1)
    whole = dict(walk.outputs())
    for begin in range(1, walk.stream.steps, 3):
        for number, output in walk.outputs(begin):
            np.testing.assert_array_equal(output, whole[number])


@pytest.mark.parametrize("axis", range(3))
def test_no_plane_is_made_twice_and_steps_in_the_middle_are_alike(axis):
    stream = Walk(small_restorer(), (240, 480, 496), axis, 1).stream
    for node in (stream.field.entry, 3, 9, stream.field.output):
        size = stream.field.sizes[node]
        made = [stream.made(node, number) for number in range(stream.first, stream.steps)]
        assert made[0][0] == 0
        assert made[-1][1] <= stream.size / size.step - size.loss
        assert all(before[1] == after[0] for before, after in pairwise(made))
    assert max(stream.kinds.values()) > stream.steps // 2
    assert len(stream.kinds) < 20


@pytest.mark.parametrize("axis", range(3))
def test_a_transposed_stage_reads_as_few_planes_twice_as_its_kernel_permits(axis):
    walk = Walk(small_restorer(), (240, 480, 496), axis, 1)
    (steady, _), *_ = walk.stream.kinds.most_common()
    stages = [
        (node.config["kernel_size"][axis], node.config["strides"][axis], work)
        for node, work in zip(walk.graph.nodes, steady.layers, strict=True)
        if node.kind == "Conv3DTranspose"
    ]
    assert len(stages) == 4
    for kernel, stride, work in stages:
        assert work.read_planes[0] == work.planes // stride + -(-kernel // stride) - 1


def test_a_warm_up_does_only_the_work_that_counts():
    stream = Walk(small_restorer(convolutions=1), (16, 240, 16), 1, 1).stream
    warm_up = [stream.step(number, 12) for number in range(stream.warm_up(12), 12)]
    skipped = [sum(layer.skipped for layer in step.layers) for step in warm_up]
    assert skipped == sorted(skipped, reverse=True)
    assert skipped[-1] > 0
    assert stream.step(12, 12) == stream.step(12)


def layers(draw, tensor, channels):
    """Draw layers that keep the grid of a tensor."""
    kind = draw(st.sampled_from(["convolution", "dilated", "pool", "cropped", "normalised", "scaled"]))
    kernel = tuple(draw(st.integers(1, 3)) for _ in range(3))
    match kind:
        case "convolution":
            return convolution(channels, kernel)(tensor)
        case "dilated":
            return convolution(channels, kernel, dilation_rate=2)(tensor)
        case "pool":
            pool = draw(st.sampled_from([keras.layers.MaxPooling3D, keras.layers.AveragePooling3D]))
            return pool(kernel, 1, padding="same")(tensor)
        case "cropped":
            padded = keras.layers.ZeroPadding3D(((1, 2), (0, 1), (2, 0)))(tensor)
            return keras.layers.Cropping3D(((2, 1), (1, 0), (1, 1)))(padded)
        case "normalised":
            return keras.layers.LayerNormalization()(tensor)
    return 0.5 + tensor / 2.0


def network(draw):
    """Draw an encoder and a decoder of one or two levels."""
    keras.utils.set_random_seed(draw(st.integers(0, 99)))
    channels = draw(st.integers(1, 3))
    tensor = inputs = keras.Input((None, None, None, 1))
    skips = []
    strides = [tuple(draw(st.integers(1, 3)) for _ in range(3)) for _ in range(draw(st.integers(1, 2)))]
    for stride in strides:
        for _ in range(draw(st.integers(0, 2))):
            tensor = layers(draw, tensor, channels)
        skips.append(tensor)
        # On CPUs TensorFlow 2.21 computes now and then a wrong plane where one channel is read in strides that leave
        # out planes, in one pass too.
        least = stride if tensor.shape[-1] == 1 else (1, 1, 1)
        kernel = tuple(draw(st.integers(lowest, 4)) for lowest in least)
        tensor = convolution(channels, kernel, strides=stride)(tensor)
    for stride, skip in zip(reversed(strides), reversed(skips), strict=True):
        if draw(st.booleans()):
            kernel = tuple(draw(st.integers(1, 5)) for _ in range(3))
            tensor = convolution(channels, kernel, keras.layers.Conv3DTranspose, strides=stride)(tensor)
        else:
            tensor = keras.layers.UpSampling3D(stride)(tensor)
        if draw(st.booleans()):
            tensor = keras.layers.Concatenate()([skip, tensor])
    return keras.Model(inputs, convolution(1)(layers(draw, tensor, channels)))


# In one pass, too, TensorFlow needs a width of two of what a strided convolution makes of one channel.
@given(st.data(), st.tuples(*[st.integers(1, 40)] * 2, st.integers(10, 40)), st.integers(0, 2), st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_any_network_streams(data, shape, axis, slabs):
    assert_streamed(network(data.draw), shape, axis, slabs)


def test_models_inside_a_model_and_shared_layers_stream():
    shared, inputs = convolution(2), keras.Input((None, None, None, 2))
    inner = keras.Model(inputs, shared(shared(inputs)), name="inner")
    outer = keras.Input((None, None, None, 1))
    tensor = keras.Sequential([convolution(2, strides=2), convolution(2)], name="down")(outer)
    tensor = keras.layers.UpSampling3D(2)(inner(inner(tensor)))
    model = keras.Model(outer, keras.layers.Add()([convolution(1)(tensor), 1.0 - outer]))
    assert_streamed(model, (40, 11, 9), 0, 2)


def test_a_network_of_mixed_precision_streams():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = small_restorer()
    finally:
        keras.config.set_dtype_policy("float32")
    walk = Walk(model, (40, 32, 32), 0, 1)
    streamed = np.concatenate([output for _, output in walk.outputs()], 1)
    whole = model(walk.volume, training=False).numpy()
    assert streamed.dtype == whole.dtype
    np.testing.assert_allclose(np.float32(streamed), np.float32(whole), rtol=0, atol=0.05)


def test_a_step_that_makes_a_width_of_one_is_computed_right():
    inputs = keras.Input((None, None, None, 1))
    tensor = convolution(2, (3, 2, 4), strides=(3, 1, 3))(inputs)
    model = keras.Model(inputs, convolution(1)(keras.layers.UpSampling3D((3, 1, 3))(tensor)))
    assert_streamed(model, (3, 40, 33), 2, 2)
