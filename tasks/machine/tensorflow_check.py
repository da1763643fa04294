"""Checks of TensorFlow, run in a process of its own: `python -m tasks.machine.tensorflow_check FOLDER`.

The process writes a line for each check as soon as it is made, so that none is lost when it dies.
"""

import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.precision import Precision
from tasks.machine.check import Attempt, Check, Checklist

CHECKS, IDENTITY = "checks.jsonl", "identity.keras"
GPU_DRIVERS = Path("/proc/driver/nvidia/gpus")
TOLERANCE = 1e-5
SETUP = "Run make setup, with EXTRA=gpu on a machine with an NVIDIA GPU."
DEVICE_REMEDY = "Update the driver of the device, or hide it with CUDA_VISIBLE_DEVICES=-1."
PRECISION_REMEDY = "Restore only in the precisions that pass; update the driver of the device and cuDNN."
# Of the largest value: the sum of a thousand products, of values with 24, 11 and 8 bits.
TOLERANCES: dict[Precision, float] = {"float32": TOLERANCE, "tf32": 2e-3, "bfloat16": 1e-2}
# Depth, height, width and channels. cuDNN has computed wrongly on large shapes alone, as of a whole volume.
LARGE = {"CPU": (48, 64, 64, 16), "GPU": (192, 224, 192, 32)}
COMPARED = 256  # voxels
MAX_SLOWDOWN = 10  # times the other choice

Triple = tuple[int, int, int]
# Kernel and strides: uneven overlap, even overlap, holes, an axis that stays, the three-stage form, no overlap.
TRANSPOSED: tuple[tuple[Triple, Triple], ...] = (
    ((3, 3, 3), (2, 2, 2)),
    ((4, 4, 4), (2, 2, 2)),
    ((3, 3, 3), (2, 4, 4)),
    ((3, 4, 4), (1, 2, 2)),
    ((4, 8, 8), (2, 4, 4)),
    ((2, 3, 5), (2, 3, 5)),
)


def tensorflow_checks(folder: Path) -> Iterator[Check]:
    """Check what networks need of TensorFlow, one thing after another; saves a network that returns its input."""
    remedy = f"{SETUP} Check that KERAS_BACKEND and keras.json name no backend but tensorflow."
    checks = Checklist()
    with checks.trying("TensorFlow", "importing it and Keras, listing devices", remedy) as loaded:
        _load(loaded)
    yield loaded.check
    rest: list[tuple[str, str, Callable[[Attempt], None], str]] = [
        *(
            (f"convolution on {device}", "against NumPy", partial(_convolve, device), DEVICE_REMEDY)
            for device in _devices()
        ),
        *(
            (f"precisions on {device}", "against float64", partial(_compare_precisions, device), PRECISION_REMEDY)
            for device in _devices()
        ),
        (
            "XLA",
            "a transposed convolution with and without it",
            _compare_xla,
            "Check that a convolution runs on each device.",
        ),
        (
            "transposed convolution",
            f"{len(TRANSPOSED)} kernels and strides against a scatter in NumPy",
            _compare_transposed,
            "Set TF_ENABLE_ONEDNN_OPTS=0 and try again; if that helps, report it to TensorFlow.",
        ),
        ("saved network", "building one and saving it", partial(_save_identity, folder / IDENTITY), SETUP),
    ]
    for name, tried, examine, remedy in rest:
        if loaded.failures:
            checks.not_tried(name, tried, "TensorFlow")
        else:
            with checks.trying(name, tried, remedy) as attempt:
                examine(attempt)
        yield checks.checks[-1]


def _load(attempt: Attempt) -> None:
    import keras
    import tensorflow as tf

    from tasks.machine.devices import grow_memory

    # TensorFloat-32 rounds to 10 bits: this checks the arithmetic, not the speed.
    tf.config.experimental.enable_tensor_float_32_execution(False)  # noqa: FBT003 - positional only
    gpus = grow_memory()
    seen = f"TensorFlow {tf.__version__}, Keras {keras.__version__}, devices: {', '.join(_devices())}"
    backend, order, floats = keras.backend.backend(), keras.config.image_data_format(), keras.config.floatx()
    if (backend, order, floats) != ("tensorflow", "channels_last", "float32"):
        attempt.failure(
            f"{seen}; Keras is set to {backend}, {order}, {floats}",
            "Unset KERAS_BACKEND, and remove keras.json from ~/.keras or KERAS_HOME.",
        )
        return
    drivers = len(list(GPU_DRIVERS.glob("*"))) if GPU_DRIVERS.is_dir() else 0
    if drivers > len(gpus):
        remedy = "Run make setup EXTRA=gpu; check that CUDA_VISIBLE_DEVICES hides none."
        attempt.warning(f"{seen}; the driver knows {drivers} NVIDIA GPUs", remedy)
    else:
        attempt.ok(seen)


def _devices() -> list[str]:
    """The devices of TensorFlow, such as "CPU:0"; that name alone where it cannot be imported."""
    try:
        import tensorflow as tf
    except Exception:  # noqa: BLE001 - reported by the check that imports it
        return ["CPU:0"]
    devices = tf.config.list_physical_devices("CPU") + tf.config.list_physical_devices("GPU")
    return [device.name.removeprefix("/physical_device:") for device in devices]


def _convolve(device: str, attempt: Attempt) -> None:
    import tensorflow as tf

    random = np.random.default_rng(0)
    volume = random.normal(size=(1, 10, 12, 14, 3)).astype(np.float32)
    weights = random.normal(size=(3, 3, 3, 3, 4)).astype(np.float32)
    started = time.perf_counter()
    with tf.device(f"/{device}"):
        made = tf.nn.conv3d(volume, weights, (1, 1, 1, 1, 1), "VALID")
    seconds = time.perf_counter() - started
    windows = np.lib.stride_tricks.sliding_window_view(volume, (3, 3, 3), axis=(1, 2, 3))
    expected = np.einsum("bdhwcijk,ijkco->bdhwo", windows, weights, dtype=np.float64, casting="unsafe")
    ran_on = made.device.rpartition("device:")[2]
    if ran_on != device:
        attempt.failure(f"it ran on {ran_on}")
    difference = np.abs(made.numpy() - expected).max() / np.abs(expected).max()
    _compare(attempt, difference, f"{seconds * 1e3:.0f} ms")


def _compare_precisions(device: str, attempt: Attempt) -> None:
    """Compare convolutions of a large volume with sums in float64, at voxels all over it; wrong ones are failures."""
    import tensorflow as tf

    from tasks.machine.devices import has_tensor_cores, precision_of_convolutions

    shape, random = LARGE[device.partition(":")[0]], np.random.default_rng(0)
    precisions: list[Precision] = ["float32", "tf32", "bfloat16"] if has_tensor_cores() else ["float32", "bfloat16"]
    at = np.stack([random.integers(1, size - 1, COMPARED) for size in shape[:3]], axis=1)
    at[0], at[1] = 1, np.array(shape[:3]) - 2
    for precision in precisions:
        values = tf.bfloat16 if precision == "bfloat16" else tf.float32
        with tf.device(f"/{device}"), precision_of_convolutions(precision):
            volume = tf.cast(tf.random.stateless_normal((1, *shape), (1, 2)), values)
            weights = tf.cast(tf.random.stateless_normal((3, 3, 3, shape[3], shape[3]), (3, 4)), values)
            made = tf.gather_nd(tf.nn.conv3d(volume, weights, (1, 1, 1, 1, 1), "SAME")[0], at)
            windows = tf.stack([volume[0, d - 1 : d + 2, h - 1 : h + 2, w - 1 : w + 2] for d, h, w in at])
        taps = tf.cast(weights, tf.float64).numpy()
        expected = np.einsum("ndhwi,dhwio->no", tf.cast(windows, tf.float64).numpy(), taps, optimize=True)
        difference = np.abs(tf.cast(made, tf.float64).numpy() - expected).max() / np.abs(expected).max()
        # Not `difference > limit`, which is false of NaN.
        note = attempt.ok if difference <= TOLERANCES[precision] else attempt.failure
        note(f"{precision} {difference:.0e} of the largest value")


def _compare_xla(attempt: Attempt) -> None:
    """Compare the choice made for the networks of this process with the other one."""
    import tensorflow as tf

    from tasks.machine.devices import XLA, device_kind

    kind, chosen = device_kind(), XLA
    latent, weights = tf.random.normal((1, 4, 14, 14, 32)), tf.random.normal((4, 4, 4, 16, 32))

    def milliseconds(jit: bool) -> float:  # noqa: FBT001 - named at every call
        def stage(tensor: Any) -> Any:  # noqa: ANN401 - TensorFlow has no types
            return tf.nn.conv3d_transpose(tensor, weights, (1, 8, 28, 28, 16), (2, 2, 2))

        compiled = tf.function(stage, jit_compile=jit)
        compiled(latent)
        started = time.perf_counter()
        compiled(latent).numpy()
        return (time.perf_counter() - started) * 1e3

    plain = milliseconds(jit=False)
    try:
        fused = milliseconds(jit=True)
    except Exception as error:
        if chosen:
            raise
        attempt.ok(f"networks run without it on the {kind}, where it does not compile ({type(error).__name__})")
        return
    choice = f"networks run {'with' if chosen else 'without'} it on the {kind}"
    seen = f"{choice}: {plain:.1f} ms without, {fused:.1f} ms with"
    mine, other = (fused, plain) if chosen else (plain, fused)
    if mine > MAX_SLOWDOWN * other:
        attempt.warning(seen, f"Set XLA to {not chosen} in tasks/machine/devices.py.")
    else:
        attempt.ok(seen)


def _compare_transposed(attempt: Attempt) -> None:
    import keras

    from models.network.phases import with_phases

    random = np.random.default_rng(0)
    volume = random.normal(size=(2, 3, 4, 5, 3)).astype(np.float32)
    worst = 0.0
    for (kernel_size, strides), filters in itertools.product(TRANSPOSED, (1, 2)):
        inputs = keras.Input(volume.shape[1:])
        layer = keras.layers.Conv3DTranspose(filters, kernel_size, strides, padding="same", use_bias=False)
        model = keras.Model(inputs, layer(inputs))
        weights = random.normal(size=layer.kernel.shape).astype(np.float32)
        layer.set_weights([weights])
        expected = scattered(volume, weights, strides)
        for form in (model, with_phases(model, "GPU")):
            made = np.asarray(form(volume))
            if made.shape != expected.shape:
                attempt.failure(f"kernel {kernel_size}, strides {strides}: shape {made.shape}")
                return
            worst = max(worst, float(np.abs(made - expected).max() / np.abs(expected).max()))
    _compare(attempt, worst, f"{len(TRANSPOSED)} as layer and by phases")


def scattered(volume: NDArray[Any], weights: NDArray[Any], strides: Triple) -> NDArray[np.float64]:
    """Transposed convolution by its definition, with padding SAME: every input voxel adds its weighted taps.

    Args:
        volume: `(batch, depth, height, width, in)`.
        weights: `(depth, height, width, out, in)`.
        strides: Output voxels per input voxel.

    Returns:
        `(batch, depth, height, width, out)`, of size `size * stride` along each axis.
    """
    sizes, kernel_size = volume.shape[1:4], weights.shape[:3]
    whole = [(size - 1) * stride + kernel for size, stride, kernel in zip(sizes, strides, kernel_size, strict=True)]
    wanted = [size * stride for size, stride in zip(sizes, strides, strict=True)]
    room = [max(pair) for pair in zip(whole, wanted, strict=True)]
    full = np.zeros((volume.shape[0], *room, weights.shape[3]))
    for tap in np.ndindex(*kernel_size):
        reached = [slice(t, t + (n - 1) * s + 1, s) for t, n, s in zip(tap, sizes, strides, strict=True)]
        full[:, reached[0], reached[1], reached[2]] += volume.astype(np.float64) @ weights[tap].T
    before = [max(0, size - aim) // 2 for size, aim in zip(whole, wanted, strict=True)]
    window = [slice(start, start + aim) for start, aim in zip(before, wanted, strict=True)]
    return full[:, window[0], window[1], window[2]]


def _save_identity(path: Path, attempt: Attempt) -> None:
    from models.network.identity import build_identity

    build_identity().save(path)
    attempt.ok(f"{path.stat().st_size} bytes")


def _compare(attempt: Attempt, difference: float, detail: str) -> None:
    # Not `difference > TOLERANCE`, which is false of NaN.
    note = attempt.ok if difference <= TOLERANCE else attempt.failure
    note(f"largest difference {difference:.1e} of the largest value, {detail}")


def main() -> None:
    """Write the checks into the folder that the command line names."""
    folder = Path(sys.argv[1])
    with (folder / CHECKS).open("w") as file:
        for check in tensorflow_checks(folder):
            file.write(json.dumps(asdict(check)) + "\n")
            file.flush()


if __name__ == "__main__":
    main()
