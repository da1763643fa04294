import os

import keras
import pytest
import tensorflow as tf

from configs.errors import InputError
from tasks.machine import devices
from tasks.machine.cpus import WIDEST_VECTORS, limit_vectors
from tasks.machine.devices import XLA, layer_precision, precision_of_convolutions, require_precision
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


def test_tf32_is_on_only_while_it_is_wanted():
    enabled = tf.config.experimental.tensor_float_32_execution_enabled
    before = enabled()
    with precision_of_convolutions("float32"):
        assert not enabled()
        with precision_of_convolutions("tf32"):
            assert enabled()
        assert not enabled()
    assert enabled() == before


CPU_INFO = "processor\t: 0\nvendor_id\t: {}\ncpu family\t: {}\nflags\t\t: fma avx2{}\n"


@pytest.mark.parametrize(
    ("info", "given", "widest"),
    [
        (CPU_INFO.format("AuthenticAMD", 25, " avx512f"), None, "AVX2"),  # Zen 4
        (CPU_INFO.format("AuthenticAMD", 25, " avx512f"), "AVX512_CORE", "AVX512_CORE"),
        (CPU_INFO.format("AuthenticAMD", 25, ""), None, None),  # Zen 3
        (CPU_INFO.format("AuthenticAMD", 26, " avx512f"), None, None),  # Zen 5
        (CPU_INFO.format("GenuineIntel", 25, " avx512f"), None, None),
        ("processor : 0\nCPU implementer : 0x41\n", None, None),
        (None, None, None),
    ],
)
def test_vectors_are_limited_where_the_cpu_computes_wide_ones_in_halves(monkeypatch, tmp_path, info, given, widest):
    if info is not None:
        (tmp_path / "cpuinfo").write_text(info)
    monkeypatch.setenv(WIDEST_VECTORS, given or "")  # so that it is restored afterwards
    if given is None:
        monkeypatch.delenv(WIDEST_VECTORS)
    limit_vectors(tmp_path / "cpuinfo")
    assert os.environ.get(WIDEST_VECTORS) == widest


@pytest.mark.parametrize(("capability", "admitted"), [((7, 5), False), ((8, 0), True), ((9, 0), True), (None, False)])
def test_tf32_is_refused_by_a_device_that_has_none(monkeypatch, capability, admitted):
    gpus = [] if capability is None else [{"compute_capability": capability, "device_name": "A card"}]
    monkeypatch.setattr(devices, "_gpu_details", lambda: gpus)
    for other in ("float32", "bfloat16"):
        require_precision(other)
    if admitted:
        require_precision("tf32")
    else:
        with pytest.raises(InputError, match="Cannot restore in tf32 on this device, the CPU"):
            require_precision("tf32")
