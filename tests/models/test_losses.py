"""Losses against plain NumPy."""

from typing import get_args

import numpy as np
import pytest
import tensorflow as tf

from configs.load import load_config
from configs.schema import LossName
from models.network.losses import LOSSES, weighted
from tasks.imaging.consistency import correct
from tasks.imaging.degrade import degrade
from tasks.scoring.metrics import ssim
from tasks.training.loop import patch_degradations

random = np.random.default_rng(0)
TARGET = random.random((2, 8, 16, 16, 1), np.float32)
OUTPUT = TARGET + random.normal(0, 0.1, TARGET.shape).astype(np.float32)
ERROR = (OUTPUT - TARGET).astype(np.float64)
RUN = load_config("demo", ["training.patch=[8, 16, 16]"])
PATCHES = patch_degradations(RUN).of_patches(tf.zeros(2, tf.int32), tf.fill([2], 1e-4))


def loss(name, target=TARGET, output=OUTPUT):
    return LOSSES[name](tf.constant(target), tf.constant(output), PATCHES).numpy()


def gradient_in_numpy():
    steps = [np.abs(np.diff(ERROR, axis=axis)).mean(axis=(1, 2, 3, 4)) for axis in (1, 2, 3)]
    return np.mean(steps, axis=0)


def consistency_in_numpy():
    lost = [degrade(patch[..., 0].astype(np.float32), RUN.degradation) for patch in ERROR]
    return np.mean(np.square(lost), axis=(1, 2, 3))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("l1", np.abs(ERROR).mean(axis=(1, 2, 3, 4))),
        ("l2", np.square(ERROR).mean(axis=(1, 2, 3, 4))),
        ("charbonnier", (np.sqrt(ERROR**2 + 1e-6) - 1e-3).mean(axis=(1, 2, 3, 4))),
        ("gradient", gradient_in_numpy()),
        ("consistency", consistency_in_numpy()),
    ],
)
def test_a_loss_is_its_formula_per_patch(name, expected):
    np.testing.assert_allclose(loss(name), expected, rtol=1e-4)


def test_null_space_is_what_the_correction_leaves():
    left = []
    for target, output in zip(TARGET[..., 0], OUTPUT[..., 0], strict=True):
        corrected = correct(output, degrade(target, RUN.degradation), RUN.degradation, tolerance=0).voxels
        left.append(np.mean((corrected - target) ** 2))
    np.testing.assert_allclose(loss("null_space"), left, rtol=0.05)
    assert (loss("null_space") < loss("l2")).all()


def test_ssim_is_nearly_that_of_the_scores():
    # The scores use a Gaussian window, the loss a uniform one.
    inside = np.zeros(TARGET.shape[1:4], bool)
    inside[3:-3, 3:-3, 3:-3] = True
    similar = [ssim(t[..., 0], o[..., 0], inside) for t, o in zip(TARGET, OUTPUT, strict=True)]
    np.testing.assert_allclose(1 - loss("ssim"), similar, atol=0.02)


@pytest.mark.parametrize("name", LOSSES)
def test_no_error_is_no_loss(name):
    np.testing.assert_allclose(loss(name, output=TARGET), 0, atol=1e-6)


def test_losses_add_up_by_weight():
    total = weighted({"l1": 2.0, "l2": 0.5})(tf.constant(TARGET), tf.constant(OUTPUT), PATCHES).numpy()
    np.testing.assert_allclose(total, 2 * loss("l1") + 0.5 * loss("l2"), rtol=1e-6)


def test_the_configuration_knows_every_loss():
    assert set(get_args(LossName)) == set(LOSSES)
