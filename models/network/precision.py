"""A network in bfloat16."""

from typing import Any

import keras

from models.network.phases import with_layers

POLICY = "mixed_bfloat16"


def in_bfloat16(model: keras.Model) -> keras.Model:
    """Return the network with layers that compute in bfloat16, from float32 weights, which are copied.

    What makes the output keeps its precision: its layer and the convolutions of one filter, whose values are as
    large as those of a volume.
    """
    kept = {tensor._keras_history.operation.name for tensor in model.outputs}

    def policy(layer: keras.layers.Layer) -> dict[str, Any]:
        as_it_is = layer.name in kept or getattr(layer, "filters", 0) == 1 or isinstance(layer, keras.layers.InputLayer)
        return {} if as_it_is else {"dtype": POLICY}

    return with_layers(model, type, policy)
