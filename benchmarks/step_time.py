"""A training step here and in PyTorch: `python -m benchmarks.step_time`.

The same network, batch and optimizer on the same threads, in turns, so that what else the machine does falls on both.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from benchmarks.sharding import peer_python

THREADS, BATCH, STEPS, ROUNDS = 2, 2, 8, 3
PATCH = (16, 112, 112)
TORCH = Path(__file__).with_name("step_in_torch.py")


def network() -> dict[str, object]:
    from configs.schema import Network

    chosen = Network()
    return {
        "latent_filters": chosen.latent_filters,
        "stages": [stage.model_dump() for stage in chosen.stages],
        "convolutions": chosen.convolutions_per_level,
        "skip": chosen.skip,
        "patch": PATCH,
        "batch_size": BATCH,
        "steps": STEPS,
        "threads": THREADS,
    }


def ours() -> None:
    """Time steps of our own in this process; prints JSON."""
    import keras
    import numpy as np
    import tensorflow as tf

    from configs.schema import Network
    from models.network.phases import with_fast_gradients
    from tasks.training.networks import build_network

    tf.config.threading.set_intra_op_parallelism_threads(THREADS)
    keras.utils.set_random_seed(0)
    model = with_fast_gradients(build_network(Network()), "CPU")
    optimizer = keras.optimizers.Adam(1e-4)
    optimizer.build(model.trainable_variables)
    random = np.random.default_rng(0)
    resampled, fine = (tf.constant(random.random((BATCH, *PATCH, 1), np.float32)) for _ in range(2))

    @tf.function(jit_compile=False)  # type: ignore[untyped-decorator] # TensorFlow has no types
    def step() -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(resampled, training=True) - fine))
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        return loss

    float(step())
    seconds = []
    for _ in range(STEPS):
        begun = time.perf_counter()
        float(step())
        seconds.append(time.perf_counter() - begun)
    print(json.dumps({"parameters": model.count_params(), "seconds": seconds}))


def main() -> None:
    asked = json.dumps(network())
    environment = os.environ | {"OMP_NUM_THREADS": str(THREADS), "TF_CPP_MIN_LOG_LEVEL": "3"}
    commands: dict[str, list[str]] = {
        "voxlift": [sys.executable, "-m", "benchmarks.step_time", "--ours"],
        "PyTorch, channels last": [str(peer_python()), str(TORCH)],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    parameters = {}
    for _ in range(ROUNDS):
        for name, command in commands.items():
            ran = subprocess.run(command, input=asked, env=environment, capture_output=True, text=True, check=True)
            reported = json.loads(ran.stdout.splitlines()[-1])
            parameters[name] = reported["parameters"]
            seconds[name] += reported["seconds"]
    if len(set(parameters.values())) != 1:
        raise SystemExit(f"the networks differ: {parameters} parameters")
    weights = next(iter(parameters.values()))
    print(f"Training step, batch of {BATCH} patches of {PATCH}, {THREADS} threads, {weights} weights")
    for name, each in seconds.items():
        print(f"  {name:24} median {1000 * median(each):6.0f} ms, least {1000 * min(each):6.0f} ms")
    here, there = seconds.values()
    print(f"  ratio of medians {median(here) / median(there):.2f}, of least {min(here) / min(there):.2f}")


if __name__ == "__main__":
    ours() if "--ours" in sys.argv else main()
