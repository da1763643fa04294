"""The network of a configuration, built with Keras."""

import keras

from configs.schema import Network
from models.network.restorer import build_restorer
from models.stages.stage import network_stages


def build_network(network: Network, precision: str = "float32") -> keras.Model:
    """Build a configured network; `precision` is the Keras dtype policy of its layers."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        return build_restorer(
            network_stages(network),
            latent_filters=network.latent_filters,
            convolutions=network.convolutions_per_level,
            skip=network.skip,
            activation=network.activation,
        )
    finally:
        keras.config.set_dtype_policy(before)
