"""Optimizers: the optimizer of a configuration and its learning rate."""

from typing import Any

import keras

from configs.schema import Training


def learning_rate_schedule(training: Training) -> keras.optimizers.schedules.LearningRateSchedule:
    """A linear rise from zero over the warm-up, then half a cosine down to a fiftieth of the peak."""
    warmup = min(training.warmup_steps, training.steps - 1)
    return keras.optimizers.schedules.CosineDecay(
        0.0 if warmup else training.learning_rate,
        decay_steps=max(1, training.steps - warmup),
        alpha=0.02,
        warmup_target=training.learning_rate if warmup else None,
        warmup_steps=warmup,
    )


def optimizer(training: Training, schedule: Any) -> keras.optimizers.Optimizer:  # noqa: ANN401 - a schedule
    """Make the optimizer that a configuration names."""
    if training.optimizer == "sgd":
        return keras.optimizers.SGD(schedule)
    if training.optimizer == "adamw":
        return keras.optimizers.AdamW(schedule, weight_decay=training.weight_decay)
    return keras.optimizers.Adam(schedule)
