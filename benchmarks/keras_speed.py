"""One measurement of the network in a process of its own: `python -m benchmarks.keras_speed WHAT MODEL [BUDGET]`.

`make` saves the default restorer with random weights, and the same for PyTorch; `whole` calls the Keras model once on
the whole grid; `sharded` runs the shards of the plan. Prints JSON.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.memory import peak_mib
from configs.axes import NetworkShape

GRID = (192, 224, 192)
THREADS = 2
REPEATS = 5


def volume() -> np.ndarray:
    return np.random.default_rng(0).random(GRID, np.float32)


def make(path: Path) -> None:
    import keras

    from configs.schema import Network
    from models.network.graph import read_graph
    from models.network.restorer import build_restorer
    from models.stages.stage import network_stages

    keras.utils.set_random_seed(0)
    network = Network()
    model = build_restorer(
        network_stages(network),
        latent_filters=network.latent_filters,
        convolutions=network.convolutions,
        skip=network.skip,
        activation=network.activation,
    )
    generator = np.random.default_rng(0)
    # The last stage starts from zeros, and no layer may be skipped by being zero.
    model.layers[-2].set_weights([generator.normal(0, 0.05, w.shape) for w in model.layers[-2].get_weights()])
    model.save(path)
    graph = read_graph(model.get_config())
    nodes = [
        {"kind": node.kind, "sources": node.sources, "weights": node.name}
        | {key: node.config.get(key) for key in ("kernel_size", "strides", "activation")}
        for node in graph.nodes
    ]
    weights = {f"{layer.name}/{place}": w for layer in model.layers for place, w in enumerate(layer.get_weights())}
    np.savez(path.with_suffix(".npz"), **weights)
    path.with_suffix(".json").write_text(json.dumps({"nodes": nodes, "output": graph.output}))


def whole(path: Path) -> dict[str, float]:
    """The shorter of calling the model and of `predict`, on the whole grid."""
    import tensorflow as tf

    from tasks.artifacts.saved_models import load_model
    from tasks.machine.devices import claim_devices

    claim_devices(THREADS)
    model = load_model(path)
    batch = tf.constant(volume()[None, ..., None])
    called = timed(lambda: np.asarray(model(batch, training=False)))
    predicted = timed(lambda: model.predict_on_batch(batch))
    answer = np.asarray(model(batch, training=False))
    return {"seconds": min(called, predicted), "check": float(answer[0, 50:60, 60:70, 70:80, 0].mean())}


def sharded(path: Path, budget: int) -> dict[str, float]:
    from tasks.artifacts.network_file import read_network
    from tasks.sharding.plan import plan_shards
    from tasks.sharding.restore import CoarseVolume, worker_restorer
    from tasks.volume.intensity import Intensity

    file = read_network(path)
    plan = plan_shards(NetworkShape(*GRID), file.cost, budget)
    restorer, unchanged = worker_restorer(file.name, file.content, THREADS, *file.arithmetic), Intensity(0, 1)
    coarse, restored = CoarseVolume(volume(), plan.target_shape, unchanged), np.empty(GRID, np.float32)

    def restore() -> None:
        for shard in plan.shards:
            restored[tuple(slice(*side) for side in shard.core)] = restorer(coarse, shard).voxels

    restorer.restored(coarse.voxels[:8, :16, :16], unchanged)
    idle = peak_mib()
    seconds = timed(restore)
    return {
        "seconds": seconds,
        "check": float(restored[50:60, 60:70, 70:80].mean()),
        "shards": len(plan.shards),
        "overhead": plan.overhead,
        "mib": peak_mib() - idle,
        "estimated_mib": plan.shard_bytes / 2**20,
    }


def timed(work: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return min(times)


if __name__ == "__main__":
    what, model_path, *rest = sys.argv[1:]
    measurements: dict[str, Callable[..., dict[str, float] | None]] = {"make": make, "whole": whole, "sharded": sharded}
    found = measurements[what](Path(model_path), *map(int, rest))
    print(json.dumps(found or {}))
