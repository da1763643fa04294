"""The devices of this process: chosen once, before TensorFlow touches one."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import tensorflow as tf

from configs.errors import InputError
from configs.precision import Precision
from models.network.phases import DeviceKind

# Whether XLA compiles networks, which is not left to Keras. On the CPU it makes transposed convolutions two orders of
# magnitude slower. On a single GPU, where Keras' "auto" would compile, it compiles again for every shape of shard, and
# may choose another algorithm by timing, with other bits.
XLA: bool = False
TENSOR_CORES = (8, 0)  # compute capability from which GPUs have units for TF32 and bfloat16


def device_kind() -> DeviceKind:
    """Device of this process: "GPU" if it sees one, else "CPU"."""
    return "GPU" if tf.config.list_physical_devices("GPU") else "CPU"


def grow_memory() -> list[Any]:
    """Let the memory of each GPU grow as needed; returns the GPUs."""
    gpus: list[Any] = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)  # noqa: FBT003 - positional in TensorFlow's own examples
    return gpus


def mirrored_strategy(replicas: int | None, batch_size: int) -> tf.distribute.MirroredStrategy:
    """Make the strategy that training runs under.

    Args:
        replicas: Number of devices; None means every visible GPU, or one CPU. Several CPUs are logical devices.
        batch_size: Patches per step over all replicas.

    Raises:
        InputError: The GPUs are fewer than the replicas, or the batch does not divide by them.
    """
    gpus = grow_memory()
    count = replicas or max(1, len(gpus))
    if batch_size % count:
        raise InputError(
            f"Cannot train: training.batch_size must divide by the replicas, received {batch_size} over "
            f"{count} replicas.",
            f"Use a batch_size of {-(-batch_size // count) * count}, or set training.replicas.",
        )
    if gpus and count > len(gpus):
        raise InputError(
            f"Cannot train on {count} replicas: this node shows {len(gpus)} GPUs.",
            f"Set training.replicas to {len(gpus)}.",
        )
    if not gpus and count > 1:
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
    kind = "gpu" if gpus else "cpu"
    return tf.distribute.MirroredStrategy([f"/{kind}:{number}" for number in range(count)])


def claim_devices(threads: int) -> None:
    """Limit TensorFlow to the CPU threads of this process; on a GPU, let memory grow and make results repeatable."""
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    if grow_memory():
        # An algorithm that cuDNN chooses by timing gives other bits on another worker.
        tf.config.experimental.enable_op_determinism()


def device_name() -> str:
    """The device of this process for a report, such as "CPU" or "GPU (NVIDIA H200)"."""
    names = [details.get("device_name", "") for details in _gpu_details()]
    return device_kind() + (f" ({names[0]})" if names and names[0] else "")


def require_precision(precision: Precision) -> None:
    """Check that the device of this process computes in a precision.

    Raises:
        InputError: It has no TF32.
    """
    if precision == "tf32" and not has_tensor_cores():
        raise no_tf32(device_name())


def no_tf32(device: str) -> InputError:
    """The error of a device without TF32, which would compute in float32 what is recorded as TF32."""
    return InputError(
        f"Cannot restore in tf32 on this device, the {device}: GPUs of compute capability 8.0 and newer have it.",
        "Restore in float32 or bfloat16, or on such a GPU.",
    )


@contextmanager
def precision_of_convolutions(precision: Precision) -> Iterator[None]:
    """Let convolutions of float32 values in the block compute in TF32, TensorFlow's default, or in full."""
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(precision == "tf32")
    try:
        yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(before)


def _gpu_details() -> list[dict[str, Any]]:
    return [tf.config.experimental.get_device_details(gpu) for gpu in tf.config.list_physical_devices("GPU")]


def has_tensor_cores() -> bool:
    """True if there are GPUs, and all have units for TF32 and bfloat16."""
    capable = [details.get("compute_capability", (0, 0)) for details in _gpu_details()]
    return bool(capable) and min(capable) >= TENSOR_CORES


def layer_precision(wanted: str) -> str:
    """The Keras dtype policy of layers: "auto" is bfloat16 where every GPU has units for it, else float32."""
    if wanted == "auto":
        wanted = "bfloat16" if has_tensor_cores() else "off"
    return "float32" if wanted == "off" else f"mixed_{wanted}"
