"""The command line as it is, but for what an environment variable asks for: `python -m tests.chaos.driver COMMAND …`.

`CHAOS_LIGHT` gives the workers a restorer without TensorFlow that takes a tenth of a second for a shard.
`CHAOS_CLOCK=AFTER,JUMP` lets the wall clock of this process jump by seconds, so many seconds after its start.
"""

import os
import threading
import time

import numpy as np

from tasks.imaging.resample import resample_window
from tasks.sharding.plan import Shard
from tasks.sharding.restore import CoarseVolume, RestoredCore
from workflow.cli import main

SECONDS = 0.1


class LightRestorer:
    """Resamples, as a network that changes nothing."""

    def __init__(
        self, name: str, content: bytes, threads: int | None, flips: int = 1, precision: str = "float32"
    ) -> None:
        del name, content, threads, flips, precision

    def __call__(self, volume: CoarseVolume, shard: Shard) -> RestoredCore:
        time.sleep(SECONDS)
        window = resample_window(volume.voxels, volume.target_shape, shard.read)
        return RestoredCore(np.ascontiguousarray(window[shard.crop]), 0.1, 0.2, 100.0).stored(volume, shard)


def let_jump(after: float, jump: float) -> None:
    """Let `time.time` jump, in a while."""
    real = time.time

    def start() -> None:
        time.time = lambda: real() + jump

    timer = threading.Timer(after, start)
    timer.daemon = True
    timer.start()


if __name__ == "__main__":
    if "CHAOS_LIGHT" in os.environ:
        import workflow.restore.restoration

        # By its name in the package, by which a worker imports it.
        from tests.chaos.driver import LightRestorer as Importable

        setattr(workflow.restore.restoration, "worker_restorer", Importable)  # noqa: B010 - in place of the real one
    if clock := os.environ.get("CHAOS_CLOCK"):
        let_jump(*map(float, clock.split(",")))
    main()
