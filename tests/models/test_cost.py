"""The cost of a network by its layers alone, against what Keras counts and against a sum by hand."""

import keras

from models.network.cost import Cost
from models.network.graph import read_graph
from models.network.receptive_field import receptive_field
from tests.networks import small_restorer


def cost_of(model):
    graph = read_graph(model.get_config())
    return Cost(graph, receptive_field(graph))


def test_parameters_are_those_that_keras_counts():
    model = small_restorer(filters=3, convolutions=1)
    assert cost_of(model).parameters == model.count_params()


def test_training_keeps_every_tensor_and_what_activations_were_given():
    inputs = keras.Input((None, None, None, 1))
    half = keras.layers.Conv3D(5, 4, strides=2, padding="same", activation="relu")(inputs)
    back = keras.layers.Conv3DTranspose(1, 4, strides=2, padding="same")(half)
    model = keras.Model(inputs, keras.layers.Add()([inputs, back]))
    voxels = 4 * 6 * 8
    assert cost_of(model).kept_bytes((4, 6, 8)) == 4 * (voxels + 2 * 5 * voxels // 8 + voxels + voxels)
