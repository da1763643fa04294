"""The network and the optimizer of a configuration, built with Keras."""

from typing import Any

import keras

from configs.schema import Network, Training
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


def learning_rate_schedule(training: Training) -> keras.optimizers.schedules.LearningRateSchedule:
    """Build the schedule: a linear rise from zero over the warm-up, then half a cosine to a fiftieth of the peak."""
    warmup = min(training.warmup_steps, training.steps - 1)
    return keras.optimizers.schedules.CosineDecay(
        0.0 if warmup else training.learning_rate,
        decay_steps=max(1, training.steps - warmup),
        alpha=0.02,
        warmup_target=training.learning_rate if warmup else None,
        warmup_steps=warmup,
    )


def optimizer(training: Training, schedule: Any) -> keras.optimizers.Optimizer:  # noqa: ANN401 - a schedule
    """Build the configured optimizer."""
    if training.optimizer == "sgd":
        return keras.optimizers.SGD(schedule)
    if training.optimizer == "adamw":
        return keras.optimizers.AdamW(schedule, weight_decay=training.weight_decay)
    return keras.optimizers.Adam(schedule)
