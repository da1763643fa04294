"""The devices of this process: chosen once, before TensorFlow touches one."""

from typing import Any

import tensorflow as tf

from configs.errors import InputError
from models.network.phases import DeviceKind

# Whether XLA compiles networks, which is not left to Keras. On the CPU it makes transposed convolutions two orders of
# magnitude slower. On a single GPU, where Keras' "auto" would compile, it compiles again for every shape of shard, and
# may choose another algorithm by timing, with other bits.
XLA: bool = False


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
        # An algorithm that cuDNN chooses by timing gives other bits on another worker, and the 10 bits of TF32 other
        # numbers in a shard than in the whole volume.
        tf.config.experimental.enable_op_determinism()
        tf.config.experimental.enable_tensor_float_32_execution(False)  # noqa: FBT003 - its only argument


def layer_precision(wanted: str) -> str:
    """The Keras dtype policy of layers: "auto" is bfloat16 where every GPU has units for it, else float32."""
    if wanted == "auto":
        gpus = tf.config.list_physical_devices("GPU")
        capable = [tf.config.experimental.get_device_details(gpu).get("compute_capability", (0, 0)) for gpu in gpus]
        wanted = "bfloat16" if capable and min(capable) >= (8, 0) else "off"
    return "float32" if wanted == "off" else f"mixed_{wanted}"
