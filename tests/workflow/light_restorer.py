"""A stand-in for the restorer of a worker, without TensorFlow: a network that changes nothing and loads in no time."""

from tasks.imaging.resample import resample_window
from tasks.sharding.restore import RestoredCore


class LightRestorer:
    """Resamples, and fails on bright volumes."""

    def __init__(self, name, content, threads):
        assert (name, threads) == ("small.keras", 1)
        assert content[:2] == b"PK"

    def __call__(self, volume, shard):
        # Mapped from shared memory: an array of the worker's own could be written to.
        assert not volume.voxels.flags.writeable
        if volume.voxels.max() > 1e6:
            raise RuntimeError("too bright")
        window = resample_window(volume.voxels, volume.target_shape, shard.read)
        return RestoredCore(window[shard.crop], 0.1, 0.2, 100.0)
