"""The devices of this process: chosen once, before TensorFlow touches one."""

import tensorflow as tf

from configs.errors import InputError

# Whether XLA compiles networks; Keras is not left to choose. On the CPU it makes transposed
# convolutions two orders of magnitude slower. On a lone GPU Keras' "auto" would compile; here it does not, because XLA
# compiles anew for every shape of shard, and what it then picks by timing need not be the same bits twice.
XLA: bool = False


def device_kind() -> str:
    """Device of this process: "GPU" if it sees one, else "CPU"."""
    return "GPU" if tf.config.list_physical_devices("GPU") else "CPU"


def mirrored_strategy(replicas: int | None, batch_size: int) -> tf.distribute.MirroredStrategy:
    """Make the strategy that training runs under.

    Args:
        replicas: How many; None means one per visible GPU, or one CPU where there is no GPU. Without GPUs, several are
            logical CPU devices.
        batch_size: Patches per step over all replicas.

    Returns:
        A strategy over that many devices. GPUs grow their memory as needed.

    Raises:
        InputError: The GPUs are fewer than the replicas, or the batch does not divide by them.
    """
    gpus = tf.config.list_physical_devices("GPU")
    count = replicas or max(1, len(gpus))
    if batch_size % count:
        raise InputError(
            f"Cannot train: training.batch_size must divide by the replicas, received {batch_size} over "
            f"{count} replicas.",
            f"Use a batch_size of {-(-batch_size // count) * count}, or set training.replicas.",
        )
    if gpus:
        if count > len(gpus):
            raise InputError(
                f"Cannot train on {count} replicas: this node shows {len(gpus)} GPUs.",
                f"Set training.replicas to {len(gpus)}.",
            )
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, True)  # noqa: FBT003 - positional in TensorFlow's own examples
        return tf.distribute.MirroredStrategy([f"/gpu:{number}" for number in range(count)])
    if count > 1:
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
    return tf.distribute.MirroredStrategy([f"/cpu:{number}" for number in range(count)])


def claim_devices(threads: int) -> None:
    """Keep TensorFlow to the CPU threads that this process was given; on a GPU, let memory grow and sums be repeatable.

    Args:
        threads: For the operations of a network; they run one after another.
    """
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)  # noqa: FBT003 - positional in TensorFlow's own examples
    if gpus:
        # What cuDNN picks by timing is not the same bits on every worker, and the 10 bits of TF32 not the same numbers
        # in a shard as in the whole volume.
        tf.config.experimental.enable_op_determinism()
        tf.config.experimental.enable_tensor_float_32_execution(False)  # noqa: FBT003 - its only argument


def layer_precision(wanted: str) -> str:
    """The Keras dtype policy of layers: "auto" is bfloat16 where every GPU has units for it, else float32."""
    if wanted == "auto":
        gpus = tf.config.list_physical_devices("GPU")
        capable = [tf.config.experimental.get_device_details(gpu).get("compute_capability", (0, 0)) for gpu in gpus]
        wanted = "bfloat16" if capable and min(capable) >= (8, 0) else "off"
    return "float32" if wanted == "off" else f"mixed_{wanted}"
