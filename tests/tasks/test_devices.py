import keras
import pytest
import tensorflow as tf

from tasks.machine.devices import XLA, layer_precision
from tests.networks import small_restorer


def resolved(model: keras.Model) -> bool:
    """Return the value that Keras gives `jit_compile="auto"`."""
    model.compile("sgd", "mse", jit_compile="auto")
    return bool(model.jit_compile)


def test_keras_would_choose_the_same_on_the_cpu_alone_and_under_a_strategy():
    assert resolved(small_restorer()) is XLA
    with tf.distribute.MirroredStrategy(["/cpu:0"]).scope():
        assert resolved(small_restorer()) is XLA


@pytest.mark.parametrize(
    ("wanted", "policy"), [("auto", "float32"), ("off", "float32"), ("bfloat16", "mixed_bfloat16")]
)
def test_half_precision_is_for_devices_that_gain_from_it(wanted, policy):
    # No GPU here: "auto" stays with single precision.
    assert layer_precision(wanted) == policy
